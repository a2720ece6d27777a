"""What is wanted: the schema of a recipe and the shipped ones."""
