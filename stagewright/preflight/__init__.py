"""What is measured on this machine before a plan is final."""
