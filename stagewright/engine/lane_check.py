"""Finds out by trying whether a network can be trained in lanes."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagewright.errors import ModelError
from stagewright.model.average import has_batch_norm
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.model.zoo import create_outline
from stagewright.plan.plan import Plan
from stagewright.system.named_functions import is_named

SMALL_LANE = 16
"""Images of a lane below which batch-norm statistics are noisy enough to lower the accuracy (arXiv:1803.08494, figure 1)."""


def small_lanes_notice(plan: Plan) -> str | None:
    """Returns a sentence for the user where batch norms take their statistics over few images because of the lanes, else None.

    A network that a user's function makes is not looked at.
    """
    small = [
        stage
        for stage in plan.stages
        if stage.fit == "updates" and stage.norm == "train" and stage.lanes > 1 and stage.lane_size < SMALL_LANE
    ]
    spec = plan.recipe.model
    if not small or is_named(spec.name):
        return None
    size = max(stage.image_size for stage in plan.stages)
    model = create_outline(spec.name, len(plan.dataset.classes), image_size=size, options=spec.options)
    if not has_batch_norm(model):
        return None
    stage = min(small, key=lambda one: one.lane_size)
    return (
        f"stage {stage.name!r}: batch norms see {stage.lane_size} pictures at a time ({stage.batch_size} in {stage.lanes} "
        f"lanes); below {SMALL_LANE} the accuracy suffers: a larger batch_size, a smaller spread, or norm: frozen"
    )


def check_buffers(model: nn.Module, plan: Plan) -> None:
    """Raises ModelError if a training step of ``model``, which is on the CPU, changes a buffer other than the statistics of batch
    norms in a stage with several lanes: such a buffer would depend on which process carries out which lane."""
    tried = set[tuple[object, object]]()
    for stage in plan.stages:
        if stage.lanes > 1 and (stage.train, stage.norm) not in tried:
            tried.add((stage.train, stage.norm))
            refuse_changed_buffers(model, stage.name, stage.lanes, (stage.train, stage.norm), stage.image_size)


def refuse_changed_buffers(
    model: nn.Module, stage: str, lanes: int, trained: tuple[str | tuple[str, ...], str], image_size: int
) -> None:
    """Raises ModelError as :func:`check_buffers`, for one ``stage`` with several ``lanes``; ``trained`` is its ``train`` and
    ``norm``."""
    if changed := _changed_buffers(model, *trained, image_size):
        raise ModelError(
            f"stage {stage!r} has {lanes} lanes, but a training step of {type(model).__name__} changes its "
            f"buffer{'s' if len(changed) > 1 else ''} {', '.join(changed[:5])}",
            "buffers that training leaves as they are, apart from the statistics of batch norms",
            "train in one lane (spread: 1, and a micro_batch_size of the whole batch), or make it a parameter",
        )


def _changed_buffers(model: nn.Module, train: str | tuple[str, ...], norm: str, size: int) -> list[str]:
    trial = copy.deepcopy(model)
    apply_trainable(trial, train)
    set_train_mode(trial, norm)
    statistics = {
        id(buffer) for part in trial.modules() if isinstance(part, _BatchNorm) for buffer in part.buffers(recurse=False)
    }
    before = {name: (buffer, buffer.clone()) for name, buffer in trial.named_buffers() if id(buffer) not in statistics}
    if not before:
        return []
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trial(torch.randn(2, 3, size, size, generator=generator))
    own = dict(trial.named_buffers())
    return [
        name
        for name, (buffer, old) in before.items()
        if own.get(name) is not buffer or not torch.equal(buffer.nan_to_num(), old.nan_to_num())
    ]
