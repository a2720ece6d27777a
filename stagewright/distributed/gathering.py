"""How the hosts of a run find each other: torch's interface of a rendezvous, carried out by a small exchange of JSON lines.

torch's own dynamic rendezvous unpickles what any peer sends, opens a second server under the host's own name, which others may
not be able to resolve, gives rank 0 to the host whose name sorts first, and hangs if another program listens at the port. Here
every address is the one that the user gave, and rank 0 is on the host of that address, where the user sees its progress.
"""

from __future__ import annotations

import ipaddress
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from stagewright.distributed.workers import say
from stagewright.errors import WorldError
from stagewright.text import count_text, seconds_text

_LOOPBACK = "127.0.0.1"
_NAME = "stagewright launcher"
_ANSWER = 5.0
"""Seconds in which a launcher answers."""
_NUMBERING = timedelta(seconds=60)
"""How long the launchers' agents wait for each other while they number the ranks."""
_LONGEST = 1000
"""Bytes of the longest message between launchers."""
_LAST_CALL = 30.0
"""Seconds that further hosts have once the least number of hosts is there."""
_POLL = 0.1


class Gathering(RendezvousHandler):
    """The rendezvous of a launch: its hosts come together once for each start of the workers.

    ``hosts``: the least and the largest number of hosts. ``endpoint``: address and port of the launcher that leads, which is the
    first one to listen there; None for one host without others. ``reach`` and ``gather``: seconds to reach that address,
    and until enough hosts are there. WorldError where either fails.
    """

    def __init__(
        self, hosts: tuple[int, int], endpoint: tuple[str, int] | None, reach: float = 60.0, gather: float = 600.0
    ) -> None:
        self._hosts, self._endpoint, self._reach, self._gather = hosts, endpoint, reach, gather
        self._where = "" if endpoint is None else f"{endpoint[0]}:{endpoint[1]}"
        self._door: _Door | None = None
        self._leader: socket.socket | None = None
        """The connection to the leading launcher, which stays open as long as this one has workers."""
        self._store: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits until the hosts are there; returns a store for the agents, this host's rank, their number, and the address of
        the store, which the workers use too. It is a new one for each start, without keys of the last."""
        if self._endpoint is None:
            server = socket.create_server((_LOOPBACK, 0))
            port = server.getsockname()[1]
            self._store = TCPStore(
                _LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
            )
            return self._info(_LOOPBACK, 0, 1)
        host, port = self._endpoint
        if self._door is None and _is_local(host) and (server := _listen(host, port)) is not None:
            self._door = _Door(server, self._hosts)
        return self._lead(self._door, host) if self._door is not None else self._follow(host, port)

    def _info(self, host: str, rank: int, size: int) -> RendezvousInfo:
        assert self._store is not None
        address = RendezvousStoreInfo(host, self._store.port)
        return RendezvousInfo(PrefixStore("agents", self._store), rank, size, address)

    def _lead(self, door: _Door, host: str) -> RendezvousInfo:
        """Waits for the other hosts and tells each its rank; this one's is 0."""
        door.running = False
        least, most = (hosts - 1 for hosts in self._hosts)
        began, call_ends, told = time.monotonic(), math.inf, False
        while (there := len(door.waiting())) < most:
            now = time.monotonic()
            call_ends = min(call_ends, now + min(_LAST_CALL, self._gather)) if there >= least else math.inf
            if now >= call_ends:
                break
            if now >= began + self._gather and there < least:
                raise self._too_few(f": {there + 1} of {_range_text(self._hosts)}")
            if now >= began + 2 and not told:
                told = True
                say(f"waiting at {self._where} for other hosts: {there + 1} of {_range_text(self._hosts)} are there")
            time.sleep(_POLL)
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_NUMBERING)
        size = min(there, most) + 1
        places = [{"rank": rank, "size": size, "port": self._store.port} for rank in range(1, size)]
        full = {"refused": f"it has {count_text(size, 'host')} already"}
        door.admit(places, full)
        return self._info(host, 0, size)

    def _follow(self, host: str, port: int) -> RendezvousInfo:
        """Waits at the leader's door to be told this host's rank."""
        self._leader = self._greeted(host, port)
        self._leader.settimeout(self._gather)
        answer = None
        try:
            _send(self._leader, {"name": _NAME, "hosts": list(self._hosts)})
            answer = _receive(self._leader)
        except TimeoutError:
            raise self._too_few("") from None
        except OSError:
            pass  # it has gone
        match answer:
            case {"rank": int(rank), "size": int(size), "port": int(store_port)}:
                pass
            case {"refused": str(why)}:
                raise WorldError(
                    f"the launcher at {self._where} refuses this host: {why}",
                    "the same --nnodes on every host, and no more hosts than it says",
                    "give the same command on every host, or stop the hosts that are too many",
                )
            case _:
                raise WorldError(
                    f"the launcher at {self._where} has ended while hosts were gathering",
                    "a launcher that runs until all hosts have ended",
                    "look at that host, and start again",
                )
        _await_listener(host, store_port, self._reach).close()
        self._store = TCPStore(host, store_port, is_master=False, wait_for_workers=False, timeout=_NUMBERING)
        return self._info(host, rank, size)

    def _greeted(self, host: str, port: int) -> socket.socket:
        """Returns a connection to the leader, whose greeting has come; WorldError if there is none."""
        door = _await_listener(host, port, self._reach)
        door.settimeout(_ANSWER)
        greeting = None
        with suppress(OSError):
            greeting = _receive(door)
        if greeting is None or greeting.get("name") != _NAME:
            door.close()
            raise WorldError(
                f"port {port} of {host} is taken by another program, which does not answer as a launcher",
                "a port that is free on the first host, the same for all",
                "choose another port: --rdzv HOST:PORT",
            )
        if greeting.get("running"):
            say(f"the run at {self._where} has begun without this host, which waits for its next start")
        return door

    def _too_few(self, there: str) -> WorldError:
        return WorldError(
            f"too few hosts have come to {self._where} within {seconds_text(self._gather)}{there}",
            "the same command on every host, at about the same time",
            "start the missing hosts, or lower --nnodes",
        )

    def leave(self, seconds: float, may_wait: Callable[[], bool]) -> None:
        """Tells the leader that this host has ended. The leader keeps its store until the others have, at most ``seconds``, and
        as long as ``may_wait()``."""
        if self._leader is not None:
            self._leader.close()
        end = time.monotonic() + seconds
        while self._door is not None and self._door.inside() and time.monotonic() < end and may_wait():
            time.sleep(_POLL)

    @property
    def use_agent_store(self) -> bool:
        """True: the workers are clients of a store that a launcher serves, so that it outlives each of them."""
        return True

    def get_backend(self) -> str:
        """Returns a name."""
        return "stagewright"

    def get_run_id(self) -> str:
        """Returns a name."""
        return "stagewright"

    def num_nodes_waiting(self) -> int:
        """Returns 0: a run under way takes no further hosts."""
        return 0

    def is_closed(self) -> bool:
        """Returns False."""
        return False

    def set_closed(self) -> None:
        """Does nothing."""

    def shutdown(self) -> bool:
        """Closes the connections between launchers; returns True."""
        if self._leader is not None:
            self._leader.close()
        if self._door is not None:
            self._door.close()
        return True


class _Door:
    """The listening socket of the leading launcher: a thread greets each launcher that comes and keeps it until
    :meth:`admit`. Launchers with other ``hosts`` are refused."""

    def __init__(self, server: socket.socket, hosts: tuple[int, int]) -> None:
        self.running = False
        """Whether the workers run, so that who comes now waits for the next start."""
        self._server, self._hosts = server, hosts
        self._guests: list[socket.socket] = []
        self._inside: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._greet, name="launchers", daemon=True).start()

    def waiting(self) -> list[socket.socket]:
        """Returns the connections of the launchers that wait, in the order of their coming."""
        with self._lock:
            gone = [guest for guest in self._guests if _has_gone(guest)]
            self._guests = [guest for guest in self._guests if guest not in gone]
            return list(self._guests)

    def admit(self, places: Sequence[dict[str, Any]], others: dict[str, Any]) -> None:
        """Sends the first that wait their ``places``, and closes the connections of further ones after sending ``others``."""
        self.running = True
        with self._lock:
            self._inside, rest, self._guests = self._guests[: len(places)], self._guests[len(places) :], []
        for guest, answer in [*zip(self._inside, places, strict=False), *((guest, others) for guest in rest)]:
            with suppress(OSError):
                _send(guest, answer)
        for guest in rest:
            guest.close()

    def inside(self) -> bool:
        """Returns whether an admitted launcher has not left yet."""
        return not all(_has_gone(guest) for guest in self._inside)

    def close(self) -> None:
        """Ends the thread and all connections."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for one in (self._server, *self._inside, *self.waiting()):
            one.close()

    def _greet(self) -> None:
        while True:
            try:
                guest, _ = self._server.accept()
            except OSError:  # closed
                return
            guest.settimeout(_ANSWER)
            try:
                _send(guest, {"name": _NAME, "running": self.running})
                hello = _receive(guest)
                if hello is None or hello.get("name") != _NAME:
                    guest.close()
                elif hello.get("hosts") != list(self._hosts):
                    _send(guest, {"refused": f"its --nnodes is not {_range_text(self._hosts)}"})
                    guest.close()
                else:
                    guest.setblocking(False)
                    with self._lock:
                        self._guests.append(guest)
            except OSError:
                guest.close()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Returns the message that comes next: a JSON object in one line; None for anything else. OSError of the connection."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) > _LONGEST or not (byte := connection.recv(1)):
            return None
        line += byte
    with suppress(ValueError, RecursionError):
        message = json.loads(line)
        return message if isinstance(message, dict) else None
    return None


def _has_gone(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _addresses(host: str) -> list[tuple[socket.AddressFamily, Any]]:
    with suppress(OSError, UnicodeError):
        return [(family, address) for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]
    return []


def _is_local(host: str) -> bool:
    """Returns whether ``host`` is an address of this machine: then, and only then, a socket can be bound to it."""
    for family, address in _addresses(host):
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(address)
            return True
    return False


def _listen(host: str, port: int) -> socket.socket | None:
    """Returns a socket that listens at ``port``, or None if the port is taken.

    Under a loopback address it listens there alone, else on all: the own name of a host often leads to 127.0.1.1 on the host
    itself. WorldError if the system refuses, as for ports below 1024.
    """
    here = _LOOPBACK if host == "localhost" else host
    try:
        only = [address for address in (here,) if ipaddress.ip_address(address).is_loopback]
    except ValueError:  # it is a name
        only = []
    try:
        if only:
            family = socket.AF_INET6 if ":" in here else socket.AF_INET
            return socket.create_server((here, port), family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        if (other := _connected(host, port, _ANSWER)) is not None:
            other.close()
            return None
        raise WorldError(
            f"the launcher cannot listen at {host}:{port}: {error.strerror or error}",
            "a free port from 1024 to 65535 on the first host",
            "choose another port: --rdzv HOST:PORT",
        ) from error


def _connected(host: str, port: int, seconds: float) -> socket.socket | None:
    with suppress(OSError, UnicodeError):
        return socket.create_connection((host, port), timeout=seconds)
    return None


def _await_listener(host: str, port: int, reach: float) -> socket.socket:
    """Returns a connection to ``host:port``, as soon as something listens there; WorldError after ``reach`` seconds."""
    deadline = time.monotonic() + reach
    while (left := deadline - time.monotonic()) > 0:
        if (connection := _connected(host, port, min(_ANSWER, left))) is not None:
            return connection
        time.sleep(min(_POLL, left))
    known = "nothing answers there" if _addresses(host) else "its name is unknown here"
    raise WorldError(
        f"the rendezvous {host}:{port} was not reached within {seconds_text(reach)}: {known}",
        "the address of the host that leads; its firewall lets the other hosts through, also at other ports",
        "start that host, and give the same --rdzv HOST:PORT on all",
    )


def _range_text(hosts: tuple[int, int]) -> str:
    return str(hosts[0]) if hosts[0] == hosts[1] else f"{hosts[0]} to {hosts[1]}"
