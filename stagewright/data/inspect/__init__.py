"""Inspection of a data set before training."""
