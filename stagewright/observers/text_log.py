"""log.txt: the sentences of the terminal with the time of day, appended, for whoever looks later."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from stagewright.errors import StorageError
from stagewright.rundir.event_kinds import Event
from stagewright.rundir.event_text import sentence
from stagewright.storage.append_file import AppendFile

_MOST_WAITING = 1000


class TextLog:
    """Appends one line for each event that has something to say, at once; restarts go on in the same file.

    Lines that the disk has no room for wait until it has; of many, the last 1,000 do.
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
        self._waiting.extend(f"{at}  {line}\n" for line in text.splitlines())
        self._write()

    def _write(self) -> None:
        try:
            self._file = self._file or AppendFile(self._path)
            self._file.append("".join(self._waiting).encode("utf-8", "backslashreplace"))
        except (StorageError, OSError):  # it says what events.jsonl has too: not worth the end of a run
            self._release()  # opened again, the file loses the part of a line that may stand at its end
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
