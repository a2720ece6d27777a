"""Images in an object store, read in blocks through a cache on disk that knows what is needed next."""
