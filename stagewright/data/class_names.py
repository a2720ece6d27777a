"""Display names of classes: reads the file that ``data.names`` gives. The classes themselves keep the names of their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stagewright.data.sources.folders import TABLES
from stagewright.data.sources.table_text import read_text
from stagewright.errors import DataError
from stagewright.recipe.fields import DisplayNames
from stagewright.recipe.schema import problems
from stagewright.recipe.yaml_text import YamlError, decode_text, load_yaml
from stagewright.storage.files import read_own, user_path
from stagewright.text import counted, nearest, some

_CLASS_COLUMNS = ("class", "folder", "label", "wnid", "id", "class_id")
_NAME_COLUMNS = ("name", "display_name", "display", "title", "class_name", "words")
_FORMS = "a CSV with the columns class and name, or YAML with lines such as n01440764: tench"
_SCHEMA: TypeAdapter[DisplayNames] = TypeAdapter(DisplayNames)


def display_names(names: str | DisplayNames | None, classes: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the display name of each of ``classes`` that ``names`` (``data.names``) names, and notes for the user.

    DataError if the file cannot be read, is no mapping of texts, names none of ``classes``, or gives two of them one name.
    """
    if names is None:
        return {}, []
    given = _read(user_path(names), classes) if isinstance(names, str) else names
    where = f"data.names={names}" if isinstance(names, str) else "data.names"
    found = {name: given[name] for name in classes if name in given}
    if not found:
        raise DataError(
            f"{where} names {some(map(repr, given), 5)}, and none of the classes"
            + next((near for name in given if (near := nearest(name, classes))), ""),
            f"names for the classes of DATA: {some(classes, 20)}",
            "correct the first column, or leave data.names out",
        )
    shown = Counter(found.get(name, name) for name in classes)
    twice = [name for name, count in shown.items() if count > 1]
    if twice:
        both = [name for name in classes if found.get(name, name) == twice[0]]
        raise DataError(
            f"{where} gives the classes {' and '.join(map(repr, both))} the name {twice[0]!r}",
            "a name of its own for each class",
            "change one of them; if they are one class, join their folders",
        )
    notes = [
        f"display names for {counted(len(found), 'class')} from {names if isinstance(names, str) else 'the recipe'}"
    ]
    if missing := [name for name in classes if name not in found]:
        notes.append(f"classes without a display name, which keep their own: {some(missing)}")
    return found, notes


def _read(file: Path, classes: Collection[str]) -> DisplayNames:
    if not file.exists():
        raise DataError(f"there is no file {file} (data.names)", _FORMS, "check the path")
    try:
        raw = _pairs(file, classes) if file.suffix.lower() in TABLES else load_yaml(decode_text(read_own(file)))
    except YamlError as error:
        raise DataError(f"{file} is not valid YAML: {error}", _FORMS, "correct that line") from None
    if isinstance(raw, dict):  # folders named 0, 1, 2 are numbers in YAML
        raw = {str(key) if type(key) is int else key: name for key, name in raw.items()}
    try:
        return _SCHEMA.validate_python(raw, strict=True)
    except ValidationError as error:
        raise DataError(f"{file}: {problems(error).removeprefix(': ')}", _FORMS, "correct these entries") from None


def _pairs(file: Path, classes: Collection[str]) -> dict[str, str]:
    table = read_text(file)
    columns = table.column_names
    if len(columns) < 2:
        raise DataError(f"{file} has only the column {columns[0]!r}", _FORMS, "add a column of names")
    folded = {name.casefold().replace(" ", "_"): name for name in reversed(columns)}
    first = next((folded[name] for name in _CLASS_COLUMNS if name in folded), columns[0])
    second = next((folded[name] for name in _NAME_COLUMNS if name in folded and folded[name] != first), columns[1])
    rows = list(zip(table[first].to_pylist(), table[second].to_pylist(), strict=True))
    if columns[0] in classes:  # the table has no row of titles
        rows = [(columns[0], columns[1]), *rows]
    twice = _named_twice(rows)
    if twice:
        raise DataError(f"{file} gives {twice!r} two names", "one row for each class", "remove one of the rows")
    return dict(rows)


def _named_twice(rows: Iterable[tuple[str, str]]) -> str | None:
    known: dict[str, str] = {}
    return next((name for name, shown in rows if known.setdefault(name, shown) != shown), None)
