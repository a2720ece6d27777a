"""Predictions, and their output as CSV or JSON. Does not use torch; a Bundle (:mod:`stagewright.bundle.bundle`) computes them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.storage.files import write_for_user


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image: either classes or an error."""

    path: str
    classes: tuple[tuple[str, float], ...]
    """(name, probability in [0, 1]), most probable first; () if the image could not be read."""
    error: str | None = None
    """Why there is no prediction; None if there is one."""


def write_csv(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Writes a CSV file with one row per image: path, class_1, probability_1, ... class_k, probability_k, error.

    k is the largest number of classes of a prediction; cells without a value are empty. The path ``-`` is standard output. A
    file is written completely or not at all. StorageError if it cannot be written.
    """
    places = range(1, max((len(prediction.classes) for prediction in predictions), default=0) + 1)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["path", *(f"{what}_{at}" for at in places for what in ("class", "probability")), "error"])
    for prediction in predictions:
        cells = [cell for name, probability in prediction.classes for cell in (name, f"{probability:.6f}")]
        cells += [""] * (2 * len(places) - len(cells))
        writer.writerow([prediction.path, *cells, prediction.error or ""])
    write_for_user(path, file.getvalue())


def to_json(predictions: Iterable[Prediction]) -> str:
    """Returns a JSON list with one object per image: path, classes [{name, probability}] (most probable first), error or
    null."""
    objects = [
        {
            "path": prediction.path,
            "classes": [{"name": name, "probability": probability} for name, probability in prediction.classes],
            "error": prediction.error,
        }
        for prediction in predictions
    ]
    return json.dumps(objects, indent=1, ensure_ascii=False)
