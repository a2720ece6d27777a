"""Sums one bucket of gradients over all processes: in the order of the tree, or in whatever order is fastest.

An exchange has two halves, so that several buckets can be under way: ``start``, ``advance``, ``finish``. All ranks call them in
the same order. Memory is allocated once and used in every update.
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


class Exchange(Protocol):
    """The sum of one bucket over all ranks."""

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Sends the sums of this rank's subtrees, one tensor per parameter each; does not wait."""
        ...

    def advance(self) -> None:
        """Begins the second half, once the first has arrived."""
        ...

    def finish(self) -> list[Tensor]:
        """Returns the sum over all lanes for each parameter, with the parameter's strides, in memory that the next ``start``
        overwrites."""
        ...


class OrderedSum:
    """Adds in the order of the tree: the same bits for every number of ranks.

    Each rank owns a chunk of the bucket. It receives this chunk of every rank's subtrees (all-to-all), adds them as the tree
    does, and sends the sum to all (all-gather). So a rank sends and receives about as much as in a ring all-reduce.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lanes: int, world: World) -> None:
        parts = [subtrees(lanes, share(lanes, rank, world.size)) for rank in range(world.size)]
        own, total = len(parts[world.rank]), sum(map(len, parts))
        chunk = -(-flat_length(parameters) // world.size)  # chunks are equal: the last one is padded
        self._world, self._lanes, self._own = world, lanes, own
        self._names = [(part.start, part.stop) for rank_parts in parts for part in rank_parts]
        kind = {"dtype": parameters[0].dtype, "device": parameters[0].device}
        self._sent = torch.zeros((world.size, own, chunk), **kind)
        self._received = torch.zeros((total, chunk), **kind)
        self._sent_counts = [own * chunk] * world.size
        self._received_counts = [len(rank_parts) * chunk for rank_parts in parts]
        # What is sent is free when the sums are sent back, and what is received is free while the subtrees are laid out.
        self._result = self._sent.view(-1)[: world.size * chunk]
        self._layout = self._result if own == 1 else self._received.view(-1)[: world.size * chunk]
        self._results = flat_views(self._result, parameters)
        self._laid_out = self._results if own == 1 else flat_views(self._layout, parameters)
        self._work: dist.Work | None = None

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Sends to each rank its chunk of this rank's subtrees."""
        for at, gradients in enumerate(sums):
            torch._foreach_copy_(self._laid_out, gradients)  # pyright: ignore[reportPrivateImportUsage]
            if self._own > 1:
                self._sent[:, at].copy_(self._layout.view(self._world.size, -1))
        self._work = dist.all_to_all_single(
            self._received.view(-1), self._sent.view(-1), self._received_counts, self._sent_counts, async_op=True
        )

    def advance(self) -> None:
        """Adds this rank's chunk of all subtrees, and sends the sum to all."""
        self._wait()
        rows = dict(zip(self._names, self._received, strict=True))
        own = fold(self._lanes, rows, lambda left, right: left.add_(right))
        self._work = dist.all_gather_into_tensor(self._result, own, async_op=True)

    def finish(self) -> list[Tensor]:
        """Waits for the sums of the other ranks' chunks."""
        self._wait()
        return self._results

    def _wait(self) -> None:
        assert self._work is not None
        with self._world.waits:
            self._work.wait()
        self._work = None


class AllReduceSum:
    """Adds by one all-reduce, in an order that depends on the number of ranks and on the library."""

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
        """An all-reduce has no second half."""

    def finish(self) -> list[Tensor]:
        """Waits for the sum."""
        assert self._work is not None
        with self._world.waits:
            self._work.wait()
        self._work = None
        if self._sent is not self._result:
            self._result.copy_(self._sent)
        return self._results
