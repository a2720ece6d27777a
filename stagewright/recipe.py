"""Recipe and Stage: what a person decides, free of hardware and of data sizes.

Frozen pydantic models, YAML in and out. A Stage is a stretch of a run in which the shapes stay put; what it does not
say it inherits from the recipe, field by field, also inside ``augment``, ``mix``, ``average`` and ``lr``
(:meth:`Recipe.resolved_stages`). The recipe is turned into numbers by :mod:`stagewright.plan` alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from stagewright.augment.fields import AugmentFields
from stagewright.duration import Duration

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Size = Annotated[int, Field(ge=4, le=4096)]
Batch = Annotated[int, Field(ge=1)]
Interpolation = Literal["bilinear", "bicubic"]


class Part(BaseModel):
    """A frozen part of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Data(Part):
    """How DATA is read. Column names matter for CSV and Parquet only."""

    val: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share of the pictures that validates, where DATA brings no validation part of its own."""
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share that tests, where DATA brings neither a test nor a validation part."""
    path: str | None = None
    """Column with the file's path; None finds it (path, filepath, file, filename, image, id)."""
    label: str | None = None
    """Column with the class; None finds it (label, class, category, breed, ...) or one-hot class columns."""
    group: str | None = None
    """Column whose values never straddle a split (site, patient, sequence); None finds one, "none" wants none."""
    split: str | None = None
    """Column with train/val/test; None finds it."""
    images: str | None = None
    """Folder that a table's paths are relative to; None means the table's own."""
    bad_images: Literal["exclude", "fail"] = "exclude"
    """What to do with pictures that cannot be read: list and exclude them, or stop with their names."""


class Model(Part):
    """Which network, and what it starts from."""

    name: str = "cifar_resnet18"
    weights: str | None = None
    """None or ``none`` (random), ``default`` (the library's pretrained weights), a weights file, or the directory of a run."""
    drop_path: Fraction | None = None
    """Stochastic depth (arXiv:1603.09382); None leaves the network's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the network's constructor, e.g. ``{patch: 4, depth: 6, heads: 8, width: 384}`` of ``vit``."""

    @field_validator("weights")
    @classmethod
    def _none_in_words(cls, value: str | None) -> str | None:
        return None if value == "none" else value


class Optimizer(Part):
    """Which optimizer, and its constants. The learning rate stands in ``lr``."""

    name: str = "sgd"
    """``sgd``, ``adam``, ``adamw`` (torch's own) or any optimizer of timm."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """SGD's momentum, Adam's beta1."""
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on biases and normalisation layers (one-dimensional parameters)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further constructor arguments, e.g. ``{betas: [0.9, 0.99]}``."""
    clip_norm: Positive | None = None
    """Gradients are scaled down to this global norm."""
    at_seam: Literal["keep", "reset"] = "keep"
    """What a stage does on entry with momentum and other optimizer state of the stage before."""


class LR(Part):
    """The learning rate as a schedule: factors of a peak, over the run or over each stage."""

    schedule: Literal["constant", "linear", "cosine", "one_cycle", "piecewise", "swa"] = "cosine"
    peak: Positive = 0.1
    batch: Batch | None = None
    """``peak`` is meant for this batch size and scales linearly with the stage's (arXiv:1706.02677); None: as it is."""
    cap: Positive | None = None
    """The scaled peak never exceeds this."""
    warmup: Duration = Duration(0.0, "epochs")
    """Linear warm-up before linear, cosine, constant and piecewise; the rising part of one_cycle; the annealing of swa."""
    warmup_start: Fraction = 0.0
    """Factor of the peak at the first step of the warm-up."""
    final: Fraction = 0.0
    """Factor of the peak that linear and cosine end at."""
    milestones: dict[str, Fraction] = Field(default_factory=dict)
    """Piecewise: duration from the start of the span -> factor of the peak from there on."""
    interpolate: bool = False
    """Piecewise: straight lines between milestones instead of steps."""
    div: Positive = 25.0
    """One-cycle: the first LR is peak / div."""
    final_div: Positive = 1e4
    """One-cycle: the last LR is peak / div / final_div."""
    anneal: Literal["cos", "linear"] = "cos"
    """One-cycle and swa: shape of the change."""
    momentum: tuple[Fraction, Fraction] | None = None
    """One-cycle: momentum cycles from the second value down to the first and back; None holds it."""
    span: Literal["run", "stage"] = "run"
    """Whether the schedule runs once over the whole run or anew in every stage."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        return {"peak": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _milestones_are_durations(self) -> Self:
        for text in self.milestones:
            Duration.parse(text)
        if self.schedule == "piecewise" and not self.milestones:
            raise ValueError("piecewise needs milestones such as {30ep: 0.1, 60ep: 0.01}")
        return self


class Augment(AugmentFields, Part):
    """What happens to each training picture, as a function of (seed, pass, sample). docs/augmentation.md tells the order."""


class Mix(Part):
    """Mixing of pictures within a batch; one kind is drawn for each batch. ``none`` switches it off."""

    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """Alpha of mixup's Beta distribution (arXiv:1710.09412); 0 is off."""
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    """Alpha of cutmix's Beta distribution (arXiv:1905.04899); 0 is off."""
    probability: Fraction = 1.0
    """Share of the batches that are mixed at all."""
    cutmix_share: Fraction = 0.5
    """Share of cutmix among mixed batches where both are on."""

    @model_validator(mode="before")
    @classmethod
    def _none_is_off(cls, value: object) -> object:
        return {"mixup": 0.0, "cutmix": 0.0} if value is False or value in ("none", "off") else value


class Average(Part):
    """A second set of weights, averaged over steps, evaluated beside the raw ones. ``none``, ``ema`` or ``swa``."""

    kind: Literal["none", "ema", "swa"] = "none"
    half_life: Duration = Duration(0.02, "run")
    """EMA: after this length a step's weight has halved. Means the same at every batch size; bias-corrected."""
    every: Duration = Duration(1.0, "epochs")
    """SWA (arXiv:1803.05407): distance between the weights that are averaged with equal weight."""
    recalibrate: Annotated[int, Field(ge=0)] | None = None
    """Training pictures that re-estimate batch-norm statistics of the averaged weights before each evaluation; 0 averages
    the statistics like the weights; None: 4096 for swa, 0 for ema."""

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, value: object) -> object:
        if value is False:
            value = "none"
        return {"kind": value} if isinstance(value, str) else value


class Evaluation(Part):
    """How pictures are seen when it counts, and how often."""

    every: Duration = Duration(1.0, "epochs")
    image_size: Size | None = None
    """None: the stage's own image size."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.875
    """Side of the central square, as a share of the picture's shorter side."""
    fit: Literal["crop", "squash"] = "crop"
    """``squash`` takes the whole picture and gives up its aspect ratio instead."""
    select: Literal["best", "last"] = "best"
    """Whether the finished model is the best of all evaluations or stands at the last step (better of raw and averaged,
    by validation top-1, in both cases)."""


class Checkpoints(Part):
    """How often the whole state is saved, and how many are kept (best and last always are)."""

    every: Duration = Duration(1.0, "epochs")
    keep: Annotated[int, Field(ge=1)] = 3


class Stage(Part):
    """A stretch of the run in which the shapes stay put. What is None (absent) is inherited from the recipe."""

    name: str | None = None
    epochs: Duration | None = None
    """Length: ``30ep``, ``500st``, ``20000img``, or a share of the recipe's ``epochs`` such as 0.25."""
    image_size: Size | None = None
    batch_size: Batch | None = None
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    train: str | tuple[str, ...] | None = None
    """``all``, ``head``, ``last:N`` (head and the last N blocks) or patterns of parameter names (``layer4.*``)."""
    mix: Mix | None = None
    augment: Augment | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    lr: LR | None = None
    """A schedule of the stage's own; a number is its peak. Excludes ``lr_scale``."""
    lr_scale: Positive | None = None
    """Factor on the run's schedule. Excludes ``lr``."""
    average: Average | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    clip_norm: Positive | None = None
    at_seam: Literal["keep", "reset"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError("give lr (a schedule of the stage's own) or lr_scale (of the run's), not both")
        _check_train(self.train)
        return self


def _check_train(train: str | tuple[str, ...] | None) -> None:
    if isinstance(train, str) and train not in ("all", "head"):
        count = train.removeprefix("last:")
        if count == train or not count.isdigit() or int(count) < 1:
            raise ValueError(f"train: {train!r} is not all, head, last:N or a list of patterns such as ['layer4.*']")
    if train == ():
        raise ValueError("train: an empty list of patterns would train nothing")


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, dict | Stage) else value


class Recipe(Part):
    """Everything a person decides about a training."""

    name: str = "custom"
    description: str = ""
    """What it is for, where it comes from and what to expect; printed by ``recipes show``."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Duration = Duration(10.0, "epochs")
    """Length of the run where stages give shares of it or there is one stage alone."""
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = (Stage(),)
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    lr: LR = LR()
    image_size: Size = 224
    batch_size: Batch = 64
    micro_batch_size: Batch | None = None
    """Pictures that go through the network at a time, and so those that batch-norm statistics are taken over; None: the
    whole batch. The update is that of the whole batch either way."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    train: str | tuple[str, ...] = "all"
    augment: Augment = Augment()
    mix: Mix = Mix()
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    average: Average = Average()
    interpolation: Interpolation = "bilinear"
    decode: Literal["fast", "exact"] = "fast"
    """``fast``: training JPEGs are decoded at a half, a quarter or an eighth of their size where the crop needs no more
    (docs/data.md says what that changes); ``exact``: at full size. Evaluation always is exact."""
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    """Normalisation of pictures in [0, 1]; None: what the pretrained weights want, else ImageNet's."""
    eval: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    """On CUDA: deterministic kernels, at a price in speed, so that resuming gives the same bits. On CPU they always are."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_train(self.train)
        if self.epochs.unit == "run":
            raise ValueError(
                f"epochs: {self.epochs} is a share of the run, which is what epochs gives; write e.g. 30ep"
            )
        for at, stage in enumerate(self.stages):
            shared = stage.epochs is None or stage.epochs.unit == "run"
            if shared and len(self.stages) > 1 and "epochs" not in self.model_fields_set:
                raise ValueError(f"stages[{at}].epochs: give a length such as 10ep, or epochs for the whole recipe")
            if stage.epochs is None and len(self.stages) > 1:
                raise ValueError(f"stages[{at}].epochs: every stage of several needs a length, e.g. 10ep or 0.5")
        return self

    def resolved_stages(self) -> tuple[Stage, ...]:
        """The stages with everything inherited: no field is None but ``lr_scale``, ``clip_norm`` and, where the run's
        schedule rules, ``lr``."""
        return tuple(self._resolve(at, stage) for at, stage in enumerate(self.stages))

    def _resolve(self, at: int, stage: Stage) -> Stage:
        own_lr = None if stage.lr is None else merged(self.lr.model_copy(update={"span": "stage"}), stage.lr)
        return stage.model_copy(
            update={
                "name": stage.name or (f"stage{at + 1}" if len(self.stages) > 1 else "main"),
                "epochs": stage.epochs or Duration(1.0, "run"),
                "image_size": stage.image_size or self.image_size,
                "batch_size": stage.batch_size or self.batch_size,
                "data_fraction": stage.data_fraction or self.data_fraction,
                "train": stage.train or self.train,
                "mix": merged(self.mix, stage.mix),
                "augment": merged(self.augment, stage.augment),
                "label_smoothing": _first(stage.label_smoothing, self.label_smoothing),
                "lr": own_lr,
                "average": merged(self.average, stage.average),
                "weight_decay": _first(stage.weight_decay, self.optimizer.weight_decay),
                "momentum": _first(stage.momentum, self.optimizer.momentum),
                "clip_norm": _first(stage.clip_norm, self.optimizer.clip_norm),
                "at_seam": stage.at_seam or self.optimizer.at_seam,
            }
        )

    def plain(self) -> dict[str, Any]:
        """Plain data with every default written out, stages as they were given; ``Recipe.model_validate`` reads it."""
        content = self.model_dump(mode="json")
        content["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.stages]
        return content

    def with_stage(self, at: int, **changes: Any) -> Recipe:
        """This recipe with fields of stage ``at`` replaced, validated anew."""
        stages: list[dict[str, Any]] = [stage.model_dump(exclude_unset=True) for stage in self.stages]
        stages[at] = {**stages[at], **changes}
        return self.changed(stages=tuple(stages))

    def changed(self, **changes: Any) -> Recipe:
        """This recipe with top-level fields replaced, validated anew (pydantic.ValidationError)."""
        return type(self).model_validate({**self.model_dump(exclude_unset=True), **changes})

    def with_epochs(self, epochs: Duration) -> Recipe:
        """This recipe stretched or shrunk to ``epochs`` in total, each stage by the same factor.

        Stages that are shares of the run follow ``epochs``; lengths of their own must all be in its unit (ValueError).
        """
        lengths = [stage.epochs or Duration(1.0, "run") for stage in self.stages]
        if all(length.unit == "run" for length in lengths):
            return self.changed(epochs=epochs)
        if any(length.unit != epochs.unit for length in lengths):
            raise ValueError(f"epochs: cannot stretch stages of {[str(length) for length in lengths]} to {epochs}")
        factor = epochs.value / sum(length.value for length in lengths)
        stages = [stage.model_dump(exclude_unset=True) for stage in self.stages]
        for stage, length in zip(stages, lengths, strict=True):
            stage["epochs"] = length.scaled(factor)
        return self.changed(stages=tuple(stages))


P = TypeVar("P", bound=Part)


def merged(base: P, override: P | None) -> P:
    """``base`` with the fields that ``override`` was explicitly given; ``base`` itself where there is none."""
    if override is None:
        return base
    return base.model_copy(update={name: getattr(override, name) for name in override.model_fields_set})


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
