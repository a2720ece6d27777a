"""Draws: functions of (seed, pass, row) alone, of their stated distributions, and policies as torchvision has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import chisquare, kstest
from torchvision.transforms import v2

from stagewright.augment.draw import Draws, concatenate, draw
from stagewright.augment.geometry import train_geometry
from stagewright.augment.policies import CHAIN_DEPTH, Layer, Op, space
from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Augment, Evaluation, Recipe

COUNT = 20_000
EVERYTHING: dict[str, Any] = {
    **{"rotation": 20, "translate": 0.1, "zoom": (0.8, 1.2), "shear": 10, "perspective": 0.4},
    **{"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "jitter_probability": 0.8},
    **{"grayscale": 0.2, "invert": 0.1, "posterize": 0.1, "solarize": 0.1, "autocontrast": 0.1, "equalize": 0.1},
    **{"sharpness": 0.1, "blur": 0.2, "erasing": 0.3, "custom": "os.path:join"},
}
POLICIES = ("randaugment", "trivialaugment", "augmix", "three_augment")
TORCHVISION = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide, "augmix": v2.AugMix}


def drawn(count: int = COUNT, size: int = 32, /, **changes: Any) -> Draws:
    found = draw(Augment(**changes), 0, np.arange(count), np.zeros(count, dtype=np.int64), size)
    assert found is not None
    return found


def arrays(of: Any, name: str = "draws") -> dict[str, NDArray[Any]]:
    """Every array in draws, by where it stands."""
    if isinstance(of, np.ndarray):
        return {name: of}
    if isinstance(of, tuple):
        parts = {str(at): one for at, one in enumerate(of)}
    elif isinstance(of, Draws | Layer):
        parts = {key: getattr(of, key) for key in of.__slots__}
    else:
        return {}
    return {key: value for at, one in parts.items() for key, value in arrays(one, f"{name}.{at}").items()}


def equal(left: Draws, right: Draws) -> bool:
    ours, theirs = arrays(left), arrays(right)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_nothing_on_draws_nothing() -> None:
    for augment in (Augment(), Augment(crop="none", flip=0), Augment(perspective=0.5, perspective_probability=0)):
        assert draw(augment, 0, np.arange(4), np.zeros(4, dtype=np.int64), 32) is None
    assert draw(Augment(brightness=0.4, jitter_probability=0), 0, np.arange(4), np.zeros(4, dtype=np.int64), 32) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_is_treated_alike_in_every_batch(policy: str) -> None:
    augment = Augment.model_validate({**EVERYTHING, "policy": policy})
    rows, passes = np.array([7, 3, 900, 3, 0]), np.array([0, 1, 1, 2, 2**62])
    whole = draw(augment, 1, rows, passes, 48)
    assert whole is not None and len(whole) == 5
    for at in ([2], [3, 0, 4], [1, 2, 3]):
        part = draw(augment, 1, rows[at], passes[at], 48)
        assert part is not None and equal(part, whole.take(np.array(at)))
    assert equal(concatenate([whole.take(slice(0, 2)), whole.take(slice(2, 5))]), whole)
    assert not equal(whole.take(np.array([1])), whole.take(np.array([3])))  # one row in two passes


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(sorted(EVERYTHING)), min_size=1), st.sampled_from(("none", *POLICIES)))
def test_switching_one_on_never_changes_another(chosen: set[str], policy: str) -> None:
    rows, passes = np.arange(16), np.arange(16) % 3
    whole = draw(Augment(**EVERYTHING, policy="randaugment"), 4, rows, passes, 32)
    some = {name: EVERYTHING[name] for name in chosen} | {"jitter_probability": EVERYTHING["jitter_probability"]}
    part = draw(Augment.model_validate({**some, "policy": policy}), 4, rows, passes, 32)
    assert whole is not None
    if part is None:
        assert chosen == {"jitter_probability"} and policy == "none"
        return
    assert np.array_equal(part.keys, whole.keys)
    ops = {int(op): layer for layer in whole.effects for op in np.unique(layer.ops) if op}
    for layer in part.effects:
        for op in np.unique(layer.ops):
            assert op == Op.IDENTITY or np.array_equal(layer.ops, ops[int(op)].ops)
    if part.boxes is not None:
        assert whole.boxes is not None and np.array_equal(part.boxes, whole.boxes)
    if policy == "randaugment":
        assert [layer.ops.tolist() for layer in part.policy] == [layer.ops.tolist() for layer in whole.policy]
    if part.jitter is not None:
        assert whole.jitter is not None
        on = [at for at, name in enumerate(("brightness", "contrast", "saturation", "hue")) if name in chosen]
        assert np.array_equal(part.jitter[:, on], whole.jitter[:, on])


def test_crop_and_flip_are_none_of_its_business() -> None:
    rows, sizes = np.arange(50), np.full(50, 300)
    plain, full = (
        train_geometry(augment, 0, rows, rows, sizes, sizes, 32, Evaluation())
        for augment in (Augment(), Augment(**EVERYTHING, policy="augmix"))
    )
    assert np.array_equal(plain.boxes, full.boxes) and np.array_equal(plain.flips, full.flips)
    # nor does anything hang together: flips and grey pictures are as independent as two coins
    many = np.arange(COUNT)
    wide = np.full(COUNT, 300)
    flips = train_geometry(Augment(), 0, many, many * 0, wide, wide, 32, Evaluation()).flips
    grey = drawn(grayscale=0.5).effects[0].ops != 0
    assert abs(np.corrcoef(flips, grey)[0, 1]) < 0.03


def test_two_seeds_or_passes_never_share_all_draws() -> None:
    augment = Augment(hue=0.1, policy="randaugment")
    found = [draw(augment, seed, np.arange(8), np.full(8, at), 32) for seed in range(20) for at in range(20)]
    assert len({one.keys.tobytes() for one in found if one is not None}) == 400
    assert len({one.policy[0].ops.tobytes() for one in found if one is not None}) > 395


@pytest.mark.parametrize(
    ("name", "op"),
    [
        *(("grayscale", Op.SATURATION), ("invert", Op.INVERT), ("posterize", Op.POSTERIZE), ("solarize", Op.SOLARIZE)),
        *(("autocontrast", Op.AUTOCONTRAST), ("equalize", Op.EQUALIZE), ("sharpness", Op.SHARPNESS), ("blur", Op.BLUR)),
    ],
)
@pytest.mark.parametrize("probability", [0.2, 1.0])
def test_effects_come_at_their_rate(name: str, op: Op, probability: float) -> None:
    (layer,) = drawn(**{name: probability}, posterize_bits=3, solarize_threshold=99, sharpness_factor=4.0).effects
    assert set(np.unique(layer.ops)) <= {0, op}
    assert abs((layer.ops == op).mean() - probability) <= (0.01 if probability < 1 else 0)
    if op == Op.BLUR:
        assert kstest(layer.values, "uniform", (0.1, 1.9)).pvalue > 1e-3
    else:
        assert set(layer.values) == {{Op.POSTERIZE: 3.0, Op.SOLARIZE: 99.0, Op.SHARPNESS: 4.0}.get(op, 0.0)}


def test_jitter_is_uniform_all_or_none() -> None:
    jitter = drawn(brightness=0.4, contrast=1.5, saturation=0.1, hue=0.2, jitter_probability=0.7).jitter
    assert jitter is not None
    changed = (jitter != (1, 1, 1, 0)).any(axis=1)
    assert abs(changed.mean() - 0.7) < 0.01 and (jitter[changed] != (1, 1, 1, 0)).all()
    for column, (low, high) in zip(jitter[changed].T, [(0.6, 1.4), (0, 2.5), (0.9, 1.1), (-0.2, 0.2)], strict=True):
        assert kstest(column, "uniform", (low, high - low)).pvalue > 1e-3
    assert np.abs(np.corrcoef(jitter[changed].T) - np.eye(4)).max() < 0.03


def test_what_is_not_jittered_stays_exactly_one() -> None:
    jitter = drawn(hue=0.2).jitter
    assert jitter is not None and (jitter[:, :3] == 1).all()


def test_rotation_zoom_and_moves_are_uniform() -> None:
    turned, zoomed, moved = (
        drawn(**change).matrices for change in ({"rotation": 30}, {"zoom": (0.5, 2.0)}, {"translate": 0.25})
    )
    assert turned is not None and zoomed is not None and moved is not None
    assert kstest(np.degrees(np.arctan2(turned[:, 0, 1], turned[:, 0, 0])), "uniform", (-30, 60)).pvalue > 1e-3
    assert kstest(1 / zoomed[:, 0, 0], "uniform", (0.5, 1.5)).pvalue > 1e-3
    for axis in range(2):
        assert kstest(moved[:, axis, 2], "uniform", (-8, 16)).pvalue > 1e-3


def test_perspective_comes_at_its_rate_and_within_its_strength() -> None:
    matrices = drawn(COUNT, 100, perspective=0.4, perspective_probability=0.3).matrices
    assert matrices is not None
    tilted = (matrices != np.eye(3)).any(axis=(1, 2))
    assert abs(tilted.mean() - 0.3) < 0.01
    corner = np.linalg.inv(matrices[tilted]) @ np.array([-50.0, -50.0, 1.0])
    inwards = (corner[:, :2] / corner[:, 2:] + 50) / 50
    for axis in range(2):
        assert kstest(inwards[:, axis], "uniform", (0, 0.4)).pvalue > 1e-3


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    boxes = drawn(COUNT, 64, erasing=0.6).boxes
    assert boxes is not None and boxes.min() >= 0 and boxes.max() <= 64
    top, bottom, left, right = boxes.T
    erased = (bottom > top) & (right > left)
    assert abs(erased.mean() - 0.6) < 0.01 and not ((bottom > top) ^ (right > left)).any()
    reference, picture = v2.RandomErasing(1.0), torch.empty(3, 64, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [reference.make_params([picture]) for _ in range(3000)]
    columns = np.array([[one["i"], one["h"], one["j"], one["w"]] for one in theirs]).T
    for ours, reference_column in zip((top, bottom - top, left, right - left), columns, strict=True):
        assert kstest(ours[erased], reference_column).pvalue > 1e-3


def test_a_rectangle_that_never_fits_is_not_erased() -> None:
    boxes = drawn(100, erasing=1.0, erasing_scale=(1.0, 1.0), erasing_ratio=(1.0, 1.0)).boxes
    assert boxes is not None and (boxes[:, 0] == boxes[:, 1]).all()


NAMES = {"Color": Op.SATURATION, "AutoContrast": Op.AUTOCONTRAST} | {
    "".join(part.title() for part in op.name.split("_")): op for op in Op
}


@pytest.mark.parametrize("policy", TORCHVISION)
@pytest.mark.parametrize("size", [4, 32, 64, 160, 224, 331, 384])
def test_strengths_are_torchvisions(policy: str, size: int) -> None:
    """Every bin of every operation, in torchvision's order, as its _apply_image_or_video_transform reads it."""
    ours, bins = space(policy, size), 10 if policy == "augmix" else 31
    theirs = TORCHVISION[policy]._AUGMENTATION_SPACE
    assert [NAMES[name] for name in theirs] == ours.ops.tolist()
    assert ours.values.shape == (len(theirs), bins)
    for (name, (magnitudes, signed)), values, negative in zip(theirs.items(), ours.values, ours.negative, strict=True):
        found = magnitudes(bins, size, size)
        expected = np.zeros(bins) if found is None else found.double().numpy()
        if name.startswith("Translate"):
            expected = np.trunc(expected + 1e-4)  # half of 32 pixels is 16, which is 15.999999 in float32
        elif name == "Solarize":
            expected = 255 * expected
        base = 1.0 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0.0
        assert np.allclose(values, base + expected, rtol=0, atol=2e-5), name
        assert np.allclose(negative, base + expected * (-1 if signed else 1), rtol=0, atol=2e-5), name


def test_randaugment_draws_operations_and_signs_evenly() -> None:
    layers = drawn(COUNT, 224, policy="randaugment", policy_ops=3, policy_magnitude=20).policy
    chosen = space("randaugment", 224)
    assert len(layers) == 3
    for layer in layers:
        assert chisquare(np.bincount(layer.ops, minlength=14)[chosen.ops]).pvalue > 1e-3
        for op, values, negative in zip(chosen.ops, chosen.values, chosen.negative, strict=True):
            found = layer.values[layer.ops == op]
            assert set(found) == {values[20], negative[20]}
            if values[20] != negative[20]:
                assert abs((found == values[20]).mean() - 0.5) < 0.06
    assert abs(np.corrcoef(layers[0].ops, layers[1].ops)[0, 1]) < 0.03


def test_more_operations_leave_the_first_ones_as_they_are() -> None:
    few, many = drawn(64, policy="randaugment").policy, drawn(64, policy="randaugment", policy_ops=5).policy
    assert all(equal_layers(ours, theirs) for ours, theirs in zip(few, many, strict=False)) and len(many) == 5


def equal_layers(left: Layer, right: Layer) -> bool:
    return np.array_equal(left.ops, right.ops) and np.array_equal(left.values, right.values)


def test_trivialaugment_draws_one_operation_of_any_strength() -> None:
    (layer,) = drawn(COUNT, 224, policy="trivialaugment", policy_magnitude=3).policy
    chosen = space("trivialaugment", 224)
    assert chisquare(np.bincount(layer.ops, minlength=14)[chosen.ops]).pvalue > 1e-3
    turns = np.rint(np.abs(layer.values[layer.ops == Op.ROTATE]) / 4.5).astype(int)
    assert chisquare(np.bincount(turns, minlength=31)).pvalue > 1e-3


def test_three_augment_is_one_of_three() -> None:
    (layer,) = drawn(policy="three_augment", blur_sigma=(0.5, 1.0), solarize_threshold=100).policy
    values, counts = np.unique(layer.ops, return_counts=True)
    assert values.tolist() == [Op.SATURATION, Op.SOLARIZE, Op.BLUR] and chisquare(counts).pvalue > 1e-3
    assert set(layer.values[layer.ops == Op.SATURATION]) == {0} and set(layer.values[layer.ops == Op.SOLARIZE]) == {100}
    assert kstest(layer.values[layer.ops == Op.BLUR], "uniform", (0.5, 0.5)).pvalue > 1e-3


def test_augmix_draws_chains_and_weights() -> None:
    found = drawn(policy="augmix")
    weights = found.weights
    assert weights is not None and weights.shape == (COUNT, 4) and len(found.chains) == 3 and not found.policy
    assert weights.min() >= 0 and np.allclose(weights.sum(axis=1), 1)
    assert kstest(weights[:, 0], "uniform").pvalue > 1e-3  # Beta(1, 1)
    shares = weights[:, 1:] / weights[:, 1:].sum(axis=1, keepdims=True)
    for column in shares.T:  # the marginal of Dirichlet(1, 1, 1)
        assert kstest(column, "beta", (1, 2)).pvalue > 1e-3
    for chain in found.chains:
        depth = sum((layer.ops != Op.IDENTITY).astype(int) for layer in chain)
        assert len(chain) == CHAIN_DEPTH and chisquare(np.bincount(depth)[1:]).pvalue > 1e-3
        assert np.abs(chain[0].values[chain[0].ops == Op.ROTATE]).max() == pytest.approx(2 * 30 / 9)


def test_first_draws_stay_what_they_were() -> None:
    found = drawn(3, **EVERYTHING, policy="randaugment")
    assert found.keys.tolist() == GOLDEN_KEYS
    assert [layer.ops.tolist() for layer in found.policy] == GOLDEN_OPS
    assert [np.flatnonzero(layer.ops).tolist() for layer in drawn(20, **EVERYTHING).effects] == GOLDEN_EFFECTS
    assert found.jitter is not None and found.jitter[:, 3].tolist() == pytest.approx(GOLDEN_HUES, abs=1e-12)
    assert found.boxes is not None and found.boxes.tolist() == GOLDEN_BOXES
    assert found.matrices is not None and found.matrices[:, 0, 2].tolist() == pytest.approx(GOLDEN_MOVES, abs=1e-9)


@pytest.mark.parametrize(
    ("override", "given"),
    [
        ("augment.hue=0.6", "augment.hue: 0.6 is not allowed"),
        ("augment.rotation=-1", "augment.rotation: -1 is not allowed"),
        ("augment.erasing=1.5", "augment.erasing: 1.5 is not allowed"),
        ("augment.zoom=[1.2, 0.8]", r"zoom must be \[low, high\] .*, not \[1.2, 0.8\]"),
        ("augment.blur_sigma=[2, 1]", r"blur_sigma must be \[low, high\]"),
        ("augment.policy=randaug", "augment.policy: 'randaug' is not allowed"),
        ("augment.policy_magnitude=31", "augment.policy_magnitude: 31 is not allowed"),
        ("augment.custom=add_noise", "'add_noise' is not of the form module:function"),
        ("augment.custom='a b:c'", "'a b:c' is not of the form module:function"),
        ("augment.posterize_bits=0", "augment.posterize_bits: 0 is not allowed"),
        ("augment.greyscale=0.1", "augment.greyscale: unknown field; did you mean 'grayscale'"),
    ],
)
def test_what_cannot_be_meant_is_refused(override: str, given: str) -> None:
    with pytest.raises(RecipeError, match=given):
        recipes.load("quick", [override])


def test_off_in_words() -> None:
    for word in ("none", "off", False, None):
        assert Augment.model_validate({"policy": word}).policy == "none"
    assert Augment.model_validate({"custom": "none"}).custom is None
    with pytest.raises(ValidationError):
        Augment.model_validate({"policy": True})


def test_stages_merge_the_fields_one_by_one() -> None:
    stages = [{"epochs": "1ep"}, {"epochs": "1ep", "augment": {"policy": "none", "erasing": 0.1}}]
    recipe = Recipe.model_validate({"augment": {"policy": "randaugment", "hue": 0.1}, "stages": stages})
    first, second = (stage.augment for stage in recipe.resolved_stages())
    assert first is not None and second is not None
    assert (first.policy, first.erasing) == ("randaugment", 0.0)
    assert (second.policy, second.erasing, second.hue) == ("none", 0.1, 0.1)


GOLDEN_KEYS = [11977649998914576495, 4107835007528241818, 3042599437742508020]
GOLDEN_OPS = [[6, 5, 6], [11, 12, 12]]
GOLDEN_EFFECTS = [[1, 2, 4, 6, 17, 19], [1, 3, 18], [8], [7], [5, 11, 15], [15], [2, 9], [3, 6, 13]]
GOLDEN_HUES = [0.08522016588539, 0.0, -0.02317871963503]
GOLDEN_BOXES = [[4, 4, 21, 21], [5, 19, 13, 20], [6, 15, 1, 29]]
GOLDEN_MOVES = [2.60697756125, -2.22332266777, -2.53978413953]
