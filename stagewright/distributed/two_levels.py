"""Sums one bucket of gradients over several hosts: first within each host, then between the hosts.

Between hosts each gradient then travels once for a host, not once for each of its ranks. The sum is that of the tree, the same
bits, where the lanes of a host are a subtree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagewright.distributed.exchange import PARTS, add, exchange_with, waited_for
from stagewright.distributed.flat import flat_length, flat_views
from stagewright.distributed.tree import fold, fold_part, host_shares, share, subtrees
from stagewright.distributed.world import World


def host_lanes(lanes: int, world: World) -> list[range] | None:
    """Returns the lanes of each host if the sum over them can be taken host by host; else None.

    It can where there are several hosts with as many ranks each, two or more, which follow each other, and where the lanes of
    each host are a subtree.
    """
    local, size = world.local_size, world.size
    if world.rank % local != world.local_rank:
        return None
    hosts = [member.host for member in world.members]
    if any(len(set(hosts[first : first + local])) > 1 for first in range(0, size, local)):
        return None
    return host_shares(lanes, size, local)


class TwoLevelSum:
    """Adds in the order of the tree, like :class:`stagewright.distributed.exchange.OrderedSum`, host by host.

    The bucket has a part for each rank of a host, and each part a piece for each host. Within a host, each rank receives its part
    of all subtrees and adds them up to the host's sum. Ranks with the same place in their hosts exchange the pieces of these
    sums, add them, and send the result back: first between the hosts, then within each.
    """

    advances = 3

    def __init__(
        self, parameters: Sequence[nn.Parameter], lanes: int, world: World, hosts: Sequence[range], number: int = 0
    ) -> None:
        """``hosts``: the lanes of each host (:func:`host_lanes`). ``number`` tells this bucket's messages apart."""
        local, host = world.local_size, world.rank // world.local_size
        self._world, self._lanes, self._hosts, self._tag = world, lanes, list(hosts), PARTS * number
        self._near = range(host * local, (host + 1) * local)
        self._far = range(world.local_rank, world.size, local)
        parts = [subtrees(lanes, share(lanes, rank, world.size)) for rank in self._near]
        piece = -(-flat_length(parameters) // world.size)
        width = piece * len(hosts)
        kind = {"dtype": parameters[0].dtype, "device": parameters[0].device}
        own = len(parts[world.local_rank])
        self._sent = torch.zeros((local, own, width), **kind)
        received = torch.zeros((sum(map(len, parts)), width), **kind)
        self._by_rank = list(received.split([len(one) for one in parts]))
        names = [(part.start, part.stop) for one in parts for part in one]
        self._by_rank[world.local_rank] = self._sent[world.local_rank]
        self._rows = dict(zip(names, (row for rows in self._by_rank for row in rows), strict=True))
        self._pieces = torch.zeros((len(hosts), piece), **kind)
        self._result = torch.zeros((local, width), **kind)
        self._results = flat_views(self._result.view(-1), parameters)
        self._own = self._result[world.local_rank].view(len(hosts), piece)
        self._host = host
        self._works: list[dist.Work | None] = []
        self._advanced = 0

    def start(self, sums: Sequence[list[Tensor]]) -> None:
        """Sends to each rank of this host its part of this rank's subtrees."""
        for at, gradients in enumerate(sums):
            torch._foreach_copy_(self._results, gradients)  # pyright: ignore[reportPrivateImportUsage]
            self._sent[:, at].copy_(self._result)
        self._advanced = 0
        self._works = self._exchange(self._near, self._sent, self._by_rank, 0)

    def advance(self) -> None:
        """Begins the next part: to the other hosts, back from them, back within this host."""
        self._works = waited_for(self._works, self._world)
        self._advanced += 1
        if self._advanced == 1:
            host_sum = fold_part(self._hosts[self._host], self._rows, add)
            sent = host_sum.view(len(self._hosts), -1)
            self._pieces[self._host].copy_(sent[self._host])
            self._works = self._exchange(self._far, sent, self._pieces, 1)
        elif self._advanced == 2:
            values = {(own.start, own.stop): piece for own, piece in zip(self._hosts, self._pieces, strict=True)}
            self._own[self._host].copy_(fold(self._lanes, values, add))
            self._works = self._exchange(self._far, [self._own[self._host]] * len(self._hosts), self._own, 2)
        else:
            mine = self._result[self._world.local_rank]
            self._works = self._exchange(self._near, [mine] * len(self._near), self._result, 3)

    def finish(self) -> list[Tensor]:
        """Waits for the sums of the other parts."""
        self._works = waited_for(self._works, self._world)
        return self._results

    def _exchange(
        self, ranks: range, sent: Sequence[Tensor] | Tensor, received: Sequence[Tensor] | Tensor, part: int
    ) -> list[dist.Work | None]:
        return exchange_with(ranks, self._world.rank, sent, received, self._tag + part)
