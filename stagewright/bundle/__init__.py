"""A trained model in a folder: saved, loaded, asked."""
