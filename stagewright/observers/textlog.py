"""log.txt: the sentences of the terminal with the time of day, appended, for whoever looks later."""

from __future__ import annotations

import contextlib
from pathlib import Path

from stagewright.sentences import Event, sentence
from stagewright.storage.files import unwritable


class TextLog:
    """Appends one line for each event that has something to say, flushed at once; restarts go on in the same file.

    A line that cannot be written, on a full disk for instance, is left out: events.jsonl has it.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Unbuffered, so that a line that fails does not come again with the next one.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error

    def see(self, event: Event) -> None:
        text = sentence(event)
        if text is None:
            return
        at = str(event["clock"]["at"])[:19].replace("T", " ")
        lines = "".join(f"{at}  {line}\n" for line in text.splitlines())
        with contextlib.suppress(OSError):
            self._file.write(lines.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self._file.close()
