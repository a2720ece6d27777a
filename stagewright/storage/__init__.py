"""Files that survive a kill and a failing disk: one reader, one writer, the lock of a run's directory."""
