"""Finds the records of a part of version 1 in an object store, without reading the part: from its Arrow footer.

An Arrow IPC file ends with a footer that names its record batches; the description of each batch names its buffers, and one
buffer of the column ``image`` has the ends of all its records. Only these are read. pyarrow does not tell where buffers lie
without reading them, so the few fields are taken from the flatbuffers here ("Arrow Columnar Format", sections IPC File Format
and Encapsulated message format). Whatever does not fit is refused, and the records are compared with their checksums later.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"ARROW1"
_TAIL = 1 << 16
_FOOTER_BATCHES, _MESSAGE_HEADER, _BATCH_LENGTH, _BATCH_BUFFERS = 3, 2, 0, 2
"""Numbers of fields in the tables Footer, Message and RecordBatch of Arrow's schema files."""
_BUFFERS = 13
"""Of the columns of a part: 3 of each of two columns of text, 2 of each of two numbers, then validity, ends and bytes of
``image``."""

Read = Callable[[int, int], bytes]
"""Returns bytes of the file by (offset, length)."""


def find_records(read: Read, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the offset and length of each record of a part of ``size`` bytes, both int64 (N,). ValueError if it is no part."""
    tail = read(max(0, size - _TAIL), min(size, _TAIL))
    if size < 20 or tail[-6:] != _MAGIC:
        raise ValueError("it does not end like an Arrow file")
    (length,) = struct.unpack_from("<i", tail, len(tail) - 10)
    if not 0 < length <= size - 10:
        raise ValueError("its footer is damaged")
    footer = tail[-10 - length : -10] if length + 10 <= len(tail) else read(size - 10 - length, length)
    offsets, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    try:
        blocks = _Table.root(footer).structs(_FOOTER_BATCHES, "<qi4xq")
        for place, metadata, body in blocks:
            if not (0 < metadata <= size and 0 <= place <= size - metadata and 0 <= body <= size - metadata - place):
                raise ValueError("a batch lies outside of the file")
            own_offsets, own_lengths = _records(read, place, metadata, body)
            offsets.append(own_offsets)
            lengths.append(own_lengths)
    except (struct.error, IndexError) as error:
        raise ValueError("its footer is damaged") from error
    return np.concatenate(offsets), np.concatenate(lengths)


def _records(read: Read, place: int, metadata: int, body: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns offset and length of each record of the batch at ``place``; ``metadata`` and ``body`` are sizes in bytes."""
    message = read(place, metadata)
    message = message[8:] if message[:4] == b"\xff\xff\xff\xff" else message[4:]
    batch = _Table.root(message).table(_MESSAGE_HEADER)
    count, buffers = batch.integer(_BATCH_LENGTH), batch.structs(_BATCH_BUFFERS, "<qq")
    if len(buffers) != _BUFFERS or not 0 <= count <= body:
        raise ValueError("a batch does not have the columns of a part")
    (ends_at, ends_size), (data_at, data_size) = buffers[-2:]
    if ends_size < 8 * (count + 1) or min(ends_at, data_at) < 0 or max(ends_at + ends_size, data_at + data_size) > body:
        raise ValueError("records lie outside of their batch")
    ends = np.frombuffer(read(place + metadata + ends_at, 8 * (count + 1)), "<i8")
    lengths = np.diff(ends)
    if ends.min() < 0 or ends.max() > data_size or (lengths <= 0).any():
        raise ValueError("records lie outside of their batch or have no bytes")
    return ends[:-1] + (place + metadata + data_at), lengths


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: its fields are found by a list of their positions, the vtable."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, _unsigned(data, 0))

    def table(self, number: int) -> _Table:
        place = self._field(number)
        return _Table(self.data, place + _unsigned(self.data, place))

    def integer(self, number: int) -> int:
        """Returns a field of 64 bits; 0, the default, if it is not there."""
        place = self._field(number, absent=True)
        return struct.unpack_from("<q", self.data, place)[0] if place else 0

    def structs(self, number: int, form: str) -> list[tuple[int, ...]]:
        """Returns the items of a vector of structs."""
        place = self._field(number, absent=True)
        if not place:
            return []
        begin = place + _unsigned(self.data, place)
        count, each = _unsigned(self.data, begin), struct.calcsize(form)
        end = begin + 4 + count * each
        if end > len(self.data):
            raise IndexError(number)
        return list(struct.iter_unpack(form, self.data[begin + 4 : end]))

    def _field(self, number: int, *, absent: bool = False) -> int:
        """Returns the position of a field, 0 if it is ``absent``."""
        (back,) = struct.unpack_from("<i", self.data, self.at)
        vtable = self.at - back
        if vtable < 0:
            raise IndexError(number)
        (size,) = struct.unpack_from("<H", self.data, vtable)
        relative = struct.unpack_from("<H", self.data, vtable + 4 + 2 * number)[0] if 6 + 2 * number <= size else 0
        if not relative and not absent:
            raise IndexError(number)
        return self.at + relative if relative else 0


def _unsigned(data: bytes, at: int) -> int:
    return struct.unpack_from("<I", data, at)[0]
