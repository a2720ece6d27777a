"""weights.json: where a run's initial weights come from, what of them was loaded, and what each stage trains.

It is written before the first update and stays as it is. Runs of older versions have no such file.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stagewright.rundir.directory import RunDir
from stagewright.rundir.json_fields import Count
from stagewright.storage.files import read_own
from stagewright.storage.json_text import ABSENT, Fields, misfit, parse_object
from stagewright.text import count_text, printable

_Names = Annotated[list[str], Field(max_length=1000)]
_Digest = Annotated[str, Field(max_length=128)]


class _Run(Fields):
    folder: str
    plan_digest: _Digest
    step: Count
    weights: str


class _Origin(Fields):
    kind: Literal["random", "function", "library", "file", "run"]
    name: str = ABSENT
    library: str = ABSENT
    trained_on: str = ABSENT
    sha256: _Digest = ABSENT
    run: _Run = ABSENT


class _Tensors(Fields):
    loaded: Count
    resampled: Count
    fresh: Count
    fresh_in_head: Count
    skipped: Count


class _Resampled(Fields):
    name: str
    before: Count
    now: Count


class _Skipped(Fields):
    name: str
    reason: str


class _Parameters(Fields):
    loaded: Count
    all: Count


class _Stage(Fields):
    name: str
    train: str | _Names
    trains: str
    parameters: Count
    steps: Count
    fit: Literal["updates", "optimum"]


class WeightsFields(Fields):
    """The content of weights.json. ``tensors`` counts those of the model (``skipped``: of the source), without the counters of
    batch norms; the lists name the first of them. ``fresh`` names none where nothing was loaded."""

    origin: _Origin
    tensors: _Tensors
    head: Literal["none", "fresh", "rows", "loaded"]
    head_rows: Count
    """Number of classes whose rows of the head were loaded."""
    resampled: Annotated[list[_Resampled], Field(max_length=1000)]
    fresh: _Names
    skipped: Annotated[list[_Skipped], Field(max_length=1000)]
    parameters: _Parameters
    stages: Annotated[list[_Stage], Field(max_length=10_000)]


def read_weights(run: RunDir, left_out: Callable[[str], object] | None = None) -> WeightsFields | None:
    """Returns the content of a run's weights.json; None if it has none, as runs of older versions, or if it is damaged, which a
    sentence to ``left_out`` says. Unreadable if it cannot be read now."""
    try:
        content = parse_object(read_own(run.weights))
        if wrong := misfit(content, WeightsFields):
            raise ValueError(wrong)
        return WeightsFields.model_validate(content)
    except FileNotFoundError:
        return None
    except ValueError as error:
        if left_out is not None:
            left_out(f"{run.weights.name} cannot be read: {error}")
        return None


def origin_text(found: WeightsFields) -> str:
    """Returns where the weights come from: ``ImageNet weights swin_t.IMAGENET1K_V1``, ``random weights``, ``weights of the file
    w.pth (SHA-256 0123456789ab)``."""
    origin = found.origin
    name = printable(origin.name or "")
    if origin.kind == "random":
        return "random weights"
    if origin.kind == "function":
        return f"weights as {name} makes them"
    if origin.kind == "library":
        return f"{origin.trained_on} weights {name}" if origin.trained_on else f"weights {origin.library}:{name}"
    run: Any = origin.run
    if origin.kind == "run" and run is not None:
        folder = printable(Path(run.folder).name or run.folder)
        return f"{run.weights} weights of the run {folder} at step {run.step:,} (plan {run.plan_digest[:12]})"
    return f"weights of the file {printable(Path(name).name)} (SHA-256 {(origin.sha256 or '')[:12]})"


def weights_sentence(found: WeightsFields) -> str:
    """Returns the start and the stages in one sentence without a full stop: ``ImageNet weights swin_t.IMAGENET1K_V1; head fresh;
    head 60 steps, then all 120``."""
    head = {
        "fresh": "head fresh",
        "rows": f"head loaded for {count_text(found.head_rows, 'class', 'classes')}",
        "loaded": "head loaded",
    }
    nothing_loaded = found.origin.kind in ("random", "function")
    parts = [origin_text(found), *([head[found.head]] if found.head in head and not nothing_loaded else [])]
    if not nothing_loaded and (others := found.tensors.fresh - found.tensors.fresh_in_head) > 0:
        parts.append(f"{count_text(others, 'other tensor')} fresh")
    return "; ".join([*parts, _stages_text(found)])


def _stages_text(found: WeightsFields) -> str:
    texts: list[str] = []
    for (trains, fit), stages in groupby(found.stages, key=lambda stage: (stage.trains, stage.fit)):
        steps, what = sum(stage.steps for stage in stages), printable(trains)
        if fit == "optimum":
            texts.append(f"{what} to its optimum")
        else:
            unit = "" if any("step" in text for text in texts) else " step" if steps == 1 else " steps"
            texts.append(f"{what} {steps:,}{unit}")
    return ", then ".join(texts)
