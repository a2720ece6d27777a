"""Models: builds networks by name, loads weights, selects trainable parameters and averages weights.

Functions here take plain arguments and ``nn.Module``; none of them depends on a Recipe, a Plan or a Run.
"""
