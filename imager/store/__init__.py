"""A store: a folder of images, one folder for each machine and in it one for each disk.

    STORE/imager-store.json                       the marker: without it nothing is written here
    STORE/HOST/DISK/2026-11-22T02-00-00Z.img      an image, or its parts (.img.0001 ...)
                    ...Z.img.expired              given up by a prune, its space not yet given back
                    ...Z.img.partial              being written
                    ...Z.img.json                 when it was checked, and what was found
                    ...Z.img.pinned               it is kept whatever the rules say

There is no database: all that is known is read from the images' heads and manifests. What else lies
beside an image only costs a check when it is lost, but for the pins.
"""
