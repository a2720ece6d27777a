"""Warps beside torchvision's, the algebra of homographies, and what lies outside a picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stagewright.augment.matrices import identities, moved, rotated, sheared, tilted, zoomed
from stagewright.augment.pipeline import layer_matrices
from stagewright.augment.policies import Op
from stagewright.augment.warp import warp

FILL = (124.0, 116.0, 104.0)
BILINEAR = InterpolationMode.BILINEAR
SQUARE = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


def warped(images: Tensor, matrices: NDArray[np.float64], *, projective: bool = True) -> Tensor:
    return warp(images, torch.from_numpy(matrices).float(), torch.tensor(FILL), projective=projective)


def same(ours: Tensor, images: Tensor, theirs: Callable[[Tensor, int], Tensor]) -> None:
    """``theirs`` warps floats, zero outside. Both sample at float32 coordinates that differ in their last bits, so that a
    value may fall on the other side of a half: one level everywhere, the edge included.

    torchvision's own ``fill`` weighs the pixels at the edge twice (its zeros are blended in, then its mask), which is why
    a picture less its fill is what is compared."""
    fill = torch.tensor(FILL)[:, None, None]
    expected = torch.stack([theirs(one.float() - fill, at) + fill for at, one in enumerate(images)])
    assert ours.shape == images.shape and ours.dtype == torch.uint8
    apart = (ours.float() - expected.round()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.002


def numbers(low: float, high: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(low, high, count)


@pytest.mark.parametrize("channels_last", [False, True])
def test_affine_equals_torchvision(pictures: Tensor, channels_last: bool) -> None:
    count = len(pictures)
    angles, factors = numbers(-180, 180, count), numbers(0.5, 2, count, 1)
    x, y = numbers(-20, 20, 2 * count, 2).reshape(2, -1)
    shear_x, shear_y = numbers(-50, 50, 2 * count, 3).reshape(2, -1)
    slopes = np.tan(np.radians(shear_x)), np.tan(np.radians(shear_y))
    matrices = zoomed(factors) @ sheared(*slopes) @ rotated(angles) @ moved(x, y)
    images = pictures.contiguous(memory_format=torch.channels_last) if channels_last else pictures

    def theirs(one: Tensor, at: int) -> Tensor:
        move, shear = [float(x[at]), float(y[at])], [float(shear_x[at]), float(shear_y[at])]
        return tv.affine(one, float(angles[at]), move, float(factors[at]), shear, BILINEAR)

    same(warped(images, matrices), images, theirs)
    assert torch.equal(warped(images, matrices), warped(images, matrices, projective=False))


def policy_reference(op: Op, value: float, one: Tensor) -> Tensor:
    """As torchvision's policies apply a geometric operation."""
    slope = math.degrees(math.atan(value))
    if op == Op.SHEAR_X:
        return tv.affine(one, 0.0, [0, 0], 1.0, [slope, 0.0], BILINEAR, center=[0, 0])
    if op == Op.SHEAR_Y:
        return tv.affine(one, 0.0, [0, 0], 1.0, [0.0, slope], BILINEAR, center=[0, 0])
    if op == Op.TRANSLATE_X:
        return tv.affine(one, 0.0, [int(value), 0], 1.0, [0.0, 0.0], BILINEAR)
    if op == Op.TRANSLATE_Y:
        return tv.affine(one, 0.0, [0, int(value)], 1.0, [0.0, 0.0], BILINEAR)
    return tv.rotate(one, value, BILINEAR)


@pytest.mark.parametrize(
    ("op", "low", "high"),
    [
        *((Op.SHEAR_X, -0.99, 0.99), (Op.SHEAR_Y, -0.99, 0.99), (Op.ROTATE, -135, 135)),
        *((Op.TRANSLATE_X, -32, 32), (Op.TRANSLATE_Y, -32, 32)),
    ],
)
def test_operations_of_policies_equal_torchvision(op: Op, low: float, high: float, photographs: Tensor) -> None:
    values = numbers(low, high, len(photographs))
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        values = np.trunc(values)
    matrices = layer_matrices(np.full(len(values), op, dtype=np.int8), values, photographs.shape[-1])
    same(warped(photographs, matrices), photographs, lambda one, at: policy_reference(op, float(values[at]), one))


def test_interior_equals_torchvision_with_its_fill(photographs: Tensor) -> None:
    """The way torchvision is called in practice, where its edge (see ``same``) is out of sight."""
    angles = numbers(-45, 45, len(photographs))
    ours = warped(photographs, rotated(-angles))
    for at, one in enumerate(photographs):
        theirs = tv.rotate(one, float(angles[at]), BILINEAR, fill=list(FILL))
        inside = tv.rotate(torch.ones(1, *one.shape[1:]), float(angles[at]), BILINEAR)[0] == 1
        assert inside.float().mean() > 0.5
        assert (ours[at].int() - theirs.int()).abs()[:, inside].max() <= 1


def corners_of(distortion: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    return SQUARE * (1 - distortion * np.random.default_rng(seed).uniform(size=(count, 4, 2)))


def test_perspective_equals_torchvision(pictures: Tensor) -> None:
    side = pictures.shape[-1]
    corners = corners_of(0.5, len(pictures))
    start = ((SQUARE + 1) * side / 2).tolist()

    def theirs(one: Tensor, at: int) -> Tensor:
        return tv.perspective(one, start, ((corners[at] + 1) * side / 2).tolist(), BILINEAR)

    same(warped(pictures, tilted(corners, side)), pictures, theirs)


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**20), st.integers(4, 300))
def test_corners_of_the_view_come_from_the_corners_of_the_picture(distortion: float, seed: int, side: int) -> None:
    corners = corners_of(distortion, 5, seed)
    points = np.concatenate([corners * side / 2, np.ones((5, 4, 1))], axis=2)
    mapped = np.einsum("bij,bkj->bki", tilted(corners, side), points)
    found = mapped[..., :2] / mapped[..., 2:]
    assert np.allclose(found, np.broadcast_to(SQUARE * side / 2, found.shape), atol=1e-5 * side)


def test_a_folded_perspective_shows_nothing_from_behind_the_eye() -> None:
    """Beyond two thirds four corners may not be convex; every pixel is then the plane's before the eye, or fill."""
    side, corners = 24, corners_of(1.0, 300, 5)
    matrices = tilted(corners, side)
    images = torch.full((300, 3, side, side), 255, dtype=torch.uint8)
    seen = (warped(images, matrices)[:, 0] > FILL[0] + 1).numpy()
    centres = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(centres, centres)
    points = np.einsum("bij,jhw->bihw", matrices, np.stack([x, y, np.ones_like(x)]))
    before = points[:, 2] > 0
    with np.errstate(divide="ignore"):
        inside = before & (np.abs(points[:, :2] / points[:, 2:]) < side / 2 - 0.5).all(axis=1)
        outside = ~before | (np.abs(points[:, :2] / points[:, 2:]) > side / 2 + 0.5).any(axis=1)
    assert (~before).any() and seen[inside].all() and not seen[outside].any()


def test_corners_on_one_line_leave_the_picture_as_it_is() -> None:
    flat = np.stack([np.zeros((4, 2)), SQUARE * [1.0, 0.0], np.array([(-1, -1), (0, 0), (1, 1), (-1, 1)])])
    matrices = tilted(flat.astype(np.float64), 32)
    assert np.isfinite(matrices).all() and identities(matrices)[:2].all()


def test_the_identity_changes_no_bit(pictures: Tensor) -> None:
    eye = np.broadcast_to(np.eye(3), (len(pictures), 3, 3)).copy()
    assert torch.equal(warped(pictures, eye), pictures)
    assert torch.equal(warped(pictures, tilted(corners_of(0.0, len(pictures)), 40)), pictures)


@pytest.mark.parametrize("side", [4, 5, 32, 224])
def test_whole_pixels_move_exactly_and_turns_transpose(side: int) -> None:
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifted = warped(images, moved(np.array([1, -2, 0, 3]), np.array([0, 1, -1, 2])))
    assert torch.equal(shifted[0, :, :, 1:], images[0, :, :, :-1])
    assert torch.equal(shifted[1, :, 1:, :-2], images[1, :, :-1, 2:])
    assert torch.equal(shifted[3, :, 2:, 3:], images[3, :, :-2, :-3])
    assert torch.equal(shifted[0, :, :, 0], torch.tensor(FILL).to(torch.uint8)[:, None].expand(3, side))
    turned = warped(images, rotated(np.array([90.0, 180.0, -90.0, 360.0])))
    for at, quarters in enumerate((-1, 2, 1, 0)):
        assert torch.equal(turned[at], torch.rot90(images[at], quarters, (1, 2)))


def test_oblong_pictures() -> None:
    images = torch.randint(0, 256, (2, 3, 20, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same(
        warped(images, rotated(np.array([30.0, -70.0]))),
        images,
        lambda one, at: tv.rotate(one, (-30, 70)[at], BILINEAR),
    )


def test_identities_are_told_from_the_rest() -> None:
    matrices = np.concatenate([rotated([0.0, 1e-12]), moved([0.0], [0.0]), zoomed([1.0]), sheared([0.0], [1e-9])])
    assert identities(matrices).tolist() == [True, False, True, True, False]
