"""Who may import whom: the rooms of the package in layers, the lowest first. ``docs/notes/architecture.md`` draws them."""

from __future__ import annotations

LAYERS: list[list[str | tuple[str, ...]]] = [
    ["errors", "rng", "text"],
    ["system", "measures"],
    ["storage", "distributed"],
    [("recipe", "plan")],
    [("augment", "data"), "model"],
    ["rundir", "bundle", "engine"],
    ["mirror"],
    ["training", "observers", "report", "trackers"],
    [("preflight", "api", "study", "comparison", "launch")],
    ["cli"],
    ["__main__"],
]
"""A room may import every row above its own in this list, and within a tuple what stands to its left; nothing else."""
