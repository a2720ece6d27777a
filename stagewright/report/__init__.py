"""Report of a run, created only from its files: plots and one self-contained page. Imports neither torch nor training code."""
