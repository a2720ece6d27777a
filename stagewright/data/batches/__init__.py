"""Selects the images of each batch, loads batches in worker threads, and copies them to the device."""
