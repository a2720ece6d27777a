"""What a tracker's module offers to the process that follows a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stagewright.rundir.directory import RunDir
from stagewright.trackers.source import Note, Point


@dataclass(frozen=True)
class About:
    """What a service is told about a run when it is opened."""

    run: RunDir
    remote: str
    """The id under which the service has the run, or gets it."""
    opened: bool
    """Whether the service has had it already."""
    directory: str
    created: str
    """When the run began, as in env.json. With the directory it tells runs apart."""
    began_ms: int
    settings: Mapping[str, str]
    study: Path | None
    """The folder of the study or of the folds that the run belongs to."""

    @property
    def name(self) -> str:
        return self.run.root.resolve().name

    @property
    def group(self) -> str | None:
        return None if self.study is None else self.study.name


@dataclass(frozen=True, slots=True)
class Timed:
    """A point with the time that it was made at, in milliseconds since 1970."""

    point: Point
    time_ms: int


class Service(Protocol):
    """One run at a service. A method that fails raises any exception: it is tried again later, with a service opened anew.

    StagewrightError says that trying again is of no use.
    """

    rewrites: bool
    """Whether what was sent can be taken back: the run is then sent anew by itself."""
    only_whole: bool
    """Whether the run is written in one piece, once it has finished."""

    def open(self, about: About) -> int | None:
        """Finds or makes the run at the service; returns the last step that the service has, None: what the state says.

        CheckpointError if the service has another run under this id.
        """
        ...

    def send(self, points: Sequence[Timed]) -> None:
        """Returns when the service, or its library, has ``points``."""
        ...

    def annotate(self, notes: Sequence[Note], new: int) -> None:
        """Shows ``notes``, of which the last ``new`` were not sent yet."""
        ...

    def result(self, values: Mapping[str, float], status: str, time_ms: int) -> None:
        """Sends the result; ``values`` is empty while the run has not finished."""
        ...

    def artifacts(self, paths: Sequence[Path]) -> None:
        """Sends files and folders of the run."""
        ...

    def close(self) -> None:
        """Returns when everything was sent and released."""
        ...

    def confirm(self) -> None:
        """Returns if the service has all that was sent; asked after :meth:`close`, at the end."""
        ...

    def drop(self, remote: str) -> str | None:
        """Removes what was sent under ``remote``; returns a sentence where that is left to people. Called when the run was sent
        anew under another id, or before it is written anew."""
        ...

    def where(self) -> str:
        """Returns where people find the run."""
        ...
