"""A second set of weights, averaged over steps: EMA and SWA are one running mean with different weights.

The weight of each step comes from the plan (``hyper.average_weight``), so the average has no state but its tensors.
Parameters and floating-point buffers (batch-norm statistics) are averaged alike; integer buffers are copied. Averaging
statistics together with the weights they belong to is right as long as no start value is mixed in, which the bias
correction in the plan sees to; :func:`recalibrate` measures them anew where that is wanted (SWA, arXiv:1803.05407, 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagewright.model.groups import modes_kept


class WeightAverage:
    """Running mean of a model's parameters and buffers, kept in float32 (float64 stays) on the model's device.

    Empty until the first :meth:`update` with a positive weight.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, weight: float) -> None:
        """Moves the mean towards the model's tensors by ``weight`` in [0, 1]; 1 copies them, 0 does nothing."""
        if weight == 0.0:
            return
        current = _named_tensors(model)
        if weight == 1.0 or not self.tensors:
            self.tensors = {name: _for_average(tensor).clone() for name, tensor in current.items()}
            return
        floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        others = [name for name in current if name not in set(floats)]
        # One call for all tensors of a kind: a call for each would cost a launch each on a GPU.
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.tensors[name] for name in floats], [_for_average(current[name]) for name in floats], weight
        )
        if others:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [self.tensors[name] for name in others], [current[name] for name in others]
            )

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model answers with the averaged tensors inside, and has its own back, bit for bit, on leaving."""
        current = _named_tensors(model)
        own = {name: tensor.detach().clone() for name, tensor in current.items()}
        try:
            self.copy_to(model)
            yield
        finally:
            _copy(own, current)

    def copy_to(self, model: nn.Module) -> None:
        """Writes the averaged tensors into the model for good."""
        _copy(self.tensors, _named_tensors(model))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the mean tensors, none before the first update."""
        return self.tensors

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Takes up what :meth:`state` gave, on ``device``."""
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model keeps batch statistics that averaged weights may need anew."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Re-estimates batch-norm statistics as the plain mean over ``batches`` of normalised images (B, 3, H, W).

    Layers in training mode only: those frozen in eval mode keep theirs. All other modules run as in evaluation
    (no dropout). Returns the number of images seen; as ``torch.optim.swa_utils.update_bn`` otherwise.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = {norm: norm.momentum for norm in norms}
    images_seen = 0
    with modes_kept(model):
        try:
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # cumulative mean
            for images in batches:
                model(images)
                images_seen += len(images)
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    return images_seen


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _for_average(tensor: Tensor) -> Tensor:
    """Half-precision tensors are averaged in float32: small weights would vanish in their rounding."""
    low = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().float() if low else tensor.detach()


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
