"""Checkpoints: nested tensor states in ``RUN/checkpoints``, written so that a kill or a full disk loses none.

The convention: ``step_000500/{state.pt, meta.json}``; meta.json, written last, holds the SHA-256 and size of state.pt
and a checksum of itself. A directory gets its name only after it was read back and found whole; what breaks later is
found out and passed over. One process writes at a time (:mod:`stagewright.storage.lock`). Steps are numbers of finished updates.

Damaged is what has the wrong size, hash, seal or format, read twice, or lacks a file. What cannot be read now (a disk error, a
right that is missing, too little memory) is not damaged: it raises Unreadable, and not one file changes.

``best.json`` and ``last.json`` name a checkpoint for people and tools. Links would become folders in copies by zip and stores.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import torch

from stagewright.errors import CheckpointError, StorageError
from stagewright.storage.files import MISSING, read_file, retry_io, sync_directory, unreadable, unwritable, write_json
from stagewright.storage.hashed import HashedFile
from stagewright.system.memory import num_bytes

T = TypeVar("T")

FORMAT = 1
STATE, META = "state.pt", "meta.json"
NUM_REJECTED_KEPT = 2
_RESERVED = ("format", "step", "protect", "sha256", "bytes", "seal")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_verified: set[tuple[int, ...]] = set()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state read back: ``tensors`` as they were saved, on the CPU, and the JSON ``meta`` saved beside them."""

    step: int
    tensors: dict[str, Any]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that cannot be used: its directory's name, and why."""

    name: str
    reason: str


class _Damaged(OSError):
    """Why a directory is no valid checkpoint. An OSError since, right after writing, it is the disk that failed."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)  # EINVAL: another attempt at the same bytes changes nothing

    def __str__(self) -> str:
        return str(self.strerror)


def save(
    folder: Path, step: int, tensors: dict[str, Any], meta: dict[str, Any], *, keep: int, protect: Collection[int] = ()
) -> Path:
    """Saves ``tensors`` as the checkpoint of ``step`` in ``folder``; returns its directory, verified and on the disk.

    ``tensors`` nests dicts, lists and tuples of tensors, numbers, strings and None, else TypeError with the offender's
    place; ``meta`` is JSON with a ``plan_digest``. Afterwards the ``keep`` newest valid checkpoints remain, the targets
    of best and last, and the steps that any of those kept was saved to ``protect``: what a state refers to lives as
    long as the state. Checkpoints of later steps belong to a future that did not happen, as when the newest was damaged
    and an older one resumed: they go to ``rejected/``, as damaged ones do. A write that fails is tried once more, on a full
    disk after what may go has gone; a second failure raises StorageError, and the last valid checkpoint stands.
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
                # One that has its name but is not known to be on the disk counts in addition to the last that is.
                _prune(folder, 1 + (folder / name_of(step)).exists(), protect)
            path = _write(folder, step, plain, contents)
        for later in [path for other, path in _steps(folder).items() if other > step]:
            _set_aside(later)  # not before: they may be the only ones there are
        _prune(folder, keep, protect)
    except OSError as error:
        if not folder.parent.is_dir():
            raise unwritable(folder, error) from error
        standing = next((path.name for path in _steps(folder).values() if _stands(path)), None)
        raise StorageError(
            f"the checkpoint of step {step} could not be written to {folder}: {error.strerror or error}",
            f"{num_bytes(plain) / 1e9:.3g} GB free on a disk that takes writes",
            "make room and run stagewright resume; "
            + (f"the last valid checkpoint {standing} stands" if standing else "no checkpoint was there before"),
        ) from error
    return path


def newest(folder: Path, plan_digest: str) -> tuple[Checkpoint | None, list[Rejected]]:
    """The newest checkpoint in ``folder`` that is whole, and those newer ones that are damaged, with the reasons.

    (None, rejected) where none is left. A checkpoint of another plan raises CheckpointError, one that cannot be read now
    Unreadable. Changes no file.
    """
    rejected: list[Rejected] = []
    for path in _steps(folder).values():
        try:
            if (found := _twice(_read_meta, path)["plan_digest"]) != plan_digest:
                raise CheckpointError(
                    f"{path} belongs to the plan {found}, not to {plan_digest}",
                    "to resume a run with the plan it was started with",
                    "undo the change, or fork: start a new run directory from this run's weights (model.weights)",
                )
            return _read(path), rejected
        except _Damaged as damage:
            rejected.append(Rejected(path.name.removeprefix(".old-"), str(damage)))
        except OSError as error:
            raise unreadable(path, error) from error
    return None, rejected


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in ``folder``, rising, without looking into them."""
    return sorted(_steps(folder))


def load(path: Path) -> Checkpoint:
    """The checkpoint in the directory ``path``; CheckpointError says what is damaged, Unreadable what cannot be read now."""
    try:
        return _read(path)
    except _Damaged as damage:
        raise CheckpointError(
            f"{path}: {damage}",
            f"a directory with the {STATE} and {META} that were saved together",
            "take another checkpoint of the run, or stagewright resume, which finds the newest valid one",
        ) from damage
    except OSError as error:
        raise unreadable(path, error) from error


def point(folder: Path, name: Literal["best", "last"], step: int) -> None:
    """Writes into ``folder / NAME.json`` that the checkpoint of ``step`` is the best or the last.

    CheckpointError if there is no such checkpoint, StorageError if the file cannot be written. It follows from the states,
    so it need not survive a power cut.
    """
    if not (folder / name_of(step)).is_dir():
        known = ", ".join(path.name for path in _steps(folder).values()) or "none is saved"
        raise CheckpointError(
            f"{name}: no checkpoint {name_of(step)} in {folder}", known, "save it before pointing to it"
        )
    write_json(folder / f"{name}.json", {"step": step, "checkpoint": name_of(step)}, durable=False)
    if (former := folder / name).is_symlink():  # of a version that had links
        _remove(former)


def pointed(folder: Path, name: Literal["best", "last"]) -> Path | None:
    """The directory of the best or the last checkpoint as ``NAME.json`` says; None where it says nothing."""
    try:
        step = json.loads((folder / f"{name}.json").read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if isinstance(step, int) and (path := folder / name_of(step)).is_dir() else None


def name_of(step: int) -> str:
    """The name of the checkpoint's directory: ``step_000500``."""
    return f"step_{step:06d}"


def _steps(folder: Path) -> dict[int, Path]:
    """Step -> directory, valid or not, the newest first. One that a kill found half replaced counts as it was."""
    found: dict[int, Path] = {}
    names = os.listdir(folder) if folder.is_dir() else []
    for prefix in ("", ".old-"):
        for name in names:
            number = name.removeprefix(f"{prefix}step_")
            if number.isdigit() and name == prefix + name_of(int(number)) and os.path.isdir(folder / name):
                found.setdefault(int(number), folder / name)
    return dict(sorted(found.items(), reverse=True))


def _write(folder: Path, step: int, tensors: object, contents: dict[str, Any]) -> Path:
    """Writes, verifies and names one checkpoint; on any failure nothing of it is left."""
    final, temporary, old = (folder / f"{prefix}{name_of(step)}" for prefix in ("", ".tmp-", ".old-"))
    try:
        temporary.mkdir(exist_ok=True)
        with open(temporary / STATE, "wb") as file:
            out = HashedFile(file)
            torch.save(tensors, cast(BinaryIO, out))
        contents = json.loads(json.dumps({**contents, "sha256": out.sha256.hexdigest(), "bytes": out.bytes}))
        with open(temporary / META, "wb") as file:
            file.write(json.dumps({**contents, "seal": _seal(contents)}, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(temporary)
        _verify(temporary)
        if final.exists():
            os.replace(final, old)  # where it counts on, see _steps, until the new one has the name
        os.replace(temporary, final)
        sync_directory(folder)
    except BaseException:
        _remove(temporary)
        raise
    _remove(old)
    return final


def _tidy(folder: Path, step: int) -> None:
    """Removes what killed processes left half done, and sets aside a damaged ``step``."""
    for name in os.listdir(folder):
        if name.startswith((".tmp-", ".best.json.", ".last.json.")):
            _remove(folder / name)
        elif name.startswith(".old-step_"):
            if (final := folder / name.removeprefix(".old-")).exists():
                _remove(folder / name)
            else:
                os.replace(folder / name, final)
    if (path := folder / name_of(step)).is_dir() and not _intact(path):
        _set_aside(path)


def _prune(folder: Path, keep: int, protect: Collection[int]) -> None:
    """Removes all but the ``keep`` newest valid checkpoints and what those, ``protect``, best and last refer to.
    One that cannot be read now stays, and does not count."""
    wanted = {path.name for name in ("best", "last") if (path := pointed(folder, name)) is not None}
    wanted |= {name_of(step) for step in protect}
    kept = 0
    for path in _steps(folder).values():
        if kept == keep:
            break
        try:
            intact = _intact(path)
            referred = _read_meta(path)["protect"] if intact else []
        except OSError:
            wanted.add(path.name)
            continue
        if intact:
            kept += 1
            wanted |= {path.name, *map(name_of, referred)}
        else:
            _set_aside(path)
    for path in _steps(folder).values():
        if path.name not in wanted:
            # Renamed first, so that a kill in the middle leaves no half of a checkpoint under its name.
            doomed = folder / f".tmp-{path.name}"
            os.replace(path, doomed)
            _remove(doomed)


def _set_aside(path: Path) -> None:
    """Moves a checkpoint that must not count to ``rejected/``, where the newest few are kept for a look."""
    rejected = path.parent / "rejected"
    rejected.mkdir(exist_ok=True)
    _remove(rejected / path.name)
    os.replace(path, rejected / path.name)
    os.utime(rejected / path.name)
    for old in sorted(rejected.iterdir(), key=os.path.getmtime)[:-NUM_REJECTED_KEPT]:
        _remove(old)


def _twice(read: Callable[[Path], T], path: Path) -> T:
    """What ``read`` gives; what looks damaged is read a second time before it counts as damaged."""
    try:
        return read(path)
    except _Damaged:
        return read(path)


def _read(path: Path) -> Checkpoint:
    """The checkpoint in ``path``, verified from the first byte to the last; _Damaged says why not, OSError why it cannot
    be read now."""
    meta = _twice(_verify, path)
    return Checkpoint(meta["step"], _load(path, "cpu"), {key: meta[key] for key in meta if key not in _RESERVED})


def _load(path: Path, device: str) -> dict[str, Any]:
    """The tensors of a state whose SHA-256 is right. So what is raised here (torch makes RuntimeErrors of read errors) is no
    damage, unless there is something else than tensors in it."""

    def load(file: str) -> dict[str, Any]:
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except (OSError, MemoryError):
            raise
        except pickle.UnpicklingError as error:  # another format: objects that are no tensors
            raise _Damaged(f"{STATE} does not load: {str(error).splitlines()[0]}") from error
        except Exception as error:  # torch's own kinds for a read that failed, memory that did not suffice
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise OSError(errno.EIO, f"its SHA-256 is right, but it does not load: {reason}", file) from error

    return retry_io(path / STATE, load)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(read_file(path / META))
        seal = meta.pop("seal")
    except OSError as error:
        raise (_Damaged(f"{META} is missing") if error.errno in MISSING else error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{META} is damaged") from error
    if meta.get("format") != FORMAT:
        raise _Damaged(f"format {meta.get('format')} is not the format {FORMAT} that this version reads")
    if seal != _seal(meta):
        raise _Damaged(f"{META} is damaged: its own checksum does not fit")
    return meta


def _verify(path: Path) -> dict[str, Any]:
    """The meta of ``path``, after a look at size, SHA-256 and loading of its state; _Damaged says what is wrong, OSError
    what cannot be read now."""
    meta = _read_meta(path)
    try:
        identity, size = _identity(path), os.stat(path / STATE).st_size
    except OSError as error:
        raise (_Damaged(f"{STATE} is missing") if error.errno in MISSING else error) from error
    if size != meta["bytes"]:
        raise _Damaged(f"{STATE} has {size} bytes instead of {meta['bytes']}")
    if retry_io(path / STATE, lambda file: _sha256(Path(file))) != meta["sha256"]:
        raise _Damaged(f"{STATE} is damaged: its SHA-256 is not the one recorded")
    _load(path, "meta")  # which keeps one tensor in memory at a time
    _verified.add(identity)
    return meta


def _intact(path: Path) -> bool:
    """Whether ``path`` verifies; files that this process verified and nobody wrote to since are not read again. OSError
    where it cannot be read now."""
    try:
        return _identity(path) in _verified or bool(_twice(_verify, path))
    except _Damaged:
        return False
    except OSError as error:
        if error.errno in MISSING:
            return False
        raise


def _stands(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return _intact(path)
    return False


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when somebody writes to the checkpoint in ``path``, and stays when it is renamed."""
    stats = [(path / name).stat() for name in (STATE, META)]
    return tuple(number for one in stats for number in (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns))


def _seal(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            # Forget the pages in memory, which are right even where the disk is not.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any, where: str) -> Any:
    """``value`` with tensors on the CPU and nothing else in their storages; TypeError says where a foreign part is."""
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
    """Removes ``path`` as far as that works: network file systems keep open files, and the next save tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
