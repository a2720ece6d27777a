"""Models: building them by name, loading weights, choosing what trains, and the Bundle that carries a trained one away.

The room's convention: plain arguments in, ``nn.Module`` out. Nothing here knows a Recipe, a Plan or a Run.
"""
