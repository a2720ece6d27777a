"""Runs a training: loop, session, evaluation, divergence guard, logs."""
