"""Images in files and in memory, decoded and cropped."""
