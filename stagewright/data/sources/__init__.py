"""Finds the images of DATA: a folder, a table, or the name of a built-in data set."""
