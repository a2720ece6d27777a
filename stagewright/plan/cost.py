"""Costs: what the stages of a plan take on a machine, and what the whole run will take there.

:mod:`stagewright.preflight.cost_probe` measures the first; :func:`forecast` computes the second from it, for any plan of the
same stages. All times are wall-clock seconds, memory is in GiB. Pure, no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stagewright.plan.plan import Plan, StagePlan
from stagewright.text import number_text, percent_text

PAGE_GAP_SECONDS = 60.0
"""Between two pages of a run under way. One takes about 1.8 s of a processor, and on 2 cores that train it costs the training
1 to 1.3 s, since its threads wait for each other (in a session of its own 2.4 s): every 20 s that was 6 %."""
_BEHIND = 1.1
"""Loading that makes a step take less than this many times what it takes without is hidden behind it."""
_DISTURBED_CORES = 0.2


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage takes, measured."""

    step_seconds: float
    """One update with its loading, as they overlap in a run."""
    load_seconds: float | None
    """One batch, with nothing but the loader at work; None where that was not measured."""
    compute_seconds: float | None
    """One update of pictures that are there already; None where that was not measured."""
    entry_seconds: float
    """Once, at the stage's beginning, beyond its steps: compiling, first steps, features that are computed once."""
    eval_fixed_seconds: float
    """One evaluation of a split by all sets of weights (raw, averaged), apart from its pictures."""
    eval_image_seconds: float
    """Each picture of it."""
    recalibrate_seconds: float
    """Batch-norm statistics of averaged weights, before each evaluation of them."""
    save_seconds: float
    """One checkpoint, read back and verified: optimizers keep something of what trains alone."""
    train_gb: float
    """Highest use: of the device's memory, allocated; on a CPU, of this process's resident memory."""
    eval_gb: float
    short: StageCost | None = None
    """What it takes where the stage is too short to show each picture once, so that features of a frozen body are not
    kept; None where that makes no difference."""

    def of(self, stage: StagePlan) -> StageCost:
        """The cost that counts for a stage of ``stage``'s length."""
        brief = stage.num_steps * stage.batch_size < stage.num_images
        return self.short if brief and self.short is not None else self

    def evaluation(self, num_images: int) -> float:
        """Seconds of one evaluation of ``num_images`` pictures by all sets of weights, without recalibration."""
        return self.eval_fixed_seconds + num_images * self.eval_image_seconds if num_images else 0.0


@dataclass(frozen=True)
class Costs:
    """What a run takes on one machine, stage by stage and beside the stages."""

    stages: tuple[StageCost, ...]
    """One for each stage of the plan."""
    startup_seconds: float
    """From the start of the process until the data set was read."""
    setup_seconds: float
    """Run directory, model, weights, device."""
    first_image_seconds: float
    """Decoding a picture of a set that stays decoded in memory, once each; 0 for other sets."""
    checkpoint_bytes: int
    finish_seconds: float
    """After the last step, beside evaluating: best weights read, model and pages written."""
    page_seconds: float
    """Plots and report.html, in a process of their own; 0 where none are written."""
    page_drag_seconds: float
    """What training loses to such a process, every :data:`PAGE_GAP_SECONDS` or less often."""
    probe_seconds: float
    """What measuring all this took."""
    device: str
    others_cores: float | None = None
    """Processor cores that other processes used meanwhile; None where that is not known."""

    @property
    def is_noisy(self) -> bool:
        """Whether others took so much of the machine that the times are not to be relied on."""
        return self.others_cores is not None and self.others_cores > _DISTURBED_CORES

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a program."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StageForecast:
    """Seconds that a stage will take."""

    entry_seconds: float
    train_seconds: float
    eval_seconds: float

    @property
    def total_seconds(self) -> float:
        return self.entry_seconds + self.train_seconds + self.eval_seconds


@dataclass(frozen=True)
class Forecast:
    """Seconds that a run will take, from the start of its process to the end of it."""

    stages: tuple[StageForecast, ...]
    startup_seconds: float
    setup_seconds: float
    """Run directory, model, device, and what stages take at their beginning."""
    train_seconds: float
    eval_seconds: float
    checkpoint_seconds: float
    finish_seconds: float
    num_saves: int

    @property
    def total_seconds(self) -> float:
        return self.startup_seconds + self.ahead_seconds

    @property
    def ahead_seconds(self) -> float:
        """All that comes after the data set was read."""
        parts = (self.setup_seconds, self.train_seconds, self.eval_seconds, self.checkpoint_seconds)
        return sum(parts) + self.finish_seconds

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a program."""
        return {**asdict(self), "total_seconds": self.total_seconds}


def forecast(plan: Plan, costs: Costs, *, save_minutes: float = 10.0) -> Forecast:
    """What ``plan`` will take where ``costs`` were measured, for a plan with the same stages, of any lengths.

    Every evaluation is taken to be saved, as one that improved is; runs that stop early take less.
    """
    info = plan.dataset
    own = [cost.of(stage) for stage, cost in zip(plan.stages, costs.stages, strict=True)]
    stages = tuple(_stage_forecast(plan, stage, cost) for stage, cost in zip(plan.stages, own, strict=True))
    num_saves, save_seconds = _saves(plan, own, save_minutes)
    first_use = costs.first_image_seconds * (info.num_train + info.num_val + info.num_test)
    last = costs.stages[-1].short or costs.stages[-1]  # the finished model is evaluated as a whole
    final = (last.evaluation(info.num_val) + last.evaluation(info.num_test)) / num_weights(plan.stages[-1])
    final += last.recalibrate_seconds
    train_seconds = sum(stage.train_seconds for stage in stages)
    pages = min(len(plan.eval_steps), 1 + int(train_seconds / PAGE_GAP_SECONDS))
    return Forecast(
        stages=stages,
        startup_seconds=costs.startup_seconds,
        setup_seconds=costs.setup_seconds + first_use + sum(stage.entry_seconds for stage in stages),
        train_seconds=train_seconds + pages * costs.page_drag_seconds,
        eval_seconds=sum(stage.eval_seconds for stage in stages),
        checkpoint_seconds=save_seconds,
        finish_seconds=costs.finish_seconds + costs.page_seconds + final,
        num_saves=num_saves,
    )


def _stage_forecast(plan: Plan, stage: StagePlan, cost: StageCost) -> StageForecast:
    return StageForecast(
        entry_seconds=cost.entry_seconds,
        train_seconds=stage.num_steps * cost.step_seconds,
        eval_seconds=plan.num_evaluations(stage) * evaluation_seconds(plan, cost),
    )


def evaluation_seconds(plan: Plan, cost: StageCost) -> float:
    """One evaluation of the validation pictures, as the loop has it."""
    return cost.evaluation(plan.dataset.num_val) + cost.recalibrate_seconds


def num_weights(stage: StagePlan) -> int:
    """Sets of weights that evaluations in ``stage`` judge: the raw ones and, where there are some, averaged ones."""
    return 1 if stage.average.kind == "none" else 2


def _saves(plan: Plan, costs: Sequence[StageCost], save_minutes: float) -> tuple[int, float]:
    """(number, seconds) of the saves of the plan, of improvements, and of stretches longer than ``save_minutes`` without."""
    marks = sorted({0, *plan.save_steps, *plan.eval_steps})
    count, seconds = 0, 0.0
    for begin, end in itertools.pairwise(marks):
        cost = costs[plan.stage_before(end).index]  # a stage's end is always a mark
        saves = 1 + int((end - begin) * cost.step_seconds / (60 * save_minutes))
        count, seconds = count + saves, seconds + saves * cost.save_seconds
    return count, seconds


Pace = Literal["computing", "loading", "both", "unknown"]


def pace(cost: StageCost) -> Pace:
    """What sets the pace of a stage: computing (loading is hidden behind it), loading, or both, where they share the cores
    and a step takes longer for either. Unknown where a step took too long to see its parts in the time given."""
    load, compute = cost.load_seconds, cost.compute_seconds
    if load is None or compute is None:
        return "unknown"
    if load > compute:
        return "loading"
    hidden = cost.step_seconds <= _BEHIND * compute or load < (_BEHIND - 1) * compute
    return "computing" if hidden else "both"


def pace_sentence(names: str, cost: StageCost, batch_size: int) -> str:
    """The pace of a stage in words, for the stages called ``names``."""
    speed = f"{number_text(batch_size / max(cost.step_seconds, 1e-9))} images/s"
    found = pace(cost)
    if found == "unknown" or cost.load_seconds is None or cost.compute_seconds is None:
        return f"{names}: {speed}; a step takes too long to see its parts in the time given."
    if found == "loading":
        able = number_text(batch_size / max(cost.compute_seconds, 1e-9))
        return (
            f"{names}: loading pictures is the bottleneck, at {speed}; computing alone could take {able}. More threads (-j) "
            f"or a packed copy (stagewright data pack) would help."
        )
    if found == "computing":
        return f"{names}: computing is the bottleneck, at {speed}; loading pictures is hidden behind it."
    share = percent_text(100 * (1 - cost.compute_seconds / cost.step_seconds), 0)
    return (
        f"{names}: computing is the bottleneck, at {speed}; loading pictures takes {share} of the time, since both share "
        f"the cores. A packed copy (stagewright data pack) would help a little."
    )


def noise_warning(costs: Costs) -> str:
    """What to think of figures that were measured beside other processes."""
    return (
        f"Other processes used {costs.others_cores:.1f} processor cores while this machine was measured: the times are those "
        f"of a busy machine, and change with what the others do."
    )
