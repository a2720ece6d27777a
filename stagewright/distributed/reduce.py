"""Sums the gradients of an update's lanes in the tree of :mod:`stagewright.distributed.tree`, over any number of processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stagewright.distributed.tree import PartialSums, share
from stagewright.distributed.world import World
from stagewright.errors import WorldError


class LaneGradients:
    """Collects one gradient per lane, and sets each parameter's ``grad`` to the sum over all lanes.

    A parameter whose lane gives no gradient counts as zeros in that lane. Parameters that do not require a gradient, and those
    in ``unused``, keep ``grad`` None. With one lane in all, the gradients stay as the backward pass leaves them.

    A gradient is kept until its addition, so it must not lie in memory that the next lane overwrites (CUDA graphs: copy it
    inside :meth:`lane`).
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], lanes: int, world: World, *, unused: Collection[int] = ()
    ) -> None:
        """``unused``: positions in ``parameters``. WorldError if there are more ranks than lanes."""
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
        self._parameters = [p for at, p in enumerate(parameters) if p.requires_grad and at not in unused]
        self._discard()

    @contextmanager
    def lane(self) -> Iterator[None]:
        """Context manager around the forward and the backward pass of this rank's next lane.

        ``grad`` of all parameters must be None before; afterwards it is None again, except with one lane in all. After an
        error inside it, the update is abandoned: the next lane is the first again.
        """
        if self._done == len(self.own):
            raise RuntimeError(f"all {self._done} lanes of this rank have been computed: call finish")
        if any(p.grad is not None for p in self._parameters):
            raise RuntimeError("a parameter has a gradient before its lane: set all to None")
        try:
            yield
        except BaseException:
            for parameter in self._parameters:
                parameter.grad = None
            self._discard()
            raise
        if self.lanes > 1:
            self._sums.push([_taken(p) for p in self._parameters])
        self._done += 1

    def finish(self) -> None:
        """Sets ``grad`` of each parameter to the sum over all lanes: the same bits on every rank and for every number of ranks,
        laid out in memory as the parameter. RuntimeError before all lanes of this rank are computed."""
        if self._done < len(self.own):
            raise RuntimeError(f"{self._done} of {len(self.own)} lanes of this rank have been computed")
        if self.lanes > 1:
            for parameter, gradient in zip(self._parameters, self._sums.sums[0], strict=True):
                parameter.grad = _laid_out_as(parameter, gradient)
        self._discard()

    def gather(self, values: Tensor) -> Tensor:
        """Returns the rows of all ranks in lane order, (lanes, m), from one row per own lane, float32 (own lanes, m); on the
        same device."""
        return values

    def close(self) -> None:
        """Removes what observes the parameters; afterwards the object is not used again."""

    def _discard(self) -> None:
        """Begins an update: no lane is computed."""
        self._done = 0
        self._sums: PartialSums[list[Tensor]] = PartialSums(self.lanes, self.own, add_lists)


def add_lists(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Adds the tensors of ``right`` to those of ``left`` in place, and returns ``left``."""
    if left:
        torch._foreach_add_(left, right)  # pyright: ignore[reportPrivateImportUsage]
    return left


def _taken(parameter: nn.Parameter) -> Tensor:
    """Takes the gradient away from ``parameter``; zeros if there is none."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _laid_out_as(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Returns ``gradient`` with the strides of ``parameter``, which fused optimizers rely on."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
