"""Writes log.txt: the sentences of the terminal, each with date and time."""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from stagewright.errors import StorageError
from stagewright.rundir.event_kinds import Event, Notice
from stagewright.rundir.event_text import sentence
from stagewright.storage.append_file import AppendFile
from stagewright.text import printable

_log = logging.getLogger(__name__)
_MOST_WAITING = 1000


class TextLog:
    """Appends the sentence of each event that has one; a resumed run continues the same file.

    If the disk is full, up to 1,000 of the latest lines are held in memory until they can be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: AppendFile | None = None
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)

    def see(self, event: Event) -> None:
        text = sentence(event)
        if text is None:
            return
        at = (event.time or "")[:19].replace("T", " ")
        self._waiting.extend(f"{at}  {printable(line)}\n" for line in text.splitlines())
        self._write()

    def _write(self) -> None:
        try:
            self._file = self._file or AppendFile(self._path)
            self._file.append("".join(self._waiting).encode("utf-8", "backslashreplace"))
        except (StorageError, OSError):  # must not end the run, because events.jsonl has the same information
            self._release()  # opening it again removes an incomplete last line
        else:
            self._waiting.clear()

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._release()


def tell_beside(run: Path, step: int, text: str) -> None:
    """Writes ``text``, of a process beside the training, to the terminal and to log.txt of ``run``; it is no event of the run."""
    _log.warning("%s", text)
    if run.is_dir():
        log = TextLog(run / "log.txt")
        log.see(Notice(step=step, text=text, time=datetime.now(UTC).isoformat()))
        log.close()
