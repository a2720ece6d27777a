"""Plan: all numbers of a run, computed from a recipe by :mod:`stagewright.plan.resolve`. Pure data with a hash, no torch.

The convention for steps: updates are numbered ``0 .. total_steps - 1``; ``hyper(s)`` gives the hyper-parameters of update
``s``; ``state.step`` counts finished updates. So "evaluated at step k" means after k updates, and the last evaluation of a
run is at ``total_steps``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import ValidationError

from stagewright.errors import RecipeError
from stagewright.plan.lanes import asked_spread
from stagewright.plan.schedule import Curve
from stagewright.recipe.recipe import Augment, Average, Mix, Recipe, num_head_stages
from stagewright.recipe.schema import Frozen, problems

FORMAT = 6
Precision = Literal["fp32", "bf16", "fp16"]
HEAD_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the selected weights in the mixtures with the head alone that a finish compares (``eval.consider_head``)."""


class DatasetInfo(Frozen):
    """Facts about a data set that the plan needs. ``digest`` is a hash of all images, labels, groups and splits."""

    num_train: int
    num_val: int
    num_test: int
    classes: tuple[str, ...]
    digest: str


class Measured(Frozen):
    """Values measured before the plan was made. They are part of the plan, so that a resumed run does not measure again."""

    lr: float | None = None
    """Value of ``lr: auto``: the learning rate that the range test found at the first stage's batch size."""
    micro_batch_size: int | None = None
    """Value of ``micro_batch_size: auto``: number of images that fit on the device in the largest stage. None: whole batches."""
    spread: int | None = None
    """Number of processes that the run began with (``--nproc``), for a recipe without ``spread``. None: one, or the recipe's."""
    upper: str | None = None
    """Value of ``train: upper``: ``last:N``, or ``all`` for a network that cannot be cut. None: no stage asks for it."""
    eval_precision: Literal["fp32", "bf16"] | None = None
    """Value of ``eval.precision: auto``, from the device and its processor. None: fp32."""


@dataclass(frozen=True, slots=True)
class Hyper:
    """The scalar hyper-parameters of one update."""

    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    clip_norm: float | None
    average_weight: float
    """Weight of the new parameters in the average after this update, in [0, 1]: 1 starts the average, 0 does not change it."""


class StagePlan(Frozen):
    """A stage of the plan: the updates ``first_step .. end_step - 1`` over ``num_images`` images."""

    index: int
    name: str
    fit: Literal["updates", "optimum"]
    first_step: int
    num_steps: int
    """1 where ``fit`` is ``optimum``."""
    image_size: int
    batch_size: int
    """Number of images of an update: all images of the stage where ``fit`` is ``optimum``."""
    micro_batch_size: int
    """Largest number of images that go through the network at once."""
    lanes: int
    """Number of parts of an update with their own batch-norm statistics, dropout and mixing partners
    (:func:`stagewright.plan.lanes.lane_sizes`); their number is part of the result, unlike that of devices."""
    num_images: int
    data_fraction: float
    first_pass: int
    num_passes: int
    epochs_asked: float
    epochs_given: float
    epochs_before: float
    """Sum of ``epochs_given`` over all earlier stages."""
    train: str | tuple[str, ...]
    norm: Literal["train", "frozen"]
    """Whether batch norms use the statistics of the batch, or their running ones, which then do not change."""
    cache_views: int
    """Number of fixed views of each image, whose features in front of the first block that trains are cached; 0: none."""
    augment: Augment
    mix: Mix
    label_smoothing: float
    clip_norm: float | None
    weight_decay: float
    momentum: float
    momentum_range: tuple[float, float] | None
    on_enter: Literal["keep_optimizer", "reset_optimizer"]
    peak_lr: float
    """Peak learning rate of the schedule in this stage, after scaling by batch size, ``cap`` and ``lr_scale``; 0 where ``fit`` is
    ``optimum``."""
    curve: Curve
    curve_first_step: int
    """Step at which the schedule begins: the first step of the stage, or 0 for a schedule over the whole run; later by the
    number of earlier stages whose ``fit`` is ``optimum``, which are no part of a schedule."""
    average: Average
    average_log_decay: float
    """EMA: natural logarithm of the decay per step (negative); 0 without EMA."""
    average_log_before: float
    """EMA: sum of these logarithms over all steps of the directly preceding EMA stages, whose average this stage continues."""
    average_every: int
    """SWA: number of steps between two weights that are averaged."""

    @property
    def end_step(self) -> int:
        return self.first_step + self.num_steps

    @property
    def lane_size(self) -> int:
        """Number of images of the largest lane."""
        return -(-self.batch_size // self.lanes)

    @property
    def num_views(self) -> int:
        """Number of views of each image whose features are computed, in a stage that trains on features."""
        mirrored = self.fit == "optimum" and self.augment.flip > 0
        return 2 if mirrored else max(1, self.cache_views)

    def epoch_at(self, step: int) -> float:
        """Returns the number of epochs of the run after ``step`` finished updates; ``step`` must be in this stage or at its
        end."""
        return self.epochs_before + (step - self.first_step) * self.batch_size / self.num_images

    def hyper(self, step: int) -> Hyper:
        i = step - self.curve_first_step
        momentum = self.momentum
        if self.momentum_range is not None:
            momentum = self.curve.momentum(i, *self.momentum_range)
        return Hyper(
            lr=self.peak_lr * self.curve.at(i),
            momentum=momentum,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            clip_norm=self.clip_norm,
            average_weight=self._average_weight(step - self.first_step + 1),
        )

    def _average_weight(self, t: int) -> float:
        """Returns the weight of the new parameters in the average after the stage's t-th update (t from 1).

        EMA has a bias correction like Adam's (arXiv:1412.6980, section 3): the weight is (1 - d) / (1 - d^t). So the average
        after one step equals the parameters after that step, and no initial value is included.
        """
        if self.average.kind == "ema":
            return math.expm1(self.average_log_decay) / math.expm1(self.average_log_before + t * self.average_log_decay)
        if self.average.kind == "swa":
            if t % self.average_every == 0:
                return 1.0 / (t // self.average_every)
            if t == self.num_steps:
                return 1.0 / (t // self.average_every + 1)
        return 0.0


class Plan(Frozen):
    """All decisions of a run as numbers. JSON keeps them exactly: ``Plan.from_json(plan.to_json()) == plan``."""

    format: int = FORMAT
    recipe: Recipe
    dataset: DatasetInfo
    precision: Precision
    eval_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision where networks only predict, in a training in fp32 on a CPU."""
    measured: Measured = Measured()
    stages: tuple[StagePlan, ...]
    total_steps: int
    eval_steps: tuple[int, ...]
    save_steps: tuple[int, ...]

    def hyper(self, step: int) -> Hyper:
        """Returns the hyper-parameters of update ``step``; ValueError outside ``0 .. total_steps - 1``."""
        return self.stage_at(step).hyper(step)

    def stage_at(self, step: int) -> StagePlan:
        """Returns the stage of update ``step``; ValueError outside ``0 .. total_steps - 1``."""
        for stage in self.stages:
            if stage.first_step <= step < stage.end_step:
                return stage
        raise ValueError(f"step {step} is not one of the plan's updates 0 .. {self.total_steps - 1}")

    def stage_before(self, step: int) -> StagePlan:
        """Returns the stage of the last of ``step`` finished updates (the first stage for 0)."""
        return self.stage_at(max(step - 1, 0))

    @cached_property
    def head_stage(self) -> StagePlan | None:
        """The last of the first stages that train only the head, before one that trains more; None if there is no such stage.

        Its end is always evaluated and saved, so the checkpoint of that step has the weights of the head alone.
        """
        count = num_head_stages([stage.train for stage in self.stages])
        return self.stages[count - 1] if count else None

    @property
    def compares_head(self) -> bool:
        """Whether the finish compares the selected weights with those of the head alone."""
        return self.recipe.eval.consider_head and self.head_stage is not None and self.dataset.num_val > 0

    @property
    def spread(self) -> int:
        """The recipe's ``spread``, or the number of processes that the run began with."""
        return asked_spread(self.recipe.spread, self.measured.spread)

    @property
    def most_devices(self) -> int:
        """The largest number of devices on which the run can be carried out: each needs a lane of every stage with updates."""
        return min((stage.lanes for stage in self.stages if stage.fit == "updates"), default=1)

    def num_evaluations(self, stage: StagePlan, since: int = 0) -> int:
        """Returns the number of evaluations in ``stage``, including the one at its end, after update ``since`` of the run."""
        first = max(since, stage.first_step)
        return sum(first < step <= stage.end_step for step in self.eval_steps)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that affects the result. It excludes name, description, the place of the data and the
        frequency of checkpoints."""
        content = self.model_dump(mode="json", exclude={"save_steps": True})
        for cosmetic in ("name", "description", "checkpoints", "data"):
            del content["recipe"][cosmetic]
        if self.recipe.order == "full":  # then the digest is the same as in older versions, which had no other order
            del content["recipe"]["order"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """Returns plain data for ``plan.json``, with the digest and each stage's LR and momentum at start, peak and end."""
        content = self.model_dump(mode="json")
        content["recipe"] = self.recipe.to_dict()
        for stage, entry in zip(self.stages, content["stages"], strict=True):
            entry.update(stage_ends(stage))
        return {"digest": self.digest, **content}

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Plan:
        """Returns the plan in ``plan.json``; RecipeError if it has another format or was changed after it was written."""
        if content.get("format") != FORMAT:
            raise RecipeError(
                f"plan of format {content.get('format')!r}",
                f"format {FORMAT}, which this version of stagewright writes",
                "finish the run with the version that began it",
            )
        try:
            plan = cls.model_validate({key: value for key, value in content.items() if key != "digest"})
        except ValidationError as error:
            raise RecipeError(
                f"plan.json: {problems(error)}",
                "an unchanged plan.json; a run's plan never changes",
                "restore plan.json, or start a new run",
            ) from None
        if content.get("digest") != plan.digest:
            raise RecipeError(
                f"plan.json states digest {str(content.get('digest'))[:12]}, its content has {plan.digest[:12]}",
                "an unchanged plan.json; a run's plan never changes",
                "restore plan.json, or start a new run with the changed recipe",
            )
        return plan

    def steps(self) -> Iterator[dict[str, object]]:
        """Yields the hyper-parameters of every update as plain data, for ``plan --json --steps``."""
        for stage in self.stages:
            for step in range(stage.first_step, stage.end_step):
                h = stage.hyper(step)
                yield {"step": step, "stage": stage.index, **{name: getattr(h, name) for name in Hyper.__slots__}}


def stage_ends(stage: StagePlan) -> dict[str, float]:
    """Returns LR and momentum at the stage's first update, at the update with the highest LR, and at its last update."""
    first, last = stage.hyper(stage.first_step), stage.hyper(stage.end_step - 1)
    # A schedule changes direction only at the end of its warm-up and at milestones, so the highest LR is next to one of them
    # or at the stage's first or last update.
    curve = stage.curve
    turns = [curve.warmup_steps, round(curve.pct_start * curve.num_steps), *(step for step, _ in curve.milestones)]
    steps = {stage.curve_first_step + turn + by for turn in turns for by in (-1, 0, 1)}
    inside = [step for step in steps if stage.first_step <= step < stage.end_step]
    peak = max([first, *map(stage.hyper, inside), last], key=lambda hyper: hyper.lr)
    return {
        "lr_first": first.lr,
        "lr_peak": peak.lr,
        "lr_last": last.lr,
        "momentum_first": first.momentum,
        "momentum_peak": peak.momentum,
        "momentum_last": last.momentum,
    }


def subset_size(num_images: int, num_classes: int, fraction: float) -> int:
    """Returns the number of images that a data fraction uses: rounded, at least one per class, at most all."""
    return min(num_images, max(num_classes, round(fraction * num_images)))


def eval_image_size(plan: Plan, stage: StagePlan) -> int:
    """Returns the side of evaluated images in pixels: ``eval.image_size`` if it is set, else the stage's image size."""
    return plan.recipe.eval.image_size or stage.image_size
