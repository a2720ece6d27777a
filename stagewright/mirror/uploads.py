"""What is to be uploaded to a mirror, and the uploads themselves, one after the other, in the thread of :mod:`.thread`.

The order makes that a reader never sees half of a checkpoint: its state, then its meta.json, then last.json; and it is removed
in the opposite order. Checkpoints that a newer one needs (the best, the head alone) go first.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from stagewright.mirror.names import (
    BEST,
    LAST,
    checkpoint_parts,
    complete_steps,
    is_small,
    meta_name,
    small_files,
    state_name,
)
from stagewright.mirror.owner import Ownership, version_of
from stagewright.mirror.remote import names_in, read_remote_meta
from stagewright.rundir import checkpoint
from stagewright.rundir.checkpoint import name_of
from stagewright.rundir.checkpoint_files import META, STATE, Damaged, parse_meta
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import read_file
from stagewright.storage.objects import CONCURRENCY, PART_BYTES, is_missing, part_bytes

if TYPE_CHECKING:
    from obstore import PutMode

SMALL_SECONDS = 30.0
"""Seconds between two uploads of the same small file."""
_SMALL_RATE = 256 << 10
"""Bytes per second: a log of many megabytes is uploaded less often."""

Identity = tuple[int, int, int]


class Interrupted(Exception):
    """An upload was given up because the process ends."""


@dataclass(eq=False)
class Uploads:
    """The uploads of the run in ``run`` to the mirror that this process owns. ``saved`` and ``wanted`` may be called in any
    thread, all else belongs to the uploading one."""

    run: RunDir
    ownership: Ownership
    keep: int
    """How many of the newest checkpoints the mirror keeps, in addition to those that they protect, best and last."""
    note: Callable[[str], None]
    """Called with sentences for the log."""
    ends: threading.Event = field(default_factory=threading.Event)
    """Set when an upload that is going on is to be given up."""
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _waiting: dict[int, frozenset[int]] = field(init=False, default_factory=dict)
    """Steps of checkpoints that are to be uploaded, with the steps that they protect."""
    _uploading: int | None = field(init=False, default=None)
    _there: dict[int, frozenset[int]] = field(init=False, default_factory=dict)
    """Steps of complete checkpoints in the mirror, with the steps that they protect."""
    _abandoned: set[int] = field(init=False, default_factory=set)
    """Steps in the mirror from which the run does not go on: it went back, or they are damaged."""
    _small: dict[str, tuple[Identity, float]] = field(init=False, default_factory=dict)
    """Small files in the mirror: what of the local file was uploaded, and when."""
    _foreign: set[str] = field(init=False, default_factory=set)
    """Small files in the mirror that this process has not uploaded yet."""
    _last: tuple[bytes, PutMode] | None = field(init=False, default=None)
    """Content and version of last.json as this process wrote it."""
    _best: int | None = field(init=False, default=None)
    _begun: bool = field(init=False, default=False)
    _prunes: bool = field(init=False, default=False)
    """Whether a checkpoint was uploaded since the last pruning; nothing is removed before this process has added one."""

    def __post_init__(self) -> None:
        self._first = max(checkpoint.steps(self.run.checkpoints), default=-1)
        """The step that this process goes on from. What the mirror has of later ones could not be used."""

    # ---- for any thread

    def saved(self, step: int) -> None:
        """A checkpoint of ``step`` was saved and verified: it is to be uploaded. Of those that wait, the newest and those that
        it protects (the best among them) survive."""
        protects = self._protected_by(step)
        with self._lock:
            self._abandoned |= {other for other in self._there if other > step}
            self._waiting[step] = protects
            local = {*checkpoint.steps(self.run.checkpoints)}
            self._waiting |= {one: self._protected_by(one) for one in (protects & local) - self._there.keys()}
            self._drop_old()

    def wanted(self) -> list[int]:
        """Returns the steps of the checkpoints that local pruning must leave alone."""
        with self._lock:
            return sorted({*self._waiting, *([] if self._uploading is None else [self._uploading])})

    def missing_steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are to be uploaded, ascending."""
        with self._lock:
            return sorted(self._waiting)

    def missing_files(self) -> list[str]:
        """Returns the names of the small files that have changed since they were uploaded."""
        known = dict(self._small)
        return [name for name in small_files(self.run.root) if self._identity(name) != known.get(name, (None,))[0]]

    # ---- the uploading thread

    def begin(self) -> None:
        """Finds out what the mirror has; what it lacks of the run's checkpoints waits from now on. Writes last.json, so that a
        process that was taken over cannot write it any more."""
        names = names_in(self.ownership.store, self.ownership.url)
        there: dict[int, frozenset[int]] = {}
        for step in complete_steps(names):
            try:
                there[step] = frozenset(read_remote_meta(self.ownership.store, step)[0]["protect"])
            except (Damaged, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError) and not is_missing(error):
                    raise
                there[step] = frozenset()
                self._abandoned.add(step)
        local = checkpoint.steps(self.run.checkpoints)
        with self._lock:
            self._there = there
            self._abandoned |= {step for step in there if step > self._first}
            for step in local[-1:]:
                protects = self._protected_by(step)
                self._waiting |= {one: self._protected_by(one) for one in (*sorted(protects & {*local}), step)}
                self._drop_old()
        self._foreign = {name for name in names if is_small(name)}
        self._write_last(max((step for step in there if step not in self._abandoned), default=None))
        self._begun = True

    def work(self, *, everything: bool = False) -> None:
        """Uploads what is due; with ``everything`` also small files that were uploaded a moment ago. Raises what obstore raises
        if the store cannot be reached, Fenced if another process has taken over, OSError if a local file cannot be read."""
        self.ownership.look()
        if not self._begun:
            self.begin()
        self._upload_small(everything=everything)
        while (step := self._next()) is not None:
            try:
                self._upload_checkpoint(step)
            finally:
                with self._lock:
                    self._uploading = None
        if self._prunes:
            self._prune()
            self._prunes = False

    def upload_file(self, name: str) -> None:
        """Uploads the small file ``name`` now."""
        identity = self._identity(name)
        if identity is None:
            return
        path, store = self.run.root / name, self.ownership.store
        if identity[0] <= PART_BYTES:
            try:
                content = read_file(path)
            except FileNotFoundError:  # replaced at this moment; it is uploaded in the next round
                return
            obstore.put(store, name, content, use_multipart=False)
        else:
            parts = self._parts(path, identity[0])
            obstore.put(store, name, parts, chunk_size=part_bytes(identity[0]), max_concurrency=CONCURRENCY)
        self._small[name] = (identity, time.monotonic())
        self._foreign.discard(name)

    def _upload_small(self, *, everything: bool) -> None:
        names = small_files(self.run.root)
        for name in names:
            self._raise_if_ended()
            known = self._small.get(name)
            if (identity := self._identity(name)) is None or (known is not None and known[0] == identity):
                continue
            pause = max(SMALL_SECONDS, identity[0] / _SMALL_RATE)
            if everything or known is None or time.monotonic() - known[1] >= pause:
                self.upload_file(name)
        # What is gone from the directory. What others have uploaded stays until the end: a fetched run may write it again.
        for name in sorted((self._small.keys() | (self._foreign if everything else set())) - {*names}):
            obstore.delete(self.ownership.store, name)
            self._foreign.discard(name)
            self._small.pop(name, None)

    def _identity(self, name: str) -> Identity | None:
        try:
            found = os.stat(self.run.root / name)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _next(self) -> int | None:
        """Takes the next checkpoint to upload: those that the newest protects come before it."""
        with self._lock:
            self._uploading = min(self._waiting, default=None)
            return self._uploading

    def _drop_old(self) -> None:
        newest = max(self._waiting)
        needed = {newest, *self._waiting[newest]}
        dropped = sorted(step for step in self._waiting if step not in needed and step != self._uploading)
        for step in dropped:
            del self._waiting[step]
        if dropped:
            names = ", ".join(map(name_of, dropped))
            self.note(f"the mirror is behind: {names} will not be uploaded, {name_of(newest)} takes its place")

    def _protected_by(self, step: int) -> frozenset[int]:
        """Returns the steps that the local checkpoint of ``step`` protects; none if it cannot be read."""
        try:
            return frozenset(parse_meta(read_file(self.run.checkpoints / name_of(step) / META))["protect"])
        except OSError:  # Damaged is one
            return frozenset()

    def _upload_checkpoint(self, step: int) -> None:
        """Uploads one checkpoint, unless the mirror has it: state, meta.json, then last.json and best.json."""
        path = self.run.checkpoints / name_of(step)
        try:
            content = read_file(path / META)
            meta = parse_meta(content)
        except (Damaged, FileNotFoundError) as error:
            self._give_up(step, f"{name_of(step)} is not uploaded: {error}")
            return
        former, doubtful = self._remote(step), step in self._abandoned
        if former is None or former[0] != content or doubtful:
            if former is None or former[1] != meta["sha256"] or doubtful:
                try:
                    self._send_state(path / STATE, state_name(step, meta["sha256"]), meta)
                except (Damaged, FileNotFoundError) as error:
                    if isinstance(error, FileNotFoundError) and not error.filename:  # not the file, but the bucket
                        raise
                    if self._is_unchanged(path, content):
                        self._give_up(step, f"{name_of(step)} is not uploaded: {error}")
                    return  # saved again meanwhile: it is uploaded in its turn
            self._put(meta_name(step), content, None if former is None else former[2])
            self._prunes = True
        with self._lock:
            self._there[step] = frozenset(meta["protect"])
            self._abandoned.discard(step)
            newest = max(one for one in self._there if one not in self._abandoned)
        self._write_last(newest)
        self._write_best()
        with self._lock:
            if self._is_unchanged(path, content):
                self._waiting.pop(step, None)

    def _is_unchanged(self, path: Path, content: bytes) -> bool:
        try:
            return read_file(path / META) == content
        except OSError:
            return True

    def _give_up(self, step: int, why: str) -> None:
        with self._lock:
            self._waiting.pop(step, None)
        self.note(f"mirror: {why}")

    def _remote(self, step: int) -> tuple[bytes, str, PutMode] | None:
        """Returns content, SHA-256 of the state and version of the meta.json of ``step`` in the mirror, or None."""
        if (seen := self._read(meta_name(step))) is None:
            return None
        content, version = seen
        try:
            return content, str(parse_meta(content)["sha256"]), version
        except Damaged:
            return content, "", version

    def _send_state(self, path: Path, name: str, meta: dict[str, Any]) -> None:
        """Uploads a state in parts and compares its SHA-256 with the recorded one; Damaged if the file is not the one saved."""
        sha256, size = hashlib.sha256(), int(meta["bytes"])
        parts = self._parts(path, size, sha256.update)
        if size <= PART_BYTES:
            whole = b"".join(parts)
            if len(whole) == size and sha256.hexdigest() == meta["sha256"]:
                obstore.put(self.ownership.store, name, whole, use_multipart=False)
        else:
            obstore.put(self.ownership.store, name, parts, chunk_size=part_bytes(size), max_concurrency=CONCURRENCY)
        if sha256.hexdigest() != meta["sha256"]:
            obstore.delete(self.ownership.store, name)
            raise Damaged(f"{STATE} is damaged: its SHA-256 is not the one recorded")

    def _put(self, name: str, content: bytes, version: PutMode | None) -> PutMode:
        """Writes meta.json or last.json if this process owns the mirror and the object is still ``version``, read before
        (None: it was not there); returns the new version.

        If it is not, an earlier attempt was carried out though its answer was lost, or a process that was taken over has
        written at the last moment; another owner raises Fenced.
        """
        store, conditional = self.ownership.store, self.ownership.conditional
        for _ in range(3):
            self.ownership.look()
            mode: PutMode = "overwrite" if not conditional else "create" if version is None else version
            try:
                return version_of(obstore.put(store, name, content, mode=mode, use_multipart=False))
            except (AlreadyExistsError, PreconditionError):
                seen = self._read(name)
                if seen is not None and seen[0] == content:
                    return seen[1]
                version = None if seen is None else seen[1]
        raise OSError(f"{name} in the mirror is changed again and again")

    def _read(self, name: str) -> tuple[bytes, PutMode] | None:
        """Returns content and version of a small object, or None if it is not there."""
        try:
            got = obstore.get(self.ownership.store, name)
            return bytes(got.bytes()), version_of(got.meta)
        except FileNotFoundError as error:
            if is_missing(error):
                return None
            raise

    def _write_last(self, step: int | None) -> None:
        """Writes last.json, unless it says so already. As it names the start too, a process that was taken over does not know
        its version any more."""
        name = None if step is None else name_of(step)
        content = json.dumps({"step": step, "checkpoint": name, "number": self.ownership.own.number}).encode()
        if self._last is None:
            self._last = self._read(LAST)
        if self._last is None or self._last[0] != content:
            self._last = content, self._put(LAST, content, None if self._last is None else self._last[1])

    def _write_best(self) -> None:
        path = checkpoint.pointed(self.run.checkpoints, "best")
        step = None if path is None else int(path.name.removeprefix("step_"))
        if step is not None and step != self._best and step in self._there:
            content = json.dumps({"step": step, "checkpoint": name_of(step)}).encode()
            obstore.put(self.ownership.store, BEST, content, use_multipart=False)
            self._best = step

    def _prune(self) -> None:
        """Removes checkpoints by the local rule, meta.json first: all but the newest, those they protect, best and last; then
        what killed uploads have left. Nothing is removed before there is a complete one."""
        with self._lock:
            sound = sorted((step for step in self._there if step not in self._abandoned), reverse=True)
            needed = {*sound[: self.keep], *self._waiting, *([] if self._best is None else [self._best])}
            needed |= {one for step in sound[: self.keep] for one in self._there[step]}
            needed |= {one for protects in self._waiting.values() for one in protects}
            abandoned = set(self._abandoned)
        if not sound:
            return
        store, names = self.ownership.store, names_in(self.ownership.store, self.ownership.url)
        self.ownership.look()
        for step, parts in checkpoint_parts(names).items():
            if meta_name(step) not in parts and step > sound[0]:
                continue  # perhaps the state of a process that was taken over, whose meta.json may still come
            keeps = step in needed and not (step in abandoned and step not in self._waiting)
            meta = meta_name(step)
            if not keeps:
                for name in sorted(parts, key=lambda name: name != meta):
                    obstore.delete(store, name)
                with self._lock:
                    self._there.pop(step, None)
                    self._abandoned.discard(step)
            elif meta in parts:
                current = self._remote(step)
                extra = (
                    parts - {meta} - ({state_name(step, current[1])} if current is not None and current[1] else parts)
                )
                for name in sorted(extra):
                    obstore.delete(store, name)

    def _parts(self, path: Path, size: int, look: Callable[[bytes], object] = lambda part: None) -> Iterator[bytes]:
        """Yields the parts in which the file ``path`` of ``size`` bytes is uploaded, after ``look`` has seen them."""
        with open(path, "rb") as file:
            while part := file.read(part_bytes(size)):
                self._raise_if_ended()
                look(part)
                yield part

    def _raise_if_ended(self) -> None:
        if self.ends.is_set():
            raise Interrupted
