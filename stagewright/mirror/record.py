"""The file ``mirror.json`` in a run's directory: which mirror it has, and what is still to be uploaded there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stagewright.errors import StorageError
from stagewright.mirror.names import RECORD
from stagewright.storage.files import read_own, write_json
from stagewright.storage.json_text import Fields, misfit, parse_object
from stagewright.storage.objects import is_remote


class _RecordFields(Fields):
    """mirror.json."""

    url: Annotated[str, Field(max_length=4000)]
    unfenced: bool
    number: Annotated[int, Field(ge=0, le=10**12)]
    waiting: Annotated[list[Annotated[int, Field(ge=0, le=10**15)]], Field(max_length=100_000)]
    missing: Annotated[list[str], Field(max_length=100_000)]
    error: str | None
    """Why the last attempt failed."""


@dataclass(frozen=True)
class Record:
    """The content of ``mirror.json``."""

    url: str
    unfenced: bool = False
    number: int = 0
    """The number of this process's start in the mirror's owner.json."""
    waiting: tuple[int, ...] = ()
    """Steps of the checkpoints that are to be uploaded."""
    missing: tuple[str, ...] = ()
    """In words, what the mirror lacks."""
    error: str | None = None

    def write(self, root: Path) -> None:
        """Writes the file into the run's directory ``root``; StorageError if that fails."""
        content = {**asdict(self), "waiting": list(self.waiting), "missing": list(self.missing)}
        write_json(root / RECORD, content, durable=False)


def read_record(root: Path) -> Record | None:
    """Returns the record in the run's directory ``root``, or None if there is none or it is damaged: the mirror is then given
    again. Unreadable if it cannot be read now."""
    try:
        content = parse_object(read_own(root / RECORD))
    except (FileNotFoundError, ValueError):
        return None
    if misfit(content, _RecordFields) or not is_remote(content["url"]):
        return None
    known = {name: content[name] for name in Record.__dataclass_fields__}
    return Record(**{**known, "waiting": tuple(known["waiting"]), "missing": tuple(known["missing"])})


def forget(root: Path) -> None:
    """Removes the record: the run has no mirror any more. StorageError if that fails."""
    try:
        (root / RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{root / RECORD} cannot be removed: {error.strerror or error}",
            "a folder that this user may write",
            "remove it",
        ) from error
