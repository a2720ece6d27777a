"""Measurements on this machine before a run: values of ``auto`` fields, costs of a plan, speed of loading, installation."""
