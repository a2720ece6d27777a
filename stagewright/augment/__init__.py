"""What happens to pictures between file and network: parameters from keys (pure), and their application in batches."""
