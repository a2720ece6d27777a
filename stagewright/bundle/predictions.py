"""Predictions, and their output as table, CSV or JSON. Does not use torch; a Bundle (:mod:`stagewright.bundle.bundle`)
computes predictions."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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


def print_table(predictions: Sequence[Prediction], console: Console | None = None) -> None:
    """Prints for each image the most probable class with its percentage and the next two, or the error.

    A folder that contains all images is printed once, above the table.
    """
    folders = {os.path.dirname(prediction.path) for prediction in predictions}
    shared = os.path.commonpath(folders) if len(predictions) > 1 and all(folders) and _comparable(folders) else ""
    title = f"in {shared}" if shared else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="dim")
    table.add_column("picture", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("next")
    for prediction in predictions:
        path = Text(os.path.relpath(prediction.path, shared) if shared else prediction.path)
        if not prediction.classes:
            table.add_row(path, Text(prediction.error or "no answer", style="red"), "", "")
            continue
        (name, probability), *others = prediction.classes[:3]
        next_classes = ", ".join(f"{other} {100 * share:.1f} %" for other, share in others)
        table.add_row(path, Text(name, style="bold"), f"{100 * probability:.1f} %", Text(next_classes, style="dim"))
    (console or Console()).print(table)


def _comparable(folders: Iterable[str]) -> bool:
    """Whether all of ``folders`` are absolute or all are relative; otherwise they have no common path."""
    return len({os.path.isabs(folder) for folder in folders}) == 1
