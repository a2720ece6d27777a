"""Packs: data sets of resized images in a few large files."""
