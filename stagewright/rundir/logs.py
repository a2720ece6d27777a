"""Logs in checkpoints: each checkpoint contains a copy of the run's logs at its step, from which damaged logs are restored.

A checkpoint contains steps.csv, metrics.csv, timing.csv, events.jsonl (compressed, about 40 bytes per step) and env.json, because
none of these files can be computed from the others. It does not contain summary.json and the report, which are written again,
nor the plan and the manifest, whose digests are checked instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagewright.errors import CheckpointError
from stagewright.rundir.checkpoint import Checkpoint, Rejected, name_of
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Saved
from stagewright.rundir.events import read_events
from stagewright.storage.append_file import Seal
from stagewright.storage.files import make_folder, read_own, unwritable, write_whole

_APPENDED = ("events.jsonl",)
"""Logs whose content after the checkpoint is not removed; there, a ``resumed`` event supersedes it."""
_RECORD = (
    *("events.jsonl", "steps.csv", "metrics.csv", "timing.csv", "log.txt", "summary.json", "report.html"),
    *("weights.json", "checkpoints", "evaluations", "fed", "plots", "model", "interim"),
)
_RESULTS = ("evaluations", "model")
"""What only a finished run has; the model goes last, so that until then the run has a model."""


def pack_logs(seals: Mapping[str, Seal], env: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the two parts that a checkpoint stores of the logs and of ``env``, the content of env.json.

    The first part, for its meta.json, has the length and SHA-256 of each log. The second part, for its state, has the compressed
    logs in one uint8 tensor, and the number of bytes of each (one tensor, because torch needs 0.1 ms per tensor).
    """
    recorded = {name: {"bytes": seal.bytes, "sha256": seal.sha256} for name, seal in seals.items()}
    packed = {name: seal.packed for name, seal in seals.items()} | {"env.json": zlib.compress(env, 1)}
    joined = torch.frombuffer(bytearray(b"".join(packed.values())), dtype=torch.uint8)
    return recorded, {"packed": joined, "sizes": {name: len(content) for name, content in packed.items()}}


def restore_logs(run: RunDir, saved: Checkpoint | None) -> list[str]:
    """Brings the logs of ``run`` to their state in the checkpoint ``saved``; returns a notice for each log that was damaged.

    Rows after the checkpoint are removed. A log whose part before the checkpoint was changed, truncated or deleted is renamed,
    and restored from the checkpoint. Without a checkpoint, all rows are removed. Raises Unreadable, before anything is changed,
    if a log cannot be read now.
    """
    if saved is None:
        for path in (run.steps, run.metrics, run.timing):
            _cut(path, 0)
        return []
    recorded = {str(name): one for name, one in saved.meta.get("logs", {}).items()}
    found = {name: _content(run.root / name) for name in recorded}
    notes = []
    for name, one in recorded.items():
        content, path = found[name], run.root / name
        if content is not None and _matches(content, one):
            if name not in _APPENDED:
                _cut(path, one["bytes"])
            continue
        original = unpacked(saved, name)
        notes.append(_set_aside(path, content, original))
        write_whole(path, original)
    return [*notes, *_restored_env(run, saved)]


def unpacked(saved: Checkpoint, name: str) -> bytes:
    """Returns the content of the log ``name`` in the checkpoint; CheckpointError if it has none."""
    logs = saved.tensors.get("logs", {})
    at = 0
    for other, size in logs.get("sizes", {}).items():
        if other == name:
            return zlib.decompress(logs["packed"][at : at + size].numpy().tobytes())
        at += size
    raise CheckpointError(
        f"the checkpoint of step {saved.step} contains no {name}",
        "one that this version wrote",
        "go on with the version of stagewright that wrote it, or start a new run",
    )


def refuse_lost(run: RunDir, rejected: Sequence[Rejected]) -> None:
    """Raises CheckpointError if ``run`` has saved checkpoints but none of them is usable; call it if there is no usable one.

    A run that was killed before its first checkpoint has saved none, and simply starts again.
    """
    if rejected:
        what = "; ".join(f"{one.name}: {one.reason}" for one in rejected[:4])
    elif run.events.exists():
        names = [one.event.checkpoint for one in read_events(run.events) if isinstance(one.event, Saved)]
        if not names:
            return
        what = f"according to its events, {names[-1]} was the last one saved"
    elif (_content(run.steps) or b"").count(b"\n") > 1:
        what = "steps.csv contains steps, but events.jsonl and checkpoints/ are missing"
    else:
        return
    raise CheckpointError(
        f"{run.root} has no usable checkpoint ({what})",
        f"the folders {run.checkpoints}/step_... as the run wrote them",
        "copy them from the machine that the run was made on (copies often omit large files), then resume; "
        f"or stagewright resume {run.root} --from-start, which moves the old record to a subfolder and starts at step 0",
    )


def no_checkpoint(run: RunDir, rejected: Sequence[Rejected]) -> CheckpointError:
    """Returns the error for a command that needs a checkpoint of ``run``, where none is usable."""
    try:
        refuse_lost(run, rejected)
    except CheckpointError as lost:
        return lost
    return CheckpointError(
        f"{run.root} has no checkpoint yet: nothing that it trained is saved",
        "a run that has saved one: at a planned step, at a stop, or after --save-minutes",
        f"stagewright resume {run.root} trains from the beginning (--save-minutes 1 saves sooner)",
    )


def set_results_aside(run: RunDir, step: int) -> Path | None:
    """Moves the model and the evaluations of ``run``, which goes on from ``step``, to ``interim/step_...``: they are not those of
    the run any more. Returns this folder, or None if there is nothing to move.

    They were made by a finish before the end of the plan. A second finish at this step has made the same as the first.
    """
    there = [name for name in _RESULTS if os.path.lexists(run.root / name)]
    if not there:
        return None
    target = run.interim / name_of(step)
    try:
        make_folder(run.interim)
        make_folder(target)
        for name in there:
            shutil.rmtree(target / name, ignore_errors=True)
            os.rename(run.root / name, target / name)
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def set_record_aside(run: RunDir) -> Path | None:
    """Moves all logs, checkpoints and results of ``run`` to its subfolder ``before-N``.

    Returns this subfolder, or None if there is nothing to move.
    """
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


def _matches(content: bytes, recorded: Mapping[str, Any]) -> bool:
    size = recorded["bytes"]
    return len(content) >= size and hashlib.sha256(content[:size]).hexdigest() == recorded["sha256"]


def _set_aside(path: Path, content: bytes | None, original: bytes) -> str:
    """Renames a damaged log, unless ``original`` contains all of it; returns a sentence that states what was wrong."""
    if content is None:
        return f"{path.name} was missing and is restored from the checkpoint"
    if original.startswith(content):
        return f"{path.name} {_difference(content, original)}; it is restored from the checkpoint"
    kept = _free(path.with_name(f"{path.name}.damaged"))
    try:
        os.rename(path, kept)
    except OSError as error:
        raise unwritable(kept, error) from error
    return f"{path.name} {_difference(content, original)}; it is restored from the checkpoint, the old file is now {kept.name}"


def _difference(content: bytes, original: bytes) -> str:
    if content.replace(b"\r\n", b"\n").startswith(original):
        return "now has Windows line ends (CRLF)"
    lines, expected = content.split(b"\n"), original.split(b"\n")
    at = next((at for at, (one, other) in enumerate(zip(lines, expected, strict=False)) if one != other), len(lines))
    if original.startswith(content):
        return f"ends at line {len(lines) - 1:,} of {len(expected) - 1:,}"
    return f"was changed in line {at + 1:,} of {len(expected) - 1:,}"


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
    """Returns ``path-N`` with the lowest N from 1 that does not exist."""
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}-{number}")):
        number += 1
    return path.with_name(f"{path.name}-{number}")
