"""Saliency maps: how strongly each part of an image speaks for a class, by the gradient at the last map of the network.

Grad-CAM (arXiv:1610.02391): the channels of a feature map are weighted with the mean gradient of the class's logit, summed, and
what speaks against the class is cut off. The map is the output of the last block that has one and on which the logit depends at
more than one place: of a convolutional network, in general the last block; of a transformer, whose tokens form the map, the last
block of which more than the class token is used. A map says where the network looked, not why it is wrong.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stagewright.errors import ModelError
from stagewright.model.groups import block_modules, modes_kept

_FEWEST = 3
"""Smallest side of a map that says where something is; a smaller one is used if there is no other."""


def saliency(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Returns the maps of normalised ``images``, float (N, 3, S, S), for ``classes``, int64 (N,): float32 (N, S, S).

    Each has values in [0, 1] and the maximum 1, or is 0 where nothing speaks for the class. The model is in evaluation mode
    meanwhile, and neither its weights nor their gradients change. ModelError if no block of it has a map.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: object) -> Tensor | None:
        if isinstance(output, Tensor) and output.requires_grad and _as_map(output) is not None:
            found.append(output)
            return output.clone()  # the next module may change its input in place
        return None

    names = [names[0] for names in block_modules(model)]
    with modes_kept(model), ExitStack() as hooked, torch.enable_grad():
        model.eval()
        for name in names:
            hooked.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        logits = model(images.detach().requires_grad_())
        chosen = logits.float().gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(chosen, found, allow_unused=True) if found else ()
    maps = [cam for one, gradient in zip(found, gradients, strict=True) if (cam := _cam(one, gradient)) is not None]
    if not maps:
        raise ModelError(
            "no block of this network gives a map of the image, so there is nothing to show where it looks",
            "networks of convolutions, and transformers whose tokens are patches",
            "leave out --saliency",
        )
    last = next((cam for cam in reversed(maps) if min(cam.shape[1:]) >= _FEWEST), maps[-1])
    last = interpolate(last[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return last / last.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _cam(output: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Returns the weighted sum of the channels, float32 (N, H, W); None if the logit uses this map at one place or not at all."""
    if gradient is None:
        return None
    features, slopes = _as_map(output.detach().float()), _as_map(gradient.float())
    if features is None or slopes is None or not slopes.any():
        return None
    return (features * slopes.mean(dim=(2, 3), keepdim=True)).sum(dim=1).clamp(min=0)


def _as_map(output: Tensor) -> Tensor | None:
    """Returns (N, C, H, W) for the output of a block, (N, C, H, W), (N, H, W, C) or tokens (N, T, C); None if it is no map of at
    least 2 x 2. The tokens of patches are the last ones, in a square; the class token and others stand before them."""
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        output = output[:, -side * side :].reshape(len(output), side, side, -1) if side else output[:, None]
    if output.ndim != 4:
        return None
    if output.shape[1] == output.shape[2] != output.shape[3]:
        output = output.permute(0, 3, 1, 2)
    return output if min(output.shape[2:]) >= 2 else None
