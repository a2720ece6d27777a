"""Every colour operation beside torchvision's on one picture at a time, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stagewright.augment import ops

RADIUS = 6


@dataclass(frozen=True)
class Case:
    ours: Callable[[Tensor, Tensor], Tensor]
    theirs: Callable[[Tensor, float], Tensor]
    values: list[float]
    """The first comes first, then all others in turn."""
    levels: int = 0
    """Levels that may differ: 1 where the last bit of a float decides on which side of a whole level a value falls."""
    share: float = 0.0
    """Share of the values that may differ."""


def spread(low: float, high: float) -> list[float]:
    """Both ends and numbers between that are nothing special."""
    return [low, high, *np.random.default_rng(0).uniform(low, high, 22).astype(np.float32).tolist()]


CASES = {
    "brightness": Case(ops.brightness, tv.adjust_brightness, spread(0, 2.5)),
    "contrast": Case(ops.contrast, tv.adjust_contrast, spread(0, 2.5), 1, 0.005),
    # where a pixel is its own grey, x * f + x * (1 - f) falls short of x now and then; a lerp does not
    "saturation": Case(ops.saturation, tv.adjust_saturation, spread(0, 2.5), 1, 0.02),
    "greyscale": Case(ops.saturation, lambda one, _: tv.rgb_to_grayscale(one, 3), [0.0]),
    "sharpness": Case(ops.sharpness, tv.adjust_sharpness, spread(0, 2.5), 1, 0.005),
    # torchvision cuts off 255.999 times the colour, here the level is rounded
    "hue": Case(ops.hue, tv.adjust_hue, spread(-0.5, 0.5), 1, 0.1),
    "posterize": Case(
        ops.posterize, lambda one, bits: tv.posterize(one, int(bits)), [float(bits) for bits in range(9)]
    ),
    "solarize": Case(ops.solarize, tv.solarize, spread(0, 255)),
    "autocontrast": Case(lambda images, _: ops.autocontrast(images), lambda one, _: tv.autocontrast(one), [0.0]),
    "equalize": Case(lambda images, _: ops.equalize(images), lambda one, _: tv.equalize(one), [0.0]),
    "invert": Case(lambda images, _: ops.invert(images), lambda one, _: tv.invert(one), [0.0]),
    "blur": Case(
        lambda images, sigma: ops.blur(images, sigma, RADIUS),
        lambda one, sigma: tv.gaussian_blur(one, [2 * RADIUS + 1] * 2, [sigma, sigma]),
        spread(0.1, 2.0),
        1,
        0.002,
    ),
}


def check(case: Case, images: Tensor) -> None:
    before = images.clone()
    for turn in range(3):  # so that different pictures meet different values
        values = [case.values[(at + 5 * turn) % len(case.values)] for at in range(len(images))]
        ours = case.ours(images, torch.tensor(values))
        theirs = torch.stack([case.theirs(one, value) for one, value in zip(images, values, strict=True)])
        assert ours.shape == images.shape and ours.dtype == torch.uint8
        apart = (ours.int() - theirs.int()).abs()
        assert apart.max() <= case.levels
        assert (apart > 0).float().mean() <= case.share
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_torchvision_picture_by_picture(name: str, channels_last: bool, pictures: Tensor) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    check(CASES[name], pictures.contiguous(memory_format=layout))


@pytest.mark.parametrize("name", CASES)
def test_equals_torchvision_on_photographs(name: str, photographs: Tensor) -> None:
    check(CASES[name], photographs)


@pytest.mark.parametrize(
    ("change", "identity"),
    [
        (ops.brightness, 1.0),
        (ops.contrast, 1.0),
        (ops.saturation, 1.0),
        (ops.sharpness, 1.0),
        (ops.hue, 0.0),
        (ops.posterize, 8.0),
        (lambda images, sigma: ops.blur(images, sigma, RADIUS), 0.01),
    ],
)
def test_the_identity_changes_no_bit(
    change: Callable[[Tensor, Tensor], Tensor], identity: float, pictures: Tensor
) -> None:
    assert torch.equal(change(pictures, torch.full((len(pictures),), identity)), pictures)


def test_every_picture_has_its_own_strength(pictures: Tensor) -> None:
    """A batch is its pictures one by one, bit for bit: nothing is taken from a neighbour."""
    factors = torch.linspace(0.3, 1.9, len(pictures))
    sigmas = torch.linspace(0.2, 2.0, len(pictures))
    for change, values in [
        (ops.contrast, factors),
        (ops.saturation, factors),
        (ops.sharpness, factors),
        (lambda images, sigma: ops.blur(images, sigma, RADIUS), sigmas),
        (lambda images, _: ops.equalize(images), factors),
        (lambda images, _: ops.autocontrast(images), factors),
    ]:
        alone = [change(pictures[at : at + 1], values[at : at + 1]) for at in range(len(pictures))]
        assert torch.equal(change(pictures, values), torch.cat(alone))


def test_jitter_is_its_four_parts_in_order_rounded_once(pictures: Tensor) -> None:
    random = np.random.default_rng(1)
    factors = np.concatenate([random.uniform(0.5, 1.5, (len(pictures), 3)), random.uniform(-0.2, 0.2, (24, 1))], axis=1)
    theirs = []
    for one, (bright, contrasted, saturated, turn) in zip(pictures, factors.tolist(), strict=True):
        exact = tv.adjust_brightness(one.double() / 255, bright)
        exact = tv.adjust_contrast(exact, contrasted)
        theirs.append(tv.adjust_hue(tv.adjust_saturation(exact, saturated), turn) * 255)
    ours = ops.jitter(pictures, torch.from_numpy(factors).float())
    # torchvision's hue works in float32, and half a level is what rounding moves.
    assert (ours.double() - torch.stack(theirs).double()).abs().max() < 0.51


def test_jitter_by_nothing_changes_no_bit(pictures: Tensor) -> None:
    assert torch.equal(ops.jitter(pictures, torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(len(pictures), 4)), pictures)


def test_erasing_fills_boxes_and_nothing_else(pictures: Tensor) -> None:
    images, fill = pictures[:3].clone(), torch.tensor([1, 2, 3], dtype=torch.uint8)
    ops.erase(images, [[3, 9, 0, 40], [0, 0, 0, 0], [39, 40, 5, 6]], fill)
    expected = pictures[:3].clone()
    for channel in range(3):
        expected[0, channel, 3:9] = channel + 1
        expected[2, channel, 39, 5] = channel + 1
    assert torch.equal(images, expected)


def test_tiny_pictures() -> None:
    tiny = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    assert ops.blur(tiny, torch.tensor([2.0, 0.1]), 3).shape == tiny.shape
    assert torch.equal(ops.sharpness(tiny[:, :, :2], torch.tensor([2.0, 0.0])), tiny[:, :, :2])
