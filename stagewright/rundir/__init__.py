"""A run's directory: files, events, checkpoints, summary."""
