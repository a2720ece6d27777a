"""Finds the files that a table names, also if a path has no extension, a wrong extension or another root folder.

An ambiguous path is not matched. The folders of a path must match too: ``cat/1.jpg`` never becomes ``dog/1.jpg``.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from stagewright.data.images.decode import image_extensions
from stagewright.data.sources.tree import DiskTree, Tree, as_tree
from stagewright.data.sources.walk import walk
from stagewright.text import counted, some

NO_FILE = "there is no such file"


@dataclass
class Match:
    """The file found for each name, in the order of the names."""

    paths: list[str | None]
    """Relative to the folder, with ``/``; None if there is no matching file, or more than one."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Index of each None in ``paths`` -> why no file was chosen."""
    notes: list[str] = field(default_factory=list)


def match_files(base: str | Tree, names: Sequence[str]) -> Match:
    """Finds the files in ``base``, a folder on the disk or any tree, at any depth, for the ``names`` of a table.

    Tried in this order: the exact path; the same path with another extension or letter case; the only file whose path
    ends with the name. If no name at all leads to a file, the leading folders that all names share (paths of another
    machine) are dropped one by one.
    """
    tree = as_tree(base)
    normalized = [_normalized(tree, name) for name in names]
    match = Match([name if tree.is_file(name) else None for name in normalized])
    rows = [row for row, path in enumerate(match.paths) if path is None]
    if not rows:
        return match
    files = [path for path in walk(tree).files if _extension(path)]
    shared = _shared_folders(normalized) if len(rows) == len(normalized) else 0
    candidates: list[list[str]] = []
    for dropped in range(shared + 1):
        tails = [normalized[row].split("/", dropped)[-1] for row in rows]
        candidates = _files_ending(tails, files)
        if any(candidates):
            break
    for row, found in zip(rows, candidates, strict=True):
        if len(found) == 1:
            match.paths[row] = found[0]
        else:
            match.reasons[row] = f"several files match: {some(found, 3)}" if found else NO_FILE
    match.notes = _difference_notes(names, match)
    return match


def _normalized(tree: Tree, name: str) -> str:
    """Returns ``name`` with ``/``, without ``./`` and ``..`` if possible; absolute paths become relative to ``tree``."""
    name = _cleaned(name)
    if not os.path.isabs(name):
        return name
    if not isinstance(tree, DiskTree) or not os.path.isfile(name):
        return name.lstrip("/")
    # realpath, since ``..`` after a link leads to the parent of the link's target, not to the parent of the link.
    return os.path.relpath(os.path.realpath(name), os.path.realpath(tree.folder)).replace(os.sep, "/")


def _cleaned(name: str) -> str:
    return posixpath.normpath(name.strip().replace("\\", "/"))


def _extension(path: str) -> str:
    """Returns the extension in lower case if it is one of an image format, else an empty string (``img.0001``)."""
    extension = os.path.splitext(path)[1].lower()
    return extension if extension in image_extensions() else ""


def _case_folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _stem(path: str) -> str:
    return path[: len(path) - len(_extension(path))]


def _shared_folders(paths: Sequence[str]) -> int:
    """Returns how many leading folders all ``paths`` have in common."""
    first, last = (path.split("/")[:-1] for path in (min(paths), max(paths)))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _files_ending(tails: Sequence[str], files: Sequence[str]) -> list[list[str]]:
    """Returns the matching files for each of ``tails``: one, several or none.

    Files that end with the full tail are preferred to files that match without the extension. Of several files, one in
    exactly the folder of the tail is preferred.
    """
    keys = [_case_folded(tail) for tail in tails]
    searched = set(keys) | {_stem(key) for key in keys}
    depths = sorted({tail.count("/") + 1 for tail in tails})
    whole: defaultdict[str, list[str]] = defaultdict(list)
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        folders = _case_folded(file).split("/")
        for depth in depths:
            if depth > len(folders):
                break
            tail = "/".join(folders[-depth:])
            if tail in searched:
                whole[tail].append(file)
            if (stem := _stem(tail)) in searched:
                stems[stem].append(file)
    found = []
    for key in keys:
        candidates = whole.get(key) or stems.get(_stem(key)) or []
        same_depth = [file for file in candidates if file.count("/") == key.count("/")]
        found.append(same_depth if len(same_depth) == 1 else candidates)
    return found


def _difference_notes(names: Sequence[str], match: Match) -> list[str]:
    """Returns notes on files whose extension or folder differs from the table."""
    examples_of: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in zip(names, match.paths, strict=True):
        if path is None or path == name:
            continue
        given = name if os.path.isabs(name) else _cleaned(name)
        example = f"{name} is {path}"
        if not _extension(given):
            examples_of["named without an extension in the table"].append(example)
        elif _extension(given) != _extension(path):
            examples_of["with another extension than in the table"].append(example)
        if _case_folded(posixpath.dirname(given)) != _case_folded(posixpath.dirname(path)):
            examples_of["in another folder than in the table"].append(example)
    return [f"{counted(len(examples), 'file')} {what}, e.g. {examples[0]}" for what, examples in examples_of.items()]
