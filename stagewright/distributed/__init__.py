"""Several processes that carry out one training: who takes part, how their gradients are summed, how a lost one is noticed."""
