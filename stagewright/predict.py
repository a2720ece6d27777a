"""What goes into a prediction and what comes out: the pictures that inputs mean, and answers as table, CSV or JSON.

No torch here: a Bundle (:mod:`stagewright.model.bundle`) answers, the command line asks and prints.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from stagewright.data.decode import picture_formats
from stagewright.errors import DataError


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture: either classes or an error."""

    path: str
    classes: tuple[tuple[str, float], ...]
    """(name, probability in [0, 1]), most probable first; () where the picture could not be read."""
    error: str | None = None
    """Why there is no answer."""


def expand_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """The files that ``inputs`` mean: files as they are, folders with all pictures below them, globs (``**`` too).

    In the order given, what a folder or glob holds sorted, each file once. In folders, files count whose extension is
    that of a format that Pillow reads and whose path below the folder has no hidden part; named and globbed files always
    do. DataError for a path that does not exist, a glob that matches nothing and a folder without pictures.
    """
    found: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            found += _pictures_below(path)
        elif path.exists():
            found.append(path)
        elif glob.has_magic(str(item)):
            found += _matches(str(item))
        else:
            raise DataError(
                f"{str(item)!r}: there is no such file or folder",
                "pictures, folders of pictures, and globs such as 'photos/*.jpg'",
                "check the path; relative paths start at the current directory",
            )
    return list(dict.fromkeys(found))


def _pictures_below(folder: Path) -> list[Path]:
    extensions = picture_formats()[2]
    files = [path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise DataError(
            f"the folder {str(folder)!r} holds no pictures",
            "files with an extension that Pillow reads, such as .jpg, .png, .webp or .tif, at any depth",
            "name files one by one if their extensions are unusual",
        )
    return sorted(shown)


def _matches(pattern: str) -> list[Path]:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(
            f"the glob {pattern!r} matches nothing",
            "patterns with *, ?, [...] and **, relative to the current directory",
            "try it with ls",
        )
    return [file for path in paths for file in (_pictures_below(path) if path.is_dir() else [path])]


def write_csv(predictions: Iterable[Prediction], file: TextIO, topk: int) -> None:
    """Writes a header and one row a picture: path, class_1, probability_1, ... class_k, probability_k, error.

    ``file`` is open for text with ``newline=""``; rows are written as they come. Cells without an answer are empty.
    """
    writer = csv.writer(file)
    places = range(1, topk + 1)
    writer.writerow(["path", *(f"{what}_{at}" for at in places for what in ("class", "probability")), "error"])
    for prediction in predictions:
        cells = [cell for name, probability in prediction.classes[:topk] for cell in (name, f"{probability:.6f}")]
        cells += [""] * (2 * topk - len(cells))
        writer.writerow([prediction.path, *cells, prediction.error or ""])


def to_json(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """One object a picture: path, classes [{name, probability}] most probable first, error (null where there is none)."""
    return [
        {
            "path": prediction.path,
            "classes": [{"name": name, "probability": probability} for name, probability in prediction.classes],
            "error": prediction.error,
        }
        for prediction in predictions
    ]


def to_table(predictions: Sequence[Prediction], topk: int = 3) -> Table:
    """A table for a terminal: path, the most probable class with its percent, and up to ``topk - 1`` others."""
    table = Table(title=f"{len(predictions)} pictures" if len(predictions) != 1 else None, title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("next")
    for prediction in predictions:
        path = Text(prediction.path)
        if not prediction.classes:
            table.add_row(path, Text(prediction.error or "no answer", style="red"), "", "")
            continue
        (name, probability), *others = prediction.classes[:topk]
        runners = ", ".join(f"{other} {100 * share:.1f} %" for other, share in others)
        table.add_row(path, Text(name, style="bold"), f"{100 * probability:.1f} %", Text(runners, style="dim"))
    return table
