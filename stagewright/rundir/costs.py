"""costs.json: what a run's network costs, as measured alone on one machine (:mod:`stagewright.preflight.model_costs`).

It is written on request, for runs that are compared, and measured again on the next one. A run is complete without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from stagewright.errors import Unreadable
from stagewright.rundir.directory import RunDir
from stagewright.rundir.json_fields import Count
from stagewright.storage.files import read_parsed, write_json
from stagewright.storage.json_text import ABSENT, Fields, fitting, parse_object

_Text = Annotated[str, Field(max_length=1000)]
_Positive = Annotated[float, Field(gt=0, le=1e15)]


class CostsFields(Fields):
    """The content of costs.json; None where something was not measured, is unknown or cannot be read. Times and speeds are
    medians over ``rounds``."""

    measured_at: Annotated[str, Field(max_length=64)] | None = ABSENT
    """When, in UTC, as ``2026-03-14T15:09:26+00:00``."""
    device: _Text | None = ABSENT
    """Name of the device, of a CPU with the number of threads."""
    threads: Count | None = ABSENT
    """Number of threads with which torch computes on a CPU."""
    torch: Annotated[str, Field(max_length=64)] | None = ABSENT
    """Version."""
    precision: Annotated[str, Field(max_length=16)] | None = ABSENT
    """Of the training."""
    eval_precision: Annotated[str, Field(max_length=16)] | None = ABSENT
    """Of evaluation and inference."""
    rounds: Count | None = ABSENT
    """How often each figure was measured, in turns with the other runs that were compared."""
    is_disturbed: bool | None = ABSENT
    """Whether other processes used more than 0.2 cores in any round; None if the system does not tell."""
    others_cores: Annotated[float, Field(ge=0, le=1e6)] | None = ABSENT
    """Average number of cores that other processes used in the worst round."""

    parameters: Count | None = ABSENT
    image_size: Count | None = ABSENT
    """Side in pixels of the images that the network evaluates after the last stage."""
    macs: Count | None = ABSENT
    """Multiply-adds of a forward pass on one image of that size (:func:`stagewright.model.macs.count_macs`)."""
    macs_problem: _Text | None = ABSENT
    """Why they could not be counted."""

    train_images_per_second: _Positive | None = ABSENT
    """Images in all updates of the plan by the seconds that they take, with loading, and without evaluations and checkpoints."""
    epoch_seconds: _Positive | None = ABSENT
    """Seconds in which as many images are trained on as the train part has."""
    train_gb: Annotated[float, Field(ge=0, le=1e9)] | None = ABSENT
    """Highest memory use in training, in GiB: allocated on the device, or on a CPU resident memory of the process."""
    training_problem: _Text | None = ABSENT
    """Why training was not measured."""

    latency_ms: _Positive | None = ABSENT
    """Milliseconds from one normalised image to its logits."""
    images_per_second: _Positive | None = ABSENT
    """Images by second through the network in batches of 64."""
    inference_problem: _Text | None = ABSENT
    """Why inference was not measured, or what its figures lack."""


def write_costs(run: RunDir, costs: CostsFields) -> None:
    """Writes costs.json of ``run``; StorageError if that is impossible."""
    write_json(run.costs, costs.model_dump())


def read_costs(run: RunDir, left_out: Callable[[str], object] | None = None) -> CostsFields | None:
    """Returns the content of a run's costs.json; None if it has none, or if it cannot be read. ``left_out`` is called with a
    sentence on each thing that is damaged or cannot be read now; the other fields remain."""
    say = left_out or (lambda text: None)
    try:
        content = read_parsed(run.costs, parse_object)
    except FileNotFoundError:
        return None
    except (ValueError, Unreadable) as error:
        say(f"{run.costs.name} cannot be read: {error.given if isinstance(error, Unreadable) else error}")
        return None
    found, wrong = fitting(content, CostsFields)
    for one in wrong:
        say(f"{run.costs.name}: a field is left out: {one}")
    return CostsFields.model_validate(found)
