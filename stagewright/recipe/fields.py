"""The parts of a recipe: data, model, optimizer, learning rate, mixing, averaging, evaluation, early stopping, guard.

Frozen pydantic models that refuse unknown keys; their docstrings document the YAML. :mod:`stagewright.recipe.recipe` puts them
together and says what a stage inherits.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from stagewright.recipe.augment_fields import AugmentFields
from stagewright.recipe.duration import Duration
from stagewright.recipe.schema import Frozen, Options
from stagewright.system.named_functions import check_form, is_named

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Size = Annotated[int, Field(ge=4, le=4096)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Interpolation = Literal["bilinear", "bicubic"]
FunctionName = Annotated[str, AfterValidator(check_form)]
"""A function of one's own, ``python:module:function``."""


def _checked_if_named(value: str) -> str:
    return check_form(value) if is_named(value) else value


Name = Annotated[str, AfterValidator(_checked_if_named)]
"""A name that the package or a library knows, or a function of one's own, ``python:module:function``."""


class Part(Frozen):
    """A frozen part of a recipe that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


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
    max_unreadable: Fraction = 0.05
    """Share of the pictures of ``guard.window`` updates, or of an evaluation, that may turn out unreadable though they were read
    before; with more the data counts as gone, and the run stops with its state saved. 1 never stops."""


class Model(Part):
    """Which network, and what it starts from."""

    name: Name = "cifar_resnet18"
    """Of torchvision, timm or stagewright; or ``python:module:function`` of one's own, which gets ``num_classes`` and
    ``options`` (docs/extend.md)."""
    weights: str | None = None
    """None or ``none`` (random), ``default`` (the library's pretrained weights), a weights file, or the directory of a run."""
    drop_path: Fraction | None = None
    """Stochastic depth (arXiv:1603.09382); None leaves the network's own. Not for a function of one's own."""
    options: Options = Field(default_factory=dict)
    """Further arguments of the network's constructor, e.g. ``{patch: 4, depth: 6, heads: 8, width: 384}`` of ``vit``."""

    @field_validator("weights")
    @classmethod
    def _none_in_words(cls, value: str | None) -> str | None:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _own_network_takes_options(self) -> Self:
        if self.drop_path is not None and is_named(self.name):
            raise ValueError(f"drop_path: {self.name} gets it with its options: write options: {{drop_path: ...}}")
        return self


class Optimizer(Part):
    """Which optimizer, and its constants. The learning rate stands in ``lr``."""

    name: Name = "sgd"
    """``sgd``, ``adam``, ``adamw`` (torch's own), any optimizer of timm; or ``python:module:function`` of one's own, which
    gets the parameter groups, ``lr``, ``momentum``, ``weight_decay`` and ``options`` (docs/extend.md)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """SGD's momentum, Adam's beta1."""
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on biases and normalisation layers (one-dimensional parameters)."""
    options: Options = Field(default_factory=dict)
    """Further constructor arguments, e.g. ``{betas: [0.9, 0.99]}``."""
    clip_norm: Positive | None = None
    """Gradients are scaled down to this global norm."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each block's learning rate is this times that of the block behind it; the head has the whole (ULMFiT's discriminative
    rates, arXiv:1801.06146, section 3.2; arXiv:2106.08254, appendix)."""
    on_enter: Literal["keep_optimizer", "reset_optimizer"] = "keep_optimizer"
    """What a stage does on entry with momentum and other optimizer state of the stage before."""


class LR(Part):
    """The learning rate as a schedule: factors of a peak, over the run or over each stage."""

    schedule: Literal["constant", "linear", "cosine", "one_cycle", "piecewise", "swa"] = "cosine"
    peak: Positive | Literal["auto"] = 0.1
    """``auto`` in the recipe's own ``lr``: what a range test finds before the run, at the first stage's batch size."""
    batch: Batch | None = None
    """``peak`` is meant for this batch size and scales linearly with the stage's (arXiv:1706.02677); None: as it is. A peak
    that was found is meant for the first stage's batch size, whatever number stands here."""
    cap: Positive | None = None
    """The scaled peak never exceeds this."""
    warmup: Duration = Duration(0.0, "epochs")
    """Linear warm-up before linear, cosine, constant and piecewise; the rising part of one_cycle; the annealing of swa."""
    warmup_start: Fraction = 0.0
    """Factor of the peak at the first step of the warm-up."""
    final: Fraction = 0.0
    """Factor of the peak that linear and cosine end at."""
    milestones: Annotated[dict[str, Fraction], Field(max_length=1000)] = Field(default_factory=dict)
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
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"peak": value} if number or value == "auto" else value

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


class Stop(Part):
    """Early stopping: the run ends where its evaluations no longer improve. Off unless ``patience`` is given."""

    patience: Annotated[int, Field(ge=1)] | None = None
    """So many evaluations in a row without an improvement end the run; None never does."""
    metric: Literal["val_top1", "val_loss"] = "val_top1"
    """Of the better of raw and averaged weights; top-1 in percent."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """An improvement is more than this: percentage points of top-1, or loss."""


class Guard(Part):
    """What is done where training diverges. docs/guard.md tells how it is noticed and why a resumed run does the same."""

    rollbacks: Annotated[int, Field(ge=0)] = 5
    """How often a run goes back to before the trouble; the next time it stops with a message. 0 stops at once."""
    window: Annotated[int, Field(ge=4, le=1000)] = 16
    """Steps between two looks at the losses, and between two states kept to go back to."""
    spike: Positive = 0.5
    """Two windows in a row whose median loss is above the best window of the stage by this share of a blind guess's loss
    (the logarithm of the number of classes) are a spike."""
    lr_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Factor on the learning rate after going back from a spike, or where no single picture is to blame; it multiplies where
    trouble comes again meanwhile."""
    lr_factor_windows: Annotated[int, Field(ge=1)] = 8
    """For so many windows."""

    @model_validator(mode="before")
    @classmethod
    def _off_in_words(cls, value: object) -> object:
        return {"rollbacks": 0} if value is False or value in ("none", "off") else value
