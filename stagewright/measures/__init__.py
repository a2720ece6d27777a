"""How good answers are: pure functions of labels, predictions and probabilities, with 95 % intervals. Needs no torch."""
