"""Taking a run directory: a new one is made under its lock and becomes a run by one rename; an existing one is held.

Only what this process made is ever removed. A folder that holds anything, hidden files included, is refused, but for what a
process left that was killed while it made a run there; ``.lock`` says so (:mod:`stagewright.storage.lock`).
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

_BEGINNING = ("manifest.parquet", "recipe.yaml", "env.json", "excluded.csv", "lr-find")
"""What is written before plan.json, the last: a folder with a plan has all of it."""
_SET_UP = (*_BEGINNING, "plan.json", "log.txt", "steps.csv", "metrics.csv", "timing.csv", "summary.json")
"""What may be there when a set-up fails, before the event log begins."""
_FOLDERS = ("", "evaluations", "plots", "lr-find", "model")
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp|\..+\.\d+\.part|\..+\.tmp")


@contextlib.contextmanager
def held(root: Path) -> Iterator[RunDir]:
    """The run in ``root``, alone in it, without the temporary files of processes that were killed.

    CheckpointError where there is none, or another process has it.
    """
    root = RunDir.existing(root).root
    with lock(root) as own:
        own.write(beginning=False)
        _tidy(root)
        yield RunDir(root, own)


@contextlib.contextmanager
def claimed(root: Path, *, made: bool = False) -> Iterator[RunDir]:
    """A new run directory at ``root``, which is not there or is empty, held by this process.

    Where the set-up fails, which is before the event log begins, what was written is removed, and nothing else. ``made``:
    this process has just made the folder. CheckpointError where it holds something or another process has it, StorageError
    where it cannot be made.
    """
    made = made or _make(root)
    if not (root / locking.NAME).exists():
        _refuse_content(root, None)
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
                _withdraw(run, own, before, made)
            raise


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[Lock]:
    """As :func:`lock`, with the remedy of a new run where the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(lock(root))
        except StorageError as error:
            raise StorageError(error.given, error.allowed, "give another place with --out") from error
        yield own


@contextlib.contextmanager
def claimed_next(parent: Path, name: str) -> Iterator[RunDir]:
    """As :func:`claimed`, at ``parent/name-N`` with the lowest free N above all that are there.

    Making the folder is the claim: of several processes at once each gets a number of its own.
    """
    root = next_free(parent, name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while not _made_alone(root):
            root = next_free(parent, name, above=root)
    except OSError as error:
        raise _cannot_be_made(root, error) from error
    with claimed(root, made=True) as run:
        yield run


def next_free(parent: Path, name: str, above: Path | None = None) -> Path:
    """``parent/name-N`` with the lowest N above all that are there, so that runs sort in the order they began."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    there = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    there += [above.name] if above is not None else []
    taken = [int(match[1]) for one in there if (match := pattern.fullmatch(one))]
    return parent / f"{name}-{max(taken, default=0) + 1}"


def refuse_used(root: Path) -> None:
    """CheckpointError where ``root`` cannot become a new run: a look before long work, which changes nothing."""
    if root.is_dir() and not (root / locking.NAME).exists():
        _refuse_content(root, None)
    elif os.path.lexists(root) and not root.is_dir():
        raise _no_folder(root)
    elif (root / "plan.json").exists() and not locking.is_held(root):
        raise _used(root)


def _make(root: Path) -> bool:
    """Makes the folder ``root``; False where there is one."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        return _made_alone(root) or _is_folder(root)
    except OSError as error:
        raise _cannot_be_made(root, error) from error


def _cannot_be_made(root: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{root} cannot be made or written: {error.strerror or error}",
        "a folder on a disk with room that this user may write",
        "give another place with --out",
    )


def _made_alone(root: Path) -> bool:
    try:
        root.mkdir()
    except FileExistsError:
        return False
    return True


def _is_folder(root: Path) -> bool:
    if not root.is_dir():
        raise _no_folder(root)
    return False


def _no_folder(root: Path) -> CheckpointError:
    what = "a link that leads nowhere" if root.is_symlink() else "a file"
    return CheckpointError(f"{root} is {what}", "a new or empty folder", "give another place with --out")


def _refuse_content(root: Path, own: Lock | None) -> None:
    """CheckpointError where ``root`` holds more than a killed process left that was making a run here."""
    try:
        there = set(os.listdir(root))
    except OSError as error:
        raise unwritable(root / locking.NAME, error) from error
    if own is None or not own.foreign:
        there -= {locking.NAME}
    if own is not None and own.was_beginning and "plan.json" not in there:
        there = {name for name in there if name not in _BEGINNING and not _TEMPORARY.fullmatch(name)}
    if there:
        raise _used(root, sorted(there))


def _used(root: Path, there: list[str] | None = None) -> CheckpointError:
    if (root / "plan.json").exists():
        what = "already holds a run"
    else:
        names = there or []
        what = f"is not empty: it holds {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
    return CheckpointError(
        f"{root} {what}",
        "a new or empty folder, without hidden files: a run never writes into another's, nor among other files",
        f"stagewright resume {root} goes on with it; another --out, or none, begins a new one"
        if "run" in what
        else "give another --out, or none",
    )


def _withdraw(run: RunDir, own: Lock, before: set[str], made: bool) -> None:
    """Removes what this process wrote; in this order, so that a kill in the middle leaves a beginning."""
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
    """Removes the temporary files that killed processes left; the lock is held, so nobody is writing them."""
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
            if entry.name.startswith(".tmp-"):
                _remove(Path(entry.path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_quietly(path)
