"""Reads images from files or memory, decodes and crops them."""
