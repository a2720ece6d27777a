"""The machine and this process: devices, memory, signals, output streams, threads, child processes."""
