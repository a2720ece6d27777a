"""Measures how well an order mixes classes: blocks of a pack that is sorted by class would give batches of one class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stagewright.data.batches.blocked_order import blocked_places
from stagewright.data.batches.order import batch_places
from stagewright.data.batches.specs import stage_blocks, stage_rows, updates_of
from stagewright.data.manifest import Manifest
from stagewright.plan.plan import Plan

WARN_BELOW = 0.8
_MOST_BATCHES = 64


def class_mixing(plan: Plan, manifest: Manifest) -> float | None:
    """Returns the number of distinct classes in a batch as a share of what the order ``full`` gives, the lowest of all stages.

    It is the mean over up to 64 batches of the stage's first pass, of the plan's own seed, so it is deterministic. None if the
    order is full, or no stage trains by updates.
    """
    if plan.recipe.order == "full":
        return None
    found = []
    for stage in plan.stages:
        if stage.fit != "updates":
            continue
        rows, blocks = stage_rows(plan, manifest, stage), stage_blocks(plan, manifest, stage)
        assert blocks is not None
        labels = np.tile(manifest.labels[rows], 1 + stage.augment.copies)
        steps = max(1, min(stage.num_steps, len(labels) // stage.batch_size))
        chosen = np.unique(np.linspace(0, steps - 1, _MOST_BATCHES).astype(np.int64)).tolist()
        seed, first = plan.recipe.seed, stage.first_pass
        blocked = [blocked_places(seed, blocks, updates_of(stage), first, step)[0] for step in chosen]
        full = [batch_places(seed, len(labels), first, stage.batch_size, step)[0] for step in chosen]
        found.append(_distinct(labels, blocked) / _distinct(labels, full))
    return min(found, default=None)


def _distinct(labels: NDArray[np.int32], batches: list[NDArray[np.int64]]) -> float:
    return float(np.mean([len(np.unique(labels[places])) for places in batches]))
