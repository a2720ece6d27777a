"""Checkpoints: training states in ``RUN/checkpoints``, written so that a kill or a full disk never loses a valid one.

A checkpoint is a directory ``step_000500/{state.pt, meta.json}``; the number is that of finished updates. meta.json is written
last and holds the SHA-256 and size of state.pt and a checksum of itself. A directory gets its name only after it was read back
and verified; one that is damaged later is detected and skipped. Only one process writes (:mod:`stagewright.storage.lock`).

A checkpoint is damaged if a file is missing or, after reading it twice, has the wrong size, hash, checksum or format. A
checkpoint that cannot be read at the moment (disk error, missing permission, too little memory) is not damaged: this raises
Unreadable, and no file is changed.

``best.json`` and ``last.json`` name a checkpoint for users and tools. They are not symbolic links because zip files and object
stores would copy a link as a folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch

from stagewright.errors import CheckpointError, StorageError
from stagewright.rundir.checkpoint_files import (
    FORMAT,
    META,
    STATE,
    Damaged,
    is_intact,
    is_valid,
    load_state,
    read_meta,
    retry_once,
    seal_of,
    verify,
)
from stagewright.storage.files import sync_directory, unreadable, unwritable, write_json
from stagewright.storage.hashed import HashedFile
from stagewright.storage.json_text import parse_object
from stagewright.system.memory import num_bytes

NUM_REJECTED_KEPT = 2
_RESERVED = ("format", "step", "protect", "sha256", "bytes", "seal")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint: ``tensors`` as they were saved, on the CPU, and the JSON ``meta`` saved with them."""

    step: int
    tensors: dict[str, Any]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A damaged checkpoint: the name of its directory, and the reason."""

    name: str
    reason: str


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Any],
    meta: dict[str, Any],
    *,
    keep: int,
    protect: Collection[int] = (),
    spare: Collection[int] = (),
) -> Path:
    """Saves ``tensors`` as the checkpoint of ``step`` in ``folder``; returns its directory, verified and flushed to disk.

    ``tensors`` nests dicts, lists and tuples of tensors, numbers, strings and None; any other object raises TypeError with its
    path. ``meta`` is JSON with a ``plan_digest``. ``protect`` lists steps whose checkpoints are kept as long as this one,
    ``spare`` those that this call leaves alone, since they are being read (unless the disk is full).

    Afterwards these checkpoints remain: the ``keep`` newest valid ones, those they protect, and the targets of best and last.
    Checkpoints of later steps are moved to ``rejected/``, like damaged ones: they exist if the newest was damaged and the run
    resumed from an older one. A failed write is tried once more, on a full disk after deleting checkpoints that are no longer
    needed. A second failure raises StorageError; the last valid checkpoint is then still there.
    """
    if keep < 1 or "plan_digest" not in meta or any(key in meta for key in _RESERVED):
        raise ValueError(f"keep is 1 or more, not {keep}; meta has plan_digest and none of {_RESERVED}: {sorted(meta)}")
    plain = _plain(tensors, "state")
    contents = {"format": FORMAT, "step": step, "protect": sorted(protect), **meta}
    try:
        folder.mkdir(exist_ok=True)
        _tidy(folder, step)
        try:
            path = _write(folder, step, plain, contents)
        except OSError as error:
            if error.errno in _FULL:
                _remove(folder / "rejected")
                # If this step has a checkpoint that may not be on the disk yet, keep one more in addition to it.
                _prune(folder, 1 + (folder / name_of(step)).exists(), protect)
            path = _write(folder, step, plain, contents)
        for later in [path for other, path in places(folder).items() if other > step]:
            _set_aside(later)  # only after the write, because they may be the only valid ones
        _prune(folder, keep, {*protect, *spare})
    except OSError as error:
        if not folder.parent.is_dir():
            raise unwritable(folder, error) from error
        valid = next((path.name for path in places(folder).values() if is_valid(path)), None)
        raise StorageError(
            f"the checkpoint of step {step} could not be written to {folder}: {error.strerror or error}",
            f"a writable disk with {num_bytes(plain) / 1e9:.3g} GB free",
            "make room and run stagewright resume; "
            + (f"the last valid checkpoint is {valid}" if valid else "there is no earlier checkpoint"),
        ) from error
    return path


def newest(folder: Path, plan_digest: str) -> tuple[Checkpoint | None, list[Rejected]]:
    """Returns the newest valid checkpoint in ``folder``, or None, and the newer damaged ones with reasons.

    Raises CheckpointError for a checkpoint of another plan, and Unreadable for one that cannot be read now. Changes no file.
    """
    rejected: list[Rejected] = []
    for path in places(folder).values():
        try:
            if (found := retry_once(read_meta, path)["plan_digest"]) != plan_digest:
                raise _of_another_plan(path, found, plan_digest)
            return _read(path), rejected
        except Damaged as damage:
            rejected.append(Rejected(path.name.removeprefix(".old-"), str(damage)))
        except OSError as error:
            raise unreadable(path, error) from error
    return None, rejected


def steps(folder: Path) -> list[int]:
    """Returns the steps of all checkpoints in ``folder``, ascending, without reading or verifying them."""
    return sorted(places(folder))


def load(path: Path) -> Checkpoint:
    """Loads and verifies the checkpoint in ``path``; CheckpointError if it is damaged, Unreadable if it cannot be read now."""
    try:
        return _read(path)
    except Damaged as damage:
        raise CheckpointError(
            f"{path}: {damage}",
            f"a directory with the {STATE} and {META} that were saved together",
            "use another checkpoint of the run, or stagewright resume, which finds the newest valid one",
        ) from damage
    except OSError as error:
        raise unreadable(path, error) from error


def adopt(temporary: Path, folder: Path, plan_digest: str) -> Path:
    """Verifies a copy of a checkpoint in ``temporary``, on the same disk, and moves it into ``folder``; returns its directory.

    Damaged if it is not valid, CheckpointError if it belongs to another plan than that with ``plan_digest``, OSError if it
    cannot be read or moved now. Replaces a checkpoint of the same step.
    """
    meta = retry_once(verify, temporary)
    if meta["plan_digest"] != plan_digest:
        raise _of_another_plan(temporary, meta["plan_digest"], plan_digest)
    for name in (STATE, META):
        with open(temporary / name, "rb") as file:
            os.fsync(file.fileno())
    sync_directory(temporary)
    return _give_name(temporary, folder, meta["step"])


def point(folder: Path, name: Literal["best", "last"], step: int) -> None:
    """Records in ``folder / NAME.json`` that the checkpoint of ``step`` is the best or the last one.

    CheckpointError if there is no such checkpoint, StorageError if the file cannot be written. The file is not flushed to disk,
    because it can be written again from the checkpoints.
    """
    if not (folder / name_of(step)).is_dir():
        known = ", ".join(path.name for path in places(folder).values()) or "none is saved"
        raise CheckpointError(f"{name}: no checkpoint {name_of(step)} in {folder}", known, "save this checkpoint first")
    write_json(folder / f"{name}.json", {"step": step, "checkpoint": name_of(step)}, durable=False)
    if (former := folder / name).is_symlink():  # written by older versions
        _remove(former)


def pointed(folder: Path, name: Literal["best", "last"]) -> Path | None:
    """Returns the directory that ``NAME.json`` names, or None if the file is missing or damaged or names no directory."""
    try:
        step = parse_object((folder / f"{name}.json").read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if isinstance(step, int) and (path := folder / name_of(step)).is_dir() else None


def name_of(step: int) -> str:
    """Returns the directory name of a checkpoint, such as ``step_000500``."""
    return f"step_{step:06d}"


def places(folder: Path) -> dict[int, Path]:
    """Returns {step: directory}, valid or not, the newest first; includes ``.old-`` ones left by a killed replacement."""
    found: dict[int, Path] = {}
    names = os.listdir(folder) if folder.is_dir() else []
    for prefix in ("", ".old-"):
        for name in names:
            number = name.removeprefix(f"{prefix}step_")
            if number.isdigit() and name == prefix + name_of(int(number)) and os.path.isdir(folder / name):
                found.setdefault(int(number), folder / name)
    return dict(sorted(found.items(), reverse=True))


def _of_another_plan(path: Path, found: str, plan_digest: str) -> CheckpointError:
    return CheckpointError(
        f"{path} belongs to the plan {found}, not to {plan_digest}",
        "a checkpoint of the plan that the run was started with",
        "undo the change, or fork: start a new run from this run's weights (model.weights)",
    )


def _write(folder: Path, step: int, tensors: object, contents: dict[str, Any]) -> Path:
    """Writes and verifies one checkpoint, then gives it its final name; any failure removes it."""
    temporary = folder / f".tmp-{name_of(step)}"
    try:
        temporary.mkdir(exist_ok=True)
        with open(temporary / STATE, "wb") as file:
            out = HashedFile(file)
            torch.save(tensors, cast(BinaryIO, out))
        contents = json.loads(json.dumps({**contents, "sha256": out.sha256.hexdigest(), "bytes": out.bytes}))
        with open(temporary / META, "wb") as file:
            file.write(json.dumps({**contents, "seal": seal_of(contents)}, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(temporary)
        verify(temporary)
        return _give_name(temporary, folder, step)
    except BaseException:
        _remove(temporary)
        raise


def _give_name(temporary: Path, folder: Path, step: int) -> Path:
    """Moves a verified and flushed checkpoint to its final name in ``folder``, in the place of one that is there."""
    final, old = (folder / f"{prefix}{name_of(step)}" for prefix in ("", ".old-"))
    if final.exists():
        os.replace(final, old)  # there `places` still finds it until the new one has the final name
    os.replace(temporary, final)
    sync_directory(folder)
    _remove(old)
    return final


def _tidy(folder: Path, step: int) -> None:
    """Cleans up after killed processes, and moves a damaged checkpoint of ``step`` to ``rejected/``."""
    for name in os.listdir(folder):
        if name.startswith((".tmp-step_", ".tmp-best", ".tmp-last", ".best.json.", ".last.json.")):
            _remove(folder / name)
        elif name.startswith(".old-step_"):
            if (final := folder / name.removeprefix(".old-")).exists():
                _remove(folder / name)
            else:
                os.replace(folder / name, final)
    if (path := folder / name_of(step)).is_dir() and not is_intact(path):
        _set_aside(path)


def _prune(folder: Path, keep: int, protect: Collection[int]) -> None:
    """Removes all but the ``keep`` newest valid checkpoints, the steps that these protect, ``protect``, best and last.
    A checkpoint that cannot be read now remains and is not counted."""
    needed = {path.name for name in ("best", "last") if (path := pointed(folder, name)) is not None}
    needed |= {name_of(step) for step in protect}
    kept = 0
    for path in places(folder).values():
        if kept == keep:
            break
        try:
            intact = is_intact(path)
            protected = read_meta(path)["protect"] if intact else []
        except OSError:
            needed.add(path.name)
            continue
        if intact:
            kept += 1
            needed |= {path.name, *map(name_of, protected)}
        else:
            _set_aside(path)
    for path in places(folder).values():
        if path.name not in needed:
            # Renamed first, so that a kill in the middle does not leave half of a checkpoint under its name.
            doomed = folder / f".tmp-{path.name}"
            os.replace(path, doomed)
            _remove(doomed)


def _set_aside(path: Path) -> None:
    """Moves a checkpoint that must not be used to ``rejected/``, where the newest few are kept for inspection."""
    rejected = path.parent / "rejected"
    rejected.mkdir(exist_ok=True)
    _remove(rejected / path.name)
    os.replace(path, rejected / path.name)
    os.utime(rejected / path.name)
    for old in sorted(rejected.iterdir(), key=os.path.getmtime)[:-NUM_REJECTED_KEPT]:
        _remove(old)


def _read(path: Path) -> Checkpoint:
    """Loads and fully verifies the checkpoint in ``path``; raises Damaged, or OSError if it cannot be read now."""
    meta = retry_once(verify, path)
    return Checkpoint(meta["step"], load_state(path, "cpu"), {key: meta[key] for key in meta if key not in _RESERVED})


def _plain(value: Any, where: str) -> Any:
    """Returns ``value`` with tensors on the CPU, without unused storage; TypeError with the path of any other object."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > num_bytes(tensor) else tensor
    if isinstance(value, dict):
        return {key: _plain(one, f"{where}[{key!r}]") for key, one in value.items()}
    if isinstance(value, list | tuple):
        parts = [_plain(one, f"{where}[{at}]") for at, one in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; a state holds tensors, numbers, strings and None")


def _remove(path: Path) -> None:
    """Removes ``path`` and ignores errors: some network file systems do not delete open files, and the next save tries
    again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
