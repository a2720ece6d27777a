"""Reads a mirror: what it holds, its newest valid checkpoint, and its files.

The convention: a checkpoint may be trusted only if its meta.json is there, which is written last and deleted first, and only
after what it names was fetched and verified. A list may be older than the mirror: an object of it that is gone means that
another process has pruned meanwhile, and the list is read again.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError

from stagewright.errors import CheckpointError, RecipeError
from stagewright.mirror.names import LOGS, complete_steps, is_small, meta_name, state_name
from stagewright.plan.plan import Plan
from stagewright.rundir import checkpoint
from stagewright.rundir.checkpoint import Rejected, name_of
from stagewright.rundir.checkpoint_files import META, STATE, Damaged, parse_meta
from stagewright.rundir.directory import RunDir
from stagewright.rundir.logs import restore_logs
from stagewright.storage.files import make_folder, unwritable, write_whole
from stagewright.storage.json_text import parse_object
from stagewright.storage.objects import explain, is_missing, patiently

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_MOST_SMALL_BYTES = 1 << 30
_MOST_META_BYTES = 1 << 20
_LISTINGS = 5
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Restored:
    """What was fetched from a mirror into a run's directory."""

    step: int | None
    """The step of the checkpoint that was fetched; None if the mirror has none, or none newer than the directory."""
    rejected: tuple[Rejected, ...]
    """Newer checkpoints in the mirror that are damaged."""


def names_in(store: ObjectStore, url: str) -> dict[str, int]:
    """Returns {name: size in bytes} of all objects in the mirror. StorageError if the store cannot be read now."""
    try:
        return patiently(lambda: {str(one["path"]): int(one["size"]) for part in obstore.list(store) for one in part})
    except (BaseError, OSError) as error:
        raise explain(error, url, "listing the mirror", "the right to list the bucket (s3:ListBucket)") from error


def read_remote_plan(store: ObjectStore, url: str) -> Plan | None:
    """Returns the plan in the mirror, or None if there is none. CheckpointError if it is damaged or was changed."""
    content = _small(store, url, "plan.json")
    if content is None:
        return None
    try:
        return Plan.from_json(parse_object(content))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{url}/plan.json is damaged: {error}", "the file as train wrote it", "restore it from a copy"
        ) from None
    except RecipeError as error:
        raise CheckpointError(f"{url}/plan.json: {error.given}", error.allowed, error.remedy) from None


def read_remote_meta(store: ObjectStore, step: int) -> tuple[dict[str, Any], bytes]:
    """Returns the fields and the content of the meta.json of ``step``. Damaged if it is not valid, FileNotFoundError if it is
    not there, and what obstore raises if it cannot be read now."""
    got = obstore.get(store, meta_name(step))
    if got.meta["size"] > _MOST_META_BYTES:
        raise Damaged(f"{META} has {got.meta['size']:,} bytes")
    content = bytes(got.bytes())
    meta = parse_meta(content)
    if meta["step"] != step:
        raise Damaged(f"{META} is that of step {meta['step']}")
    return meta, content


def fetch_start(store: ObjectStore, url: str, run: RunDir) -> None:
    """Fetches into the new directory ``run`` what the run had before its first step, and all else but logs and checkpoints. The
    plan comes last: a folder with a plan has all files of the start."""
    names = [name for name in names_in(store, url) if is_small(name) and name not in LOGS and name != "plan.json"]
    for name in [*names, "plan.json"]:
        content = _small(store, url, name)
        if content is None:
            continue
        for folder in reversed(Path(name).parents[:-1]):
            make_folder(run.root / folder)
        write_whole(run.root / name, content)
    if run.lock is not None:
        run.lock.write(beginning=False)


def restore(store: ObjectStore, url: str, run: RunDir, plan_digest: str) -> Restored:
    """Fetches the newest valid checkpoint of the mirror into the directory ``run`` if it is newer than those there, with those
    that it protects, and brings the logs to their state in it.

    CheckpointError for a checkpoint of another plan; StorageError if the mirror cannot be read now.
    """
    local, _ = checkpoint.newest(run.checkpoints, plan_digest)
    have = -1 if local is None else local.step
    del local
    rejected: dict[int, Rejected] = {}
    for _ in range(_LISTINGS):
        changed = False
        for step in complete_steps(names_in(store, url)):
            if step <= have:
                break
            if step in rejected:
                continue
            try:
                protected = _fetch(store, url, run, step, plan_digest)
            except FileNotFoundError:
                changed = True  # pruned since the list was read, or the list is old
                continue
            except Damaged as damage:
                rejected[step] = Rejected(name_of(step), str(damage))
                continue
            for other in protected:
                _fetch_protected(store, url, run, other, plan_digest)
            restore_logs(run, checkpoint.load(run.checkpoints / name_of(step)))
            return Restored(step, tuple(rejected.values()))
        if not changed:
            break
    return Restored(None, tuple(rejected.values()))


def _fetch_protected(store: ObjectStore, url: str, run: RunDir, step: int, plan_digest: str) -> None:
    """Fetches an earlier checkpoint, such as the best, unless it is there; the run goes on without it if the mirror lacks
    it."""
    if step in checkpoint.places(run.checkpoints):
        return
    try:
        _fetch(store, url, run, step, plan_digest)
    except (FileNotFoundError, Damaged):
        return


def _fetch(store: ObjectStore, url: str, run: RunDir, step: int, plan_digest: str) -> list[int]:
    """Fetches the checkpoint of ``step`` into the directory, verified; returns the steps that it protects. FileNotFoundError if
    the mirror does not have it any more, Damaged, or StorageError if it cannot be read now or not be written."""
    temporary = run.checkpoints / f".tmp-{name_of(step)}"
    try:
        try:
            return patiently(lambda: _copied(store, run, step, plan_digest, temporary))
        except Damaged:  # copied a second time, since a network may spoil bytes without an error
            return patiently(lambda: _copied(store, run, step, plan_digest, temporary))
    except BaseError as error:
        raise explain(error, url, f"fetching {name_of(step)}", "the right to read objects (s3:GetObject)") from error
    except FileNotFoundError as error:
        if is_missing(error):
            raise
        raise explain(error, url, f"fetching {name_of(step)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copied(store: ObjectStore, run: RunDir, step: int, plan_digest: str, temporary: Path) -> list[int]:
    meta, content = read_remote_meta(store, step)
    got = obstore.get(store, state_name(step, meta["sha256"]))
    if got.meta["size"] != meta["bytes"]:
        raise Damaged(f"{STATE} has {got.meta['size']} bytes instead of {meta['bytes']}")
    try:
        run.checkpoints.mkdir(exist_ok=True)
        temporary.mkdir(exist_ok=True)
        (temporary / META).write_bytes(content)
        sha256 = hashlib.sha256()
        with open(temporary / STATE, "wb") as file:
            for part in got.stream(min_chunk_size=_CHUNK):
                sha256.update(part)
                file.write(part)
        if sha256.hexdigest() != meta["sha256"]:
            raise Damaged(f"{STATE} is damaged: its SHA-256 is not the one recorded")
        checkpoint.adopt(temporary, run.checkpoints, plan_digest)
    except Damaged:
        raise
    except OSError as error:
        raise unwritable(temporary, error) from error
    return list(meta["protect"])


def _small(store: ObjectStore, url: str, name: str) -> bytes | None:
    """Returns the content of a small file in the mirror, or None if it is not there."""

    def read() -> bytes:
        got = obstore.get(store, name)
        if got.meta["size"] > _MOST_SMALL_BYTES:
            raise CheckpointError(
                f"{url}/{name} has {got.meta['size']:,} bytes", f"at most {_MOST_SMALL_BYTES:,}", "look at what it is"
            )
        return bytes(got.bytes())

    try:
        return patiently(read)
    except (BaseError, OSError) as error:
        if is_missing(error):
            return None
        raise explain(error, url, f"reading {name}", "the right to read objects (s3:GetObject)") from error
