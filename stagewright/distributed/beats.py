"""Decides from the beats of all ranks whether one of them is lost. Pure: no clock, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stagewright.distributed.members import Member, ranks_text


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself every few seconds."""

    number: int = 0
    """How many beats there were before."""
    phase: str = "start"
    step: int = 0
    progress: int = 0
    """Changes while the rank makes progress."""
    note: str = ""
    """What it last read, or another short text."""
    waiting: bool = False
    """Whether it waits for other ranks."""
    done: bool = False
    """Whether its work has ended, so that it is not missed."""

    def to_json(self) -> str:
        """Returns the beat as JSON, in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Beat:
        """Returns the beat that :meth:`to_json` wrote."""
        return cls(**json.loads(text))


class Watch:
    """Keeps for each rank since when it is silent, and since when it makes no progress.

    Times are seconds of a clock that does not run while this process is stopped (SIGSTOP): a process that could not read must
    not blame others. Ages count up to the last reading for the same reason.
    """

    def __init__(self, members: Sequence[Member], timeout: float) -> None:
        """``timeout``: how many seconds of silence or without progress make a rank lost."""
        self._members, self._timeout = members, timeout
        self.beats = [Beat(number=-1)] * len(members)
        self.last_reading = 0.0
        self._beaten = [0.0] * len(members)
        self._moved = [0.0] * len(members)

    def begin(self, now: float) -> None:
        """Begins to count at ``now``."""
        self.last_reading = now
        self._beaten = [now] * len(self._members)
        self._moved = [now] * len(self._members)

    def see(self, now: float, beats: Sequence[Beat]) -> None:
        """Takes what was read of all ranks at ``now``."""
        for rank, (before, beat) in enumerate(zip(self.beats, beats, strict=True)):
            if beat.number != before.number:
                self._beaten[rank] = now
            if (beat.phase, beat.step, beat.progress) != (before.phase, before.step, before.progress):
                self._moved[rank] = now
        self.beats = list(beats)
        self.last_reading = now

    def silence(self, rank: int) -> float:
        """Returns the seconds between the last new beat of ``rank`` and the last reading."""
        return self.last_reading - self._beaten[rank]

    def all_done(self) -> bool:
        """Whether every rank has ended its work."""
        return all(beat.done for beat in self.beats)

    def lost(self) -> list[tuple[int, str, float]]:
        """Returns the ranks that are lost, each with what it has done and for how many seconds; empty if none is.

        Silent ranks come first. If none is silent, those that make no progress and wait for nobody, and of these the ones that
        are behind, because the others may wait in a way that is not marked. If all wait, they wait for each other.
        """
        at_work = [rank for rank, beat in enumerate(self.beats) if not beat.done]
        silent = [rank for rank in at_work if self.silence(rank) > self._timeout]
        if silent:
            return [(rank, "has been silent", self.silence(rank)) for rank in silent]
        still = {rank: self.last_reading - self._moved[rank] for rank in at_work}
        still = {rank: seconds for rank, seconds in still.items() if seconds > self._timeout}
        stuck = [rank for rank in still if not self.beats[rank].waiting]
        if stuck:
            behind = min(self.beats[rank].step for rank in stuck)
            return [(rank, "has made no progress", still[rank]) for rank in stuck if self.beats[rank].step == behind]
        if at_work and len(still) == len(at_work):
            others = f"has waited for others, as {'does' if len(still) == 1 else 'do'} {ranks_text(sorted(still))},"
            return [(min(still), others, max(still.values()))]
        return []

    def describe(self, rank: int, did: str, since: str) -> str:
        """Returns ``rank 2 (node-a, pid 17) has been silent since 14:03:21 in phase train at step 17, last read: a.jpg``."""
        member, beat = self._members[rank], self.beats[rank]
        note = f", last read: {beat.note}" if beat.note else ""
        where = f"rank {rank} ({member.host}, pid {member.pid})"
        return f"{where} {did} since {since} in phase {beat.phase} at step {beat.step}{note}"
