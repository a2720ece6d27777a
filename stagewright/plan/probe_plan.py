"""Rehearsal: the plan that a probe carries out, made of the stages of a real one. Pure, no torch.

Each distinct stage of the real plan stands in it once, long enough to be measured for as long as one likes, at a learning
rate that leaves the weights where they are: what a step costs does not depend on it, and no stage's numbers run away
because those before it were left out. Where a stage may train its head on features of a frozen body, it stands there twice:
as it is where it shows each picture at least once, and as it is where it is too short for that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from stagewright.plan.plan import Plan, StagePlan
from stagewright.plan.schedule import Curve

STEPS = 10**6
"""Of each rehearsed stage."""
_LEFT_OUT = (
    *("index", "name", "first_step", "num_steps", "data_fraction", "first_pass", "num_passes", "epochs_asked"),
    *("epochs_given", "epochs_before", "label_smoothing", "clip_norm", "weight_decay", "momentum", "momentum_range"),
    *("on_enter", "peak_lr", "curve", "curve_first_step", "average_log_decay", "average_log_before", "average_every"),
)
"""What makes no difference to the cost of a step."""
_TINY = 1e-12


@dataclass(frozen=True)
class ProbePlan:
    """A plan to measure, and what its stages stand for."""

    plan: Plan
    long: tuple[int, ...]
    """For each stage of the real plan the rehearsed stage that has its cost, where it shows each picture once or more."""
    short: tuple[int, ...]
    """The same for a stage that is shorter. Equal to ``long`` where that makes no difference."""


def probe_plan(plan: Plan, alike: Callable[[StagePlan], bool]) -> ProbePlan:
    """The rehearsal of ``plan``. ``alike``: whether a stage sees its pictures in every pass alike, so that features of a
    frozen body could be kept (:func:`stagewright.data.batches.specs.has_fixed_views`)."""
    keys: dict[str, int] = {}
    stages: list[StagePlan] = []

    def place(stage: StagePlan, key: str) -> int:
        if key not in keys:
            keys[key] = len(stages)
            stages.append(_drawn_out(stage, len(stages)))
        return keys[key]

    long, short = [], []
    for stage in plan.stages:
        frozen = stage.train != "all" and alike(stage)
        long.append(place(stage, _key(stage, frozen)))
        # As many pictures as no stage can show: it then looks too short for features to pay.
        many = stage.model_copy(update={"num_images": STEPS * stage.batch_size + 1})
        short.append(place(many, _key(many, frozen)) if frozen else long[-1])
    rehearsed = Plan.model_validate(
        {
            **{name: getattr(plan, name) for name in Plan.model_fields},
            "stages": tuple(stages),
            "total_steps": stages[-1].end_step,
            "eval_steps": (),
            "save_steps": (),
        }
    )
    return ProbePlan(rehearsed, tuple(long), tuple(short))


def _key(stage: StagePlan, frozen: bool) -> str:
    """Equal for stages whose steps cost the same."""
    content = stage.model_dump(mode="json", exclude=set(_LEFT_OUT))
    content["clipped"] = stage.clip_norm is not None
    content["mix"] = bool(stage.mix.probability and (stage.mix.mixup or stage.mix.cutmix))
    content["average"] = [stage.average.kind, stage.average.recalibrate]
    if not frozen:
        del content["num_images"]  # else the features of all of them have to fit
    return json.dumps(content, sort_keys=True)


def _drawn_out(stage: StagePlan, index: int) -> StagePlan:
    first = index * STEPS
    changes = {
        "index": index,
        "first_step": first,
        "num_steps": STEPS,
        "peak_lr": _TINY * stage.peak_lr,
        "curve": Curve(kind="constant", num_steps=STEPS),
        "curve_first_step": first,
        "momentum_range": None,
    }
    return stage.model_copy(update=changes)
