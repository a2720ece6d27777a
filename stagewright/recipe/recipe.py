"""Recipe and Stage: all decisions of the user about a training, independent of hardware and data set size.

They are frozen pydantic models that are read from and written as YAML. A Stage is a part of a run with constant image and
batch size. A field that a stage does not set is inherited from the recipe, also inside ``augment``, ``mix``, ``average`` and
``lr`` (:meth:`Recipe.resolved_stages`). :mod:`stagewright.plan.resolve` turns the recipe into the numbers of a run.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stagewright.recipe.duration import Duration
from stagewright.recipe.fields import LR as LR
from stagewright.recipe.fields import Augment as Augment
from stagewright.recipe.fields import Average as Average
from stagewright.recipe.fields import Batch as Batch
from stagewright.recipe.fields import Cache as Cache
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
from stagewright.recipe.fields import reading_fields as reading_fields
from stagewright.recipe.holds import When
from stagewright.recipe.optimum import obstacles_to_optimum, unused_in_optimum
from stagewright.system.named_functions import is_named

Norm = Literal["train", "frozen", "auto"]
_UPDATES = When(fit="updates")


class Stage(Part):
    """A part of the run with constant image and batch size. Fields that are absent are inherited from the recipe."""

    name: str | None = None
    """Name of the stage in logs and plots; absent: ``stage1``, ``stage2``, ..., or ``main`` if there is only one."""
    fit: Literal["updates", "optimum"] = "updates"
    """How the stage trains. ``updates``: by gradient steps. ``optimum``: in one update it finds the best weights of the head on
    the frozen body (docs/recipes.md). It needs ``train: head``, no mixing and no augmentation but ``augment: {crop: none, flip:
    P}``: with P above 0 each image and its mirror image."""
    epochs: Annotated[Duration | None, _UPDATES] = None
    """Length of the stage: ``30ep``, ``500st``, ``20000img``, or a share of the recipe's ``epochs`` such as 0.25."""
    image_size: Size | None = None
    """Side of the training images in pixels."""
    batch_size: Batch | None = None
    """Number of images of one update."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the training images that is used."""
    train: str | tuple[str, ...] | None = None
    """Which parameters are trained: ``all``, ``head``, ``last:N`` (the head and the last N blocks), ``upper`` (the head and as
    many of the last blocks as train at about a third of the cost of all), or a list of patterns of parameter names
    (``layer4.*``). A pattern that begins with ``!`` (``!layer2.*``) removes parameters from those selected before it, or from
    all if it comes first."""
    norm: Norm | None = None
    """Batch norms: ``train`` uses the statistics of each batch, ``frozen`` the running ones, which then do not change, while
    scale and shift still train where ``train`` selects them; ``auto``: frozen for pretrained weights and micro-batches of fewer
    than 256 images."""
    cache: Cache | None = None
    """Trains on cached outputs of the frozen blocks in front of those that train, over a number of fixed views of each image:
    much faster where the lower blocks need not train. Not with mixing or ``augment.copies``."""
    mix: Mix | None = None
    """Mixup and cutmix; fields that are absent in it are inherited."""
    augment: Augment | None = None
    """Augmentation of single images; fields that are absent in it are inherited."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the target that is spread evenly over all classes."""
    lr: Annotated[LR | None, _UPDATES] = None
    """A separate schedule for this stage; a number sets its peak. Cannot be combined with ``lr_scale``."""
    lr_scale: Annotated[Positive | None, _UPDATES] = None
    """Factor on the run's schedule in this stage; absent: 1. Cannot be combined with ``lr``."""
    average: Average | None = None
    """Averaged weights; fields that are absent in it are inherited."""
    weight_decay: Annotated[Annotated[float, Field(ge=0.0)] | None, _UPDATES] = None
    """Weight decay; absent: that of ``optimizer``."""
    momentum: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)] | None, _UPDATES] = None
    """SGD's momentum, or Adam's beta1; absent: that of ``optimizer``."""
    clip_norm: Annotated[Positive | None, _UPDATES] = None
    """Largest global L2 norm of the gradients; absent: that of ``optimizer``."""
    on_enter: Literal["keep_optimizer", "reset_optimizer"] | None = None
    """Whether the stage begins with the optimizer state (momentum etc.) of the previous stage or with a new one; absent: as in
    ``optimizer``."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lr is not None and self.lr.peak == "auto":
            raise ValueError(
                "lr: auto is allowed only for the whole recipe; give the stage lr_scale, a factor on the found value"
            )
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError(
                "give either lr (a separate schedule of this stage) or lr_scale (a factor on the run's), not both"
            )
        _check_train(self.train)
        return self


def _check_train(train: str | tuple[str, ...] | None) -> None:
    if isinstance(train, str) and train not in ("all", "head", "upper"):
        count = train.removeprefix("last:")
        if count == train or not count.isdigit() or int(count) < 1:
            raise ValueError(
                f"train: {train!r} is not all, head, upper, last:N or a list of patterns such as ['layer4.*']"
            )
    if train == ():
        raise ValueError("train: an empty list of patterns would train nothing")
    if isinstance(train, tuple) and not all(pattern.removeprefix("!") for pattern in train):
        raise ValueError(
            f"train: {list(train)} contains an empty pattern; write e.g. layer4.* or, to exclude parameters, !layer2.*"
        )


def _check_cached(at: int, stage: Stage) -> None:
    """ValueError where a stage with cached views has nothing to cache, or asks for what works on images."""
    assert stage.mix is not None and stage.augment is not None
    if stage.train == "all":
        raise ValueError(
            f"stages[{at}].cache: all blocks train, so nothing stays the same; give train: upper, last:N or patterns"
        )
    if (stage.mix.mixup or stage.mix.cutmix) and stage.mix.probability:
        raise ValueError(
            f"stages[{at}].cache: mixing works on images, which a cached stage does not see; give mix: none"
        )
    if stage.augment.copies:
        raise ValueError(
            f"stages[{at}].cache: augment.copies makes copies of images; cache.views makes fixed views of each"
        )


def num_head_stages(trained: Sequence[str | tuple[str, ...] | None]) -> int:
    """Returns how many of the first stages train only the head, before one that trains more; 0 if there is no such later stage.

    ``trained`` is what each stage of the run trains (:attr:`Stage.train`), in order.
    """
    return next((at for at, train in enumerate(trained) if train != "head"), 0)


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, dict | Stage) else value


_LONGEST_NAME = 100


def _file_name(name: str) -> str:
    """Returns ``name`` if it can be the name of a folder, since runs are stored in ``runs/NAME-1``; else ValueError."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or any(_unprintable(letter) for letter in name):
        raise ValueError(
            f"name: {name!r} cannot be the name of a run's folder; allowed are letters, digits, spaces and signs except / and \\"
        )
    if len(name) > _LONGEST_NAME or len(name.encode()) > 2 * _LONGEST_NAME:
        raise ValueError(f"name: {name[:20]!r}... is too long for a run's folder; up to {_LONGEST_NAME} characters")
    return name


def _unprintable(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


class Recipe(Part):
    """All decisions of the user about a training."""

    name: Annotated[str, AfterValidator(_file_name)] = "custom"
    """Name of the recipe and of its runs (``runs/NAME-1``): at most 100 characters, without ``/``, ``\\`` and control
    characters."""
    description: str = ""
    """Purpose, source and expected result; printed by ``recipes show``. It does not affect the training."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random numbers but the split: initial weights, order, augmentation, mixing, dropout. From 0 to 2**63 - 1."""
    epochs: Duration = Duration(10.0, "epochs")
    """Length of the run where stages give shares of it or there is one stage alone."""
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=1000)] = (Stage(),)
    data: Data = Data()
    """How DATA is read and split."""
    model: Model = Model()
    """Which network is trained, and its initial weights."""
    optimizer: Optimizer = Optimizer()
    """The optimizer and its constants, except the learning rate."""
    lr: LR = LR()
    """The learning-rate schedule; a number, or ``auto``, sets its peak."""
    image_size: Size = 224
    """Side of the training images in pixels, for stages that do not set it."""
    batch_size: Batch = 64
    """Number of images of one update, for stages that do not set it."""
    micro_batch_size: Batch | Literal["auto"] = "auto"
    """Largest number of images that go through the network at once; a larger batch is divided into lanes (docs/scale.md).
    ``auto``: the whole batch, or on CUDA as many as fit into memory. Every update still uses the gradient of the whole batch."""
    spread: Annotated[int, Field(ge=1, le=4096)] = 1
    """Largest number of devices that the run may ever use. Each batch is divided into at least as many lanes, over each of which
    batch-norm statistics are computed and images are mixed; any number of devices up to it gives the same bits."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training images that is used, for stages that do not set it; at least one image of each class."""
    train: str | tuple[str, ...] = "all"
    """Which parameters are trained, for stages that do not set it: ``all``, ``head``, ``last:N``, ``upper`` or a list of
    patterns, as in a stage."""
    norm: Norm = "train"
    """Batch norms, for stages that do not set it: ``train``, ``frozen`` or ``auto``, as in a stage."""
    augment: Augment = Augment()
    """Augmentation of single training images."""
    mix: Mix = Mix()
    """Mixup and cutmix of training batches; by default off."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    loss: Literal["cross_entropy", "bce"] | FunctionName = "cross_entropy"
    """``bce``: every class a yes or no of its own, averaged over classes (arXiv:2110.00476, section 2.1);
    ``python:module:function``: your own, from logits and soft targets to a loss per image (docs/extend.md)."""
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """Weight of each class in the loss, scaled to a mean of 1 over the training images. ``balanced``: every class has the same
    total weight. A mapping gives the weights of the classes that it names; the others have weight 1."""
    sampling: Literal["natural", "square_root", "balanced"] = "natural"
    """How often each class is sampled: in proportion to its number of images, to the square root of that number, or equally
    often. The length of an epoch does not change; images of rare classes occur several times in it, each time with a new
    augmentation."""
    order: Literal["full", "blocked"] = "full"
    """Order of a pass. ``full``: all images are shuffled. ``blocked``: blocks of neighbours in a pack are shuffled, and images
    within windows of blocks, so that a pack in an object store is read in large pieces (docs/streaming.md)."""
    average: Average = Average()
    """Averaged weights (EMA or SWA); by default off."""
    interpolation: Interpolation = "bilinear"
    """How images are resized, in training and evaluation; always antialiased."""
    decode: Literal["fast", "exact"] = "fast"
    """``fast``: training JPEGs are decoded at a half, a quarter or an eighth of their size if the crop needs no more pixels
    (docs/data.md describes the difference). ``exact``: at full size. Evaluation is always exact."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel (R, G, B) that is subtracted from images in [0, 1]; none: that of the pretrained weights, else
    ImageNet's."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of each channel by which images in [0, 1] are divided; none: that of the pretrained weights, else
    ImageNet's."""
    eval: Evaluation = Evaluation()
    """How often and how the model is evaluated."""
    checkpoints: Checkpoints = Checkpoints()
    """How often checkpoints are saved, and how many stay."""
    stop: Stop = Stop()
    """Early stopping; by default off."""
    guard: Guard = Guard()
    """What is done if training diverges; ``none`` or ``off`` stops at the first problem."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of forward and backward passes (mixed precision; weights stay fp32). ``auto``: bf16 on CUDA devices with
    bf16 hardware, fp16 on older ones, fp32 on a CPU."""
    channels_last: bool = True
    """Whether images and weights are stored with the channel as the innermost dimension (NHWC), which is usually faster."""
    compile: bool | Literal["cudagraphs"] = False
    """Whether the network is compiled by ``torch.compile``, once for each image and batch size. ``cudagraphs``: in addition it
    is replayed as a CUDA graph (only on CUDA; small models gain most)."""
    deterministic: bool = False
    """Whether CUDA uses deterministic kernels, so that a resumed run gives the same bits; this is slower. Training on a CPU is
    always deterministic."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_train(self.train)
        if self.epochs.unit == "run":
            raise ValueError(
                f"epochs: {self.epochs} is a share of the run, but epochs must give the run's length; write e.g. 30ep"
            )
        for at, stage in enumerate(self.stages):
            if stage.fit == "optimum":
                continue
            shared = stage.epochs is None or stage.epochs.unit == "run"
            if shared and len(self.timed) > 1 and "epochs" not in self.model_fields_set:
                raise ValueError(f"stages[{at}].epochs: give a length such as 10ep, or epochs for the whole recipe")
            if stage.epochs is None and len(self.timed) > 1:
                raise ValueError(f"stages[{at}].epochs: every stage of several needs a length, e.g. 10ep or 0.5")
        if self.order == "blocked" and self.sampling != "natural":
            raise ValueError("order: blocked reads each image once a pass; give sampling: natural (and class_weights)")
        for at, stage in enumerate(self.resolved_stages()):
            if stage.cache is not None:
                _check_cached(at, stage)
        return self

    @model_validator(mode="after")
    def _has_optima(self) -> Self:
        for at, (stage, whole) in enumerate(zip(self.stages, self.resolved_stages(), strict=True)):
            if stage.fit == "optimum":
                found = [*unused_in_optimum(stage), *obstacles_to_optimum(whole, self.loss)]
                if found:
                    raise ValueError("; ".join(f"stages[{at}].{one}" for one in found))
        return self

    @property
    def timed(self) -> tuple[Stage, ...]:
        """The stages that have a length: those that train by updates."""
        return tuple(stage for stage in self.stages if stage.fit == "updates")

    def without_optima(self) -> Recipe | None:
        """Returns this recipe with only the stages that train by updates, or None if there are none."""
        stages = [stage.model_dump(exclude_unset=True) for stage in self.timed]
        return self.changed(stages=tuple(stages)) if stages else None

    def resolved_stages(self) -> tuple[Stage, ...]:
        """Returns the stages with all inherited values filled in. Only ``lr_scale`` and ``clip_norm`` may still be None, and
        ``lr`` if the stage uses the run's schedule."""
        return tuple(self._resolve(at, stage) for at, stage in enumerate(self.stages))

    def _resolve(self, at: int, stage: Stage) -> Stage:
        own_lr = None if stage.lr is None else merged(self.lr.model_copy(update={"span": "stage"}), stage.lr)
        return stage.model_copy(
            update={
                "name": stage.name or (f"stage{at + 1}" if len(self.stages) > 1 else "main"),
                "epochs": stage.epochs or (Duration(1.0, "run") if stage.fit == "updates" else Duration(1.0, "steps")),
                "image_size": stage.image_size or self.image_size,
                "batch_size": stage.batch_size or self.batch_size,
                "data_fraction": stage.data_fraction or self.data_fraction,
                "train": stage.train or self.train,
                "norm": stage.norm or self.norm,
                "mix": merged(self.mix, stage.mix),
                "augment": merged(self.augment, stage.augment),
                "label_smoothing": _first(stage.label_smoothing, self.label_smoothing),
                "lr": own_lr,
                "average": merged(self.average, stage.average),
                "weight_decay": _first(stage.weight_decay, self.optimizer.weight_decay),
                "momentum": _first(stage.momentum, self.optimizer.momentum),
                "clip_norm": _first(stage.clip_norm, self.optimizer.clip_norm),
                "on_enter": stage.on_enter or self.optimizer.on_enter,
            }
        )

    def functions(self) -> dict[str, str]:
        """Returns the users' functions that the recipe names, by field, such as ``stages[1].augment.custom``."""
        named = {"model.name": self.model.name, "loss": self.loss, "optimizer.name": self.optimizer.name}
        found = {field: name for field, name in named.items() if is_named(name)}
        if self.augment.custom is not None:
            found["augment.custom"] = self.augment.custom
        for at, stage in enumerate(self.stages):
            if stage.augment is not None and stage.augment.custom is not None:
                found[f"stages[{at}].augment.custom"] = stage.augment.custom
        return found

    def to_dict(self) -> dict[str, object]:
        """Returns plain data for JSON or YAML, including defaults; stages contain only the fields that were given.
        ``Recipe.model_validate`` reads it."""
        content = self.model_dump(mode="json")
        content["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.stages]
        return content

    def with_stage(self, at: int, **changes: object) -> Recipe:
        """Returns this recipe with fields of stage ``at`` replaced, validated again (pydantic.ValidationError)."""
        stages: list[dict[str, Any]] = [stage.model_dump(exclude_unset=True) for stage in self.stages]
        stages[at] = {**stages[at], **changes}
        return self.changed(stages=tuple(stages))

    def changed(self, **changes: object) -> Recipe:
        """Returns this recipe with top-level fields replaced, validated again (pydantic.ValidationError)."""
        return type(self).model_validate({**self.model_dump(exclude_unset=True), **changes})

    def with_upper(self, train: str) -> Recipe:
        """Returns this recipe with ``train`` (``last:N`` or ``all``) wherever it says ``upper``; ``all`` caches nothing."""
        stages = [stage.model_dump(exclude_unset=True) for stage in self.stages]
        for content, stage in zip(stages, self.resolved_stages(), strict=True):
            if stage.train == "upper":
                content["train"] = train
                if train == "all":
                    content.pop("cache", None)
        return self.changed(stages=tuple(stages), train=train if self.train == "upper" else self.train)

    def with_epochs(self, epochs: Duration) -> Recipe:
        """Returns this recipe with a total length of ``epochs``; every stage is lengthened or shortened by the same factor.

        Stages whose lengths are shares of the run need no change. Otherwise the lengths of all stages must have the unit of
        ``epochs``, else ValueError.
        """
        lengths = [stage.epochs or Duration(1.0, "run") for stage in self.timed]
        if not lengths:
            raise ValueError("epochs: no stage of this recipe has a length: each is one update, which finds an optimum")
        if all(length.unit == "run" for length in lengths):
            return self.changed(epochs=epochs)
        if any(length.unit != epochs.unit for length in lengths):
            raise ValueError(
                f"epochs: cannot scale stages of {[str(length) for length in lengths]} to {epochs}, a length of another unit"
            )
        factor = epochs.value / sum(length.value for length in lengths)
        stages = [stage.model_dump(exclude_unset=True) for stage in self.stages]
        timed = [stage for stage in stages if stage.get("fit") != "optimum"]
        for stage, length in zip(timed, lengths, strict=True):
            stage["epochs"] = length.scaled(factor)
        return self.changed(stages=tuple(stages))


P = TypeVar("P", bound=Part)


def merged(base: P, override: P | None) -> P:
    """Returns ``base`` with the fields that were set explicitly in ``override``, or ``base`` itself if that is None."""
    if override is None:
        return base
    return base.model_copy(update={name: getattr(override, name) for name in override.model_fields_set})


def _first(*values: Any) -> Any:
    """Returns the first value that is not None."""
    return next((value for value in values if value is not None), None)
