"""The program's version; the image format's version is in `imager.image.format`."""

VERSION = "0.1.0"
