"""Ordinary runs that belong together, carried out as one, each in a directory of its own; calls ``api``, never the loop."""
