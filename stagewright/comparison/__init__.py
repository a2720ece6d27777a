"""Many runs compared: which of them are the same recipe with other seeds, their answers to the same pictures, and a table."""
