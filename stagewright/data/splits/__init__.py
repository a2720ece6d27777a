"""Splits written to folders: parts, folds, links."""
