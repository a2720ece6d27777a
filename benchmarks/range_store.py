"""A cheap object store behind a slow link, for benchmarks: serves the files of a folder by ranges, as S3 does to a reader.

As a script it is the server: ``python range_store.py FOLDER SECONDS BITS``; it prints its port. The folders in FOLDER are the
buckets. It answers GET and HEAD with ranges, ETags, If-Match and connections that stay open, and lists (``list-type=2``). It is
one thread on epoll and sends with sendfile, so that it takes little processor time from what is measured beside it.

The link is modelled here too, instead of by a proxy, which would copy everything twice: the first byte of an answer comes a round
trip after its request (two, for the first request of a connection), and all connections share one rate. The slow start of TCP is
not modelled.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

_PIECE = 1 << 18
"""Bytes that are sent when the last of them would have come."""
_CODES = {200: "OK", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed", 501: "Not Implemented"}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class RangeStore:
    """The running server."""

    process: subprocess.Popen[str]
    port: int

    def environment(self) -> dict[str, str]:
        """The variables by which a program finds it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def cpu_seconds(self) -> float:
        """User and system time of the server so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def start_range_store(folder: Path, *, round_trip: float = 0.05, bits: float = 1e9) -> Iterator[RangeStore]:
    """Context manager of a server of ``folder``, behind a link of ``round_trip`` seconds and ``bits`` a second."""
    command = [sys.executable, "-S", __file__, str(folder), str(round_trip), str(bits)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield RangeStore(process, int(process.stdout.readline()))
        finally:
            process.kill()
            process.wait()


@contextmanager
def reading_beside(port: int, path: str, num_bytes: int, per_second: float) -> Iterator[None]:
    """Context manager within which the server at ``port`` is asked ``per_second`` times a second for ``num_bytes`` at random
    places of the object ``path`` (BUCKET/NAME), by a process that throws them away without a look."""
    command = [sys.executable, "-S", __file__, "read", str(port), path, str(num_bytes), str(per_second)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass(eq=False)
class _Piece:
    """A part of an answer: some bytes, then a part of a file (descriptor -1: none)."""

    head: bytes
    file: int = -1
    offset: int = 0
    length: int = 0


@dataclass(eq=False)
class _Connection:
    """A client."""

    socket: socket.socket
    received: bytes = b""
    is_new: bool = True
    ready: deque[_Piece] = field(default_factory=deque)
    """What the link has carried and the socket has not taken yet."""
    waits: bool = False
    """Whether the socket is full."""


class _Server:
    def __init__(self, root: Path, round_trip: float, bits: float) -> None:
        self.root, self.round_trip, self.bytes_per_second = root, round_trip, bits / 8
        self.free_at = 0.0
        """When the link has carried all that was asked for."""
        self.timers: list[tuple[float, int, _Connection, _Piece]] = []
        self.numbers = itertools.count()
        self.files: dict[str, tuple[int, int, str, str]] = {}
        self.connections: dict[int, _Connection] = {}
        self.poll = select.epoll()
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)

    def serve(self) -> None:
        print(self.listening.getsockname()[1], flush=True)
        self.poll.register(self.listening, select.EPOLLIN)
        while True:
            wait = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else -1
            for descriptor, what in self.poll.poll(wait):
                if descriptor == self.listening.fileno():
                    self._accept()
                elif (one := self.connections.get(descriptor)) is not None:
                    if what & select.EPOLLIN:
                        self._receive(one)
                    elif what & (select.EPOLLHUP | select.EPOLLERR):
                        self._close(one)
                    if what & select.EPOLLOUT:
                        self._send(one)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                _, _, one, piece = heapq.heappop(self.timers)
                one.ready.append(piece)
                if not one.waits:
                    self._send(one)

    def _accept(self) -> None:
        client, _ = self.listening.accept()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections[client.fileno()] = _Connection(client)
        self.poll.register(client, select.EPOLLIN)

    def _receive(self, one: _Connection) -> None:
        try:
            data = one.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._close(one)
            return
        one.received += data
        while (end := one.received.find(b"\r\n\r\n")) >= 0:
            head, one.received = one.received[:end].decode("latin1"), one.received[end + 4 :]
            self._answer(one, head)

    def _answer(self, one: _Connection, request: str) -> None:
        """Plans the answer: each piece at the time when the link has carried it."""
        first, *lines = request.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer = self._found(method, target, headers)
        at = time.monotonic() + self.round_trip * (2 if one.is_new else 1)
        one.is_new = False
        end = answer.offset + answer.length
        for offset in range(answer.offset, max(end, answer.offset + 1), _PIECE):
            head = answer.head if offset == answer.offset else b""
            piece = _Piece(head, answer.file, offset, min(_PIECE, end - offset))
            self.free_at = max(self.free_at, at) + (len(head) + piece.length) / self.bytes_per_second
            heapq.heappush(self.timers, (self.free_at, next(self.numbers), one, piece))

    def _found(self, method: str, target: str, headers: dict[str, str]) -> _Piece:
        """Returns the whole answer."""
        path, _, query = target.partition("?")
        path = unquote(path).strip("/")
        if method not in ("GET", "HEAD"):
            return _Piece(_head(501, 0))
        if "list-type=2" in query:
            text = self._listed(path, parse_qs(query).get("prefix", [""])[0])
            return _Piece(_head(200, len(text), "Content-Type: application/xml") + text)
        if (file := self._file(path)) is None:
            return _Piece(_head(404, 0))
        descriptor, size, etag, changed = file
        if headers.get("if-match", etag) != etag:
            return _Piece(_head(412, 0))
        more = f"ETag: {etag}\r\nLast-Modified: {changed}\r\nAccept-Ranges: bytes"
        if method == "HEAD":
            return _Piece(_head(200, size, more))
        if (asked := headers.get("range", "")) == "":
            return _Piece(_head(200, size, more), descriptor, 0, size)
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        offset = int(begin) if begin else max(0, size - int(end))
        last = min(size - 1, int(end)) if begin and end else size - 1
        more += f"\r\nContent-Range: bytes {offset}-{last}/{size}"
        return _Piece(_head(206, last + 1 - offset, more), descriptor, offset, last + 1 - offset)

    def _file(self, path: str) -> tuple[int, int, str, str] | None:
        if path not in self.files:
            try:
                descriptor = os.open(self.root / path, os.O_RDONLY)
            except OSError:
                return None
            about = os.fstat(descriptor)
            changed = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(about.st_mtime))
            self.files[path] = descriptor, about.st_size, _etag(about), changed
        return self.files[path]

    def _listed(self, bucket: str, prefix: str) -> bytes:
        found = list[str]()
        for file in sorted(path for path in (self.root / bucket).rglob("*") if path.is_file()):
            name = file.relative_to(self.root / bucket).as_posix()
            if name.startswith(prefix):
                about = file.stat()
                changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(about.st_mtime))
                found.append(
                    f"<Contents><Key>{escape(name)}</Key><LastModified>{changed}</LastModified><ETag>{escape(_etag(about))}"
                    f"</ETag><Size>{about.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        text = (
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>{''.join(found)}"
        )
        top = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        return f"{top}<IsTruncated>false</IsTruncated>{text}</ListBucketResult>".encode()

    def _send(self, one: _Connection) -> None:
        """Sends what may be sent now, as far as the socket takes it."""
        try:
            while one.ready:
                piece = one.ready[0]
                if piece.head:
                    more = socket.MSG_MORE if piece.length else 0
                    piece.head = piece.head[one.socket.send(piece.head, more) :]
                elif piece.length:
                    sent = os.sendfile(one.socket.fileno(), piece.file, piece.offset, piece.length)
                    piece.offset, piece.length = piece.offset + sent, piece.length - sent
                if not piece.head and not piece.length:
                    one.ready.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._close(one)
            return
        if bool(one.ready) != one.waits:
            one.waits = bool(one.ready)
            self.poll.modify(one.socket, select.EPOLLIN | (select.EPOLLOUT if one.waits else 0))

    def _close(self, one: _Connection) -> None:
        if self.connections.pop(one.socket.fileno(), None) is not None:
            self.poll.unregister(one.socket)
            self.timers = [timer for timer in self.timers if timer[2] is not one]
            heapq.heapify(self.timers)
            one.ready.clear()
            one.socket.close()


def _head(code: int, length: int, more: str = "") -> bytes:
    lines = [f"HTTP/1.1 {code} {_CODES[code]}", f"Content-Length: {length}", *([more] if more else []), "", ""]
    return "\r\n".join(lines).encode()


def _etag(about: os.stat_result) -> str:
    return f'"{about.st_mtime_ns:x}-{about.st_size:x}"'


def read_at_random(port: int, path: str, num_bytes: int, per_second: float, connections: int = 32) -> None:
    """Asks the server at ``port`` so often for ``num_bytes`` of ``path``, until the process is killed."""
    numbers = itertools.count()
    begin = time.monotonic()

    def ask() -> None:
        chance = random.Random(threading.get_ident())
        with socket.create_connection(("127.0.0.1", port)) as own:
            own.sendall(f"HEAD /{path} HTTP/1.1\r\n\r\n".encode())
            nowhere = bytearray(num_bytes)
            size = int(own.recv(1 << 16).partition(b"Content-Length: ")[2].partition(b"\r")[0])
            while True:
                time.sleep(max(0.0, begin + next(numbers) / per_second - time.monotonic()))
                offset = chance.randrange(size - num_bytes)
                own.sendall(f"GET /{path} HTTP/1.1\r\nRange: bytes={offset}-{offset + num_bytes - 1}\r\n\r\n".encode())
                head = own.recv(1 << 10)
                left = num_bytes - len(head.partition(b"\r\n\r\n")[2])
                while left:  # the kernel throws the bytes away without a copy
                    left -= own.recv_into(nowhere, left, socket.MSG_TRUNC)

    for _ in range(connections - 1):
        threading.Thread(target=ask, daemon=True).start()
    ask()


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "read":
        read_at_random(int(arguments[1]), arguments[2], int(arguments[3]), float(arguments[4]))
    else:
        _Server(Path(arguments[0]), float(arguments[1]), float(arguments[2])).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
