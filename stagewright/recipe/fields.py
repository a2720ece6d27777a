"""The parts of a recipe: data, model, optimizer, learning rate, mixing, averaging, evaluation, early stopping, guard.

They are frozen pydantic models that refuse unknown keys; their docstrings document the YAML fields.
:mod:`stagewright.recipe.recipe` combines them and defines what a stage inherits.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from stagewright.measures.metrics import Metric
from stagewright.recipe.augment_fields import AugmentFields
from stagewright.recipe.duration import Duration
from stagewright.recipe.holds import ON, Only, When, fields_for
from stagewright.recipe.name_pattern import GroupText, LabelText
from stagewright.recipe.schema import Frozen, Options
from stagewright.system.named_functions import check_form, is_named

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Size = Annotated[int, Field(ge=4, le=4096)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Interpolation = Literal["bilinear", "bicubic"]
FunctionName = Annotated[str, AfterValidator(check_form)]
"""A user's function, ``python:module:function``."""


def _checked_if_named(value: str) -> str:
    return check_form(value) if is_named(value) else value


Name = Annotated[str, AfterValidator(_checked_if_named)]
"""A name that the package or a library knows, or a user's function, ``python:module:function``."""


TableText = Annotated[str | None, Only("table")]
"""A setting that only a table can follow: the name of a column, or the folder of its images."""


DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A name as people read it: one line of text."""
DisplayNames = dict[Annotated[str, StringConstraints(min_length=1)], DisplayName]
"""Maps the name of a class to its display name."""


class Part(Frozen):
    """A frozen part of a recipe that refuses unknown keys and the numbers infinity and NaN."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Data(Part):
    """How DATA is read. Column names are used only for CSV and Parquet files, patterns of names also for folders."""

    val: Annotated[float, Field(ge=0.0, lt=1.0), Only("training")] = 0.15
    """Share of the images used for validation, if DATA has no validation split of its own."""
    test: Annotated[float, Field(ge=0.0, lt=1.0), Only("training")] = 0.15
    """Share of the images used for the test, if DATA has neither a test nor a validation split of its own."""
    split_seed: Annotated[int, Field(ge=0, lt=2**63), Only("training")] = 0
    """Seed of a split that stagewright makes. It is apart from the run's ``seed``, so that runs with other seeds learn from, and
    are measured on, the same images."""
    val_is_test: Annotated[bool, Only("training")] = False
    """Makes DATA's validation images the test part, and a new validation part (``val``) from its training images: for DATA with
    ``train/`` and ``val/`` only, whose validation images no one should choose weights on."""
    near: Annotated[Literal["ignore", "together"], Only("training")] = "ignore"
    """Near duplicates, as ``data inspect`` finds them, also mirrored ones, in a split that stagewright makes: ``together`` makes
    each set of them a group, which is in one part (docs/split.md); ``ignore`` treats them as any two images. Identical files
    always stay together."""
    path: TableText = None
    """Column with the path of the image file; none: found by its name (path, filepath, file, filename, image, id)."""
    label: Annotated[LabelText, Only("names")] = None
    r"""Column with the class; none: found by its name (label, class, category, breed, ...), or as one-hot class columns. For a
    folder a pattern, ``{pattern: "(?P<label>[a-z]+)_\\d+"}`` or its text alone, that reads the class from the path below DATA
    (docs/data.md)."""
    group: Annotated[GroupText, Only("names")] = None
    r"""Column of groups (site, patient, sequence). All images of a group are put into the same split. None: found by its name;
    the text "none": no groups. For a folder or a table a pattern, ``{pattern: "(?P<group>p\\d+)_"}``, that reads the group from
    the path."""
    split: TableText = None
    """Column that names each image's split (train, val or test); none: found by its name."""
    images: TableText = None
    """Folder to which the paths in a table are relative; none: the folder of the table."""
    names: Annotated[str | DisplayNames | None, Only("training")] = None
    """Display names of the classes, for reports, model cards and predictions: a CSV (columns ``class`` and ``name``) or YAML
    file, or the mapping itself. Classes that it does not name keep their own names. Runs store the mapping."""
    bad_images: Literal["exclude", "fail"] = "exclude"
    """What to do with images that cannot be read: ``exclude`` lists them and trains without them, ``fail`` stops with an
    error that names them."""
    max_pixels: Annotated[int, Field(ge=1, le=2**30)] = 178_956_970
    """Most pixels of an image: one with more counts as unreadable. Decoding takes up to 12 bytes of memory for each of them,
    in each thread that reads images."""
    max_unreadable: Annotated[Fraction, Only("training")] = 0.05
    """Largest share of unreadable images among those of ``guard.window`` updates, or of an evaluation, although all could be
    read when the run began. With more, the data are taken to be lost, and the run saves its state and stops. 1: never stops."""
    min_mixing: Annotated[Fraction, Only("training")] = 0.5
    """Smallest number of classes in a batch, as a share of that of ``order: full``, with which ``order: blocked`` is accepted."""


def reading_fields() -> tuple[str, ...]:
    """Returns the fields of :class:`Data` that say what the columns of a table, or the names of files, mean."""
    found = fields_for(Data, "table") | fields_for(Data, "names")
    return tuple(name for name in Data.model_fields if name in found)


class Model(Part):
    """Which network is trained, and its initial weights."""

    name: Name = "cifar_resnet18"
    """Name of the network: one of stagewright, torchvision or timm (``stagewright models`` lists them); or
    ``python:module:function``, your own, called with ``num_classes`` and ``options`` (docs/extend.md)."""
    weights: str | None = None
    """Initial weights: none or ``none`` (random), ``default`` (the library's pretrained weights), a weights file, or the
    directory of a run."""
    drop_path: Fraction | None = None
    """Rate of stochastic depth (arXiv:1603.09382), the probability of skipping a block; none: the network's default. Not for
    your own network, which takes it among its options."""
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
    """Which optimizer is used, and its constants. The learning rate is in ``lr``."""

    name: Name = "sgd"
    """``sgd``, ``adam`` or ``adamw`` (torch's implementations), or the name of any optimizer of timm; or
    ``python:module:function``, your own, called with the parameter groups, ``lr``, ``momentum``, ``weight_decay`` and
    ``options`` (docs/extend.md)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """SGD's momentum, or Adam's beta1."""
    nesterov: Annotated[bool, When(name="sgd")] = False
    """Whether SGD uses Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """Weight decay as the optimizer defines it (L2 penalty for ``sgd``, decoupled for ``adamw``); 0 switches it off."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on biases and normalisation layers (one-dimensional parameters)."""
    options: Options = Field(default_factory=dict)
    """Further arguments of the optimizer's constructor, e.g. ``{betas: [0.9, 0.99]}``."""
    clip_norm: Positive | None = None
    """Gradients with a larger global L2 norm are scaled down to this norm; none: no clipping."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor between the learning rates of neighbouring blocks: each block has this times the learning rate of the next block,
    and the head has the full learning rate (layer-wise decay, ULMFiT, arXiv:1801.06146, section 3.2; arXiv:2106.08254,
    appendix). 1: all are equal."""
    on_enter: Literal["keep_optimizer", "reset_optimizer"] = "keep_optimizer"
    """Whether a stage begins with the optimizer state (momentum etc.) of the previous stage or with a new one."""


_WARMED_UP = ("constant", "linear", "cosine", "piecewise")


class LR(Part):
    """The learning-rate schedule: factors of a peak learning rate, over the run or over each stage."""

    schedule: Literal["constant", "linear", "cosine", "one_cycle", "piecewise", "swa"] = "cosine"
    """Shape of the schedule after the warm-up. ``linear`` and ``cosine`` fall to ``final``, ``one_cycle`` rises and falls,
    ``piecewise`` follows ``milestones``, ``swa`` anneals to a constant learning rate and is allowed only in a stage."""
    peak: Positive | Literal["auto"] = 0.1
    """Highest learning rate of the schedule. ``auto``, allowed only in the recipe's own ``lr``: the value that a range test
    finds before the run, at the first stage's batch size."""
    batch: Batch | None = None
    """Batch size, in images, for which ``peak`` is given; the peak is scaled linearly with the stage's batch size
    (arXiv:1706.02677). None: no scaling. A peak that a range test has found always belongs to the first stage's batch size."""
    cap: Positive | None = None
    """Largest value of the scaled peak; none: no limit."""
    warmup: Duration = Duration(0.0, "epochs")
    """Length of the linear warm-up before linear, cosine, constant and piecewise; of the rising part of one_cycle; of the
    annealing of swa. 0: no warm-up; one_cycle then rises for 0.3 of its span."""
    warmup_start: Annotated[Fraction, When(warmup=ON, schedule=_WARMED_UP)] = 0.0
    """Factor of the peak at the first step of the warm-up."""
    final: Annotated[Fraction, When(schedule=("linear", "cosine"))] = 0.0
    """Factor of the peak at the end of linear and cosine."""
    milestones: Annotated[dict[str, Fraction], Field(max_length=1000), When(schedule="piecewise")] = Field(
        default_factory=dict
    )
    """Piecewise: maps a length from the start of the span to the factor of the peak from there on."""
    interpolate: Annotated[bool, When(schedule="piecewise")] = False
    """Piecewise: straight lines between the milestones instead of steps."""
    div: Annotated[Positive, When(schedule="one_cycle")] = 25.0
    """One-cycle: the first learning rate is peak / div."""
    final_div: Annotated[Positive, When(schedule="one_cycle")] = 1e4
    """One-cycle: the last learning rate is peak / div / final_div."""
    anneal: Annotated[Literal["cos", "linear"], When(schedule=("one_cycle", "swa"))] = "cos"
    """One-cycle and swa: shape of the rise and fall, a half-cosine or a straight line."""
    momentum: Annotated[tuple[Fraction, Fraction] | None, When(schedule="one_cycle")] = None
    """One-cycle: [low, high]; momentum falls from high to low while the learning rate rises, then returns to high. None:
    constant momentum."""
    span: Literal["run", "stage"] = "run"
    """Whether the schedule covers the whole run once, or begins again in every stage."""

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
    """Augmentation of each training image, a function of (seed, pass, sample). docs/augmentation.md gives the order."""


class Mix(Part):
    """Mixing of images within a batch; mixup or cutmix is drawn for each batch. ``none`` switches both off."""

    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """Alpha of mixup's Beta distribution (arXiv:1710.09412); 0: no mixup."""
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    """Alpha of cutmix's Beta distribution (arXiv:1905.04899); 0: no cutmix."""
    probability: Annotated[Fraction, When(mixup=ON), When(cutmix=ON)] = 1.0
    """Probability that a batch is mixed."""
    cutmix_share: Annotated[Fraction, When(mixup=ON, cutmix=ON)] = 0.5
    """Probability that a mixed batch uses cutmix rather than mixup, if both are on."""

    @model_validator(mode="before")
    @classmethod
    def _none_is_off(cls, value: object) -> object:
        return {"mixup": 0.0, "cutmix": 0.0} if value is False or value in ("none", "off") else value


class Cache(Part):
    """Fixed views of each image in a stage that trains the upper part of the network."""

    views: Annotated[int, Field(ge=1, le=1000)] = 8
    """Number of augmented views of each image. The frozen lower part of the network is run once on each view, and the upper part
    trains on its outputs, with the views in turn: view v is what pass v of the stage would have drawn."""


class Average(Part):
    """A second set of weights, averaged over steps and evaluated in addition to the raw weights. A text sets ``kind``."""

    kind: Literal["none", "ema", "swa"] = "none"
    """``ema``: exponential moving average; ``swa``: mean of weights at equal distances; ``none``: raw weights only."""
    half_life: Annotated[Duration, When(kind="ema")] = Duration(0.02, "run")
    """EMA: length of training after which the influence of a step's weights has halved, at any batch size. The average is
    bias-corrected."""
    every: Annotated[Duration, When(kind="swa")] = Duration(1.0, "epochs")
    """SWA (arXiv:1803.05407): distance between the weights that are averaged."""
    recalibrate: Annotated[Annotated[int, Field(ge=0)] | None, When(kind=("ema", "swa"))] = None
    """Number of training images used to re-estimate the batch-norm statistics of the averaged weights before each evaluation.
    0: the statistics are averaged like the weights. None: 4096 for swa, 0 for ema."""

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, value: object) -> object:
        if value is False:
            value = "none"
        return {"kind": value} if isinstance(value, str) else value


class Evaluation(Part):
    """How often the model is evaluated, and how images are cropped and resized for it."""

    every: Duration = Duration(1.0, "epochs")
    """Distance between two evaluations; the end of every stage is evaluated in addition."""
    image_size: Size | None = None
    """Side of evaluated images in pixels; none: the stage's image size."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.875
    """Side of the central crop, as a share of the image's shorter side."""
    fit: Literal["crop", "squash"] = "crop"
    """``crop``: a central square. ``squash``: the share ``crop`` of both sides, resized to a square, which changes the aspect
    ratio."""
    select: Literal["best", "last"] = "best"
    """Which weights become the finished model: those of the best evaluation, or those of the last step. In both cases the
    better of raw and averaged weights, by ``metric``."""
    metric: Metric = "top1"
    """The measure on the validation images by which weights are selected and early stopping goes: ``top1``;
    ``balanced_accuracy``, the mean recall over classes; ``macro_f1``, the mean F1 over classes; ``auc``, the mean area under the
    ROC curve of each class against the rest; ``log_loss``, the mean cross-entropy, where lower is better."""
    consider_head: Annotated[bool, Only("head")] = True
    """Whether the selected weights are compared at the end with the head alone and with mixtures of both, by their validation
    loss (docs/runs.md). Without validation images, there is no comparison."""
    fold: bool = True
    """Whether batch norms are folded into the convolutions before them where networks only predict: in evaluations, and in the
    finished model. The same function with fewer operations; logits differ by rounding. Holds on CPUs, without ``compile``."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision on CPUs where networks only predict: in evaluations on images, and in the finished model. ``bf16``: images whose
    first two classes are close are computed again in float32. ``auto``: bf16 on processors that are faster in it (AMX, or AMD's
    AVX-512 BF16), else fp32. Holds without ``compile`` and with ``precision: fp32``."""


class Checkpoints(Part):
    """How often the complete training state is saved, and how many checkpoints stay on disk."""

    every: Duration = Duration(1.0, "epochs")
    """Distance between two checkpoints; the end of every stage is saved in addition."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Number of newest checkpoints that stay; older ones are deleted, except the best and the last."""


class Stop(Part):
    """Early stopping: the run ends when its evaluations no longer improve (``patience``), or after the head
    (``head_suffices``). Off unless one of these is given."""

    patience: Annotated[int, Field(ge=1)] | None = None
    """Number of consecutive evaluations without an improvement after which the run ends; none: no early stopping."""
    metric: Annotated[Literal["val_top1", "val_loss"] | None, When(patience=ON)] = None
    """Measure that must improve, of the better of raw and averaged weights: validation top-1 in percent, or validation loss;
    none: that of ``eval.metric``."""
    min_delta: Annotated[float, Field(ge=0.0), When(patience=ON)] = 0.0
    """A change counts as an improvement if it is larger than this, in percentage points of top-1, or in units of another
    measure."""
    head_suffices: Annotated[bool, Only("head")] = False
    """Whether the run ends after the stages that train only the head if the better of its raw and averaged weights makes fewer
    than 6 errors on at least 50 validation images (docs/guard.md)."""


class Guard(Part):
    """What is done if training diverges. docs/guard.md explains how this is detected and why a resumed run acts equally."""

    rollbacks: Annotated[int, Field(ge=0)] = 5
    """How many times a run may return to its state before the problem; after that it stops with an error. 0: it stops at the
    first problem."""
    window: Annotated[int, Field(ge=4, le=1000)] = 16
    """Number of steps between two checks of the losses, and between two states that are stored for a rollback."""
    spike: Positive = 0.5
    """Threshold of a loss spike: two consecutive windows whose median loss exceeds that of the stage's best window by this
    share of the loss of random guessing (the logarithm of the number of classes)."""
    lr_factor: Annotated[float, Field(gt=0.0, le=1.0), When(rollbacks=ON)] = 0.2
    """Factor on the learning rate after a rollback because of a spike, or if no single image causes the problem. If another
    problem follows within ``lr_factor_windows``, the factors multiply."""
    lr_factor_windows: Annotated[int, Field(ge=1), When(rollbacks=ON)] = 8
    """Number of windows for which ``lr_factor`` applies."""

    @model_validator(mode="before")
    @classmethod
    def _off_in_words(cls, value: object) -> object:
        return {"rollbacks": 0} if value is False or value in ("none", "off") else value
