"""One update and one evaluation: no files, no clock."""
