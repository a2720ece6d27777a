"""Costs: the measured time and memory of a plan's stages on a machine, and the forecast for the whole run.

:mod:`stagewright.preflight.cost_probe` measures the costs; :func:`forecast` computes the time of any plan with the same stages
from them. All times are wall-clock seconds, memory is in GiB. The functions are pure and do not use torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stagewright.plan.plan import HEAD_GRID, Plan, StagePlan
from stagewright.text import number_text, percent_text

PAGE_GAP_SECONDS = 60.0
"""Time between two updates of a run's plots and report. One update takes about 1.8 s of processor time. On 2 cores in use by a
training it delays the training by 1 to 1.3 s (by 2.4 s from a process in its own session); every 20 s that was 6 %."""
_BEHIND = 1.1
"""Loading counts as hidden behind computing if it makes a step take less than this many times as long."""
DISTURBED_CORES = 0.2


@dataclass(frozen=True, slots=True)
class GradientCost:
    """The measured parts of an update, for a forecast for several devices (:mod:`stagewright.plan.devices`)."""

    lane_seconds: float
    """Time of one lane: forward and backward pass."""
    update_seconds: float
    """Time of a whole update, measured together with the lanes."""
    arrivals: tuple[tuple[float, int], ...]
    """(seconds since the beginning of a lane, bytes) of each gradient, in the order in which the backward pass gives them."""
    statistics_bytes: int
    """Size of the batch-norm statistics of one lane."""
    copy_seconds: float
    """Time to copy all gradients once and to add them to others once, in memory."""
    send_seconds: float
    """Time of a processor to send all gradients and to receive as many; 0 where processors do not compute, as beside a GPU."""
    noise_seconds: float
    """Standard deviation of the time of an update."""

    @property
    def bytes(self) -> int:
        """Size of all gradients."""
        return sum(size for _, size in self.arrivals)


@dataclass(frozen=True, slots=True)
class StageCost:
    """The measured costs of a stage."""

    step_seconds: float
    """Time of one update including loading, which overlap as in a run."""
    load_seconds: float | None
    """Time to load one batch while nothing else runs; None if it was not measured."""
    compute_seconds: float | None
    """Time of one update with images that are already loaded; None if it was not measured."""
    entry_seconds: float
    """Time at the beginning of the stage in addition to its steps: compiling, slow first steps, features computed once."""
    eval_fixed_seconds: float
    """Time of one evaluation of a split with all sets of weights (raw, averaged), independent of its number of images."""
    eval_image_seconds: float
    """Additional time of one evaluation for each image."""
    recalibrate_seconds: float
    """Time to re-estimate batch-norm statistics of averaged weights before each evaluation of them."""
    save_seconds: float
    """Time to write one checkpoint, read it back and verify it. Optimizer state exists only for trained parameters, so stages
    differ."""
    train_gb: float
    """Highest memory use in training: allocated memory of the device, or on a CPU this process's resident memory."""
    eval_gb: float
    """Highest memory use in evaluation, likewise."""
    shared_entry_seconds: float = 0.0
    """The part of :attr:`entry_seconds` that several processes share out: features computed once."""
    gradients: GradientCost | None = None
    """The parts of an update; None if they were not measured, or if the stage exchanges no gradients."""
    short: StageCost | None = None
    """The costs if the stage is too short to use each image once, so that features of a frozen body are not cached; None if
    they do not differ."""

    def of(self, stage: StagePlan) -> StageCost:
        """Returns the cost for a stage of ``stage``'s length."""
        brief = stage.num_steps * stage.batch_size < stage.num_images
        return self.short if brief and self.short is not None else self

    def evaluation(self, num_images: int) -> float:
        """Returns the seconds of one evaluation of ``num_images`` images with all sets of weights, without recalibration."""
        return self.eval_fixed_seconds + num_images * self.eval_image_seconds if num_images else 0.0


@dataclass(frozen=True)
class Costs:
    """The measured costs of a run on one machine: those of its stages, and those outside the stages."""

    stages: tuple[StageCost, ...]
    """One for each stage of the plan."""
    startup_seconds: float
    """Time from the start of the process until the data set was read."""
    setup_seconds: float
    """Time to prepare run directory, model, weights and device."""
    first_image_seconds: float
    """Time to decode one image of a data set that is cached in memory, once for each image; 0 for other data sets."""
    checkpoint_bytes: int
    finish_seconds: float
    """Time after the last step except evaluation: reading the best weights, writing the model."""
    page_seconds: float
    """Time to create plots and report.html, in a separate process; 0 if none are created."""
    page_drag_seconds: float
    """Delay of the training by one such process; it runs every :data:`PAGE_GAP_SECONDS` or less often."""
    probe_seconds: float
    """Time that these measurements took."""
    device: str
    others_cores: float | None = None
    """Average number of processor cores that other processes used during the measurements; None if unknown."""

    @property
    def on_cpu(self) -> bool:
        """Whether they were measured on a CPU."""
        return self.device.startswith("CPU")

    @property
    def is_noisy(self) -> bool:
        """Whether other processes used so much of the machine that the times are not reliable."""
        return self.others_cores is not None and self.others_cores > DISTURBED_CORES

    def to_dict(self) -> dict[str, Any]:
        """Returns all values as lists, dicts and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _StageForecast:
    """Predicted seconds of a stage."""

    entry_seconds: float
    train_seconds: float
    eval_seconds: float

    @property
    def total_seconds(self) -> float:
        return self.entry_seconds + self.train_seconds + self.eval_seconds


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds of a run, from the start to the end of its process."""

    stages: tuple[_StageForecast, ...]
    startup_seconds: float
    setup_seconds: float
    """Preparing run directory, model and device, and the beginnings of the stages."""
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
        """Predicted seconds after the data set was read."""
        parts = (self.setup_seconds, self.train_seconds, self.eval_seconds, self.checkpoint_seconds)
        return sum(parts) + self.finish_seconds

    def to_dict(self) -> dict[str, Any]:
        """Returns all values as lists, dicts and numbers, for JSON."""
        return {**asdict(self), "total_seconds": self.total_seconds}


def forecast(plan: Plan, costs: Costs, *, save_minutes: float = 10.0, alone: Costs | None = None) -> Forecast:
    """Returns the predicted time of ``plan`` on the machine on which ``costs`` were measured. The measured plan must have had
    the same stages; their lengths may differ. ``alone``: the costs of one process, which evaluates the finished model; None: the
    same.

    It assumes that a checkpoint is saved after every evaluation, as after an improvement. Early stopping is ignored.
    """
    info = plan.dataset
    own = [cost.of(stage) for stage, cost in zip(plan.stages, costs.stages, strict=True)]
    stages = tuple(_stage_forecast(plan, stage, cost) for stage, cost in zip(plan.stages, own, strict=True))
    num_saves, save_seconds = _saves(plan, own, save_minutes)
    first_use = costs.first_image_seconds * (info.num_train + info.num_val + info.num_test)
    last = (alone or costs).stages[-1]
    last = last.short or last  # the finished model is evaluated as a whole
    # The head alone is evaluated on the test images too, and every mixture with it on the validation images.
    val, test = (
        (info.num_val * len(HEAD_GRID), 2 * info.num_test) if plan.compares_head else (info.num_val, info.num_test)
    )
    final = (last.evaluation(val) + last.evaluation(test)) / num_weights(plan.stages[-1])
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


def _stage_forecast(plan: Plan, stage: StagePlan, cost: StageCost) -> _StageForecast:
    return _StageForecast(
        entry_seconds=cost.entry_seconds,
        train_seconds=stage.num_steps * cost.step_seconds,
        eval_seconds=plan.num_evaluations(stage) * evaluation_seconds(plan, cost),
    )


def evaluation_seconds(plan: Plan, cost: StageCost) -> float:
    """Returns the seconds of one evaluation of the validation images during training."""
    return cost.evaluation(plan.dataset.num_val) + cost.recalibrate_seconds


def num_weights(stage: StagePlan) -> int:
    """Returns the number of sets of weights that are evaluated in ``stage``: 2 if weights are averaged, else 1."""
    return 1 if stage.average.kind == "none" else 2


def _saves(plan: Plan, costs: Sequence[StageCost], save_minutes: float) -> tuple[int, float]:
    """Returns (number, seconds) of all checkpoints: those of the plan, one after each evaluation, and one after every
    ``save_minutes`` without another."""
    marks = sorted({0, *plan.save_steps, *plan.eval_steps})
    count, seconds = 0, 0.0
    for begin, end in itertools.pairwise(marks):
        cost = costs[plan.stage_before(end).index]  # a stage's end is always a mark
        saves = 1 + int((end - begin) * cost.step_seconds / (60 * save_minutes))
        count, seconds = count + saves, seconds + saves * cost.save_seconds
    return count, seconds


Pace = Literal["computing", "loading", "both", "unknown"]


def pace(cost: StageCost) -> Pace:
    """Returns the bottleneck of a stage: ``computing`` (loading is hidden behind it), ``loading``, or ``both`` if they share the
    processor cores and either makes a step slower. ``unknown`` if a step took too long to measure its parts."""
    load, compute = cost.load_seconds, cost.compute_seconds
    if load is None or compute is None:
        return "unknown"
    if load > compute:
        return "loading"
    hidden = cost.step_seconds <= _BEHIND * compute or load < (_BEHIND - 1) * compute
    return "computing" if hidden else "both"


def pace_sentence(names: str, cost: StageCost, batch_size: int) -> str:
    """Returns a sentence about the speed and the bottleneck of the stages called ``names``."""
    speed = f"{number_text(batch_size / max(cost.step_seconds, 1e-9))} images/s"
    found = pace(cost)
    if found == "unknown" or cost.load_seconds is None or cost.compute_seconds is None:
        return f"{names}: {speed}; a step takes too long to measure loading and computing separately in the given time."
    if found == "loading":
        able = number_text(batch_size / max(cost.compute_seconds, 1e-9))
        return (
            f"{names}: loading pictures is the bottleneck, at {speed}; computing alone would reach {able}. More threads (-j) "
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
    """Returns a warning that other processes were running during the measurements."""
    return (
        f"Other processes used {costs.others_cores:.1f} processor cores while this machine was measured: the times are for "
        f"this load, and change with it."
    )
