"""What happened in a run, read from its files alone: plots and one self-contained page. Imports neither torch nor run."""
