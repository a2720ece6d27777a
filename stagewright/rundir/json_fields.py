"""The fields of the JSON files of a run directory that the package uses, with their types.

A run directory may come from anyone, and may be damaged: nothing of these files is used before it was compared with them
(:func:`stagewright.storage.json_text.fitting`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stagewright.measures.metrics import Metric
from stagewright.plan.lr_curve import Method
from stagewright.storage.json_text import ABSENT, Fields

Count = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
_Finite = Annotated[float, Field(ge=-1e300, le=1e300)]
_Percents = dict[str, float | None]


class _Chosen(Fields):
    step: Count
    weights: str


class _Finalist(Fields):
    weights: str
    step: Count
    coefficient: Annotated[float, Field(ge=0, le=1)]
    loss: _Finite | None
    top1: _Finite | None


class _AgainstHead(Fields):
    points: _Finite
    low: _Finite
    high: _Finite
    gained: Count
    lost: Count
    images: Count


class _Measure(Fields):
    value: _Finite | None
    low: _Finite | None = ABSENT
    high: _Finite | None = ABSENT
    by_chance: _Finite = ABSENT


class _Choice(Fields):
    factor: Annotated[float, Field(gt=0, le=1e9)]
    every: Annotated[float, Field(gt=0, le=1)] | None


class _Budget(Fields):
    asked: str
    predicted_seconds: Seconds
    choice: _Choice = ABSENT
    text: str
    actual_seconds: Seconds | None = ABSENT


class _Seal(Fields):
    bytes: Count
    sha256: str


class _Test(Fields):
    held: bool
    opened: Count


class _Guard(Fields):
    micro_batch_size: Annotated[int, Field(ge=1, le=10**9)] | None = ABSENT


class _Mirror(Fields):
    url: Annotated[str, Field(max_length=4000)]
    missing: Annotated[list[str], Field(max_length=100_000)]
    error: str | None


class SummaryFields(Fields):
    """summary.json (:class:`stagewright.rundir.summary.Summary`)."""

    status: str = ABSENT
    name: str = ABSENT
    recipe: str | None = ABSENT
    model: str | None = ABSENT
    data: str | None = ABSENT
    plan_digest: str = ABSENT
    dataset_digest: str = ABSENT
    seed: int = ABSENT
    step: Count = ABSENT
    total_steps: Count = ABSENT
    stopped_at: Annotated[float, Field(ge=0, le=100)] | None = ABSENT
    top1: _Percents = ABSENT
    test: _Test | None = ABSENT
    guard: _Guard = ABSENT
    unreadable: Count = ABSENT
    metric: Metric = ABSENT
    measures: dict[Literal["val", "test"], dict[str, _Measure]] = ABSENT
    chosen: _Chosen | None = ABSENT
    finalists: Annotated[list[_Finalist], Field(max_length=100)] = ABSENT
    against_head: dict[Literal["val", "test"], _AgainstHead] | None = ABSENT
    setup_seconds: Seconds = ABSENT
    train_seconds: Seconds = ABSENT
    eval_seconds: Seconds = ABSENT
    checkpoint_seconds: Seconds = ABSENT
    images_per_second: Seconds = ABSENT
    parameters: Count = ABSENT
    precision: str | None = ABSENT
    device: str | None = ABSENT
    memory_gb: dict[str, _Finite] | None = ABSENT
    budget: _Budget | None = ABSENT
    parent: str | None = ABSENT
    error: str | None = ABSENT
    mirror: _Mirror | None = ABSENT


class _Stage(Fields):
    first_step: Count
    num_steps: Count
    index: Count = ABSENT
    lanes: Count = ABSENT
    micro_batch_size: Count = ABSENT
    name: str = ABSENT
    image_size: Count = ABSENT
    batch_size: Count = ABSENT
    num_images: Count = ABSENT
    epochs_asked: _Finite | None = ABSENT
    epochs_given: _Finite | None = ABSENT
    train: str | list[str] = ABSENT
    lr_first: _Finite = ABSENT
    lr_peak: _Finite = ABSENT
    lr_last: _Finite = ABSENT


class _Dataset(Fields):
    num_train: Count = ABSENT
    num_val: Count = ABSENT
    num_test: Count = ABSENT
    classes: Annotated[list[str], Field(max_length=10**6)] = ABSENT
    digest: str = ABSENT


class _Measured(Fields):
    lr: _Finite | None = ABSENT
    upper: str | None = ABSENT


class _Model(Fields):
    name: str = ABSENT
    weights: str | None = ABSENT


class _Eval(Fields):
    select: str = ABSENT
    metric: Metric = ABSENT
    crop: Annotated[float, Field(gt=0, le=1)] = ABSENT
    fit: Literal["crop", "squash"] = ABSENT
    image_size: Count | None = ABSENT


class _Data(Fields):
    names: dict[str, str] | str | None = ABSENT
    metric: Metric = ABSENT


class _Recipe(Fields):
    data: _Data = ABSENT
    name: str = ABSENT
    seed: int = ABSENT
    deterministic: bool = ABSENT
    model: _Model = ABSENT
    eval: _Eval = ABSENT
    interpolation: Literal["bilinear", "bicubic"] = ABSENT


class PlanFields(Fields):
    """plan.json (:class:`stagewright.plan.plan.Plan`)."""

    digest: str = ABSENT
    recipe: _Recipe = ABSENT
    dataset: _Dataset = ABSENT
    precision: str = ABSENT
    eval_precision: str = ABSENT
    measured: _Measured = ABSENT
    total_steps: Count = ABSENT
    stages: Annotated[list[_Stage], Field(max_length=10_000)] = ABSENT


class EnvFields(Fields):
    """env.json (:func:`stagewright.rundir.environment.environment`)."""

    command: str = ABSENT
    cwd: str = ABSENT
    data: str | None = ABSENT
    parent: str | None = ABSENT
    expected: Annotated[str, Field(max_length=500)] | None = ABSENT
    device_name: str | None = ABSENT
    data_notes: list[str] = ABSENT
    stagewright: str | None = ABSENT
    git_commit: str | None = ABSENT
    python: str | None = ABSENT
    torch: str | None = ABSENT
    torchvision: str | None = ABSENT
    timm: str | None = ABSENT
    numpy: str | None = ABSENT
    pillow: str | None = ABSENT
    platform: str | None = ABSENT
    cpu: str | None = ABSENT
    cores: Count | None = ABSENT
    ram_gb: _Finite | None = ABSENT
    created: str | None = ABSENT
    decoder: str = ABSENT
    functions: dict[str, str | None] = ABSENT
    budget: _Budget | None = ABSENT
    hold_test: Annotated[str, Field(max_length=500)] | Literal[True] = ABSENT


class RangeTestFields(Fields):
    """lr-find/lr-find.json (:func:`stagewright.preflight.lr_find.range_test_files`)."""

    suggestions: Annotated[dict[Method, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)]
    chosen: Method
    notes: list[str]
    planned: Annotated[int, Field(ge=10, le=10**6)]
    caption: str


class _FedImage(Fields):
    path: str
    label: Count
    other: Count
    file: Annotated[str, Field(max_length=400_000, pattern=r"^(iVBORw0KGgo|/9j/)[A-Za-z0-9+/]*={0,2}$")]
    """The bytes of a PNG or JPEG file in base64."""


class FedFields(Fields):
    """fed/STAGE.json (:mod:`stagewright.training.fed_record`)."""

    step: Count
    kind: Literal["none", "mixup", "cutmix"]
    share: Annotated[float, Field(ge=0, le=1)]
    images: Annotated[list[_FedImage], Field(max_length=64)]


class MetaFields(Fields):
    """meta.json of a checkpoint (:mod:`stagewright.rundir.checkpoint`)."""

    step: Count
    plan_digest: str
    bytes: Count
    sha256: str
    protect: list[Count]
    logs: dict[Literal["events.jsonl", "steps.csv", "metrics.csv", "timing.csv"], _Seal] = ABSENT
    """By name; any other name might lead out of the run's directory, where the log is restored."""
