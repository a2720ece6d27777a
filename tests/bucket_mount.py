"""A file system by FUSE that can do what a mounted bucket can, for tests: files are written once; no rename, link or appending.

As a script, ``python bucket_mount.py FOLDER``, it mounts itself there, prints ``mounted`` and serves from memory until
SIGTERM. It speaks the kernel's protocol directly (``fuse.h``, version 7), and needs the right to mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

_ROOT = 1
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")


@dataclass
class Node:
    """A file or folder."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)


class Refused(Exception):
    """The answer is an error number."""


class Bucket:
    """The file system: answers requests by their operation codes."""

    def __init__(self) -> None:
        self.nodes, self.next = {_ROOT: Node(stat.S_IFDIR | 0o755)}, 2
        self.answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self.lookup,
            3: lambda node, body: self._attr_out(node),
            4: self.setattr,
            9: lambda node, body: self._entry(self._make(node, body[8:], stat.S_IFDIR | 0o755)),
            10: self.remove,
            11: self.remove,
            14: self.open,
            15: self.read,
            16: self.write,
            17: lambda node, body: struct.pack(
                "<QQQQQIIII24x", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096, 0
            ),
            18: lambda node, body: b"",
            20: lambda node, body: b"",
            25: lambda node, body: b"",
            26: lambda node, body: struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 0, 0, 0),
            27: lambda node, body: struct.pack("<QII", 0, 0, 0),
            28: self.readdir,
            29: lambda node, body: b"",
            35: self.create,
        }

    def lookup(self, node: int, body: bytes) -> bytes:
        found = self.nodes[node].names.get(_name(body))
        if found is None:
            raise Refused(errno.ENOENT)
        return self._entry(found)

    def create(self, node: int, body: bytes) -> bytes:
        return self._entry(self._make(node, body[16:], stat.S_IFREG | 0o644)) + struct.pack("<QII", 0, 0, 0)

    def open(self, node: int, body: bytes) -> bytes:
        if struct.unpack_from("<I", body)[0] & os.O_APPEND:
            raise Refused(errno.EPERM)
        return struct.pack("<QII", 0, 0, 0)

    def setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & 8:  # size
            if size:
                raise Refused(errno.EPERM)
            self.nodes[node].data.clear()
        return self._attr_out(node)

    def read(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self.nodes[node].data[offset : offset + size])

    def write(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        data = self.nodes[node].data
        if offset != len(data):
            raise Refused(errno.EINVAL)
        data += body[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        for at, (name, number) in enumerate(sorted(self.nodes[node].names.items())):
            encoded = name.encode()
            entry = struct.pack("<QQII", number, at + 1, len(encoded), self.nodes[number].mode >> 12) + encoded
            entry += bytes(-len(entry) % 8)
            if at >= offset and len(out) + len(entry) <= size:
                out += entry
        return out

    def remove(self, node: int, body: bytes) -> bytes:
        names = self.nodes[node].names
        if (found := names.get(_name(body))) is None:
            raise Refused(errno.ENOENT)
        if self.nodes[found].names:
            raise Refused(errno.ENOTEMPTY)
        del names[_name(body)]
        return b""

    def _make(self, node: int, name: bytes, mode: int) -> int:
        number, self.next = self.next, self.next + 1
        self.nodes[number] = Node(mode)
        self.nodes[node].names[_name(name)] = number
        return number

    def _attr(self, number: int) -> bytes:
        node = self.nodes[number]
        return _ATTR.pack(
            number, len(node.data), 1, 0, 0, 0, 0, 0, 0, node.mode, 1, os.getuid(), os.getgid(), 0, 4096, 0
        )

    def _attr_out(self, number: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attr(number)

    def _entry(self, number: int) -> bytes:
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attr(number)


def _name(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode()


def serve(device: int) -> None:
    """Answers the kernel until the file system is unmounted."""
    bucket = Bucket()
    while True:
        try:
            request = os.read(device, (1 << 17) + 4096)
        except InterruptedError:
            continue
        except OSError:  # unmounted
            return
        _, operation, unique, node, *_ = _IN.unpack_from(request)
        if operation in (2, 36, 42):  # forget, interrupt: no answer
            continue
        answer, error = b"", 0
        try:
            if (do := bucket.answers.get(operation)) is None:
                raise Refused(errno.ENOSYS)
            answer = do(node, request[_IN.size :])
        except Refused as refused:
            error = -int(refused.args[0])
        os.write(device, _OUT.pack(_OUT.size + len(answer), error, unique) + answer)


def main(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if libc.mount(b"bucket", folder.encode(), b"fuse", 0, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")

    def end(number: int, frame: object) -> None:
        libc.umount2(folder.encode(), 2)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    print("mounted", flush=True)
    serve(device)


if __name__ == "__main__":
    main(sys.argv[1])
