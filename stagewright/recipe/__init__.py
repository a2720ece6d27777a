"""Recipes: their schema, the shipped ones, and auto, which chooses one."""
