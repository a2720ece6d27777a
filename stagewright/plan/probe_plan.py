"""The plan that the cost probe runs in order to measure the stages of a real plan. Pure, no torch.

It contains each distinct stage of the real plan once, long enough to be measured for any time. Its learning rate is so small
that the weights hardly change: the time of a step does not depend on it, and no stage diverges because earlier stages are
missing. A stage that may train its head on cached features of a frozen body is contained twice: once as if it uses each
image at least once, and once as if it is too short for that, since the costs differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagewright.plan.plan import Plan, StagePlan
from stagewright.plan.schedule import Curve

STEPS = 10**6
"""Number of steps of each stage in the probe plan."""
_WITHOUT_COST = (
    *("index", "name", "first_step", "num_steps", "data_fraction", "first_pass", "num_passes", "epochs_asked"),
    *("epochs_given", "epochs_before", "label_smoothing", "clip_norm", "weight_decay", "momentum", "momentum_range"),
    *("on_enter", "peak_lr", "curve", "curve_first_step", "average_log_decay", "average_log_before", "average_every"),
)
"""Fields that do not affect the cost of a step."""
_TINY = 1e-12


@dataclass(frozen=True)
class ProbePlan:
    """A plan to measure, and which of its stages belong to which stages of the real plan."""

    plan: Plan
    long: tuple[int, ...]
    """For each stage of the real plan: index of the probe stage with its cost, if the stage uses each image at least once."""
    short: tuple[int, ...]
    """The same for a shorter stage; equal to ``long`` if the costs do not differ."""


def probe_plan(plan: Plan, has_fixed_views: Callable[[StagePlan], bool]) -> ProbePlan:
    """Returns the probe plan of ``plan``. ``has_fixed_views`` returns whether a stage's images are equal in every pass, so that
    features of a frozen body can be cached (:func:`stagewright.data.batches.specs.has_fixed_views`)."""
    keys: dict[str, int] = {}
    stages: list[StagePlan] = []

    def place(stage: StagePlan, frozen: bool) -> int:
        key = json.dumps(cost_fields(stage, frozen), sort_keys=True)
        if key not in keys:
            keys[key] = len(stages)
            stages.append(_lengthened(stage, len(stages)))
        return keys[key]

    long, short = [], []
    for stage in plan.stages:
        optimum = stage.fit == "optimum"
        frozen = stage.train != "all" and not stage.cache_views and has_fixed_views(stage)
        long.append(place(stage, frozen))
        # More images than the stage can use: it is then too short for cached features to save time.
        many = stage.model_copy(update={"num_images": STEPS * stage.batch_size + 1})
        short.append(place(many, frozen) if frozen and not optimum else long[-1])
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


def cost_fields(stage: StagePlan, frozen: bool) -> dict[str, Any]:
    """Returns what the cost of a step of ``stage`` depends on: equal for stages whose steps have equal costs."""
    content = stage.model_dump(mode="json", exclude=set(_WITHOUT_COST))
    content["clipped"] = stage.clip_norm is not None
    content["mix"] = bool(stage.mix.probability and (stage.mix.mixup or stage.mix.cutmix))
    content["average"] = [stage.average.kind, stage.average.recalibrate]
    if not (frozen or stage.cache_views):
        del content["num_images"]  # it matters only for cached features, which must fit into memory
    return content


def _lengthened(stage: StagePlan, index: int) -> StagePlan:
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
