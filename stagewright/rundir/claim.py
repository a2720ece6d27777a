"""Locks a run directory for this process: an existing one, or a new one, which it creates and fills.

This module only removes what this process has written, or what a killed process left behind while it created a run (recorded in
``.lock``, see :mod:`stagewright.storage.lock`). A folder with any other content, hidden files included, is refused for a new
run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from stagewright.errors import CheckpointError, StorageError
from stagewright.rundir.directory import RunDir
from stagewright.storage import lock as locking
from stagewright.storage.files import remove_quietly, unwritable
from stagewright.storage.lock import Lock, lock
from stagewright.storage.mounted import PROBE, refuse_mounted_bucket

_BEGINNING = ("manifest.parquet", "recipe.yaml", "env.json", "excluded.csv", "lr-find", "mirror.json")
"""Files written before plan.json, which comes last: a folder with a plan.json has all of them."""
_SET_UP = (
    *_BEGINNING,
    "plan.json",
    "weights.json",
    "log.txt",
    "steps.csv",
    "metrics.csv",
    "timing.csv",
    "summary.json",
)
"""Files that may exist when a set-up fails before the event log is created."""
_FOLDERS = ("", "evaluations", "fed", "plots", "lr-find", "model")
_OWN_FILES = (
    *_SET_UP,
    "events.jsonl",
    "report.html",
    "costs.json",
    "evaluations",
    "fed",
    "plots",
    "model",
    "interim",
    "trackers",
    locking.NAME,
)
"""Files and folders of a run that are written by their names. ``checkpoints`` may be a link to another disk."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp|\..+\.\d+\.part|\..+\.tmp")
_TEMPORARY_CHECKPOINT = re.compile(r"\.tmp-(step_\d+|best|last)")


@contextlib.contextmanager
def held(root: Path) -> Iterator[RunDir]:
    """Locks the run in ``root`` for this process and removes temporary files of killed processes.

    CheckpointError if there is no run, or another process has locked it.
    """
    root = RunDir.existing(root).root
    _refuse_links(root)
    with lock(root) as own:
        own.write(beginning=False)
        _tidy(root)
        yield RunDir(root, own)


@contextlib.contextmanager
def claimed(root: Path, *, made: bool = False) -> Iterator[RunDir]:
    """Creates and locks a new run directory at ``root``, which must not exist or must be empty.

    If an error leaves the context before the event log exists, the files of this process are removed again. ``made`` states
    that this process has just created the folder. CheckpointError if the folder is not empty or another process has locked it,
    StorageError if it cannot be created.
    """
    made = made or _make(root)
    if not (root / locking.NAME).exists():
        _refuse_content(root, None)
    _refuse_mounted_bucket(root, made)
    with _locked(root) as own:
        _refuse_content(root, own)
        own.write(beginning=True)
        for name in _BEGINNING:
            _remove(root / name)
        _tidy(root)
        before = set(os.listdir(root))
        run = RunDir(root, own)
        try:
            yield run
        except BaseException:
            if not run.events.exists():
                _undo_setup(run, own, before, made)
            raise


def _refuse_mounted_bucket(root: Path, made: bool) -> None:
    """Raises StorageError if ``root``, which this process may have made, cannot hold a run."""
    try:
        refuse_mounted_bucket(root)
    except StorageError:
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise
    except OSError as error:
        raise _cannot_be_created(root, error) from error


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[Lock]:
    """Like :func:`lock`, but an error for a folder that cannot be written suggests --out, as is right for a new run."""
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(lock(root))
        except StorageError as error:
            raise StorageError(error.given, error.allowed, "give another place with --out") from error
        yield own


@contextlib.contextmanager
def claimed_next(parent: Path, name: str) -> Iterator[RunDir]:
    """Like :func:`claimed`, at ``parent/name-N``, where N is one above the highest existing number.

    Several processes at the same time get different numbers, because only one of them can create a folder.
    """
    root = next_free(parent, name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while not _create(root):
            root = next_free(parent, name, above=root)
    except OSError as error:
        raise _cannot_be_created(root, error) from error
    with claimed(root, made=True) as run:
        yield run


def next_free(parent: Path, name: str, above: Path | None = None) -> Path:
    """Returns ``parent/name-N``, where N is one above the highest existing number, so that runs are sorted by their start.

    The number is also above that of ``above``, if given.
    """
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    there = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    there += [above.name] if above is not None else []
    taken = [int(match[1]) for one in there if (match := pattern.fullmatch(one))]
    return parent / f"{name}-{max(taken, default=0) + 1}"


def refuse_used(root: Path) -> None:
    """Raises CheckpointError if ``root`` cannot become a new run directory; an early check before long work, without
    changes."""
    if root.is_dir() and not (root / locking.NAME).exists():
        _refuse_content(root, None)
    elif os.path.lexists(root) and not root.is_dir():
        raise _not_a_folder(root)
    elif (root / "plan.json").exists() and not locking.is_held(root):
        raise _not_empty(root)


def _make(root: Path) -> bool:
    """Creates the folder ``root`` and its parents; returns False if the folder exists already."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if _create(root):
            return True
        if not root.is_dir():
            raise _not_a_folder(root)
    except OSError as error:
        raise _cannot_be_created(root, error) from error
    return False


def _cannot_be_created(root: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{root} cannot be created or written: {error.strerror or error}",
        "a folder on a disk with free space that this user may write",
        "give another folder with --out",
    )


def _create(root: Path) -> bool:
    """Creates the folder ``root``; returns False if anything with this name exists."""
    try:
        root.mkdir()
    except FileExistsError:
        return False
    return True


def _not_a_folder(root: Path) -> CheckpointError:
    what = "a link to a file or folder that does not exist" if root.is_symlink() else "a file"
    return CheckpointError(f"{root} is {what}", "a new or empty folder", "give another folder with --out")


def _refuse_content(root: Path, own: Lock | None) -> None:
    """Raises CheckpointError if ``root`` holds anything except leftovers of a process killed while it created a run here."""
    try:
        there = set(os.listdir(root))
    except OSError as error:
        raise unwritable(root / locking.NAME, error) from error
    there = {name for name in there if not name.startswith(PROBE)}  # another process tries the folder
    if own is None or not own.foreign:
        there -= {locking.NAME}
    if own is not None and own.was_beginning and "plan.json" not in there:
        there = {name for name in there if name not in _BEGINNING and not _TEMPORARY.fullmatch(name)}
    if there:
        raise _not_empty(root, sorted(there))


def _not_empty(root: Path, there: list[str] | None = None) -> CheckpointError:
    if (root / "plan.json").exists():
        what = "already holds a run"
    else:
        names = there or []
        what = f"is not empty: it holds {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
    return CheckpointError(
        f"{root} {what}",
        "a new or empty folder, without hidden files: a run never writes into the folder of another run or among other files",
        f"stagewright resume {root} continues it; another --out, or none, starts a new one"
        if "run" in what
        else "give another --out, or none",
    )


def _undo_setup(run: RunDir, own: Lock, before: set[str], made: bool) -> None:
    """Removes the files that this process wrote.

    The lock and plan.json come first: after a kill in the middle, the folder counts as one in which a run was being created.
    """
    with contextlib.suppress(OSError):
        own.write(beginning=True)
        for name in ("plan.json", *_SET_UP):
            if name not in before:
                _remove(run.root / name)
        _tidy(run.root)
        if made or not before - {locking.NAME}:
            own.remove()
        if made:
            run.root.rmdir()


def _tidy(root: Path) -> None:
    """Removes temporary files of killed processes; this process has the lock, so no other process is writing them."""
    for folder in _FOLDERS:
        place = root / folder
        if not place.is_dir() or place.is_symlink():
            continue
        for entry in list(os.scandir(place)):
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                remove_quietly(Path(entry.path))
    shutil.rmtree(root / ".model.new", ignore_errors=True)
    if (root / "model" / "model.json").is_file():
        shutil.rmtree(root / ".model.old", ignore_errors=True)
    checkpoints = root / "checkpoints"
    if checkpoints.is_dir() and not checkpoints.is_symlink():
        for entry in list(os.scandir(checkpoints)):
            if _TEMPORARY_CHECKPOINT.fullmatch(entry.name):
                _remove(Path(entry.path))


def _refuse_links(root: Path) -> None:
    """CheckpointError if a file of the run is a link: a run from someone else could have files outside of it written."""
    links = [name for name in _OWN_FILES if (root / name).is_symlink()]
    if links:
        raise CheckpointError(
            f"{root / links[0]} is a link to {os.readlink(root / links[0])}",
            "a run directory with its own files, as train wrote it",
            "if you trust the run, put the file itself in the place of the link",
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_quietly(path)
