"""Packs: many images in few files."""
