"""Recipe and Stage: what a person decides, free of hardware and of data sizes.

Frozen pydantic models, YAML in and out. A Stage is a stretch of a run in which the shapes stay put; what it does not
say it inherits from the recipe, field by field, also inside ``augment``, ``mix``, ``average`` and ``lr``
(:meth:`Recipe.resolved_stages`). The recipe is turned into numbers by :mod:`stagewright.plan.plan` alone.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stagewright.recipe.duration import Duration
from stagewright.recipe.fields import LR as LR
from stagewright.recipe.fields import Augment as Augment
from stagewright.recipe.fields import Average as Average
from stagewright.recipe.fields import Batch as Batch
from stagewright.recipe.fields import Checkpoints as Checkpoints
from stagewright.recipe.fields import Data as Data
from stagewright.recipe.fields import Evaluation as Evaluation
from stagewright.recipe.fields import FunctionName, Part, Positive, Size
from stagewright.recipe.fields import Guard as Guard
from stagewright.recipe.fields import Interpolation as Interpolation
from stagewright.recipe.fields import Mix as Mix
from stagewright.recipe.fields import Model as Model
from stagewright.recipe.fields import Optimizer as Optimizer
from stagewright.recipe.fields import Stop as Stop
from stagewright.system.named_functions import is_named


class Stage(Part):
    """A stretch of the run in which the shapes stay put. What is None (absent) is inherited from the recipe."""

    name: str | None = None
    epochs: Duration | None = None
    """Length: ``30ep``, ``500st``, ``20000img``, or a share of the recipe's ``epochs`` such as 0.25."""
    image_size: Size | None = None
    batch_size: Batch | None = None
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    train: str | tuple[str, ...] | None = None
    """``all``, ``head``, ``last:N`` (head and the last N blocks) or patterns of parameter names (``layer4.*``), of which one
    with ``!`` in front (``!layer2.*``) takes away from those before it, or from all."""
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
    on_enter: Literal["keep_optimizer", "reset_optimizer"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lr is not None and self.lr.peak == "auto":
            raise ValueError("lr: auto is the recipe's; a stage gives lr_scale, a share of what is found")
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
    if isinstance(train, tuple) and not all(pattern.removeprefix("!") for pattern in train):
        raise ValueError(
            f"train: {list(train)} holds an empty pattern; write e.g. layer4.* or, to take away, !layer2.*"
        )


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, dict | Stage) else value


_LONGEST_NAME = 100


def _file_name(name: str) -> str:
    """``name``, if it can be the name of a folder: runs lie in ``runs/NAME-1``."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or any(_unprintable(letter) for letter in name):
        raise ValueError(
            f"name: {name!r} cannot name a run's folder; letters, digits, spaces and signs can, without / and \\"
        )
    if len(name) > _LONGEST_NAME or len(name.encode()) > 2 * _LONGEST_NAME:
        raise ValueError(f"name: {name[:20]!r}... is too long for a run's folder; up to {_LONGEST_NAME} characters")
    return name


def _unprintable(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


class Recipe(Part):
    """Everything a person decides about a training."""

    name: Annotated[str, AfterValidator(_file_name)] = "custom"
    """Of the recipe and of its runs, ``runs/NAME-1``: no ``/``, ``\\`` or control characters, at most 100 characters."""
    description: str = ""
    """What it is for, where it comes from and what to expect; printed by ``recipes show``."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Duration = Duration(10.0, "epochs")
    """Length of the run where stages give shares of it or there is one stage alone."""
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=1000)] = (Stage(),)
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    lr: LR = LR()
    image_size: Size = 224
    batch_size: Batch = 64
    micro_batch_size: Batch | Literal["auto"] = "auto"
    """Pictures that go through the network at a time, and so those that batch-norm statistics are taken over; ``auto``: the
    whole batch, or on CUDA as much of it as fits. The update is that of the whole batch either way."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    train: str | tuple[str, ...] = "all"
    augment: Augment = Augment()
    mix: Mix = Mix()
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    loss: Literal["cross_entropy", "bce"] | FunctionName = "cross_entropy"
    """``bce``: every class a yes or no of its own, averaged over classes (arXiv:2110.00476, section 2.1);
    ``python:module:function``: one's own, from logits and soft targets to a loss per image (docs/extend.md)."""
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """Weight of each class in the loss, scaled to a mean of 1 over the training pictures: ``balanced`` gives every class the
    same sum, a mapping names some (the others count 1)."""
    sampling: Literal["natural", "square_root", "balanced"] = "natural"
    """How often classes are seen: as often as they have pictures, as the square root of that, or all alike. An epoch stays as
    long; pictures of rare classes come several times in it, each time augmented anew."""
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
    stop: Stop = Stop()
    guard: Guard = Guard()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool | Literal["cudagraphs"] = False
    """``torch.compile``, one graph for each shape; ``cudagraphs`` replays them whole (CUDA alone; small models gain most)."""
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
                "at_seam": stage.on_enter or self.optimizer.on_enter,
            }
        )

    def functions(self) -> dict[str, str]:
        """The functions of one's own that the recipe names, by field; ``stages[1].augment.custom`` is a field too."""
        named = {"model.name": self.model.name, "loss": self.loss, "optimizer.name": self.optimizer.name}
        found = {field: name for field, name in named.items() if is_named(name)}
        if self.augment.custom is not None:
            found["augment.custom"] = self.augment.custom
        for at, stage in enumerate(self.stages):
            if stage.augment is not None and stage.augment.custom is not None:
                found[f"stages[{at}].augment.custom"] = stage.augment.custom
        return found

    def to_dict(self) -> dict[str, object]:
        """Plain data with every default written out, stages as they were given; ``Recipe.model_validate`` reads it."""
        content = self.model_dump(mode="json")
        content["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.stages]
        return content

    def with_stage(self, at: int, **changes: object) -> Recipe:
        """This recipe with fields of stage ``at`` replaced, validated anew."""
        stages: list[dict[str, Any]] = [stage.model_dump(exclude_unset=True) for stage in self.stages]
        stages[at] = {**stages[at], **changes}
        return self.changed(stages=tuple(stages))

    def changed(self, **changes: object) -> Recipe:
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
