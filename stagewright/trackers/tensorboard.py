"""TensorBoard: one event file in trackers/tensorboard, one record a step.

A record is written whole or not at all, and the file itself says which step was the last: a kill at any moment neither loses nor
doubles one. Numbers are stored as float32, which TensorBoard shows, and as float64 in the same tensor
(``tensor.double_val``). If anything that was sent is superseded, the file is written anew.
"""

# pyright: reportAttributeAccessIssue=false
# The classes of protobuf's modules exist only at run time.

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from stagewright.errors import CheckpointError
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import make_folder
from stagewright.trackers.service import About, Timed
from stagewright.trackers.source import TAGS, Note

_NAME = "events.out.tfevents.0000000000.stagewright"
_NOTE = "notes"
_MOST_RECORD = 1 << 26


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # protobuf's name


class TensorBoard:
    """The run's event file; see :class:`stagewright.trackers.service.Service`."""

    rewrites = True
    only_whole = False

    def __init__(self, run: RunDir) -> None:
        self.folder = run.root / "trackers" / "tensorboard"
        self.path = self.folder / _NAME
        self._file: RecordWriter | None = None
        self._notes = 0
        self._result: bytes | None = None

    def open(self, about: About) -> int:
        if self.folder.is_symlink() or self.path.is_symlink():
            raise CheckpointError(
                f"{self.path} is or lies in a link", "a file of the run's own", "remove the link, then track again"
            )
        make_folder(self.folder)
        last, end, self._notes = self._found()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        os.ftruncate(descriptor, end)
        file = os.fdopen(descriptor, "r+b")
        file.seek(end)
        self._file = RecordWriter(file)
        if end == 0:
            self._write(Event(wall_time=about.began_ms / 1000, file_version="brain.Event:2"))
            rows = (f"| {name} | {_cell(value)} |" for name, value in about.settings.items())
            table = "\n".join(["| setting | value |", "|---|---|", *rows])
            self._write(_event(0, about.began_ms, [_text("settings", table)]))
        return last

    def send(self, points: Sequence[Timed]) -> None:
        for one in points:
            values = [_number(tag, value) for tag, value in one.point.values.items()]
            self._write(_event(one.point.step, one.time_ms, values))
        self._flush()

    def annotate(self, notes: Sequence[Note], new: int) -> None:
        for note in notes[self._notes :]:  # the file knows how many it has
            self._write(_event(note.step, note.time_ms, [_text(f"{_NOTE}/{note.kind}", note.text)]))
            self._notes += 1
        self._flush()

    def result(self, values: Mapping[str, float], status: str, time_ms: int) -> None:
        step = int(values.get("final/step", 0))
        event = _event(step, time_ms, [_number(tag, value) for tag, value in sorted(values.items())])
        if values and event.summary.SerializeToString() != self._result:  # it may have been written just before a kill
            self._write(event)
            self._result = event.summary.SerializeToString()
            self._flush()

    def artifacts(self, paths: Sequence[Path]) -> None:
        """TensorBoard keeps no files of others."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def confirm(self) -> None:
        """The file was closed: nothing can be missing."""

    def drop(self, remote: str) -> None:
        self.close()
        for one in self.folder.glob("events.out.tfevents.*") if self.folder.is_dir() else ():
            one.unlink()

    def where(self) -> str:
        return f"tensorboard --logdir {self.folder}"

    def _write(self, event: _Message) -> None:
        assert self._file is not None
        self._file.write(event.SerializeToString())

    def _flush(self) -> None:
        assert self._file is not None
        self._file.flush()

    def _found(self) -> tuple[int, int, int]:
        """Returns the last step that the file has, the length of its whole records in bytes, and the number of its notes."""
        last = notes = length = 0
        for record, end in _records(self.path):
            length = end
            event = Event.FromString(record)
            tags = {value.tag for value in event.summary.value}
            if tags & set(TAGS):
                last = max(last, event.step)
            notes += any(tag.startswith(f"{_NOTE}/") for tag in tags)
            if any(tag.startswith("final/") for tag in tags):
                self._result = event.summary.SerializeToString()
        return last, length, notes


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields the whole records from the beginning of the file, each with the place where it ends; stops at a damaged one."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        while len(head := file.read(12)) == 12:
            (length,), (check,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
            if check != masked_crc32c(head[:8]) or length > _MOST_RECORD:
                return
            record, foot = file.read(length), file.read(4)
            if len(record) < length or len(foot) < 4 or struct.unpack("<I", foot)[0] != masked_crc32c(record):
                return
            end += 16 + length
            yield record, end


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _event(step: int, time_ms: int, values: list[Summary.Value]) -> Event:
    return Event(step=step, wall_time=time_ms / 1000, summary=Summary(value=values))


def _number(tag: str, value: float) -> Summary.Value:
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), data_class=DATA_CLASS_SCALAR)
    return Summary.Value(
        tag=tag,
        # TensorBoard's own server shows float32 alone, and nothing of a float64; a reader finds it beside.
        tensor=TensorProto(dtype=DT_FLOAT, float_val=[value], double_val=[value], tensor_shape=TensorShapeProto()),
        metadata=about,
    )


def _text(tag: str, text: str) -> Summary.Value:
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"), data_class=DATA_CLASS_TENSOR)
    return Summary.Value(
        tag=tag,
        tensor=TensorProto(
            dtype=DT_STRING,
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        ),
        metadata=about,
    )
