"""From a folder, a table or a name to a list of images."""
