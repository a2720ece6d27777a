"""The copy of a run in an object store: written beside the training, owned by one process, and read to resume anywhere."""
