"""Finds the files below a folder, each once, and reports what was ignored and why.

All commands use it: ``train``, ``inspect``, ``pack`` and ``predict`` find the same files in a folder.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import PurePath

from stagewright.data.account import Omission, by_reason
from stagewright.data.sources.folder_names import own_folder
from stagewright.data.sources.tree import Entry, Tree, as_tree

# Thumbnails and remains that operating systems and storage boxes leave behind; hidden names (.x) are passed over too.
_FOREIGN = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)


@dataclass(frozen=True)
class Excluded:
    """A file or a row of DATA that the run does not use."""

    path: str
    reason: str


@dataclass
class Walk:
    """The files below a folder, and what was ignored."""

    files: list[str] = field(default_factory=list)
    """Relative to the folder, with ``/``."""
    ignored: list[str] = field(default_factory=list)
    """Hidden and foreign files and folders; of a folder only its own path."""
    excluded: list[Excluded] = field(default_factory=list)
    """Folders that cannot be opened, and names that are not valid Unicode."""
    own: list[tuple[str, str]] = field(default_factory=list)
    """Folders that stagewright wrote, and what each is: (``runs/quick-1``, ``a run``). Their files are not among ``files``."""
    repeated: list[str] = field(default_factory=list)
    """Links to folders that were already read by another path."""


def walk(folder: str | Tree, below: str = "", *, any_name: bool = False) -> Walk:
    """Returns all files in ``folder``/``below``, at any depth, in no particular order; their paths are relative to ``folder``.

    ``folder`` is on the disk, or any tree (:mod:`stagewright.data.sources.tree`). Links are followed. A folder that several
    paths lead to is read once, by its own path if that is in the tree, so that neither loops nor fans of links make the walk
    long. ``any_name`` includes files whose names are not valid Unicode, which cannot be written into a manifest.
    """
    found, tree = Walk(), as_tree(folder)
    parents = {tree.identity(str(parent)) for parent in PurePath(below).parents}
    real, linked = [below], deque[str]()
    while real or linked:
        inner = real.pop() if real else linked.popleft()
        try:
            here = tree.identity(inner)
            if here in parents:
                if inner != below:
                    found.repeated.append(inner)
                continue
            entries = sorted(tree.scan(inner), key=lambda entry: entry.name)
        except OSError as error:
            reason = f"the folder cannot be opened: {error.strerror or error}"
            found.excluded.append(Excluded(written_out(inner), reason))
            continue
        parents.add(here)
        if (own := own_folder([entry.name for entry in entries])) is not None:
            found.own.append((inner, own))
            continue
        for entry in entries:
            path = f"{inner}/{entry.name}" if inner else entry.name
            if is_ignored(entry.name):
                found.ignored.append(path)
            elif not any_name and written_out(path) != path:
                found.excluded.append(Excluded(written_out(path), "its name is not valid Unicode; rename it"))
            elif is_folder(entry):
                (linked if entry.is_symlink() else real).append(path)
            elif entry.is_symlink() or entry.is_file():  # a link to nothing is reported when it is opened
                found.files.append(path)
            else:
                found.ignored.append(path)
    return found


def left_out_of(found: list[Walk]) -> tuple[Omission, ...]:
    """Returns what several walks have passed over, apart from what is in :attr:`Walk.excluded`."""
    return by_reason(
        item
        for one in found
        for item in (
            *((written_out(path), "hidden or foreign") for path in one.ignored),
            *((f"{path}/", f"{what} of stagewright, not images") for path, what in one.own),
            *((f"{path}/", "a link to a folder that is read already") for path in one.repeated),
        )
    )


def is_ignored(name: str) -> bool:
    """Whether files and folders of this name are ignored: hidden ones, and what storage systems leave behind."""
    return name.startswith(".") or name in _FOREIGN


def is_folder(entry: Entry) -> bool:
    """Whether ``entry`` is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def written_out(name: str) -> str:
    """Returns ``name`` with bytes that are not valid Unicode as escapes: ``caf\\\\xe9``."""
    return os.fsencode(name).decode(errors="backslashreplace")
