"""Sums one bucket of gradients over all processes: in the order of the tree, or in whatever order is fastest.

An exchange has several parts, so that several buckets can be under way: ``start``, ``advance`` once or more, ``finish``. All
ranks call them in the same order. Memory is allocated once and used in every update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagewright.distributed.flat import flat_length, flat_views
from stagewright.distributed.tree import fold, share, subtrees
from stagewright.distributed.world import World

PARTS = 4
"""The most parts of an exchange: messages of bucket b have tags from ``PARTS * b`` on."""


class Exchange(Protocol):
    """The sum of one bucket over all ranks."""

    advances: int
    """How often :meth:`advance` is called between ``start`` and ``finish``."""

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Sends the sums of this rank's subtrees, one tensor per parameter each; does not wait."""
        ...

    def advance(self) -> None:
        """Begins the next part, once the one before has arrived."""
        ...

    def finish(self) -> list[Tensor]:
        """Returns the sum over all lanes for each parameter, with the parameter's strides, in memory that the next ``start``
        overwrites."""
        ...


class OrderedSum:
    """Adds in the order of the tree: the same bits for every number of ranks.

    Each rank owns a chunk of the bucket. It receives this chunk of every rank's subtrees, adds them as the tree does, and sends
    the sum to all. So a rank sends and receives about as much as in a ring all-reduce. On the CPU the chunks go from rank to
    rank, because gloo's all-gather copies the whole bucket once more; elsewhere by all-to-all and all-gather.
    """

    advances = 1

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lanes: int,
        world: World,
        number: int = 0,
        pairwise: bool | None = None,
    ) -> None:
        """``number``: tells this bucket's messages from those of others that are under way. ``pairwise``: from rank to rank;
        None: on the CPU."""
        parts = [subtrees(lanes, share(lanes, rank, world.size)) for rank in range(world.size)]
        counts = [len(rank_parts) for rank_parts in parts]
        own = counts[world.rank]
        chunk = -(-flat_length(parameters) // world.size)  # chunks are equal: the last one is padded
        self._world, self._lanes, self._own, self._number = world, lanes, own, number
        kind = {"dtype": parameters[0].dtype, "device": parameters[0].device}
        self._sent = torch.zeros((world.size, own, chunk), **kind)
        self._received = torch.zeros((sum(counts), chunk), **kind)
        self._by_rank = list(self._received.split(counts))
        self._counts = [count * chunk for count in counts]
        self._pairwise = parameters[0].device.type == "cpu" if pairwise is None else pairwise
        if self._pairwise:  # what a rank would send to itself stays where it is
            self._by_rank[world.rank] = self._sent[world.rank]
        names = [(part.start, part.stop) for rank_parts in parts for part in rank_parts]
        self._rows = dict(zip(names, (row for rows in self._by_rank for row in rows), strict=True))
        # What is sent is free when the sums are sent back, and what is received is free while the subtrees are laid out.
        self._result = self._sent.view(-1)[: world.size * chunk].view(world.size, chunk)
        self._layout = (
            self._result if own == 1 else self._received.view(-1)[: world.size * chunk].view(world.size, chunk)
        )
        self._results = flat_views(self._result.view(-1), parameters)
        self._laid_out = self._results if own == 1 else flat_views(self._layout.view(-1), parameters)
        self._works: list[dist.Work | None] = []

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Sends to each rank its chunk of this rank's subtrees."""
        for at, gradients in enumerate(sums):
            torch._foreach_copy_(self._laid_out, gradients)  # pyright: ignore[reportPrivateImportUsage]
            if self._own > 1:
                self._sent[:, at].copy_(self._layout)
        if self._pairwise:
            self._works = self._exchange_pairs(self._sent, self._by_rank, PARTS * self._number)
        else:
            sent_counts = [self._sent[0].numel()] * self._world.size
            received, sent = self._received.view(-1), self._sent.view(-1)
            self._works = [dist.all_to_all_single(received, sent, self._counts, sent_counts, async_op=True)]

    def advance(self) -> None:
        """Adds this rank's chunk of all subtrees, and sends the sum to all."""
        self._works = waited_for(self._works, self._world)
        own = fold(self._lanes, self._rows, add)
        if self._pairwise:
            mine = self._result[self._world.rank]
            if own.data_ptr() != mine.data_ptr():
                mine.copy_(own)
            self._works = self._exchange_pairs([mine] * self._world.size, self._result, PARTS * self._number + 1)
        else:
            self._works = [dist.all_gather_into_tensor(self._result.view(-1), own, async_op=True)]

    def finish(self) -> list[Tensor]:
        """Waits for the sums of the other ranks' chunks."""
        self._works = waited_for(self._works, self._world)
        return self._results

    def _exchange_pairs(
        self, sent: Sequence[Tensor] | Tensor, received: Sequence[Tensor] | Tensor, tag: int
    ) -> list[dist.Work | None]:
        return exchange_with(range(self._world.size), self._world.rank, sent, received, tag)


def exchange_with(
    ranks: Sequence[int], rank: int, sent: Sequence[Tensor] | Tensor, received: Sequence[Tensor] | Tensor, tag: int
) -> list[dist.Work | None]:
    """Begins to send ``sent[i]`` to the i-th of ``ranks``, and to receive ``received[i]`` from it, but for ``rank``, this one.
    All of them call this at the same place."""
    own = ranks.index(rank)
    others = [(own + distance) % len(ranks) for distance in range(1, len(ranks))]
    if len(sent) and sent[0].device.type != "cpu":  # NCCL sends and receives them as one
        operations = [dist.P2POp(dist.irecv, received[at], ranks[at], tag=tag) for at in others]
        operations += [dist.P2POp(dist.isend, sent[at], ranks[at], tag=tag) for at in others]
        return list(dist.batch_isend_irecv(operations)) if operations else []
    works = [dist.irecv(received[at], ranks[at], tag=tag) for at in others]
    return works + [dist.isend(sent[at], ranks[at], tag=tag) for at in others]


def waited_for(works: Sequence[dist.Work | None], world: World) -> list[dist.Work | None]:
    """Waits until all of ``works`` are done; returns those that are left, none."""
    with world.waits:
        for work in works:
            assert work is not None
            work.wait()
    return []


def add(left: Tensor, right: Tensor) -> Tensor:
    """Adds ``right`` to ``left``, and returns that."""
    return left.add_(right)


class PairSum:
    """Adds the sums of two ranks in the order of the tree: each sends all of its sum to the other, and both add.

    For two ranks this sends as much as :class:`OrderedSum`, in one part instead of two, so that less time is spent waiting.
    """

    advances = 0

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, number: int = 0) -> None:
        """``number`` tells this bucket's messages apart."""
        kind = {"dtype": parameters[0].dtype, "device": parameters[0].device}
        self._world, self._tag = world, PARTS * number
        self._sums = torch.zeros((2, flat_length(parameters)), **kind)
        """Those of both ranks."""
        self._laid_out = flat_views(self._sums[world.rank], parameters)
        self._result = torch.zeros_like(self._sums[0])
        self._results = flat_views(self._result, parameters)
        self._works: list[dist.Work | None] = []

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Sends the sum of this rank's lanes, the only subtree that it has."""
        (own,) = sums
        torch._foreach_copy_(self._laid_out, own)  # pyright: ignore[reportPrivateImportUsage]
        self._works = exchange_with(
            range(2), self._world.rank, [self._sums[self._world.rank]] * 2, self._sums, self._tag
        )

    def advance(self) -> None:
        """The exchange has one part."""

    def finish(self) -> list[Tensor]:
        """Waits for the other rank's sum, and adds."""
        self._works = waited_for(self._works, self._world)
        torch.add(self._sums[0], self._sums[1], out=self._result)
        return self._results


class AllReduceSum:
    """Adds by one all-reduce, in an order that depends on the number of ranks and on the library."""

    advances = 0

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, *, compress: bool = False) -> None:
        """``compress`` sends float32 as bfloat16."""
        like = parameters[0]
        smaller = compress and like.dtype == torch.float32
        self._world = world
        self._result = torch.zeros(flat_length(parameters), dtype=like.dtype, device=like.device)
        self._sent = self._result.to(torch.bfloat16) if smaller else self._result
        self._laid_out, self._results = flat_views(self._sent, parameters), flat_views(self._result, parameters)
        self._work: dist.Work | None = None

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Adds the subtrees of this rank, and begins the all-reduce."""
        own, *others = sums
        for other in others:
            torch._foreach_add_(own, other)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_copy_(self._laid_out, own)  # pyright: ignore[reportPrivateImportUsage]
        self._work = dist.all_reduce(self._sent, async_op=True)

    def advance(self) -> None:
        """An all-reduce has one part."""

    def finish(self) -> list[Tensor]:
        """Waits for the sum."""
        assert self._work is not None
        with self._world.waits:
            self._work.wait()
        self._work = None
        if self._sent is not self._result:
            self._result.copy_(self._sent)
        return self._results
