"""Applies the draws of a batch to its images, on their device, before they are normalised.

The order is: geometry (in one warp), the policy, brightness, contrast, saturation and hue, grayscale, invert, posterize,
solarize, autocontrast, equalize, sharpness, blur, the user's function, erasing. Each operation is applied only to the images
that need it, so the other images do not change by a bit. The host knows from the draws which images these are, so no
operation waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagewright.augment import ops
from stagewright.augment.custom import check_custom, load_custom
from stagewright.augment.draw import Draws
from stagewright.augment.matrices import identities, moved, rotated, sheared
from stagewright.augment.policies import LAST_GEOMETRIC, Layer, Op
from stagewright.augment.warp import warp

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Bytes of images that are processed at once. On a CPU the floats of one piece fit into a core's cache, and their memory is
# reused: this is 30 times faster than 64 images of 224 px at once. On other devices it limits the memory.
_CPU_PIECE, _DEVICE_PIECE = 2**19, 2**25

_WITHOUT_VALUE: dict[Op, Callable[[Tensor], Tensor]] = {
    Op.AUTOCONTRAST: ops.autocontrast,
    Op.EQUALIZE: ops.equalize,
    Op.INVERT: ops.invert,
}
_WITH_VALUE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.BRIGHTNESS: ops.brightness,
    Op.CONTRAST: ops.contrast,
    Op.SATURATION: ops.saturation,
    Op.SHARPNESS: ops.sharpness,
    Op.POSTERIZE: ops.posterize,
    Op.SOLARIZE: ops.solarize,
}


def augment(images: Tensor, draws: Draws | None, fill: Sequence[float]) -> Tensor:
    """Returns ``images``, uint8 (B, 3, S, S) with S the draws' image size, with ``draws`` applied: same shape, dtype, device and
    memory format. ``images`` is not changed; it is returned itself if ``draws`` is None.

    ``fill`` is the colour, R, G and B in 0 .. 255, of areas that geometry leaves empty and of erased rectangles: the mean used
    for normalisation, times 255. RecipeError if the user's function cannot be found or does not return such images.
    """
    if draws is None:
        return images
    expected = (len(draws), 3, draws.image_size, draws.image_size)
    if images.shape != expected or images.dtype != torch.uint8:
        raise ValueError(f"images of {tuple(images.shape)} {images.dtype}; the draws are for {expected} torch.uint8")
    colour = torch.tensor([float(round(level)) for level in fill]).to(images.device, non_blocking=True)
    batch = _Batch(images.clone(memory_format=torch.contiguous_format), colour, draws.blur_radius)
    if draws.matrices is not None:
        batch.warp(np.flatnonzero(~identities(draws.matrices)), draws.matrices)
    for layer in draws.policy:
        batch.apply(layer)
    if draws.weights is not None:
        batch.mix(draws.chains, draws.weights)
    if draws.jitter is not None:
        changed = np.flatnonzero((draws.jitter != (1.0, 1.0, 1.0, 0.0)).any(axis=1))
        batch.each(changed, ops.jitter, draws.jitter[changed])
    for layer in draws.effects:
        batch.apply(layer)
    if draws.custom is not None:
        batch.images = _customised(batch.images, draws.custom, draws.keys)
    if draws.boxes is not None:
        ops.erase(batch.images, draws.boxes.tolist(), colour.to(torch.uint8))
    return _laid_out(batch.images, images)


class _Batch:
    """A contiguous copy of the images, and operations that change some of them in place."""

    def __init__(self, images: Tensor, fill: Tensor, blur_radius: int) -> None:
        self.images, self.fill, self.blur_radius = images, fill, blur_radius
        pixels = images[0].numel() if len(images) else 1
        self.piece = max(1, (_CPU_PIECE if images.device.type == "cpu" else _DEVICE_PIECE) // pixels)

    def each(self, rows: Rows, change: Callable[..., Tensor], *parameters: Floats) -> None:
        """Replaces the images ``rows`` (N,) by ``change(images, *parameters)``, a piece at a time; ``parameters`` have N rows."""
        if not len(rows):
            return
        device = self.images.device
        places = torch.from_numpy(np.ascontiguousarray(rows)).to(device, non_blocking=True)
        values = [torch.from_numpy(one.astype(np.float32)).to(device, non_blocking=True) for one in parameters]
        for start in range(0, len(rows), self.piece):
            piece = slice(start, start + self.piece)
            chosen = self.images.index_select(0, places[piece])
            changed = change(chosen, *(one[piece] for one in values))
            if device.type == "cpu":  # copies whole rows with memcpy; index_copy_ copies byte by byte, 30 times slower
                self.images.numpy()[rows[piece]] = changed.numpy()
            else:
                self.images.index_copy_(0, places[piece], changed)

    def warp(self, rows: Rows, matrices: Floats) -> None:
        """Warps the images ``rows`` by their ``matrices``; ``matrices`` has one for each image of the batch."""
        chosen = matrices[rows]
        for projective in (False, True):
            same_kind = (chosen[:, 2] != (0.0, 0.0, 1.0)).any(axis=1) == projective

            def change(images: Tensor, maps: Tensor, projective: bool = projective) -> Tensor:
                return warp(images, maps, self.fill, projective=projective)

            self.each(rows[same_kind], change, chosen[same_kind])

    def apply(self, layer: Layer) -> None:
        """Applies the operation of each image: all geometric ones in one warp, then the others, operation by operation."""
        order = np.argsort(layer.ops, kind="stable")
        bounds = np.searchsorted(layer.ops[order], np.arange(len(Op) + 1))
        geometric = order[bounds[Op.IDENTITY + 1] : bounds[LAST_GEOMETRIC + 1]]
        if len(geometric):
            matrices = np.zeros((len(order), 3, 3))
            side = self.images.shape[-1]
            matrices[geometric] = layer_matrices(layer.ops[geometric], layer.values[geometric], side)
            self.warp(geometric[~identities(matrices[geometric])], matrices)
        for op in Op:
            rows = order[bounds[op] : bounds[op + 1]]
            if op in _WITHOUT_VALUE:
                self.each(rows, _WITHOUT_VALUE[op])
            elif op in _WITH_VALUE:
                self.each(rows, _WITH_VALUE[op], layer.values[rows])
            elif op == Op.BLUR:
                self.each(rows, lambda images, sigma: ops.blur(images, sigma, self.blur_radius), layer.values[rows])

    def mix(self, chains: Sequence[Sequence[Layer]], weights: Floats) -> None:
        """Replaces each image by the weighted mean of itself and of the results of ``chains`` on it."""
        branches = [self.images]
        for chain in chains:
            branch = _Batch(self.images.clone(), self.fill, self.blur_radius)
            for layer in chain:
                branch.apply(layer)
            branches.append(branch.images)
        shares = torch.from_numpy(weights.astype(np.float32)).to(self.images.device, non_blocking=True)
        for start in range(0, len(self.images), self.piece):
            piece = slice(start, start + self.piece)
            mixed = torch.full((), 0.5, device=self.images.device)
            for branch, share in zip(branches, shares[piece].unbind(1), strict=True):
                mixed = mixed + ops.floats(branch[piece]).mul_(share[:, None, None, None])
            self.images[piece] = ops.levels(mixed.clamp_(0, 255))


def layer_matrices(codes: NDArray[np.int8], values: Floats, side: int) -> Floats:
    """Returns homographies (B, 3, 3) of the geometric operations ``codes`` (B,) with strengths ``values`` (B,) on images of
    ``side`` pixels."""

    def where(op: Op) -> Floats:
        return np.where(codes == op, values, 0.0)

    slopes = sheared(where(Op.SHEAR_X), where(Op.SHEAR_Y), pivot=-side / 2)
    shifts = moved(where(Op.TRANSLATE_X), where(Op.TRANSLATE_Y))
    return slopes @ rotated(-where(Op.ROTATE)) @ shifts  # each image has one of the three; the others are identities


def _customised(images: Tensor, name: str, keys: NDArray[np.uint64]) -> Tensor:
    given = load_custom(name)(images, keys)
    expected = (tuple(images.shape), images.dtype, images.device)
    if not isinstance(given, Tensor):
        check_custom(name, (type(given).__name__,), expected)
    check_custom(name, (tuple(given.shape), given.dtype, given.device), expected)
    return given


def _laid_out(planes: Tensor, like: Tensor) -> Tensor:
    """Returns ``planes`` in the memory format of ``like``."""
    if like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return planes.contiguous()
    laid_out = torch.empty_like(like)
    for channel in range(planes.shape[1]):  # on a CPU twice as fast as copying all three at once
        laid_out[:, channel] = planes[:, channel]
    return laid_out
