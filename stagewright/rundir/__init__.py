"""The run directory and its files: events, logs, checkpoints, summary."""
