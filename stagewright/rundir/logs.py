"""A run's logs belong to its checkpoints: each says what they held at its step, and carries them, so that it can restore them.

A checkpoint carries steps.csv, metrics.csv, timing.csv, events.jsonl (packed: about 40 bytes a step) and env.json, since none of
them follows from the others: the guard decides on rows of steps.csv, metrics.csv sums them up, events say what happened. It
does not carry summary.json and the report, which are written again, nor plan and manifest, whose digests it is checked by.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagewright.errors import CheckpointError
from stagewright.rundir.checkpoint import Checkpoint, Rejected
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Saved
from stagewright.rundir.events import read_events
from stagewright.storage.append_file import Seal
from stagewright.storage.files import read_own, unwritable, write_whole

_APPENDED = ("events.jsonl",)
"""What lies behind the checkpoint stays: a ``resumed`` event supersedes it."""
_RECORD = (
    *("events.jsonl", "steps.csv", "metrics.csv", "timing.csv", "log.txt", "summary.json", "report.html"),
    *("checkpoints", "evaluations", "plots", "model"),
)


def carried(seals: Mapping[str, Seal], env: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint says of the logs (JSON: length and SHA-256 by name), and what it carries: their packed bytes one after
    another (uint8: each tensor more would cost torch 0.1 ms), and how many of them are whose."""
    said = {name: {"bytes": seal.bytes, "sha256": seal.sha256} for name, seal in seals.items()}
    packed = {name: seal.packed for name, seal in seals.items()} | {"env.json": zlib.compress(env, 1)}
    joined = torch.frombuffer(bytearray(b"".join(packed.values())), dtype=torch.uint8)
    return said, {"packed": joined, "sizes": {name: len(content) for name, content in packed.items()}}


def restore_logs(run: RunDir, saved: Checkpoint | None) -> list[str]:
    """Brings the logs of ``run`` to where the checkpoint ``saved`` knows them; returns a sentence on each that was damaged.

    Rows of steps behind it are cut. A log that was changed, cut or removed before it is set aside under another name, and
    what the checkpoint carries takes its place. Without a checkpoint no row counts. Unreadable where a log cannot be read
    now, before anything is changed.
    """
    if saved is None:
        for path in (run.steps, run.metrics, run.timing):
            _cut(path, 0)
        return []
    said = {str(name): one for name, one in saved.meta.get("logs", {}).items()}
    found = {name: _content(run.root / name) for name in said}
    notes = []
    for name, one in said.items():
        content, path = found[name], run.root / name
        if content is not None and _fits(content, one):
            if name not in _APPENDED:
                _cut(path, one["bytes"])
            continue
        original = unpacked(saved, name)
        notes.append(_set_aside(path, content, original))
        write_whole(path, original)
    return [*notes, *_restored_env(run, saved)]


def unpacked(saved: Checkpoint, name: str) -> bytes:
    """The log ``name`` as the checkpoint carries it."""
    logs = saved.tensors.get("logs", {})
    at = 0
    for other, size in logs.get("sizes", {}).items():
        if other == name:
            return zlib.decompress(logs["packed"][at : at + size].numpy().tobytes())
        at += size
    raise CheckpointError(f"the checkpoint of step {saved.step} carries no {name}", "one that this version wrote")


def refuse_lost(run: RunDir, rejected: Sequence[Rejected]) -> None:
    """CheckpointError where ``run`` has checkpoints on record, or damaged ones, and none that can be used.

    A run that was killed before its first checkpoint has none on record, and begins again by itself.
    """
    if rejected:
        what = "; ".join(f"{one.name}: {one.reason}" for one in rejected[:4])
    elif run.events.exists():
        names = [one.event.checkpoint for one in read_events(run.events) if isinstance(one.event, Saved)]
        if not names:
            return
        what = f"its events name {names[-1]} as the last one saved"
    elif (_content(run.steps) or b"").count(b"\n") > 1:
        what = "steps.csv has steps on record, events.jsonl and checkpoints/ are missing"
    else:
        return
    raise CheckpointError(
        f"{run.root} has no checkpoint that can be used ({what})",
        f"the folders {run.checkpoints}/step_... as the run wrote them",
        "bring them back from where the run was made (copies often leave large files out), then resume; "
        f"or stagewright resume {run.root} --from-start, which keeps the old record under another name and begins at step 0",
    )


def set_record_aside(run: RunDir) -> Path | None:
    """Moves all that ``run`` has recorded into a folder ``before-N`` in it; returns that, or None where there is nothing."""
    there = [name for name in _RECORD if os.path.lexists(run.root / name)]
    if not there:
        return None
    target = _free(run.root / "before")
    try:
        target.mkdir()
        for name in there:
            os.rename(run.root / name, target / name)
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def _content(path: Path) -> bytes | None:
    try:
        return read_own(path)
    except FileNotFoundError:
        return None


def _fits(content: bytes, said: Mapping[str, Any]) -> bool:
    size = said["bytes"]
    return len(content) >= size and hashlib.sha256(content[:size]).hexdigest() == said["sha256"]


def _set_aside(path: Path, content: bytes | None, original: bytes) -> str:
    """Keeps a damaged log under another name, unless all of it is in ``original``; a sentence on what was wrong with it."""
    if content is None:
        return f"{path.name} was missing and is restored from the checkpoint"
    if original.startswith(content):
        return f"{path.name} {_difference(content, original)}; it is restored from the checkpoint"
    kept = _free(path.with_name(f"{path.name}.damaged"))
    try:
        os.rename(path, kept)
    except OSError as error:
        raise unwritable(kept, error) from error
    return (
        f"{path.name} {_difference(content, original)}; it is restored from the checkpoint, and is kept as {kept.name}"
    )


def _difference(content: bytes, original: bytes) -> str:
    if content.replace(b"\r\n", b"\n").startswith(original):
        return "has the line ends of Windows (CRLF) now"
    lines, wanted = content.split(b"\n"), original.split(b"\n")
    at = next((at for at, (one, other) in enumerate(zip(lines, wanted, strict=False)) if one != other), len(lines))
    if original.startswith(content):
        return f"ends at line {len(lines) - 1:,} of {len(wanted) - 1:,}"
    return f"was changed in line {at + 1:,} of {len(wanted) - 1:,}"


def _restored_env(run: RunDir, saved: Checkpoint) -> list[str]:
    if "env.json" not in saved.tensors.get("logs", {}).get("sizes", {}) or run.read_env():
        return []
    write_whole(run.env, unpacked(saved, "env.json"))
    return ["env.json was damaged or missing and is restored from the checkpoint"]


def _cut(path: Path, size: int) -> None:
    try:
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
    except OSError as error:
        raise unwritable(path, error) from error


def _free(path: Path) -> Path:
    """``path-1``, or the first number after it that is free."""
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}-{number}")):
        number += 1
    return path.with_name(f"{path.name}-{number}")
