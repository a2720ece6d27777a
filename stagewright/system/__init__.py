"""The machine and this process: signals, output, threads."""
