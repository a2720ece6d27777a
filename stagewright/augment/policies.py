"""Policies such as RandAugment: draws sequences of operations with their strengths, for whole batches at once.

Pure NumPy, no torch. The operations, their ranges and bins are those of torchvision's ``transforms.v2``, which follow the
papers' code. One difference: geometry is always bilinear, while torchvision's default is nearest neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stagewright import rng
from stagewright.recipe.recipe import Augment

Floats = NDArray[np.float64]

CHAINS = 3  # AugMix: chains, each of 1 to CHAIN_DEPTH operations
CHAIN_DEPTH = 3
_SEVERITY = 3  # AugMix: number of bins, out of ten, from which strengths are drawn, the weakest ones
_PER_OP = 3  # number of uniforms of one operation: which, sign, bin


class Op(IntEnum):
    """Operations of policies and of recipe fields, with the units of their values. SATURATION is torchvision's Color."""

    IDENTITY = 0
    SHEAR_X = 1  # slope, about the upper left corner
    SHEAR_Y = 2
    TRANSLATE_X = 3  # pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees, counter-clockwise
    BRIGHTNESS = 6  # factor
    CONTRAST = 7
    SATURATION = 8  # factor; 0 is grey
    SHARPNESS = 9
    POSTERIZE = 10  # bits that are kept
    SOLARIZE = 11  # lowest inverted level
    AUTOCONTRAST = 12
    EQUALIZE = 13
    INVERT = 14
    BLUR = 15  # standard deviation in pixels


LAST_GEOMETRIC = Op.ROTATE
_FACTORS = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.SHARPNESS)
_SIGNED = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, *_FACTORS)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One operation for each of B images."""

    ops: NDArray[np.int8]
    """int8 (B,): the :class:`Op` of each image."""
    values: Floats
    """float64 (B,): its strength in the unit of the operation, 0 if the operation has none."""


@dataclass(frozen=True, slots=True, eq=False)
class _Space:
    """The N operations from which a policy chooses, each with M bins of strength."""

    ops: NDArray[np.int8]
    """int8 (N,)."""
    values: Floats
    """float64 (N, M): strengths of the positive sign in the unit of the operation."""
    negative: Floats
    """float64 (N, M): strengths of the negative sign; the same as ``values`` for operations without a sign."""


@cache
def space(policy: str, image_size: int) -> _Space:
    """Returns the operations of ``randaugment`` (31 bins), ``trivialaugment`` (31) or ``augmix`` (10), for images of
    ``image_size`` pixels."""
    bins = 10 if policy == "augmix" else 31
    ranges = _ranges(policy, image_size)
    share = np.arange(bins) / (bins - 1)
    values = np.stack([low + (high - low) * share for low, high in ranges.values()])
    ops = np.array(list(ranges), dtype=np.int8)
    # A small number is added, since a product that should be a whole number may be slightly less in floating point.
    across = np.isin(ops, (Op.TRANSLATE_X, Op.TRANSLATE_Y))
    values[across] = np.floor(values[across] + 1e-6)
    values[ops == Op.POSTERIZE] = np.rint(values[ops == Op.POSTERIZE])
    centre = np.isin(ops, _FACTORS)[:, None].astype(np.float64)
    sign = np.where(np.isin(ops, _SIGNED), -1.0, 1.0)[:, None]
    return _Space(ops, centre + values, centre + sign * values)


def policy_layers(augment: Augment, keys: NDArray[np.uint64], image_size: int) -> tuple[Layer, ...]:
    """Draws the layers that ``augment.policy`` (not none or augmix) applies one after another to B images, from ``keys``
    (B,)."""
    if augment.policy == "three_augment":
        return (_three_augment(augment, rng.uniform(keys, 2)),)
    chosen = space(augment.policy, image_size)
    count = augment.policy_ops if augment.policy == "randaugment" else 1
    draws = rng.uniform(keys, count * _PER_OP).reshape(len(keys), count, _PER_OP)
    if augment.policy == "randaugment":
        strength = np.full(len(keys), augment.policy_magnitude)
        return tuple(_layer(chosen, draws[:, at], strength) for at in range(count))
    return (_layer(chosen, draws[:, 0], _below(draws[:, 0, 2], chosen.values.shape[1])),)


def augmix_chains(keys: NDArray[np.uint64], image_size: int) -> tuple[tuple[tuple[Layer, ...], ...], Floats]:
    """Draws AugMix's chains of layers for B images, from ``keys`` (B,), and the weights (B, 1 + CHAINS) of the image itself and
    of each chain's result: Beta(1, 1) between image and chains, Dirichlet(1, 1, 1) among the chains.

    The paper's consistency loss is not included: it would need a training step with three versions of every image.
    """
    chosen = space("augmix", image_size)
    draws = rng.uniform(keys, CHAINS * (1 + CHAIN_DEPTH * _PER_OP) + 1 + CHAINS)
    own, parts = draws[:, 0], -np.log1p(-draws[:, 1 : 1 + CHAINS])  # normalised exponentials are Dirichlet(1, 1, 1)
    of_chains = draws[:, 1 + CHAINS :].reshape(len(keys), CHAINS, 1 + CHAIN_DEPTH * _PER_OP)
    chains = tuple(_chain(chosen, of_chains[:, at]) for at in range(CHAINS))
    shares = parts / np.maximum(parts.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return chains, np.concatenate([own[:, None], (1 - own[:, None]) * shares], axis=1)


def _chain(chosen: _Space, uniforms: Floats) -> tuple[Layer, ...]:
    depth = 1 + _below(uniforms[:, 0], CHAIN_DEPTH)
    layers = []
    for at in range(CHAIN_DEPTH):
        of_op = uniforms[:, 1 + at * _PER_OP : 1 + (at + 1) * _PER_OP]
        layer = _layer(chosen, of_op, _below(of_op[:, 2], _SEVERITY))
        layers.append(Layer(np.where(at < depth, layer.ops, np.int8(Op.IDENTITY)), layer.values))
    return tuple(layers)


def _layer(chosen: _Space, uniforms: Floats, bins: NDArray[np.integer]) -> Layer:
    """Returns the layer drawn from ``uniforms`` (B, 2 or more: which, sign); ``bins`` (B,) are the bins of the strengths."""
    which = _below(uniforms[:, 0], len(chosen.ops))
    values = np.where(uniforms[:, 1] < 0.5, chosen.negative[which, bins], chosen.values[which, bins])
    return Layer(chosen.ops[which], values)


def _three_augment(augment: Augment, uniforms: Floats) -> Layer:
    """Returns a layer that applies grayscale, solarize or blur, each with probability 1/3."""
    sigma = augment.blur_sigma[0] + (augment.blur_sigma[1] - augment.blur_sigma[0]) * uniforms[:, 1]
    which = _below(uniforms[:, 0], 3)
    ops = np.array([Op.SATURATION, Op.SOLARIZE, Op.BLUR], dtype=np.int8)
    values = np.select([which == 1, which == 2], [np.full(len(which), float(augment.solarize_threshold)), sigma])
    return Layer(ops[which], values)


def _ranges(policy: str, image_size: int) -> dict[Op, tuple[float, float]]:
    """Returns the strengths at the lowest and the highest bin of each operation, in torchvision's order; for factors their
    difference from 1."""
    wide, mix = policy == "trivialaugment", policy == "augmix"
    slope, degrees, factor = (0.99, 135.0, 0.99) if wide else (0.3, 30.0, 0.9)
    pixels = 32.0 if wide else image_size / 3 if mix else image_size * 150 / 331
    geometric = {op: (0.0, slope) for op in (Op.SHEAR_X, Op.SHEAR_Y)}
    geometric |= {op: (0.0, pixels) for op in (Op.TRANSLATE_X, Op.TRANSLATE_Y)} | {Op.ROTATE: (0.0, degrees)}
    colour = {op: (0.0, factor) for op in (Op.BRIGHTNESS, Op.SATURATION, Op.CONTRAST, Op.SHARPNESS)}
    bits = (8.0, 2.0) if wide else (4.0, 0.0) if mix else (8.0, 4.0)
    levels = {Op.POSTERIZE: bits, Op.SOLARIZE: (255.0, 0.0), Op.AUTOCONTRAST: (0.0, 0.0), Op.EQUALIZE: (0.0, 0.0)}
    return geometric | levels | colour if mix else {Op.IDENTITY: (0.0, 0.0)} | geometric | colour | levels


def _below(draw: Floats, count: int) -> NDArray[np.int64]:
    """Returns whole numbers in [0, count) from uniforms in [0, 1)."""
    return (draw * count).astype(np.int64)
