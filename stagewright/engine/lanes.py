"""Carries out the lanes of an update: each with its own batch-norm statistics, and one gradient from all of them.

All sums over lanes are taken in the order of a fixed tree, and the statistics are folded into the running ones in the order of
the lanes. So the bits of an update do not depend on how many processes share out its lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagewright.distributed.reduce import LaneGradients
from stagewright.distributed.tree import fold
from stagewright.distributed.world import World
from stagewright.errors import RecipeError
from stagewright.plan.plan import StagePlan
from stagewright.recipe.recipe import Recipe


class Lanes:
    """The lanes of the updates of one stage, of which this process carries out :attr:`own`.

    Made once the stage's parameters are set to be trained or frozen, and valid until they change.
    """

    def __init__(
        self,
        model: nn.Module,
        lanes: int,
        world: World | None = None,
        *,
        ordered: bool = True,
        compress: bool = False,
    ) -> None:
        """``lanes`` is the number of lanes over all processes of ``world`` (None: this process alone). ``ordered`` and
        ``compress`` as for :class:`stagewright.distributed.reduce.LaneGradients`."""
        self.count = lanes
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._given: set[int] = set()
        """The parameters that have had a gradient in the present lane, by position."""
        # Before those of the exchange, which takes gradients away as they come.
        self._hooks = [
            one.register_post_accumulate_grad_hook(lambda _, at=at: self._given.add(at))
            for at, one in enumerate(self._parameters)
        ]
        self._gradients = LaneGradients(
            self._parameters, lanes, world or World.alone("cpu"), ordered=ordered, compress=compress
        )
        self._norms = _Statistics(model)
        self._rows: list[Tensor] = []
        self._without: set[int] | None = None
        """The parameters that get no gradient in any lane, by position; None before the first update."""

    @property
    def own(self) -> range:
        """The lanes that this process carries out, in this order."""
        return self._gradients.own

    def close(self) -> None:
        """Removes what observes the parameters; afterwards the object is not used again."""
        self._gradients.close()
        while self._hooks:
            self._hooks.pop().remove()

    @contextmanager
    def update(self) -> Iterator[None]:
        """Context of all lanes of one update; on a failure, the layers are as before, but not their statistics."""
        self._rows = []
        with self._norms.apart():
            yield

    @contextmanager
    def lane(self) -> Iterator[list[Tensor]]:
        """Context of the forward and backward pass of the next lane, which appends its numbers, float32 (k,), to the list.

        The backward pass may find the gradients of an earlier lane, to which it adds.
        """
        numbers: list[Tensor] = []
        self._norms.clear()
        self._given.clear()
        with self._gradients.lane():
            yield numbers
        device = numbers[0].device
        if self._without is None:
            given = [float(at in self._given) for at in range(len(self._parameters))]
            numbers.append(torch.tensor(given, device=device))
        self._rows.append(torch.cat([*numbers, self._norms.taken(device)]))

    def finish(self, count: int) -> Tensor:
        """Ends the update: parameters have the sum of the gradients of all lanes, batch norms their new running statistics.

        Returns the sums over all lanes of the ``count`` numbers of each, float32 (count,).
        """
        self._gradients.finish()
        rows = self._gradients.gather(torch.stack(self._rows))
        self._rows = []
        used = count
        if self._without is None:
            used += len(self._parameters)
            given = rows[:, count:used].amax(dim=0).tolist()
            self._without = {at for at, one in enumerate(given) if not one}
            while self._hooks:
                self._hooks.pop().remove()
        for at in self._without:  # as with a single lane, so that weight decay leaves them alone
            self._parameters[at].grad = None
        self._norms.fold(rows[:, used:])
        return fold(self.count, {(at, at + 1): rows[at, :count] for at in range(self.count)}, torch.add)


def sums_in_order(recipe: Recipe, device: torch.device) -> bool:
    """Returns whether processes add gradients in the order of the tree, which gives the same bits for any number of them: always
    on a CPU, on CUDA where the recipe asks for deterministic kernels, without which other bits differ anyway."""
    return device.type == "cpu" or recipe.deterministic


def batch_norm_statistics(model: nn.Module) -> int:
    """Returns how many numbers the batch norms of ``model``, in the mode that it is in, give in each lane."""
    return sum(one.numel() for one in _Statistics(model).running)


class _Statistics:
    """The running statistics of the batch norms of a model in training mode, kept apart for each lane."""

    def __init__(self, model: nn.Module) -> None:
        self.norms = [
            one
            for one in model.modules()
            if isinstance(one, _BatchNorm) and one.training and one.track_running_stats and one.running_mean is not None
        ]
        self.running = [one for norm in self.norms for one in (norm.running_mean, norm.running_var) if one is not None]
        self._before: list[Tensor] = []
        self._seen: list[Tensor] = []

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Context in which a forward pass leaves the statistics of its batch alone: the momentum is 1."""
        momenta = [norm.momentum for norm in self.norms]
        self._before = [one.clone() for one in self.running]
        self._seen = [norm.num_batches_tracked.clone() for norm in self.norms if norm.num_batches_tracked is not None]
        for norm in self.norms:
            norm.momentum = 1.0
        try:
            yield
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum

    def clear(self) -> None:
        """Forgets the lane before, of which a value that is not finite would stay."""
        if self.running:
            torch._foreach_zero_(self.running)  # pyright: ignore[reportPrivateImportUsage]

    def taken(self, device: torch.device) -> Tensor:
        """Returns the statistics of the lane just done, float32 (m,)."""
        return (
            torch.cat([one.flatten() for one in self.running]).float()
            if self.running
            else torch.zeros(0, device=device)
        )

    @torch.no_grad()
    def fold(self, statistics: Tensor) -> None:
        """Folds the ``statistics`` of all lanes, float32 (lanes, m), into the running ones in the order of the lanes."""
        if not self.running:
            return
        lanes = len(statistics)
        running = torch.cat([one.flatten() for one in self._before]).float()
        for lane, own in enumerate(statistics):
            share = self._shares(lane, own.device)
            running = running * (1 - share) + own * share
        pieces = running.split([one.numel() for one in self.running])
        for own, piece in zip(self.running, pieces, strict=True):
            own.copy_(piece.view_as(own))
        counters = [norm.num_batches_tracked for norm in self.norms if norm.num_batches_tracked is not None]
        for counter, before in zip(counters, self._seen, strict=True):
            counter.copy_(before + lanes)

    def _shares(self, lane: int, device: torch.device) -> Tensor | float:
        """Returns the weight of the statistics of ``lane``, for each of their numbers: the layer's momentum, or 1 / number of
        batches seen where it has none."""
        momenta = {norm.momentum for norm in self.norms}
        if len(momenta) == 1 and (only := next(iter(momenta))) is not None:
            return only
        shares = []
        for norm, seen in zip(self.norms, self._seen, strict=True):
            share = 1.0 / (int(seen) + lane + 1) if norm.momentum is None else norm.momentum
            shares += [share] * (2 * norm.num_features)
        return torch.tensor(shares, device=device)


def single_image_error(error: ValueError, stage: StagePlan, lanes: int) -> RecipeError | None:
    """Returns the error to raise if torch's ``error`` is about batch norm with one value per channel, else None."""
    if "more than 1 value per channel" not in str(error):
        return None
    size = stage.batch_size
    batches = f"batches of {size}" + ("" if lanes == 1 else f" in {lanes} lanes")
    return RecipeError(
        f"stage {stage.name!r}: {batches} train on one image alone, which the network's batch norm cannot at "
        f"{stage.image_size} x {stage.image_size} pixels: {str(error).splitlines()[0]}",
        "batches and lanes of 2 images or more, or images of which the network keeps more than one pixel",
        "change batch_size, micro_batch_size or spread, take larger images, or a network without batch norm",
    )
