"""Reads which class of the model each class of DATA is: from ``glass=Glass,tin=metal``, or from a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from stagewright.errors import DataError
from stagewright.storage.files import read_parsed, user_path
from stagewright.storage.json_text import parse_object
from stagewright.text import from_table_cell, printable

_FILES = (".csv", ".tsv", ".json")
_ALLOWED = "THEIRS=OURS, several separated by commas, or a file of such pairs (.csv, .tsv, .json)"


def read_class_map(given: Sequence[str | Path], dropped: Sequence[str] = ()) -> dict[str, str | None]:
    """Returns the model's class for each class of DATA in ``given``, texts or files, and None for each of ``dropped``.

    A text is ``THEIRS=OURS``, or several of these with commas between them. A file ends in .csv or .tsv and has two columns,
    theirs and ours, with or without this header, or in .json and is an object. DataError for anything else, and for a class
    that is given two different ones.
    """
    classes: dict[str, str | None] = {}
    for one in given:
        text = str(one)
        is_file = text.lower().endswith(_FILES) and "=" not in text
        for theirs, ours in (_of_file(user_path(one)) if is_file else _of_text(text)).items():
            _put(classes, theirs, ours)
    for theirs in dropped:
        if not theirs:
            raise DataError("--drop-class ''", "the name of a class of DATA", "give its name, or leave it out")
        _put(classes, theirs, None)
    return classes


def _put(classes: dict[str, str | None], theirs: str, ours: str | None) -> None:
    if theirs in classes and classes[theirs] != ours:
        raise DataError(f"the class {theirs!r} is given twice", "one class for it", "leave one out")
    classes[theirs] = ours


def _of_text(text: str) -> dict[str, str]:
    classes: dict[str, str | None] = {}
    for pair in text.split(","):
        theirs, _, ours = pair.partition("=")
        if not theirs or not ours or "=" in ours:
            whole = "" if pair == text else f" in {text!r}"
            raise DataError(
                f"--map {pair!r}{whole}",
                _ALLOWED,
                "write for example --map glass=Glass,tin=metal; put names with commas or = into a file",
            )
        _put(classes, theirs, ours)
    return {theirs: str(ours) for theirs, ours in classes.items()}


def _of_file(path: Path) -> Mapping[str, str | None]:
    try:
        return read_parsed(path, _parsed_json if path.suffix.lower() == ".json" else _parsed_table)
    except FileNotFoundError:
        raise DataError(f"--map {path}: there is no such file", _ALLOWED, "check the path") from None
    except ValueError as error:
        raise DataError(
            f"--map {path}: {error}",
            'two columns, theirs and ours, in a .csv or .tsv; {"theirs": "ours"} in a .json',
            "correct the file; --drop-class NAME leaves a class out",
        ) from None


def _parsed_json(data: bytes) -> dict[str, str | None]:
    content = parse_object(data)
    for theirs, ours in content.items():
        if ours is not None and (not isinstance(ours, str) or not ours):
            raise ValueError(f"the class of {theirs!r} is {printable(ours)!r}, not a name or null")
    return content


def _parsed_table(data: bytes) -> dict[str, str | None]:
    text = data.decode("utf-8-sig")
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",", strict=True)
    classes: dict[str, str | None] = {}
    try:
        for number, row in enumerate(rows, 1):
            if not any(row) or (number == 1 and [cell.strip().casefold() for cell in row] == ["theirs", "ours"]):
                continue
            if len(row) != 2 or not all(row):
                raise ValueError(f"row {number} has {len([cell for cell in row if cell])} names instead of two")
            _put(classes, from_table_cell(row[0]), from_table_cell(row[1]))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    return classes
