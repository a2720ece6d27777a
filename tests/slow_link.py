"""A slow link for tests: a TCP proxy on the loopback that adds latency and limits the rate in each direction.

As a script it is the proxy: ``python slow_link.py HOST PORT SECONDS BITS``; it prints its own port. A chunk of bytes is passed
on when half of the round trip is over since it came, and not before the link has had the time to carry it; all connections
share the link.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 64 << 10
_MOST_WAITING = 256
"""Chunks on the way, at most: what the link holds (its rate times the latency), and some more."""


@contextmanager
def slow_link(port: int, *, round_trip: float = 0.05, bits: float = 1e9, host: str = "127.0.0.1") -> Iterator[int]:
    """Context manager that yields the port of a proxy to ``host`` and ``port``: ``round_trip`` seconds, ``bits`` a second."""
    command = [sys.executable, __file__, host, str(port), str(round_trip), str(bits)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()


class _Direction:
    """One direction of the link, which all connections share."""

    def __init__(self, bits: float) -> None:
        self._bytes_per_second, self._free_at = bits / 8, 0.0

    def carried_at(self, now: float, size: int) -> float:
        """Reserves the time for ``size`` bytes; returns when they have passed."""
        self._free_at = max(now, self._free_at) + size / self._bytes_per_second
        return self._free_at


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Direction, delay: float) -> None:
    """Passes bytes on, each chunk at its time, until the sender ends; then ends too."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_WAITING)

    async def receive() -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except ConnectionError:
                data = b""
            await waiting.put((link.carried_at(loop.time(), len(data)) + delay, data))

    receiving = asyncio.create_task(receive())
    try:
        while True:
            at, data = await waiting.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except (ConnectionError, OSError):
        writer.transport.abort()
    finally:
        receiving.cancel()


async def _serve(host: str, port: int, round_trip: float, bits: float) -> None:
    there, back = _Direction(bits), _Direction(bits)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip / 2)  # the handshake
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.sleep(round_trip / 2)
        await asyncio.gather(
            _pass_on(reader, far_writer, there, round_trip / 2),
            _pass_on(far_reader, writer, back, round_trip / 2),
        )
        for one in (writer, far_writer):
            one.close()
            with suppress(ConnectionError, OSError):
                await one.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
