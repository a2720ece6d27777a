"""This process among those that carry out a run together: its share of each batch, and what they agree on.

All processes run the same loop. What depends on a clock, a signal or a file that only one of them sees is agreed before anyone
acts on it: all ask at the same places, in the same order, and get the same answer. A process that is alone asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stagewright.data.batches.batch import BadRow, Batch, BatchSpec, masked
from stagewright.distributed.heartbeat import Heartbeat, explain_lost
from stagewright.distributed.tree import share
from stagewright.distributed.world import World
from stagewright.engine.frozen_features import Found
from stagewright.errors import RankLost
from stagewright.plan.lanes import lane_starts
from stagewright.plan.plan import Plan, StagePlan
from stagewright.rundir import checkpoint
from stagewright.storage.files import write_whole
from stagewright.system.signals import StopSignal

T = TypeVar("T")


@dataclass(eq=False)
class Ranks:
    """The processes of a run, as this one sees them; with one process, every method answers for it alone."""

    stop: StopSignal
    """That of this process."""
    world: World
    heartbeat: Heartbeat | None = None
    on_lost: Callable[[str], object] | None = None
    """Called, in another thread, with the sentence that says which process was lost, right before this one ends."""
    preparing: ExitStack = field(default_factory=ExitStack)
    """Closed at the first call of :meth:`at`."""

    @classmethod
    def alone(cls, stop: StopSignal) -> Ranks:
        """Returns the ranks of a run that this process carries out alone."""
        return cls(stop, World.alone("cpu"))

    @property
    def several(self) -> bool:
        return self.world.size > 1

    def disband(self) -> None:
        """From now on this process is alone: the others have nothing left to do."""
        if self.heartbeat is not None:
            self.heartbeat.done()
        self.world, self.heartbeat = World.alone("cpu"), None

    def at(self, phase: str, step: int, note: str = "") -> None:
        """Tells the others, who miss a process that is silent for long, where this one is."""
        self.preparing.close()
        if self.heartbeat is not None:
            self.heartbeat.at(phase, step, note)

    def lost(self, error: BaseException) -> RankLost | None:
        """Returns the error that says which process was lost if ``error``, of an exchange with the others, means that one was."""
        if self.heartbeat is None or (sentence := explain_lost(error, self.heartbeat)) is None:
            return None
        return RankLost(sentence)

    def busy(self) -> AbstractContextManager[None]:
        """Context of work that cannot say how far it is, such as compiling or saving."""
        return nullcontext() if self.heartbeat is None else self.heartbeat.busy()

    def agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """Returns for each of ``wishes`` whether any process has it."""
        return tuple(bool(wish) for wish in self.world.largest([int(wish) for wish in wishes]))

    def stops(self) -> bool:
        """Returns whether any process was asked to stop; all ask at the same places."""
        return self.agreed(self.stop.requested)[0]

    def why_stopped(self) -> str | None:
        """Returns why a process was asked to stop, by a signal; all ask once they have stopped. None if none says why."""
        reasons = self.world.gather(self.stop.reason)
        given = [(rank, str(reason)) for rank, reason in enumerate(reasons) if reason]
        if not given or not self.several:
            return self.stop.reason
        rank, reason = given[0]
        return (
            reason
            if len({one for _, one in given}) == 1 and len(given) == self.world.size
            else f"{reason} at rank {rank}"
        )

    def stops_loading(self) -> bool:
        """Returns whether a wait for images is given up: not if others would then wait for this process."""
        return self.stop.requested and not self.several

    def tell(self, value: Any) -> Any:
        """Returns the first process's ``value``, which is one of JSON, on all of them."""
        return self.world.tell(value) if self.several else value

    def bring(self, folder: Path, step: int | None) -> Path | None:
        """Brings the checkpoint of ``step`` in the first process's ``folder`` into that of each other one; returns its directory,
        or None if the first process has given None."""
        if (step := self.tell(step)) is None:
            return None
        if self.world.is_first:
            place = checkpoint.places(folder)[step]
        else:
            place = folder / checkpoint.name_of(step)
            place.mkdir(parents=True, exist_ok=True)
        for file in (checkpoint.STATE, checkpoint.META) if self.several else ():
            content = self.world.tell_bytes((place / file).read_bytes() if self.world.is_first else None)
            if not self.world.is_first:
                write_whole(place / file, bytes(content))
        return place

    def own_part(
        self, plan: Plan, specs: Iterator[BatchSpec], num_lanes: Callable[[StagePlan], int]
    ) -> Iterator[BatchSpec]:
        """Yields of each of the ``specs`` of updates the images of this process's lanes; those of a fit are whole. ``num_lanes``
        gives the number of lanes of a stage."""
        for spec in specs:
            stage = plan.stage_at(spec.step)
            if not self.several or stage.fit == "optimum":
                yield spec
                continue
            lanes = num_lanes(stage)
            starts = lane_starts(stage.batch_size, lanes)
            own = share(lanes, self.world.rank, self.world.size)
            # Draws are those of the whole batch, of which a part is taken, as in a process that has all lanes.
            yield spec.taken(np.arange(starts[own.start], starts[own.stop]))

    def with_all_bad_rows(self, batch: Batch) -> Batch:
        """Returns ``batch``, the part of this process, with the unreadable images of all parts."""
        if not self.several or not self.agreed(bool(batch.bad_rows))[0]:
            return batch
        return replace(batch, bad_rows=tuple(self._bad_rows(batch)))

    def read_by_all(self, batch: Batch) -> Batch:
        """Returns ``batch``, which every process has read whole, without the images that any of them could not read."""
        if not self.several or not self.agreed(bool(batch.bad_rows))[0]:
            return batch
        bad = dict(self._bad_rows(batch))
        return replace(masked(batch, list(bad)), bad_rows=tuple(bad.items()))

    def in_turn(self, specs: Iterator[T]) -> Iterator[T]:
        """Yields those of ``specs``, one for each batch, that this process works on: the processes take whole batches in turn."""
        return islice(specs, self.world.rank, None, self.world.size)

    def all_found(self, own: Iterator[Found], total: int) -> Iterator[Found]:
        """Yields the features of all batches, of ``total`` images, in their order, on every process; this one has found ``own``
        in turn (:meth:`in_turn`)."""
        if not self.several:
            yield from own
            return
        done = 0
        while done < total:
            one = next(own, None)
            bad = [] if one is None else [list(bad) for bad in one.bad_rows]
            parts = self.world.gather_arrays(np.empty(0, np.float32) if one is None else one.features.cpu().numpy())
            rows = self.world.gather_arrays(np.empty(0, np.int64) if one is None else one.rows)
            unread = tuple((int(row), str(why)) for own_bad in self.world.gather(bad) for row, why in own_bad)
            features = np.concatenate([part for part in parts if part.size])
            done += sum(map(len, rows))
            yield Found(np.concatenate(rows), torch.from_numpy(features), unread)

    def all_rows(self, own: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yields the tensors of all batches, of one shape, in their order, on every process; this one has made ``own`` in turn
        (:meth:`in_turn`)."""
        if not self.several:
            yield from own
            return
        there = self.world.size
        while there == self.world.size:
            one = next(own, None)
            parts = self.world.gather_arrays(np.empty(0, np.float32) if one is None else one.cpu().numpy())
            found = [torch.from_numpy(part) for part in parts if part.size]
            there = len(found)
            yield from (part.to(self.world.device) for part in found)

    def _bad_rows(self, batch: Batch) -> Iterator[BadRow]:
        """Yields the unreadable images of all processes, in the order of these."""
        for part in self.world.gather([list(one) for one in batch.bad_rows]):
            for row, why in part:
                yield int(row), str(why)
