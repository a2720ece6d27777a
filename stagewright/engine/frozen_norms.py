"""Trains a network whose batch norms are frozen with these norms folded into their convolutions.

Mathematically it is the same network with the same gradients; it has fewer operations on activations, which take most of the time
of a batch norm. The parameters that train stay those of the model: weights are folded anew for each forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from stagewright.model.fold import folded_pair


class FrozenNorms:
    """Callable that maps images (or features) to logits (B, K) by ``part`` with the present tensors of ``model``."""

    def __init__(self, model: nn.Module, pairs: Mapping[str, str], part: nn.Module) -> None:
        """``part`` is the skeleton of ``model`` without the norms of ``pairs`` (:func:`stagewright.model.fold.skeleton`), or a
        part of it with the same names."""
        self.part = part
        own = {name for name, _ in [*part.named_parameters(), *part.named_buffers()]}
        modules = dict(model.named_modules())
        # All is looked up once: by name for each update, it took a tenth of the time of a small batch.
        self.pairs = [
            (convolution, modules[convolution], modules[norm])
            for convolution, norm in pairs.items()
            if f"{convolution}.weight" in own
        ]
        folded = {f"{name}.{tensor}" for name, _, _ in self.pairs for tensor in ("weight", "bias")}
        self.others = [(name, modules[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in own - folded]
        self.twins = [(twin, modules[name]) for name, twin in part.named_modules() if name and name in modules]

    def __call__(self, images: Tensor) -> Tensor:
        for twin, module in self.twins:  # dropout and stochastic depth follow the model's modes
            twin.training = module.training
        tensors: dict[str, Tensor] = {name: getattr(module, tensor) for name, module, tensor in self.others}
        for name, convolution, norm in self.pairs:
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = folded_pair(convolution, norm)
        return functional_call(self.part, tensors, (images,))
