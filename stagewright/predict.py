"""What goes into a prediction and what comes out: the pictures that inputs mean, and answers as table, CSV or JSON.

No torch here: a Bundle (:mod:`stagewright.model.bundle`) answers, the command line asks and prints.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagewright.data.decode import picture_extensions
from stagewright.errors import DataError
from stagewright.storage.files import user_path, write_for_user


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
        path = user_path(item)
        if os.path.isdir(path):
            found += _pictures_below(path)
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(str(path)):
            found += _matches(str(path))
        else:
            raise DataError(
                f"{str(item)!r}: there is no such file or folder",
                "pictures, folders of pictures, and globs such as 'photos/*.jpg'",
                "check the path; relative paths start at the current directory",
            )
    return list(dict.fromkeys(found))


def _there(ask: Callable[[Path], bool], path: Path) -> bool:
    try:
        return ask(path)
    except (OSError, ValueError):  # names too long, or with a zero byte in them
        return False


def _pictures_below(folder: Path) -> list[Path]:
    extensions = picture_extensions()
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


def print_table(predictions: Sequence[Prediction], console: Console | None = None) -> None:
    """Prints the most probable class of each picture with its percent, the two after it, and what could not be read.

    A folder that all pictures share is said once, above them.
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
        runners = ", ".join(f"{other} {100 * share:.1f} %" for other, share in others)
        table.add_row(path, Text(name, style="bold"), f"{100 * probability:.1f} %", Text(runners, style="dim"))
    (console or Console()).print(table)


def _comparable(folders: Iterable[str]) -> bool:
    """Whether all of ``folders`` are absolute or all relative, without which they share nothing."""
    return len({os.path.isabs(folder) for folder in folders}) == 1
