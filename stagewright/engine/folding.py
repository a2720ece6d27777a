"""Decides what of a run's network is folded in its evaluations."""

from __future__ import annotations

import torch

from stagewright.engine.state import TrainState
from stagewright.model.fold import find_pairs
from stagewright.plan.plan import Plan, eval_image_size


def evaluation_pairs(plan: Plan, state: TrainState) -> dict[str, str]:
    """Returns the pairs of the network that evaluations fold; empty unless ``eval.fold`` holds: on a CPU, not compiled.

    A function of plan and network alone, never of weights or of a measured time, so that a resumed run evaluates the same bits.
    """
    if not plan.recipe.eval.fold or plan.recipe.compile or state.device.type != "cpu":
        return {}
    size = eval_image_size(plan, plan.stages[0])
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return find_pairs(state.model, images)
