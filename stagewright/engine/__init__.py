"""Carries out one update or one evaluation; reads no clock and writes no files."""
