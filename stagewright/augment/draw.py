"""Draws the parameters of all augmentations except crop and flip, from keys, for whole batches at once.

Pure NumPy, no torch. The draws of a sample depend only on (seed, pass, row), not on its batch. Every operation has its own
key, so that switching one on does not change the draws of the others or the crop.
:func:`stagewright.augment.pipeline.augment` applies the draws and defines their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright import rng
from stagewright.augment.matrices import moved, rotated, sheared, tilted, zoomed
from stagewright.augment.policies import Layer, Op, augmix_chains, policy_layers
from stagewright.recipe.recipe import Augment

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]

_ERASING_TRIES = 10  # torchvision's number of attempts at a rectangle that fits


class _Draw(IntEnum):
    """The operation that a key belongs to. The numbers never change, so that a new operation does not change the draws of the
    others."""

    ROTATION = 1
    TRANSLATE = 2
    ZOOM = 3
    SHEAR = 4
    PERSPECTIVE = 5
    POLICY = 6
    JITTER = 7
    GRAYSCALE = 8
    INVERT = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTOCONTRAST = 12
    EQUALIZE = 13
    SHARPNESS = 14
    BLUR = 15
    CUSTOM = 16
    ERASING = 17


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The augmentation of each of B images of ``image_size`` x ``image_size`` pixels. Fields of operations that the recipe
    does not use are None or empty."""

    image_size: int
    keys: NDArray[np.uint64]
    """uint64 (B,): keys from which a user's function may draw."""
    matrices: Floats | None
    """float64 (B, 3, 3): homographies from points of the output to points of the input, as in
    :mod:`stagewright.augment.matrices`."""
    policy: tuple[Layer, ...]
    """Operations that are applied one after another."""
    chains: tuple[tuple[Layer, ...], ...]
    """AugMix: parallel chains of operations."""
    weights: Floats | None
    """AugMix: float64 (B, 1 + chains): weights of the input image and of each chain's result; each row sums to 1."""
    jitter: Floats | None
    """float64 (B, 4): factors of brightness, contrast and saturation, and the rotation of the hue; (1, 1, 1, 0) is no change."""
    effects: tuple[Layer, ...]
    """Single operations that are applied one after another; a layer applies its operation to some of the images."""
    blur_radius: int
    """Radius of the blur kernel in pixels. It is that of the recipe's largest sigma, so that it does not depend on the batch."""
    custom: str | None
    """``module:function`` of the user's function."""
    boxes: NDArray[np.int64] | None
    """int64 (B, 4): top, bottom, left, right of the erased rectangle in pixels; empty if nothing is erased."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, at: slice | Ints) -> Draws:
        """Returns the draws of the samples ``at``, a slice or indices (B',); slices give views."""
        return _combined([self], lambda arrays: arrays[0][at])


def concatenate(parts: Sequence[Draws]) -> Draws:
    """Joins the draws of one or more batches, with equal recipe and image size, to those of one batch."""
    return _combined(parts, np.concatenate)


def draw(augment: Augment, seed: int, rows: Ints, passes: Ints, image_size: int) -> Draws | None:
    """Draws the augmentations of B samples, except crop and flip, from the key (seed, pass, row) of each. Returns None if the
    recipe uses none.

    ``rows`` (manifest rows) and ``passes`` have shape (B,). ``image_size`` is the side of the images in pixels.
    """
    samples = _Samples(augment, seed, rows, passes, image_size)
    matrices, jitter, effects, boxes = samples.matrices(), samples.jitter(), samples.effects(), samples.boxes()
    policy: tuple[Layer, ...] = ()
    chains, weights = (), None
    if augment.policy == "augmix":
        chains, weights = augmix_chains(samples.keys(_Draw.POLICY), image_size)
    elif augment.policy != "none":
        policy = policy_layers(augment, samples.keys(_Draw.POLICY), image_size)
    found = (matrices, weights, jitter, boxes, augment.custom)
    if all(one is None for one in found) and not policy and not effects:
        return None
    return Draws(
        image_size=image_size,
        keys=samples.keys(_Draw.CUSTOM),
        matrices=matrices,
        policy=policy,
        chains=chains,
        weights=weights,
        jitter=jitter,
        effects=effects,
        blur_radius=min(math.ceil(3 * augment.blur_sigma[1]), image_size - 1),
        custom=augment.custom,
        boxes=boxes,
    )


@dataclass(frozen=True, eq=False)
class _Samples:
    """Draws each kind of augmentation for the samples of a batch, with a different key for each operation."""

    augment: Augment
    seed: int
    rows: Ints
    passes: Ints
    image_size: int

    @cached_property
    def base(self) -> NDArray[np.uint64]:
        """The keys of the samples, uint64 (B,); computed when first needed, so that a recipe without augmentation costs
        nothing."""
        return rng.keys(self.seed, rng.Stream.AUGMENT, self.passes, self.rows)

    def keys(self, of: _Draw) -> NDArray[np.uint64]:
        return rng.keys(self.base, of)

    def uniform(self, of: _Draw, count: int) -> Floats:
        return rng.uniform(self.keys(of), count)

    def within(self, of: _Draw, spread: float) -> Floats:
        """Returns (B, 2) numbers, uniform in [-spread, spread)."""
        return spread * (2 * self.uniform(of, 2) - 1)

    def matrices(self) -> Floats | None:
        """Returns (B, 3, 3) for zoom, shear, rotation, translation, then perspective, as in torchvision's RandomAffine followed
        by RandomPerspective; None if none of them is on."""
        augment, parts = self.augment, []
        if augment.zoom != (1.0, 1.0):
            parts.append(zoomed(_between(self.uniform(_Draw.ZOOM, 1)[:, 0], *augment.zoom)))
        if augment.shear:
            parts.append(sheared(*np.tan(np.radians(self.within(_Draw.SHEAR, augment.shear))).T))
        if augment.rotation:
            parts.append(rotated(self.within(_Draw.ROTATION, augment.rotation)[:, 0]))
        if augment.translate:
            parts.append(moved(*self.within(_Draw.TRANSLATE, augment.translate * self.image_size).T))
        if augment.perspective and augment.perspective_probability:
            parts.append(self._tilted())
        if not parts:
            return None
        product = parts[0]
        for part in parts[1:]:
            product = product @ part
        return product

    def _tilted(self) -> Floats:
        chance, *moves = self.uniform(_Draw.PERSPECTIVE, 9).T
        inwards = np.stack(moves, axis=1).reshape(len(chance), 4, 2) * self.augment.perspective
        signs = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
        tilted_ = tilted(signs * (1 - inwards), self.image_size)
        return np.where((chance < self.augment.perspective_probability)[:, None, None], tilted_, np.eye(3))

    def jitter(self) -> Floats | None:
        augment = self.augment
        spreads = np.array([augment.brightness, augment.contrast, augment.saturation, augment.hue])
        if not spreads.any() or not augment.jitter_probability:
            return None
        chance, *uniforms = self.uniform(_Draw.JITTER, 5).T
        plain = np.array([1.0, 1.0, 1.0, 0.0])
        low = np.maximum(plain - spreads, [0.0, 0.0, 0.0, -0.5])
        drawn = low + (plain + spreads - low) * np.stack(uniforms, axis=1)
        return np.where((chance < augment.jitter_probability)[:, None], drawn, plain)

    def effects(self) -> tuple[Layer, ...]:
        augment = self.augment
        layers = [
            self._effect(_Draw.GRAYSCALE, augment.grayscale, Op.SATURATION),
            self._effect(_Draw.INVERT, augment.invert, Op.INVERT),
            self._effect(_Draw.POSTERIZE, augment.posterize, Op.POSTERIZE, augment.posterize_bits),
            self._effect(_Draw.SOLARIZE, augment.solarize, Op.SOLARIZE, augment.solarize_threshold),
            self._effect(_Draw.AUTOCONTRAST, augment.autocontrast, Op.AUTOCONTRAST),
            self._effect(_Draw.EQUALIZE, augment.equalize, Op.EQUALIZE),
            self._effect(_Draw.SHARPNESS, augment.sharpness, Op.SHARPNESS, augment.sharpness_factor),
            self._effect(_Draw.BLUR, augment.blur, Op.BLUR, *augment.blur_sigma),
        ]
        return tuple(layer for layer in layers if layer is not None)

    def _effect(
        self, of: _Draw, probability: float, op: Op, low: float = 0.0, high: float | None = None
    ) -> Layer | None:
        """Returns a layer that applies ``op`` with ``probability`` and a value uniform in [low, high), or ``low`` if ``high`` is
        None; returns None if the probability is 0."""
        if not probability:
            return None
        chance, value = self.uniform(of, 2).T
        ops = np.where(chance < probability, np.int8(op), np.int8(Op.IDENTITY))
        return Layer(ops, _between(value, low, low if high is None else high))

    def boxes(self) -> NDArray[np.int64] | None:
        """Returns the rectangles to erase, int64 (B, 4), drawn like torchvision's RandomErasing: the first of ten tries that
        fits, or an empty one; None if erasing is off."""
        augment, side = self.augment, self.image_size
        if not augment.erasing:
            return None
        draws = self.uniform(_Draw.ERASING, 3 + 2 * _ERASING_TRIES)
        tries = draws[:, 3:].reshape(len(draws), _ERASING_TRIES, 2)
        area = side * side * _between(tries[..., 0], *augment.erasing_scale)
        ratio = np.exp(_between(tries[..., 1], *np.log(augment.erasing_ratio)))
        heights, widths = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (heights < side) & (widths < side)
        first = np.arange(len(fits)), fits.argmax(axis=1)
        erased = (draws[:, 0] < augment.erasing) & fits.any(axis=1)
        height, width = np.where(erased, heights[first], 0), np.where(erased, widths[first], 0)
        top, left = np.floor(draws[:, 1] * (side - height + 1)), np.floor(draws[:, 2] * (side - width + 1))
        return np.stack([top, top + height, left, left + width], axis=1).astype(np.int64)


def _between(uniform: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * uniform


def _combined(parts: Sequence[Any], combine: Callable[[Sequence[NDArray[Any]]], NDArray[Any]]) -> Any:
    """Combines Draws, Layers or tuples of them: ``combine`` is called with the corresponding arrays of all ``parts``."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        return combine(parts)
    if isinstance(first, tuple):
        return tuple(_combined(of_place, combine) for of_place in zip(*parts, strict=True))
    if isinstance(first, Draws | Layer):
        names = [one.name for one in fields(first)]
        return type(first)(*(_combined([getattr(part, name) for part in parts], combine) for name in names))
    return first
