"""Averages model weights over steps: EMA and SWA are the same running mean with different step weights.

The weight of each step comes from the plan (``hyper.average_weight``), so the average has no state except its tensors.
Floating-point buffers (batch-norm statistics) are averaged in the same way as parameters; integer buffers are copied. Averaged
statistics are unbiased if no initial value is mixed in; the plan's weights ensure this by bias correction.
:func:`recalibrate` estimates the statistics again for the averaged weights if requested (SWA, arXiv:1803.05407, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagewright.model.groups import modes_kept


class WeightAverage:
    """Running mean of a model's parameters and buffers, on the model's device.

    float16 and bfloat16 tensors are averaged in float32, all others in their own dtype. Empty until the first :meth:`update`
    with a positive weight.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, weight: float) -> None:
        """Moves the mean towards the model's tensors by ``weight`` in [0, 1]; 1 copies them, 0 does nothing."""
        if weight == 0.0:
            return
        current = named_tensors(model)
        if weight == 1.0 or not self.tensors:
            self.tensors = {name: _for_average(tensor).clone() for name, tensor in current.items()}
            return
        floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        others = [name for name in current if name not in set(floats)]
        # One call for all tensors of a kind: a call for each tensor would launch a GPU kernel each.
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.tensors[name] for name in floats], [_for_average(current[name]) for name in floats], weight
        )
        if others:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [self.tensors[name] for name in others], [current[name] for name in others]
            )

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Context in which the model has the averaged tensors; on exit its own are restored bit for bit."""
        current = named_tensors(model)
        own = {name: tensor.detach().clone() for name, tensor in current.items()}
        try:
            self.copy_to(model)
            yield
        finally:
            copy_tensors(own, current)

    def copy_to(self, model: nn.Module) -> None:
        """Copies the averaged tensors into the model permanently."""
        copy_tensors(self.tensors, named_tensors(model))

    def state(self) -> dict[str, Tensor]:
        """Returns the averaged tensors by name, for a checkpoint; empty before the first update."""
        return self.tensors

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Restores the result of :meth:`state` on ``device``."""
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}


def has_batch_norm(model: nn.Module) -> bool:
    """Returns whether the model has batch-norm layers with running statistics, which averaged weights may need re-estimated."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    of_all: Callable[[Iterator[Tensor]], Iterable[Tensor]] = lambda own: own,
) -> int:
    """Re-estimates batch-norm statistics as the mean over ``batches`` of normalised images (B, 3, H, W); returns the number of
    images.

    Affects only layers in training mode: layers frozen in eval mode keep their statistics. All other modules run in eval mode
    (no dropout). Otherwise equal to ``torch.optim.swa_utils.update_bn`` but for rounding. Where several processes share out the
    batches, ``of_all`` gives the statistics of all batches in order, float32 (m,) each, from those of this process.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = {norm: norm.momentum for norm in norms}
    running = [one for norm in norms for one in (norm.running_mean, norm.running_var) if one is not None]
    images_seen, mean = 0.0, torch.zeros(0)
    with modes_kept(model):
        try:
            model.eval()
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # leaves the statistics of the batch alone
            found = 0
            for found, own in enumerate(of_all(_statistics(model, running, batches)), 1):
                images_seen += float(own[-1])
                now = own[:-1].double()
                mean = now if found == 1 else mean + (now - mean) / found
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    for norm in norms:
        norm.reset_running_stats()
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(found)
    if found:
        for one, piece in zip(running, mean.split([one.numel() for one in running]), strict=True):
            one.copy_(piece.view_as(one))
    return int(images_seen)


def _statistics(model: nn.Module, running: Sequence[Tensor], batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the ``running`` statistics of each of ``batches`` alone, and its number of images behind them, float32 (m + 1,)."""
    for images in batches:
        for one in running:  # a value that is not finite would stay
            one.zero_()
        model(images)
        yield torch.cat(
            [*(one.flatten().float() for one in running), torch.tensor([float(len(images))], device=images.device)]
        )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of ``model`` by name, not copied."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _for_average(tensor: Tensor) -> Tensor:
    """Returns half-precision tensors as float32, because small step weights would be lost to rounding."""
    low = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().float() if low else tensor.detach()


@torch.no_grad()
def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copies into every tensor of ``target`` the one of the same name in ``source``."""
    for name, tensor in target.items():
        tensor.copy_(source[name])
