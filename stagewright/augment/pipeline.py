"""Applies the draws of a batch to its pictures, on the device they lie on, before they are normalised.

In this order: geometry (all of it in one warp), the policy, brightness-contrast-saturation-hue, greyscale, inversion,
posterize, solarize, autocontrast, equalize, sharpness, blur, the function of one's own, erasing. Each operation sees only
the pictures that need it, so one that needs nothing comes back bit for bit. Which those are is known on the host
from the draws: nothing here waits for the device.
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

# Bytes of pictures that are worked on at a time. On a CPU the floats of one piece stay in a core's cache and their
# memory is used again: 30 times faster than 64 pictures of 224 at once. Elsewhere it bounds the memory.
_CPU_PIECE, _DEVICE_PIECE = 2**19, 2**25

_PLAIN: dict[Op, Callable[[Tensor], Tensor]] = {
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
    """``images``, uint8 (B, 3, S, S) with S the draws' image size, with ``draws`` done to them: the same shape, dtype,
    device and memory layout. ``images`` is never written to, and handed on where ``draws`` is None.

    ``fill`` is the colour, R, G and B in 0 .. 255, around what geometry moves and in what is erased: the mean that
    pictures are normalised with, times 255. RecipeError if a function of one's own cannot be found or gives something
    else than pictures.
    """
    if draws is None:
        return images
    wanted = (len(draws), 3, draws.image_size, draws.image_size)
    if images.shape != wanted or images.dtype != torch.uint8:
        raise ValueError(f"pictures of {tuple(images.shape)} {images.dtype}; the draws are for {wanted} torch.uint8")
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
    """Pictures as planes that belong to us, and what is done to some of them in place."""

    def __init__(self, images: Tensor, fill: Tensor, blur_radius: int) -> None:
        self.images, self.fill, self.blur_radius = images, fill, blur_radius
        pixels = images[0].numel() if len(images) else 1
        self.piece = max(1, (_CPU_PIECE if images.device.type == "cpu" else _DEVICE_PIECE) // pixels)

    def each(self, rows: Rows, change: Callable[..., Tensor], *parameters: Floats) -> None:
        """``change(images, *parameters)`` for the pictures of ``rows`` (N,), piece by piece; ``parameters`` have N rows."""
        if not len(rows):
            return
        device = self.images.device
        places = torch.from_numpy(np.ascontiguousarray(rows)).to(device, non_blocking=True)
        values = [torch.from_numpy(one.astype(np.float32)).to(device, non_blocking=True) for one in parameters]
        for start in range(0, len(rows), self.piece):
            piece = slice(start, start + self.piece)
            chosen = self.images.index_select(0, places[piece])
            changed = change(chosen, *(one[piece] for one in values))
            if device.type == "cpu":  # whole rows by memcpy; index_copy_ goes byte by byte, 30 times slower
                self.images.numpy()[rows[piece]] = changed.numpy()
            else:
                self.images.index_copy_(0, places[piece], changed)

    def warp(self, rows: Rows, matrices: Floats) -> None:
        """The pictures of ``rows`` as their ``matrices`` (of the whole batch) say."""
        chosen = matrices[rows]
        for projective in (False, True):
            alike = (chosen[:, 2] != (0.0, 0.0, 1.0)).any(axis=1) == projective

            def change(images: Tensor, maps: Tensor, projective: bool = projective) -> Tensor:
                return warp(images, maps, self.fill, projective=projective)

            self.each(rows[alike], change, chosen[alike])

    def apply(self, layer: Layer) -> None:
        """One operation for each picture: all geometric ones in one warp, then operation by operation."""
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
            if op in _PLAIN:
                self.each(rows, _PLAIN[op])
            elif op in _WITH_VALUE:
                self.each(rows, _WITH_VALUE[op], layer.values[rows])
            elif op == Op.BLUR:
                self.each(rows, lambda images, sigma: ops.blur(images, sigma, self.blur_radius), layer.values[rows])

    def mix(self, chains: Sequence[Sequence[Layer]], weights: Floats) -> None:
        """Each picture becomes the weighted mean of itself and of what each of ``chains`` makes of it."""
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
    """Homographies (B, 3, 3) of geometric operations ``codes`` (B,) of strength ``values`` on pictures of ``side`` pixels."""

    def where(op: Op) -> Floats:
        return np.where(codes == op, values, 0.0)

    slopes = sheared(where(Op.SHEAR_X), where(Op.SHEAR_Y), pivot=-side / 2)
    shifts = moved(where(Op.TRANSLATE_X), where(Op.TRANSLATE_Y))
    return slopes @ rotated(-where(Op.ROTATE)) @ shifts  # each picture has one of the three; the others are identities


def _customised(images: Tensor, name: str, keys: NDArray[np.uint64]) -> Tensor:
    given = load_custom(name)(images, keys)
    wanted = (tuple(images.shape), images.dtype, images.device)
    if not isinstance(given, Tensor):
        check_custom(name, (type(given).__name__,), wanted)
    check_custom(name, (tuple(given.shape), given.dtype, given.device), wanted)
    return given


def _laid_out(planes: Tensor, like: Tensor) -> Tensor:
    """``planes`` in the memory layout of ``like``."""
    if like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return planes.contiguous()
    laid_out = torch.empty_like(like)
    for channel in range(planes.shape[1]):  # twice as fast on a CPU as a copy of all three at once
        laid_out[:, channel] = planes[:, channel]
    return laid_out
