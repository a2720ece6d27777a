"""Matching: which file a table means by a path, where it names it without extension, with a wrong one or elsewhere.

Nothing is matched that could mean two files. A path keeps its own folders: ``cat/1.jpg`` never becomes ``dog/1.jpg``.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from stagewright.data.images.decode import picture_extensions
from stagewright.data.sources.walk import walk
from stagewright.text import counted, some

NO_FILE = "there is no such file"


@dataclass
class Match:
    """What was found for each name, in their order."""

    paths: list[str | None]
    """Relative to the folder, with ``/``; None where there is no file, or more than one that could be meant."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why there is none, for each None."""
    notes: list[str] = field(default_factory=list)


def match_files(base: str, names: Sequence[str]) -> Match:
    """The files in ``base``, at any depth, that ``names`` from a table mean.

    In this order: the path as it stands; the same path but for its extension and upper or lower case; the only file
    whose path ends like that. Where no path at all leads to a file, the folders that all of them start with (those of
    another machine) are given up one by one.
    """
    asked = [_tidy(base, name) for name in names]
    match = Match([name if os.path.isfile(os.path.join(base, name)) else None for name in asked])
    rows = [row for row, path in enumerate(match.paths) if path is None]
    if not rows:
        return match
    files = [path for path in walk(base).files if _extension(path)]
    shared = _shared_folders(asked) if len(rows) == len(asked) else 0
    candidates: list[list[str]] = []
    for given_up in range(shared + 1):
        tails = [asked[row].split("/", given_up)[-1] for row in rows]
        candidates = _files_ending(tails, files)
        if any(candidates):
            break
    for row, found in zip(rows, candidates, strict=True):
        if len(found) == 1:
            match.paths[row] = found[0]
        else:
            match.reasons[row] = f"it could be {some(found, 3)}" if found else NO_FILE
    match.notes = _differences(names, match) + _missing(names, match)
    return match


def _tidy(base: str, name: str) -> str:
    """``name`` with ``/``, without ``./`` and ``..`` where possible, and relative to ``base`` if it exists elsewhere."""
    name = posixpath.normpath(name.strip().replace("\\", "/"))
    if os.path.isabs(name):
        if not os.path.isfile(name):
            return name.lstrip("/")
        # As the system sees it: ``..`` of a link leads beside what it points at, not beside the link.
        return os.path.relpath(os.path.realpath(name), os.path.realpath(base)).replace(os.sep, "/")
    return name


def _extension(path: str) -> str:
    """The extension if it is a picture's, in lower case, else nothing: ``img.0001`` has none."""
    extension = os.path.splitext(path)[1].lower()
    return extension if extension in picture_extensions() else ""


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _stem(path: str) -> str:
    return path[: len(path) - len(_extension(path))]


def _shared_folders(paths: Sequence[str]) -> int:
    """How many leading folders all ``paths`` have in common."""
    first, last = (path.split("/")[:-1] for path in (min(paths), max(paths)))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _files_ending(tails: Sequence[str], files: Sequence[str]) -> list[list[str]]:
    """For each of ``tails`` the files that it may mean: one, several or none.

    Files that end in the whole of it go before files that only do without the extension, and a file that is no deeper
    (it lies in the very folder) before others.
    """
    keys = [_fold(tail) for tail in tails]
    wanted = set(keys) | {_stem(key) for key in keys}
    depths = sorted({tail.count("/") + 1 for tail in tails})
    whole: defaultdict[str, list[str]] = defaultdict(list)
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        folders = _fold(file).split("/")
        for depth in depths:
            if depth > len(folders):
                break
            tail = "/".join(folders[-depth:])
            if tail in wanted:
                whole[tail].append(file)
            if (stem := _stem(tail)) in wanted:
                stems[stem].append(file)
    found = []
    for key in keys:
        candidates = whole.get(key) or stems.get(_stem(key)) or []
        own_folder = [file for file in candidates if file.count("/") == key.count("/")]
        found.append(own_folder if len(own_folder) == 1 else candidates)
    return found


def _differences(names: Sequence[str], match: Match) -> list[str]:
    """Notes on files that are not where, or what, the table says."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in zip(names, match.paths, strict=True):
        if path is None or path == name:
            continue
        told = _tidy("", name) if not os.path.isabs(name) else name
        example = f"{name} is {path}"
        if not _extension(told):
            seen["named without extension"].append(example)
        elif _extension(told) != _extension(path):
            seen["with another extension than the table says"].append(example)
        if _fold(posixpath.dirname(told)) != _fold(posixpath.dirname(path)):
            seen["in another folder than the table says"].append(example)
    return [f"{counted(len(examples), 'file')} {what}, e.g. {examples[0]}" for what, examples in seen.items()]


def _missing(names: Sequence[str], match: Match) -> list[str]:
    absent = [names[row] for row, reason in match.reasons.items() if reason == NO_FILE]
    unclear = [f"{names[row]}: {reason}" for row, reason in match.reasons.items() if reason != NO_FILE]
    notes = []
    if absent:
        notes.append(
            f"left out {len(absent):,} of {counted(len(names), 'row')}, which have no file, e.g. {some(absent, 3)}"
        )
    if unclear:
        notes.append(f"left out {counted(len(unclear), 'row')} that could mean several files, e.g. {unclear[0]}")
    return notes
