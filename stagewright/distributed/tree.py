"""The order in which the gradients of lanes are added: one binary tree over the lanes, whatever the number of processes.

Addition of floating-point numbers is not associative, so a sum has the same bits only where the same pairs are added. The tree
over the lanes [a, b) adds the sums of two parts, split at a + the largest power of two below b - a. A process (rank) has
consecutive lanes. It adds what the tree adds inside them, which leaves the sums of a few subtrees; the remaining additions
need sums of other ranks. Pure, without torch: a value may be anything that can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def share(lanes: int, rank: int, size: int) -> range:
    """Returns the lanes of ``rank`` among ``size`` ranks: [rank n / size, (rank + 1) n / size) of n lanes, rounded down.

    ValueError if there are more ranks than lanes, because a rank would have none.
    """
    if not 0 <= rank < size <= lanes:
        raise ValueError(f"rank {rank} of {size} with {lanes} lanes: every rank needs a lane")
    return range(rank * lanes // size, (rank + 1) * lanes // size)


def subtrees(lanes: int, own: range) -> tuple[range, ...]:
    """Returns the largest parts of the tree over [0, ``lanes``) that lie inside ``own``, in lane order. Together they are
    ``own``."""
    found: list[range] = []
    _collect(range(lanes), own, found)
    return tuple(found)


def host_shares(lanes: int, size: int, local: int) -> list[range] | None:
    """Returns the lanes of each host with ``local`` of the ``size`` ranks; None unless there are several hosts with several ranks
    each, whose lanes are a subtree, so that the sum over a host's lanes is a part of the sum."""
    if local < 2 or size % local or size == local:
        return None
    firsts = range(0, size, local)
    hosts = [range(share(lanes, at, size).start, share(lanes, at + local - 1, size).stop) for at in firsts]
    return hosts if all(len(subtrees(lanes, own)) == 1 for own in hosts) else None


class PartialSums(Generic[T]):
    """The sums of the subtrees inside a rank's lanes, from the lanes' values in order.

    At most log2(lanes) + 1 values are held in addition to the sums that are complete.
    """

    def __init__(self, lanes: int, own: range, add: Callable[[T, T], T]) -> None:
        """``own``: the lanes of this rank. ``add(left, right)`` returns the sum; it may reuse the memory of ``left``, and
        ``right`` is not used again."""
        self._add = add
        self._merges = _merges(lanes, own)
        self._stack: list[T] = []
        self._pushed = 0
        self._taken = False

    def take_left(self) -> T | None:
        """Returns the sum that the tree adds the next lane's value to, or None if it adds it to none. The caller adds the value,
        and gives the sum to :meth:`push`."""
        if self._pushed == len(self._merges) or not self._merges[self._pushed]:
            return None
        self._taken = True
        return self._stack.pop()

    def push(self, value: T) -> None:
        """Takes the next lane's value, and carries out every addition of the tree that this lane completes."""
        if self._pushed == len(self._merges):
            raise ValueError(f"all {self._pushed} lanes have their value already")
        self._stack.append(value)
        taken, self._taken = self._taken, False
        for _ in range(self._merges[self._pushed] - taken):
            right = self._stack.pop()
            self._stack[-1] = self._add(self._stack[-1], right)
        self._pushed += 1

    @property
    def sums(self) -> tuple[T, ...]:
        """One sum for each of :func:`subtrees`. ValueError before all lanes have their value."""
        if self._pushed < len(self._merges):
            raise ValueError(f"{self._pushed} of {len(self._merges)} lanes have their value")
        return tuple(self._stack)


def fold(lanes: int, values: Mapping[tuple[int, int], T], add: Callable[[T, T], T]) -> T:
    """Returns the sum over all lanes, from the sums of the subtrees [a, b) of all ranks; ``values[a, b]`` is one of them.

    ``add(left, right)`` may reuse the memory of ``left``. KeyError if the sum of a needed subtree is missing.
    """
    return _fold(0, lanes, values, add)


def fold_part(part: range, values: Mapping[tuple[int, int], T], add: Callable[[T, T], T]) -> T:
    """Returns the sum over the lanes of ``part``, a subtree, as :func:`fold`."""
    return _fold(part.start, part.stop, values, add)


def _fold(first: int, end: int, values: Mapping[tuple[int, int], T], add: Callable[[T, T], T]) -> T:
    if (first, end) in values or end - first == 1:
        return values[first, end]
    middle = _split(first, end)
    return add(_fold(first, middle, values, add), _fold(middle, end, values, add))


def _split(first: int, end: int) -> int:
    """Returns where the tree divides [first, end): after the largest power of two of lanes that leaves something."""
    return first + (1 << ((end - first - 1).bit_length() - 1))


def _collect(part: range, own: range, found: list[range]) -> None:
    """Appends the largest subtrees of ``part`` that lie inside ``own``."""
    if part.stop <= own.start or own.stop <= part.start:
        return
    if own.start <= part.start and part.stop <= own.stop:
        found.append(part)
        return
    middle = _split(part.start, part.stop)
    _collect(range(part.start, middle), own, found)
    _collect(range(middle, part.stop), own, found)


def _merges(lanes: int, own: range) -> Sequence[int]:
    """Returns for each lane of ``own`` how many additions it completes: the subtrees of two and more lanes that end with it."""
    counts = dict.fromkeys(own, 0)
    parts = list(subtrees(lanes, own))
    while parts:
        part = parts.pop()
        if len(part) > 1:
            counts[part.stop - 1] += 1
            middle = _split(part.start, part.stop)
            parts += [range(part.start, middle), range(middle, part.stop)]
    return list(counts.values())
