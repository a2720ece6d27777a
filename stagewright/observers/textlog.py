"""log.txt: the sentences of the terminal with the time of day, appended, for whoever looks later."""

from __future__ import annotations

from pathlib import Path

from stagewright.sentences import Event, sentence


class TextLog:
    """Appends one line for each event that has something to say, flushed at once; restarts go on in the same file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def see(self, event: Event) -> None:
        text = sentence(event)
        if text is None:
            return
        at = str(event["clock"]["at"])[:19].replace("T", " ")
        self._file.write("".join(f"{at}  {line}\n" for line in text.splitlines()))
        self._file.flush()

    def close(self) -> None:
        self._file.close()
