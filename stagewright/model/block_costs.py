"""Estimates what each block of a network costs, and how many of the last blocks make up a share of the training's cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.model.groups import block_modules, modes_kept

UPPER_SHARE = 0.345
"""Largest share of the cost of all blocks that the ``upper`` ones have. On three sets of 300 to 1,000 images with three seeds
each, blocks 9 to 18 of MobileNetV2 (0.34) came to 72.4 % of the test images, blocks 7 to 18 (0.40) to 72.6 %; on 1,766 images
of rubbish, blocks 11 to 18 (0.28) stayed four points below blocks 7 to 18."""
_MACS_PER_VALUE = 30
"""Cost of writing one value of an activation in multiply-adds. With it, the shares of the blocks of MobileNetV2 and ResNet-18 at
160 px are those of measured training steps to within 0.04 (2 cores, norms folded): light convolutions are bound by memory."""


@torch.no_grad()
def block_costs(model: nn.Module, images: Tensor) -> list[float]:
    """Returns the cost of a forward pass of each block of ``model`` (:func:`stagewright.model.groups.blocks`), in multiply-adds.

    ``images`` (B, 3, S, S) are for one run in evaluation mode; their content does not matter. Layers outside of all blocks count
    for the last block before them. Products inside of functions, such as attention, are left out.
    """
    owners = {name: index for index, names in enumerate(block_modules(model)) for name in names}
    costs = [0.0] * (max(owners.values(), default=0) + 1)
    current = 0

    def counter(name: str) -> Callable[[nn.Module, Any, Any], None]:
        parents = [name[:end] for end, letter in enumerate(f"{name}.") if letter == "."]
        owner = next((owners[parent] for parent in parents if parent in owners), None)

        def count(module: nn.Module, _: Any, result: Any) -> None:
            nonlocal current
            current = max(current, owner or 0)
            if isinstance(result, Tensor):
                costs[current if owner is None else owner] += result.numel() * (_macs(module) + _MACS_PER_VALUE)

        return count

    leaves = [(name, part) for name, part in model.named_modules() if not list(part.children())]
    handles = [part.register_forward_hook(counter(name)) for name, part in leaves if not isinstance(part, nn.Identity)]
    try:
        with modes_kept(model):
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return costs


def _macs(module: nn.Module) -> int:
    """Returns the multiply-adds for each value that a convolution or linear layer gives; 0 for other modules."""
    return module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0


def upper_blocks(model: nn.Module, images: Tensor) -> int:
    """Returns how many of the last blocks cost at most :data:`UPPER_SHARE` of all together; at least 1, 0 if there are none."""
    costs = block_costs(model, images) if block_modules(model) else []
    within = [n for n in range(1, len(costs)) if sum(costs[-n:]) <= UPPER_SHARE * sum(costs)]
    return max(within, default=min(1, len(costs)))
