from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torchvision.transforms import RandomResizedCrop

from stagewright import rng
from stagewright.augment.geometry import Geometry, eval_boxes, eval_geometry, train_geometry
from stagewright.recipe.recipe import Augment, Evaluation

RESIZED = Augment()
PAD = Augment(crop="pad")
EVALUATION = Evaluation()
SIDES = st.integers(1, 700)


def draw(
    augment: Augment,
    count: int,
    width: int,
    height: int,
    *,
    seed: int = 0,
    first_row: int = 0,
    pass_index: int = 0,
    image_size: int = 512,
    evaluation: Evaluation = EVALUATION,
) -> Geometry:
    rows = np.arange(first_row, first_row + count)
    widths, heights = np.full(count, width, dtype=np.int32), np.full(count, height, dtype=np.int32)
    return train_geometry(augment, seed, rows, np.full(count, pass_index), widths, heights, image_size, evaluation)


def torchvision_box(uniforms: list[float], width: int, height: int, augment: Augment) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params line by line, fed with given uniforms: x, y, then (area, ratio) of each try."""
    x, y, *tries = uniforms
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for at in range(0, 20, 2):
        area = width * height * (augment.scale[0] + (augment.scale[1] - augment.scale[0]) * tries[at])
        ratio = math.exp(low + (high - low) * tries[at + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = math.floor(x * (width - w + 1)), math.floor(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < min(augment.ratio):
        h = max(1, round(w / min(augment.ratio)))
    elif width / height > max(augment.ratio):
        w = max(1, round(h * max(augment.ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@settings(deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from([(0.08, 1.0), (0.25, 1.0), (0.9, 1.0), (0.0, 0.001), (0.5, 0.5)]),
    st.sampled_from([(0.5, 1.8), (1.0, 1.0), (3.0, 5.0), (0.1, 0.3)]),
    st.integers(0, 9),
)
@example(1, 50, (0.9, 1.0), (3.0, 5.0), 0)  # a third of a pixel high, if it were not for the floor of one
@example(50, 1, (0.9, 1.0), (0.1, 0.3), 0)
def test_every_box_is_the_one_torchvision_would_take(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    augment = Augment(scale=scale, ratio=ratio)
    geometry = draw(augment, 8, width, height, seed=seed, pass_index=3)
    uniforms = rng.uniform(rng.keys(seed, rng.Stream.AUGMENT, 3, np.arange(8)), 23)[:, 1:].tolist()
    expected = [torchvision_box(of_sample, width, height, augment) for of_sample in uniforms]
    assert geometry.boxes.tolist() == [[float(edge) for edge in box] for box in expected]


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(["random_resized", "pad", "none"]), st.sampled_from(["crop", "squash"]))
def test_boxes_lie_in_the_picture(width: int, height: int, crop: str, fit: str) -> None:
    augment, evaluation = Augment.model_validate({"crop": crop}), Evaluation.model_validate({"fit": fit})
    geometry = draw(augment, 32, width, height, image_size=32, evaluation=evaluation)
    left, top, right, bottom = geometry.boxes.T
    assert np.all((left >= 0) & (left < right) & (right <= width))
    assert np.all((top >= 0) & (top < bottom) & (bottom <= height))


@pytest.mark.parametrize(("image_size", "step"), [(188, 1), (187, 2), (94, 2), (93, 4), (46, 8), (10, 8)])
def test_boxes_of_which_less_is_decoded_lie_on_the_pixels_of_the_smaller_picture(image_size: int, step: int) -> None:
    width, height = 500, 375
    augment = Augment(scale=(0.999, 1.0), ratio=(1.0, 1.1), flip=0.0)  # boxes of about 375 x 375 or nothing
    whole = draw(augment, 500, width, height, image_size=512).boxes
    stepped = draw(augment, 500, width, height, image_size=image_size).boxes
    assert np.array_equal(stepped % step, np.zeros_like(stepped))
    sides, stepped_sides = whole[:, 2:] - whole[:, :2], stepped[:, 2:] - stepped[:, :2]
    assert np.array_equal(stepped_sides, sides // step * step)
    assert np.all(stepped_sides >= image_size * step)
    assert np.abs(stepped[:, :2] - whole[:, :2]).max() <= step


def test_stepped_boxes_are_spread_evenly() -> None:
    boxes = draw(Augment(scale=(0.25, 0.25), ratio=(1.0, 1.0)), 20000, 400, 400, image_size=100).boxes
    assert set(boxes[:, 2] - boxes[:, 0]) == {200.0}
    places, counts = np.unique(boxes[:, 0], return_counts=True)
    assert places.tolist() == list(range(0, 201, 2))
    assert counts.min() > 130 and counts.max() < 270  # 198 expected, within five standard deviations


def test_area_and_ratio_keep_their_ranges() -> None:
    left, top, right, bottom = draw(RESIZED, 20000, 500, 375).boxes.T
    width, height = right - left, bottom - top
    area, ratio = width * height / (500 * 375), width / height
    assert area.min() > 0.25 - 0.005 and area.max() <= 1.0
    assert ratio.min() > 3 / 4 - 0.005 and ratio.max() < 4 / 3 + 0.005
    assert area.min() < 0.26 and ratio.min() < 0.76 and ratio.max() > 1.32


@pytest.mark.parametrize(("width", "height"), [(500, 375), (32, 32), (400, 90)])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    ours = draw(RESIZED, 4000, width, height, seed=5).boxes
    picture = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(picture, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    top, left, height_, width_ = np.array(drawn, dtype=np.float64).T
    theirs = np.stack([left, top, left + width_, top + height_], axis=1)
    for quantity in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] - b[:, 0], lambda b: b[:, 3] - b[:, 1]):
        assert kstest(quantity(ours), quantity(theirs)).pvalue > 1e-3


def test_a_sample_is_cropped_alike_in_every_batch() -> None:
    rows, passes = np.array([7, 3, 900, 3]), np.array([0, 1, 1, 2])
    widths, heights = np.array([640, 50, 333, 50]), np.array([480, 60, 100, 60])
    for augment in (RESIZED, PAD):
        whole = train_geometry(augment, 1, rows, passes, widths, heights, 64, EVALUATION)
        for at in ([2], [3, 0], [1, 2, 3]):
            part = train_geometry(augment, 1, rows[at], passes[at], widths[at], heights[at], 64, EVALUATION)
            assert np.array_equal(part.boxes, whole.boxes[at])
            assert np.array_equal(part.shifts, whole.shifts[at])
            assert np.array_equal(part.flips, whole.flips[at])


def test_two_seeds_or_passes_never_share_all_crops() -> None:
    batches = [draw(RESIZED, 16, 400, 300, seed=s, pass_index=p) for s in range(20) for p in range(20)]
    assert len({batch.boxes.tobytes() for batch in batches}) == 400
    shifted = [draw(PAD, 16, 32, 32, seed=s, pass_index=p) for s in range(20) for p in range(20)]
    assert len({batch.shifts.tobytes() for batch in shifted}) == 400


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
@pytest.mark.parametrize("flip", [0.0, 0.2, 0.5, 1.0])
def test_flips_come_at_their_rate(crop: str, flip: float) -> None:
    flips = draw(Augment.model_validate({"crop": crop, "flip": flip}), 20000, 64, 64).flips
    assert flips.dtype == np.bool_
    assert abs(flips.mean() - flip) <= (0.0 if flip in (0.0, 1.0) else 0.01)


@pytest.mark.parametrize(("image_size", "pad"), [(32, 4), (4, 1), (70, 8)])
def test_shifts_are_uniform_within_an_eighth(image_size: int, pad: int) -> None:
    shifts = draw(PAD, 20000, 90, 60, image_size=image_size).shifts
    assert shifts.dtype == np.int64 and shifts.shape == (20000, 2)
    for axis in range(2):
        values, counts = np.unique(shifts[:, axis], return_counts=True)
        assert values.tolist() == list(range(-pad, pad + 1))
        assert np.abs(counts / 20000 - 1 / (2 * pad + 1)).max() < 0.01
    assert abs(np.cov(shifts.T)[0, 1]) < 0.03 * shifts.var()


def test_pad_sees_the_full_square_and_none_what_the_evaluation_sees() -> None:
    assert draw(PAD, 1, 90, 60).boxes.tolist() == [[15.0, 0.0, 75.0, 60.0]]
    assert draw(PAD, 1, 90, 60, evaluation=Evaluation(fit="squash")).boxes.tolist() == [[0.0, 0.0, 90.0, 60.0]]
    none, evaluated = draw(Augment(crop="none"), 3, 90, 61), eval_geometry(EVALUATION, np.full(3, 90), np.full(3, 61))
    assert np.array_equal(none.boxes, evaluated.boxes)
    assert not none.shifts.any() and not evaluated.shifts.any() and not evaluated.flips.any()
    assert len(evaluated) == 3


@settings(deadline=None)
@given(SIDES, SIDES, st.floats(0.01, 1.0))
def test_evaluation_boxes_are_central_and_of_their_size(width: int, height: int, crop: float) -> None:
    for fit, sides in (("crop", [crop * min(width, height)] * 2), ("squash", [crop * width, crop * height])):
        left, top, right, bottom = eval_boxes(np.array([width]), np.array([height]), crop, fit)[0]
        assert [right - left, bottom - top] == pytest.approx(sides, abs=1e-9)
        assert [(left + right) / 2, (top + bottom) / 2] == pytest.approx([width / 2, height / 2], abs=1e-9)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit 'stretch'; allowed: crop, squash"):
        eval_boxes(np.array([4]), np.array([4]), 1.0, "stretch")


def test_first_draws_stay_what_they_were() -> None:
    resized = draw(RESIZED, 3, 500, 375)
    assert resized.boxes.tolist() == GOLDEN_BOXES
    assert resized.flips.tolist() == GOLDEN_FLIPS
    assert draw(PAD, 3, 32, 32, image_size=32).shifts.tolist() == GOLDEN_SHIFTS


GOLDEN_BOXES = [[119.0, 18.0, 371.0, 330.0], [41.0, 80.0, 262.0, 364.0], [45.0, 0.0, 437.0, 375.0]]
GOLDEN_FLIPS = [False, True, False]
GOLDEN_SHIFTS = [[0, -2], [-3, 3], [-1, 1]]
