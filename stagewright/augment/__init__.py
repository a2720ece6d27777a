"""Augmentation: draws random parameters from keys (pure functions) and applies them to batches of images."""
