"""Sums the gradients of an update's lanes in the tree of :mod:`stagewright.distributed.tree`, over any number of processes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stagewright.distributed.buckets import BUCKET_BYTES, first_bucket_bytes
from stagewright.distributed.exchange import AllReduceSum, Exchange, OrderedSum, PairSum
from stagewright.distributed.flat import bucket_positions
from stagewright.distributed.tree import PartialSums, share, subtrees
from stagewright.distributed.two_levels import TwoLevelSum, host_lanes
from stagewright.distributed.world import World
from stagewright.errors import WorldError

_UNDER_WAY = 2
"""How many younger buckets begin before the next part of an exchange does: by then the part before has mostly arrived. The
number is fixed, because all ranks must exchange in the same order."""


class LaneGradients:
    """Collects one gradient per lane, and sets each parameter's ``grad`` to the sum over all lanes.

    A parameter whose lane gives no gradient counts as zeros in that lane. Parameters that do not require a gradient keep
    ``grad`` None. With one lane in all, the gradients stay as the backward pass leaves them.

    With several ranks, the exchange of a bucket begins during the backward pass of a rank's last lane, as soon as the bucket's
    gradients are there. A lane has one backward pass.

    A gradient is kept until its addition, so it must not lie in memory that the next lane overwrites (CUDA graphs: copy it
    inside :meth:`lane`). What :meth:`finish` sets is overwritten in the next update.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lanes: int,
        world: World,
        *,
        ordered: bool = True,
        compress: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """``ordered``: the bits are the same for every number of ranks; else they are summed by all-reduce, with ``compress`` in
        bfloat16. WorldError if there are more ranks than lanes."""
        if world.size > lanes:
            raise WorldError(
                f"{world.size} processes for an update of {lanes} lanes",
                f"at most {lanes} processes, one per lane",
                f"start at most {lanes} processes, or plan more lanes (a fork of the run with a larger spread)",
            )
        self.lanes = lanes
        self.own = share(lanes, world.rank, world.size)
        """The lanes of this rank, which it computes in this order."""
        self._world = world
        self._parameters = [p for p in parameters if p.requires_grad]
        self._buckets: list[_Bucket] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for number, positions in enumerate(self._positions(bucket_bytes)):
            members = [self._parameters[at] for at in positions]
            exchange = _exchange(members, lanes, world, number, ordered=ordered, compress=compress)
            bucket = _Bucket(members, exchange)
            self._buckets.append(bucket)
            if exchange is not None:
                self._hooks += [
                    p.register_post_accumulate_grad_hook(_hook(weakref.ref(self), number, at))
                    for at, p in enumerate(members)
                ]
        self._discard()

    def _positions(self, bucket_bytes: int) -> list[list[int]]:
        if self._world.size == 1:  # nothing is exchanged: one bucket, so that additions are few large calls
            return [list(range(len(self._parameters)))]
        on_hosts = len({member.host for member in self._world.members}) > 1
        return bucket_positions(
            self._parameters, bucket_bytes, first_bucket_bytes(bucket_bytes, several_hosts=on_hosts)
        )

    @contextmanager
    def lane(self) -> Iterator[None]:
        """Context manager around the forward and the backward pass of this rank's next lane.

        ``grad`` of all parameters must be None before; afterwards it is None again, except with one lane in all. Inside, it may
        be a sum of earlier lanes, to which the backward pass adds. After an error inside it, the update is abandoned: the next
        lane is the first again.
        """
        if self._done == len(self.own):
            raise RuntimeError(f"all {self._done} lanes of this rank have been computed: call finish")
        if any(p.grad is not None for p in self._parameters):
            raise RuntimeError("a parameter has a gradient before its lane: set all to None")
        self._exchanging = self._world.size > 1 and self._done == len(self.own) - 1
        for bucket in self._buckets:
            bucket.give_left()
        try:
            yield
            if self._exchanging:
                self._start_buckets(all_of_them=True)
            elif self.lanes > 1:
                for bucket in self._buckets:
                    bucket.sums.push(bucket.take())
        except BaseException:
            for parameter in self._parameters:
                parameter.grad = None
            self._discard()
            raise
        finally:
            self._exchanging = False
        self._done += 1

    def finish(self) -> None:
        """Sets ``grad`` of each parameter to the sum over all lanes, laid out in memory as the parameter: the same bits on every
        rank, and if ``ordered`` for every number of ranks. RuntimeError before all lanes of this rank are computed."""
        if self._done < len(self.own):
            raise RuntimeError(f"{self._done} of {len(self.own)} lanes of this rank have been computed")
        if self.lanes > 1:
            most = max((b.exchange.advances for b in self._buckets if b.exchange is not None), default=0)
            for later in range(most * _UNDER_WAY):
                self._advance_before(self._started + later)
            for bucket in self._buckets:
                sums = bucket.sums.sums[0] if bucket.exchange is None else bucket.exchange.finish()
                for parameter, gradient in zip(bucket.parameters, sums, strict=True):
                    parameter.grad = _laid_out_as(parameter, gradient)
        self._discard()

    def gather(self, values: Tensor) -> Tensor:
        """Returns the rows of all ranks in lane order, (lanes, m), from one row per own lane, float32 (own lanes, m); on the
        same device."""
        size = self._world.size
        return self._world.gather_rows(values, [len(share(self.lanes, rank, size)) for rank in range(size)])

    def close(self) -> None:
        """Removes what observes the parameters; afterwards the object is not used again."""
        while self._hooks:
            self._hooks.pop().remove()

    def _discard(self) -> None:
        """Begins an update: no lane is computed."""
        self._done = 0
        self._started = 0
        self._exchanging = False
        for bucket in self._buckets:
            bucket.begin(PartialSums(self.lanes, self.own, add_lists))

    def _arrived(self, number: int, at: int) -> None:
        """Notes that the gradient of parameter ``at`` of bucket ``number`` is there."""
        if not self._exchanging:
            return
        pending = self._buckets[number].pending
        if at not in pending:
            raise RuntimeError("a second backward pass in one lane")
        pending.discard(at)
        if not pending:
            self._start_buckets()

    def _start_buckets(self, all_of_them: bool = False) -> None:
        """Starts the exchange of every bucket that is complete, in order; a bucket may wait for an earlier one."""
        while self._started < len(self._buckets) and (all_of_them or not self._buckets[self._started].pending):
            self._buckets[self._started].start()
            self._advance_before(self._started)
            self._started += 1

    def _advance_before(self, number: int) -> None:
        """Begins the next part of the exchanges that are due when bucket ``number`` starts, or would: the k-th one of a bucket
        after k times ``_UNDER_WAY`` younger ones."""
        for at, bucket in enumerate(self._buckets[: self._started]):
            times, rest = divmod(number - at, _UNDER_WAY)
            if bucket.exchange is not None and not rest and 1 <= times <= bucket.exchange.advances:
                bucket.exchange.advance()


def _exchange(
    members: Sequence[nn.Parameter], lanes: int, world: World, number: int, *, ordered: bool, compress: bool
) -> Exchange | None:
    """Returns how the bucket ``number`` is summed over the ranks; None in a world of one."""
    if world.size == 1:
        return None
    if not ordered:
        return AllReduceSum(members, world, compress=compress)
    if (hosts := host_lanes(lanes, world)) is not None:
        return TwoLevelSum(members, lanes, world, hosts, number)
    if world.size == 2 and all(len(subtrees(lanes, share(lanes, rank, 2))) == 1 for rank in range(2)):
        return PairSum(members, world, number)
    return OrderedSum(members, lanes, world, number)


def _hook(gradients: weakref.ref[LaneGradients], number: int, at: int) -> Callable[[Tensor], None]:
    """Returns the hook of parameter ``at`` of bucket ``number``. It does not keep ``gradients`` and its memory alive."""

    def arrived(_: Tensor) -> None:
        if (own := gradients()) is not None:
            own._arrived(number, at)

    return arrived


class _Bucket:
    """Parameters whose gradients are added and exchanged together."""

    def __init__(self, parameters: Sequence[nn.Parameter], exchange: Exchange | None) -> None:
        """``exchange`` is None in a world of one."""
        self.parameters, self.exchange = list(parameters), exchange
        self.left: list[tuple[Tensor, int]] = []
        """The sums that the lane's gradients are added to, and how often each was changed before."""
        self.pending: set[int] = set()
        """Positions of the parameters whose gradient of the last own lane is missing."""

    def begin(self, sums: PartialSums[list[Tensor]]) -> None:
        """Begins an update, in which ``sums`` receives the lanes' gradients."""
        self.sums = sums
        self.pending = set(range(len(self.parameters)))

    def give_left(self) -> None:
        """Lets the backward pass itself make the first addition that the next lane completes: the gradient needs no memory of
        its own then."""
        self.left = [(gradient, gradient._version) for gradient in self.sums.take_left() or ()]
        for parameter, (gradient, _) in zip(self.parameters, self.left, strict=False):
            parameter.grad = gradient

    def take(self) -> list[Tensor]:
        """Takes the gradients away from the parameters, those of the lane or the sums that they were added to; a missing one
        counts as zeros."""
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        for gradient, (left, version) in zip(gradients, self.left, strict=False):
            if gradient is left and left._version == version:
                left += 0.0  # the lane gave none; a sum with zeros has no negative zeros
        pairs = zip(self.parameters, gradients, strict=True)
        return [torch.zeros_like(parameter) if gradient is None else gradient for parameter, gradient in pairs]

    def start(self) -> None:
        """Adds the last own lane's gradients, and starts the exchange."""
        assert self.exchange is not None
        self.pending.clear()
        self.sums.push(self.take())
        self.exchange.start(self.sums.sums)


def add_lists(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Adds the tensors of ``right`` to those of ``left`` in place, and returns ``left``."""
    if left:
        torch._foreach_add_(left, right)  # pyright: ignore[reportPrivateImportUsage]
    return left


def _laid_out_as(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Returns ``gradient`` with the strides of ``parameter``, which fused optimizers rely on."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
