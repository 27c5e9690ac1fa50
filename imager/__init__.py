"""Bare-metal disk imaging: capture a disk into one image file, check it, restore it."""
