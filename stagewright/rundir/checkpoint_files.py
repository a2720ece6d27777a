"""The two files of a checkpoint, ``state.pt`` and ``meta.json``: reads and verifies them
(:mod:`stagewright.rundir.checkpoint`)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from stagewright.rundir.json_fields import MetaFields
from stagewright.storage.files import MISSING, read_file, retry_io
from stagewright.storage.json_text import misfit, parse_object

T = TypeVar("T")

FORMAT = 1
STATE, META = "state.pt", "meta.json"
_verified: set[tuple[int, ...]] = set()


class Damaged(OSError):
    """The reason why a directory is not a valid checkpoint. An OSError, because right after writing it means a disk error."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)  # EINVAL, because reading the same bytes again would not help

    def __str__(self) -> str:
        return str(self.strerror)


def retry_once(read: Callable[[Path], T], path: Path) -> T:
    """Returns ``read(path)``; if the checkpoint seems damaged, reads it a second time before raising Damaged."""
    try:
        return read(path)
    except Damaged:
        return read(path)


def load_state(path: Path, device: str) -> dict[str, Any]:
    """Loads the tensors of a state whose SHA-256 is correct, so that an error (torch raises RuntimeError for read errors) does
    not mean damage and becomes an OSError, unless the state contains objects other than tensors."""

    def load(file: str) -> dict[str, Any]:
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except (OSError, MemoryError):
            raise
        except pickle.UnpicklingError as error:  # another format, with objects other than tensors
            raise Damaged(f"{STATE} does not load: {str(error).splitlines()[0]}") from error
        except Exception as error:  # torch raises various types for failed reads and too little memory
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise OSError(errno.EIO, f"its SHA-256 is correct, but it does not load: {reason}", file) from error

    return retry_io(path / STATE, load)


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the content of ``path``'s meta.json, whose seal and fields are correct; raises Damaged, or OSError if it cannot
    be read now."""
    try:
        return parse_meta(read_file(path / META))
    except OSError as error:
        raise (Damaged(f"{META} is missing") if error.errno in MISSING else error) from error


def parse_meta(content: bytes) -> dict[str, Any]:
    """Returns the fields of a meta.json with this ``content``, whose seal and types are correct; else raises Damaged."""
    try:
        meta = parse_object(content)
        seal = meta.pop("seal")
    except (ValueError, KeyError) as error:
        raise Damaged(f"{META} is damaged") from error
    if meta.get("format") != FORMAT:
        raise Damaged(f"format {meta.get('format')} is not the format {FORMAT} that this version reads")
    if wrong := "its checksum is wrong" if seal != seal_of(meta) else misfit(meta, MetaFields):
        raise Damaged(f"{META} is damaged: {wrong}")
    return meta


def verify(path: Path) -> dict[str, Any]:
    """Verifies size, SHA-256 and loading of the state in ``path``; returns its meta. Raises Damaged, or OSError as _read."""
    meta = read_meta(path)
    try:
        identity, size = _identity(path), os.stat(path / STATE).st_size
    except OSError as error:
        raise (Damaged(f"{STATE} is missing") if error.errno in MISSING else error) from error
    if size != meta["bytes"]:
        raise Damaged(f"{STATE} has {size} bytes instead of {meta['bytes']}")
    if retry_io(path / STATE, lambda file: sha256_of(Path(file))) != meta["sha256"]:
        raise Damaged(f"{STATE} is damaged: its SHA-256 is not the one recorded")
    load_state(path, "meta")  # torch's meta device, which has only one tensor in memory at a time
    _verified.add(identity)
    return meta


def is_intact(path: Path) -> bool:
    """Returns whether ``path`` is valid, without reading verified, unchanged files again; OSError if it cannot be read now."""
    try:
        return _identity(path) in _verified or bool(retry_once(verify, path))
    except Damaged:
        return False
    except OSError as error:
        if error.errno in MISSING:
            return False
        raise


def is_valid(path: Path) -> bool:
    """Like :func:`is_intact`, but returns False if the checkpoint cannot be read now."""
    with contextlib.suppress(OSError):
        return is_intact(path)
    return False


def _identity(path: Path) -> tuple[int, ...]:
    """Returns device, inode, size and time of both files: changes on every write to the checkpoint, but not on a rename."""
    stats = [(path / name).stat() for name in (STATE, META)]
    return tuple(number for one in stats for number in (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns))


def seal_of(meta: dict[str, Any]) -> str:
    """Returns the checksum of ``meta``, which meta.json has as its ``seal``."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of the file ``path`` in hexadecimal, read from the disk."""
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            # Drop the file's cached pages: they may be correct although the disk is not.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
