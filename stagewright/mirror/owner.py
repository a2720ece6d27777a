"""Who may write to a mirror: the record ``owner.json``, which each start of a process takes over with a number one higher.

The convention: the record is created with If-None-Match, taken over with If-Match, and looked at before each upload of a
meta.json or last.json, and at least every ten seconds. A process that finds another's record is *fenced out*
(:class:`Fenced`): it uploads nothing more. Between a look and the upload that follows, another process may still take over.
Therefore meta.json and last.json are written on the condition that nobody has changed them since, each start writes last.json
again, and states are named by their content: what a late process can still do is to add a valid checkpoint of the same plan.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from pydantic import Field

from stagewright.errors import CheckpointError, StorageError
from stagewright.mirror.names import OWNER
from stagewright.storage.json_text import Fields, misfit, parse_object
from stagewright.storage.objects import explain, is_missing
from stagewright.text import printable

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion
    from obstore.store import ObjectStore

_FORMAT = 1
_ATTEMPTS = 20
_Text = Annotated[str, Field(max_length=300)]


class _OwnerFields(Fields):
    """owner.json."""

    format: Annotated[int, Field(ge=1, le=1_000_000)]
    number: Annotated[int, Field(ge=1, le=10**12)]
    token: _Text
    plan_digest: _Text
    name: _Text
    host: _Text
    pid: Annotated[int, Field(ge=0, le=10**12)]
    since: _Text


@dataclass(frozen=True)
class Owner:
    """The content of ``owner.json``: which start of which process writes to the mirror, and of which run it is."""

    number: int
    """Counts the starts, from 1."""
    token: str
    """Differs for each start."""
    plan_digest: str
    name: str
    """Name of the run's directory."""
    host: str
    pid: int
    since: str
    """When it took over: ISO-8601 in UTC."""

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)} (start {self.number}, since {printable(self.since)})"


Seen = tuple[Owner, "UpdateVersion"]
"""A record, and the version by which it can be replaced."""


class Fenced(Exception):
    """Another process has taken the mirror over; this one must not write to it any more."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(f"the mirror was taken over by {owner}")
        self.owner = owner


@dataclass(frozen=True, eq=False)
class Ownership:
    """This process's right to write to the mirror at ``url``."""

    store: ObjectStore
    url: str
    own: Owner
    conditional: bool
    """Whether the store carries out conditional writes; without them, two processes can overwrite each other between looks."""

    def look(self) -> None:
        """Raises Fenced if another process has taken over, and what obstore raises if the record cannot be read now."""
        seen = read_owner(self.store, self.url)
        if seen is None:  # somebody deletes the mirror; nothing says that another process writes
            raise FileNotFoundError(f"{self.url}: {OWNER} is missing")
        if seen[0].token != self.own.token:
            raise Fenced(seen[0])


def own_record(plan_digest: str, name: str) -> Owner:
    """Returns the record of this process for a run, with the number 0, which taking over replaces."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(0, secrets.token_hex(16), plan_digest, name[:300], socket.gethostname()[:300], os.getpid(), since)


def version_of(meta: object) -> UpdateVersion:
    """Returns from ``meta``, of a GetResult or PutResult, what names this version of the object."""
    known = {key: value for key in ("e_tag", "version") if (value := dict(meta)[key]) is not None}  # type: ignore[call-overload]
    return known  # pyright: ignore[reportReturnType]


def read_owner(store: ObjectStore, url: str) -> Seen | None:
    """Returns the record and its version, or None if there is none. CheckpointError if it is damaged, and what obstore raises
    if it cannot be read now."""
    try:
        got = obstore.get(store, OWNER)
        content, version = bytes(got.bytes()), version_of(got.meta)
    except (BaseError, OSError) as error:
        if is_missing(error):
            return None
        raise
    try:
        fields = parse_object(content)
        if wrong := misfit(fields, _OwnerFields):
            raise ValueError(wrong)
        if fields["format"] != _FORMAT:
            raise ValueError(f"its format is {fields['format']}, and this version reads {_FORMAT}")
    except ValueError as error:
        raise CheckpointError(
            f"{url}/{OWNER} is damaged: {error}",
            "the record as stagewright wrote it",
            "look whether this is a mirror of stagewright; if it is, and no process writes to it, delete this object",
        ) from None
    return Owner(**{name: fields[name] for name in Owner.__dataclass_fields__}), version


def write_owner(store: ObjectStore, mine: Owner, seen: Seen | None, *, conditional: bool = True) -> Owner | None:
    """Writes ``mine`` in place of the record ``seen``, with a number one higher; returns what was written, or None if another
    process was faster. Raises what obstore raises if the store cannot be reached; the record may be written then."""
    mine = replace(mine, number=1 if seen is None else seen[0].number + 1)
    content = json.dumps({"format": _FORMAT, **asdict(mine)}, indent=1).encode()
    mode: PutMode = ("create" if seen is None else seen[1]) if conditional else "overwrite"
    try:
        obstore.put(store, OWNER, content, mode=mode)
    except (AlreadyExistsError, PreconditionError):
        # The store's answer to an earlier attempt of the same request may have been lost, though it was carried out.
        return None
    return mine


def take_over(
    store: ObjectStore, url: str, mine: Owner, *, conditional: bool, pause: Callable[[float], None] = time.sleep
) -> Ownership:
    """Returns the right to write to the mirror, which every other process has lost then.

    CheckpointError if the mirror belongs to another plan; StorageError if the store cannot be reached or other processes are
    faster again and again.
    """
    problem: Exception | None = None
    for attempt in range(_ATTEMPTS):
        try:
            seen = read_owner(store, url)
            if seen is not None and seen[0].token == mine.token:  # written by an attempt whose answer was lost
                return Ownership(store, url, seen[0], conditional)
            if seen is not None and seen[0].plan_digest != mine.plan_digest:
                raise of_another_plan(url, seen[0], mine.plan_digest)
            if (written := write_owner(store, mine, seen, conditional=conditional)) is not None:
                return Ownership(store, url, written, conditional)
        except (BaseError, OSError) as error:
            problem = error
            if attempt >= 4:
                break
        pause(0.05 * 2 ** min(attempt, 6))
    if problem is not None:
        raise explain(problem, url, f"writing {OWNER}") from problem
    raise StorageError(
        f"{url}/{OWNER} is taken over again and again by other processes",
        "one process for a mirror",
        "end the others, then give the command again",
    )


def of_another_plan(url: str, owner: Owner, plan_digest: str) -> CheckpointError:
    """Returns the error for a mirror of another plan than that with ``plan_digest``."""
    return CheckpointError(
        f"{url} is the mirror of the run {printable(owner.name)!r} with the plan {printable(owner.plan_digest)[:12]}, not "
        f"of this plan, {plan_digest[:12]}",
        "an empty prefix, or the mirror of a run with the same plan",
        "give another --mirror",
    )
