"""What goes into a prediction and what comes out: the pictures that inputs mean, and answers as CSV or JSON.

No torch here: a Bundle (:mod:`stagewright.bundle.bundle`) answers, the command line asks and prints.
"""

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
    """The answer for one picture: either classes or an error."""

    path: str
    classes: tuple[tuple[str, float], ...]
    """(name, probability in [0, 1]), most probable first; () where the picture could not be read."""
    error: str | None = None
    """Why there is no answer."""


def write_csv(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Writes one row a picture: path, class_1, probability_1, ... class_k, probability_k, error.

    k is the largest number of classes that a prediction has; cells without an answer are empty. ``-`` is the standard
    output; whoever reads a file sees the old one or the whole new one. StorageError where it cannot be written.
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
    """A JSON list with one object a picture: path, classes [{name, probability}] most probable first, error or null."""
    objects = [
        {
            "path": prediction.path,
            "classes": [{"name": name, "probability": probability} for name, probability in prediction.classes],
            "error": prediction.error,
        }
        for prediction in predictions
    ]
    return json.dumps(objects, indent=1, ensure_ascii=False)
