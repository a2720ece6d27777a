"""Observers of a run: they receive its events and show them, and do not affect it."""
