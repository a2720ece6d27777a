"""Data: from what a person points at to pictures, labels and a split that is written down (no torch but in the loader)."""
