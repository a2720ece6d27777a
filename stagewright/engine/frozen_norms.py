"""Trains a network whose batch norms are frozen with these norms folded into their convolutions.

Mathematically it is the same network with the same gradients; it has fewer operations on activations, which take most of the time
of a batch norm. The parameters that train stay those of the model: weights are folded anew for each forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from stagewright.model.fold import folded_tensors


class FrozenNorms:
    """Callable that maps images (or features) to logits (B, K) by ``part`` with the present tensors of ``model``."""

    def __init__(self, model: nn.Module, pairs: Mapping[str, str], part: nn.Module) -> None:
        """``part`` is the skeleton of ``model`` without the norms of ``pairs`` (:func:`stagewright.model.fold.skeleton`), or a
        part of it with the same names."""
        self.model, self.part = model, part
        own = {name for name, _ in [*part.named_parameters(), *part.named_buffers()]}
        self.pairs = {convolution: norm for convolution, norm in pairs.items() if f"{convolution}.weight" in own}
        self.names = own
        modules = dict(model.named_modules())
        self.twins = [(twin, modules[name]) for name, twin in part.named_modules() if name and name in modules]

    def __call__(self, images: Tensor) -> Tensor:
        for twin, module in self.twins:  # dropout and stochastic depth follow the model's modes
            twin.training = module.training
        tensors = folded_tensors(self.model, self.pairs)
        return functional_call(self.part, {name: tensors[name] for name in self.names}, (images,))
