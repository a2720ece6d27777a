"""The processes of a run find each other: a store that one process serves, to which all others connect.

Rank 0 serves the store, unless the launcher does. A launcher's store may still hold what an earlier start of the same run left
in it, so rank 0 draws a token, and a process has arrived when rank 0 has answered it under that token.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from stagewright.distributed.environment import Place
from stagewright.distributed.members import Member, ranks_text
from stagewright.errors import WorldError
from stagewright.text import count_text

_SESSION = "stagewright/session"
_POLL_SECONDS = 0.05
NOT_SAID = b"-"
"""The value of a key that nobody has written yet: a beat, or which rank is lost."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, eq=False)
class Rendezvous:
    """A store that all ranks are connected to."""

    host: str
    port: int
    token: str
    """Names this start of the run; all keys begin with it."""
    members: tuple[Member, ...]
    """One for each rank."""
    store: TCPStore
    """The connection of the main thread."""
    serves: bool
    """Whether this process serves the store, which ends with it."""
    by_launcher: bool = False
    """Whether the launcher serves the store; else rank 0 does."""

    def key(self, name: str) -> str:
        """Returns the key of ``name`` in this start of the run."""
        return f"stagewright/{self.token}/{name}"

    def connect(self, timeout: float) -> TCPStore:
        """Returns another connection to the store, whose operations fail after ``timeout`` seconds."""
        return _client(self.host, self.port, timeout)

    def leave(self, patience: float) -> None:
        """Says that this process needs the store no longer. If it serves it, waits until all others have said so, at most
        ``patience`` seconds."""
        try:
            left = self.store.add(self.key("left"), 1)
            end = time.monotonic() + patience
            while self.serves and left < len(self.members) and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
                left = self.store.add(self.key("left"), 0)
        except DistError:
            pass  # the store has gone already, and nobody is to be waited for


def meet(place: Place, this: Member, timeout: float) -> Rendezvous:
    """Waits until all ranks have come, at most ``timeout`` seconds. ``this`` describes this process.

    WorldError names the host and the port if the store cannot be reached or served, and the ranks that did not come.
    """
    deadline = time.monotonic() + timeout
    serves = place.rank == 0 and not place.has_server
    store = _serve(place, timeout) if serves else _connect(place, timeout)
    arrive = _receive if place.rank == 0 else _introduce
    try:
        token, members = arrive(store, place, this, deadline, timeout)
    except DistError as error:
        raise WorldError(
            f"the connection to the rendezvous at {place.host}:{place.port} was lost: {_first_line(error)}",
            "a rendezvous that lasts as long as the run",
            "look at the messages of the first process and of the launcher, then start all processes again",
        ) from error
    return Rendezvous(place.host, place.port, token, tuple(members), store, serves, place.has_server)


def _receive(store: TCPStore, place: Place, this: Member, deadline: float, timeout: float) -> tuple[str, list[Member]]:
    """Rank 0: draws a token, waits for all others and answers them."""
    token = secrets.token_hex(8)
    store.set(_SESSION, token)
    keys = [_hello(token, rank) for rank in range(1, place.size)]
    if not _until(lambda: store.check(keys), deadline):
        raise _absent(place, [rank for rank in range(1, place.size) if not store.check([_hello(token, rank)])], timeout)
    arrivals = [{"nonce": "", "member": asdict(this)}, *(json.loads(store.get(key)) for key in keys)]
    for name in ("lost", *(f"beat/{rank}" for rank in range(place.size))):
        store.set(f"stagewright/{token}/{name}", NOT_SAID.decode())
    store.set(_welcome(token), json.dumps(arrivals))
    return token, [Member(**one["member"]) for one in arrivals]


def _introduce(
    store: TCPStore, place: Place, this: Member, deadline: float, timeout: float
) -> tuple[str, list[Member]]:
    """Another rank: introduces itself under rank 0's token until rank 0 has answered."""
    nonce, token = secrets.token_hex(8), ""
    hello = json.dumps({"nonce": nonce, "member": asdict(this)})
    answers: list[dict[str, object]] = []

    def answered() -> bool:
        nonlocal token
        if not store.check([_SESSION]):
            return False
        if (current := store.get(_SESSION).decode()) != token:  # the token may be of an earlier start
            token = current
            store.set(_hello(token, place.rank), hello)
        if store.get(_hello(token, place.rank)).decode() != hello:
            raise _duplicate(place)
        if not store.check([_welcome(token)]):
            return False
        answers[:] = json.loads(store.get(_welcome(token)))
        return place.rank < len(answers) and answers[place.rank]["nonce"] == nonce

    if not _until(answered, deadline):
        if token and store.check([_welcome(token)]):
            raise _duplicate(place)
        others = [rank for rank in range(1, place.size) if not token or not store.check([_hello(token, rank)])]
        raise _absent(place, others if token and others else [0], timeout)
    return token, [Member(**one["member"]) for one in answers]  # pyright: ignore[reportCallIssue]


def _until(condition: Callable[[], bool], deadline: float) -> bool:
    """Waits until ``condition()`` holds; returns whether it does, at the latest at ``deadline``."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _absent(place: Place, ranks: Sequence[int], timeout: float) -> WorldError:
    return WorldError(
        f"{count_text(len(ranks), 'process', 'processes')} of {place.size} did not come to {place.host}:{place.port} within "
        f"{timeout:.0f} s: {ranks_text(ranks)}",
        "all processes start within this time, each with a rank of its own",
        "look at what these processes say, and start all again",
    )


def _duplicate(place: Place) -> WorldError:
    return WorldError(
        f"two processes at {place.host}:{place.port} are rank {place.rank} of {place.size}",
        f"one process for each of the ranks 0 to {place.size - 1}",
        "let one launcher start all processes, and give each run a port of its own (MASTER_PORT)",
    )


def _hello(token: str, rank: int) -> str:
    return f"stagewright/{token}/hello/{rank}"


def _welcome(token: str) -> str:
    return f"stagewright/{token}/welcome"


def _serve(place: Place, timeout: float) -> TCPStore:
    """Serves the store at the place's port: on the loopback alone if that is its host, else on all interfaces."""
    everywhere = place.host not in _LOOPBACK
    dual = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or place.host == "::1" else socket.AF_INET
    try:
        listener = socket.create_server(
            ("" if everywhere else place.host, place.port), family=family, dualstack_ipv6=dual, backlog=1024
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise WorldError(
            f"port {place.port} of {place.host} {'is taken' if taken else f'cannot be opened: {error.strerror}'}",
            "a port that no other program uses",
            "end the other program (perhaps an earlier run), or choose another port with MASTER_PORT or --rdzv",
        ) from error
    return TCPStore(
        place.host,
        place.port,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _connect(place: Place, timeout: float) -> TCPStore:
    """Connects to the store as soon as it is served. WorldError after ``timeout`` seconds."""
    end, reason = time.monotonic() + timeout, ""

    def reachable() -> bool:
        nonlocal reason
        try:
            socket.create_connection((place.host, place.port), timeout=min(5.0, timeout)).close()
        except OSError as error:
            reason = error.strerror or str(error)
            return False
        return True

    try:
        if _until(reachable, end):
            return _client(place.host, place.port, timeout)
    except DistError as error:
        reason = _first_line(error)
    raise WorldError(
        f"the rendezvous at {place.host}:{place.port} cannot be reached within {timeout:.0f} s ({reason})",
        "the address of the first process, at a port that no firewall closes",
        "look whether the first process runs, and whether this host can reach that address",
    )


def _client(host: str, port: int, timeout: float) -> TCPStore:
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout), wait_for_workers=False)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
