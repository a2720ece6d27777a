"""The schema of model.json. A Bundle may come from anyone: nothing in it is used before it has passed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from stagewright.measures.operating import OperatingPoint
from stagewright.recipe.schema import Frozen

Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Side = Annotated[int, Field(ge=1, le=8192)]
FileName = Annotated[
    str, StringConstraints(pattern=r"^(weights\.safetensors|golden\.safetensors|README\.md|golden/\w+\.\w+)$")
]
"""Files within the Bundle, and no path that leads out of it."""
Colours = tuple[float, float, float]


class _Network(Frozen):
    name: Text
    options: dict[str, Any]
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None
    image_size: Side


class _Preprocessing(Frozen):
    image_size: Side
    crop: Annotated[float, Field(gt=0, le=1)]
    fit: Literal["crop", "squash"]
    interpolation: Literal["bilinear", "bicubic"]
    mean: Colours
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class _Operating(Frozen):
    thresholds: dict[Text, Annotated[float, Field(gt=0, le=1)]]
    min_confidence: Annotated[float, Field(ge=0, le=1)]
    reasons: dict[Annotated[str, StringConstraints(max_length=1000)], Text]


class Description(Frozen):
    """The content of model.json."""

    format: Annotated[int, Field(ge=1)]
    model: _Network
    num_classes: Annotated[int, Field(ge=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: _Preprocessing
    training: dict[str, Any]
    versions: dict[str, str]
    fold: bool = True
    """Whether it predicts with folded batch norms on CPUs; left out if so, as in Bundles that were written before."""
    close_margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Difference of two logits below which a prediction in bfloat16 is made again in float32; None: all are in float32."""
    names: dict[str, Text] = Field(default_factory=dict)
    """Display names of classes; left out if there are none."""
    operating: _Operating | None = None
    """When it answers which class; left out where it always answers the most probable one."""
    golden: tuple[Annotated[str, StringConstraints(pattern=r"^\w+\.\w+$")], ...]
    files: dict[FileName, Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]]
    """SHA-256 of each file. README.md is for people, who may edit it: its hash is not compared."""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Description:
        """Returns the description in ``content``, of JSON; ValidationError if a value has another type than it must have."""
        return cls.model_validate_json(json.dumps(content), strict=True)

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        if len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} classes are named, num_classes is {self.num_classes}")
        if unknown := self.names.keys() - set(self.classes):
            raise ValueError(f"names has {min(unknown)!r}, which is no class")
        if self.operating is not None and (others := self.operating.thresholds.keys() - set(self.classes)):
            raise ValueError(f"operating has a threshold for {min(others)!r}, which is no class")
        if not {f"golden/{name}" for name in self.golden} <= self.files.keys():
            raise ValueError("files does not list the golden samples")
        if missing := {"weights.safetensors", "golden.safetensors"} - self.files.keys():
            raise ValueError(f"files does not list {min(missing)}")
        return self


def plain(value: Any) -> Any:
    """Converts numbers of NumPy and torch to Python's, and everything else (a Path, a date) to text, for JSON."""
    return value.item() if hasattr(value, "item") else str(value)


def operating_point(content: Description) -> OperatingPoint:
    """Returns the operating point that ``content`` holds."""
    return OperatingPoint() if content.operating is None else OperatingPoint(**content.operating.model_dump())
