"""The whole augmentation of a batch: torchvision's policies picture by picture, order, layout, and what stays untouched."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stagewright.augment import ops, pipeline
from stagewright.augment.draw import Draws, draw
from stagewright.augment.pipeline import augment
from stagewright.augment.policies import Layer, Op
from stagewright.augment.warp import warp
from stagewright.errors import RecipeError
from stagewright.recipe.recipe import Augment

FILL = (124, 116, 104)
SIDE = 40
FULL: dict[str, Any] = {
    **{"rotation": 20, "translate": 0.1, "zoom": (0.8, 1.2), "shear": 10, "perspective": 0.4},
    **{"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "jitter_probability": 0.8},
    **{"grayscale": 0.2, "invert": 0.1, "posterize": 0.1, "solarize": 0.1, "autocontrast": 0.1, "equalize": 0.1},
    **{"sharpness": 0.1, "blur": 0.2, "erasing": 0.3, "policy": "randaugment"},
}
POLICIES = ("randaugment", "trivialaugment", "augmix", "three_augment")


def drawn(count: int, size: int = SIDE, /, **changes: Any) -> Draws:
    found = draw(Augment(**changes), 0, np.arange(count), np.full(count, 3), size)
    assert found is not None
    return found


def one_op(op: int, value: float, image: Tensor, radius: int) -> Tensor:
    """What torchvision makes of one picture; geometry is this package's own (test_warp compares it), since its edge is."""
    slope = math.degrees(math.atan(value))
    fill = torch.tensor(FILL)[:, None, None].float()
    linear = InterpolationMode.BILINEAR

    def filled(moved: Tensor) -> Tensor:
        return (moved + fill).round().to(torch.uint8)

    around = image.float() - fill
    match Op(op):
        case Op.IDENTITY:
            return image
        case Op.SHEAR_X:
            return filled(tv.affine(around, 0.0, [0, 0], 1.0, [slope, 0.0], linear, center=[0, 0]))
        case Op.SHEAR_Y:
            return filled(tv.affine(around, 0.0, [0, 0], 1.0, [0.0, slope], linear, center=[0, 0]))
        case Op.TRANSLATE_X:
            return filled(tv.affine(around, 0.0, [int(value), 0], 1.0, [0.0, 0.0], linear))
        case Op.TRANSLATE_Y:
            return filled(tv.affine(around, 0.0, [0, int(value)], 1.0, [0.0, 0.0], linear))
        case Op.ROTATE:
            return filled(tv.rotate(around, value, linear))
        case Op.BRIGHTNESS:
            return tv.adjust_brightness(image, value)
        case Op.CONTRAST:
            return tv.adjust_contrast(image, value)
        case Op.SATURATION:
            return tv.adjust_saturation(image, value)
        case Op.SHARPNESS:
            return tv.adjust_sharpness(image, value)
        case Op.POSTERIZE:
            return tv.posterize(image, int(value))
        case Op.SOLARIZE:
            return tv.solarize(image, value)
        case Op.AUTOCONTRAST:
            return tv.autocontrast(image)
        case Op.EQUALIZE:
            return tv.equalize(image)
        case Op.INVERT:
            return tv.invert(image)
        case Op.BLUR:
            return tv.gaussian_blur(image, [2 * radius + 1] * 2, [value, value])


def through(layers: tuple[Layer, ...], at: int, image: Tensor, radius: int) -> Tensor:
    for layer in layers:
        image = one_op(int(layer.ops[at]), float(layer.values[at]), image, radius)
    return image


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "three_augment"])
def test_policies_equal_torchvision_picture_by_picture(policy: str, pictures: Tensor) -> None:
    images = pictures.repeat(8, 1, 1, 1)
    draws = drawn(len(images), policy=policy, policy_ops=1)
    assert len(np.unique(draws.policy[0].ops)) == {"three_augment": 3}.get(policy, 14)
    ours = augment(images, draws, FILL)
    for at, image in enumerate(images):
        apart = (ours[at].int() - through(draws.policy, at, image, draws.blur_radius).int()).abs()
        assert apart.max() <= 1, (Op(int(draws.policy[0].ops[at])), draws.policy[0].values[at])


def test_operations_follow_one_another(photographs: Tensor) -> None:
    """Each step may differ by a level, which equalize and solarize enlarge; hence the share of pixels."""
    images = photographs.repeat(20, 1, 1, 1)
    draws = drawn(len(images), 96, policy="randaugment", policy_ops=3, policy_magnitude=12)
    ours = augment(images, draws, FILL)
    theirs = torch.stack([through(draws.policy, at, image, 0) for at, image in enumerate(images)])
    assert ((ours.int() - theirs.int()).abs() <= 1).float().mean() > 0.999


def test_augmix_is_the_weighted_mean_of_its_chains(photographs: Tensor) -> None:
    images = photographs.repeat(6, 1, 1, 1)
    draws = drawn(len(images), 96, policy="augmix")
    assert draws.weights is not None
    ours = augment(images, draws, FILL)
    for at, image in enumerate(images):
        parts = [image, *(through(chain, at, image, 0) for chain in draws.chains)]
        mean = sum(float(weight) * part.double() for weight, part in zip(draws.weights[at], parts, strict=True))
        assert isinstance(mean, Tensor)
        assert ((ours[at] - mean).abs() <= 1.5).double().mean() > 0.995


def test_the_order_is_the_documented_one(pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """All operations by hand in the documented order, each through its own tested function."""
    module = types.ModuleType("own_operations")
    module.__dict__["darken"] = lambda images, keys: (
        images // 2 + torch.from_numpy(keys % 7).to(torch.uint8)[:, None, None, None]
    )
    monkeypatch.setitem(sys.modules, "own_operations", module)
    draws = drawn(len(pictures), **(FULL | {"custom": "own_operations:darken"}))
    assert draws.matrices is not None and draws.jitter is not None and draws.boxes is not None
    colour = torch.tensor(FILL)
    images = warp(pictures, torch.from_numpy(draws.matrices).float(), colour.float())
    by_op = {Op.SATURATION: ops.saturation, Op.POSTERIZE: ops.posterize, Op.SOLARIZE: ops.solarize}
    by_op |= {Op.SHARPNESS: ops.sharpness, Op.BLUR: lambda one, sigma: ops.blur(one, sigma, draws.blur_radius)}
    by_op |= {Op.INVERT: lambda one, _: ops.invert(one), Op.AUTOCONTRAST: lambda one, _: ops.autocontrast(one)}
    by_op |= {Op.EQUALIZE: lambda one, _: ops.equalize(one)}
    images = torch.stack(
        [augment(images[at : at + 1], only_policy(draws.take(np.array([at]))), FILL)[0] for at in range(len(images))]
    )
    changed = (draws.jitter != (1, 1, 1, 0)).any(axis=1)
    images[changed] = ops.jitter(images[changed], torch.from_numpy(draws.jitter[changed]).float())
    order = [Op.SATURATION, Op.INVERT, Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST, Op.EQUALIZE, Op.SHARPNESS, Op.BLUR]
    assert len(draws.effects) == len(order)
    for op, layer in zip(order, draws.effects, strict=True):
        here = torch.from_numpy(layer.ops == op)
        assert here.any() and not here.all()
        images[here] = by_op[op](images[here], torch.from_numpy(layer.values).float()[here])
    images = module.__dict__["darken"](images, draws.keys)
    ops.erase(images, draws.boxes.tolist(), colour.to(torch.uint8))
    assert torch.equal(augment(pictures, draws, FILL), images)


def only_policy(draws: Draws) -> Draws:
    return Draws(draws.image_size, draws.keys, None, draws.policy, (), None, None, (), draws.blur_radius, None, None)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_picture_comes_out_alike_in_every_batch_and_layout(policy: str, pictures: Tensor) -> None:
    draws = drawn(24, **(FULL | {"policy": policy}))
    before = pictures.clone()
    whole = augment(pictures, draws, FILL)
    assert whole.is_contiguous() and torch.equal(pictures, before)
    last = pictures.contiguous(memory_format=torch.channels_last)
    also = augment(last, draws, FILL)
    assert torch.equal(also, whole) and also.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, before)
    for at in (slice(0, 1), slice(5, 12), slice(23, 24)):
        assert torch.equal(augment(pictures[at], draws.take(at), FILL), whole[at])


def test_pieces_do_not_show(pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = drawn(24, **FULL)
    whole = augment(pictures, draws, FILL)
    for pictures_at_a_time in (1, 5):
        monkeypatch.setattr(pipeline, "_CPU_PIECE", pictures_at_a_time * 3 * SIDE * SIDE)
        assert torch.equal(augment(pictures, draws, FILL), whole)


@pytest.mark.parametrize(
    "changes",
    [{"rotation": 0.001, "perspective": 0.0}, {"perspective": 0.5, "perspective_probability": 0.4}]
    + [{name: 0.4} for name in ("grayscale", "invert", "posterize", "solarize", "autocontrast", "equalize")]
    + [{"sharpness": 0.4}, {"blur": 0.4}, {"erasing": 0.4}, {"hue": 0.5, "jitter_probability": 0.4}],
)
def test_what_is_not_drawn_is_not_touched(changes: dict[str, float], pictures: Tensor) -> None:
    images = pictures.repeat(3, 1, 1, 1)
    draws = drawn(len(images), **changes)
    needs = np.zeros(len(images), dtype=bool)
    for layer in draws.effects:
        needs |= layer.ops != 0
    if draws.matrices is not None:
        needs |= (draws.matrices != np.eye(3)).any(axis=(1, 2))
    if draws.jitter is not None:
        needs |= (draws.jitter != (1, 1, 1, 0)).any(axis=1)
    if draws.boxes is not None:
        needs |= draws.boxes[:, 1] > draws.boxes[:, 0]
    after = augment(images, draws, FILL)
    untouched = torch.from_numpy(~needs)
    assert torch.equal(after[untouched], images[untouched])
    if "rotation" not in changes:
        assert untouched.any() and not torch.equal(after, images)


def test_randaugment_of_no_strength_is_what_has_none(pictures: Tensor) -> None:
    """Magnitude 0: all but autocontrast and equalize, which have no strength, and solarize from 255 on change nothing."""
    draws = drawn(24 * 4, policy="randaugment", policy_magnitude=0)
    images = pictures.repeat(4, 1, 1, 1)
    strong = np.isin(np.stack([layer.ops for layer in draws.policy]), (Op.AUTOCONTRAST, Op.EQUALIZE, Op.SOLARIZE))
    weak = torch.from_numpy(~strong.any(axis=0))
    assert weak.any() and torch.equal(augment(images, draws, FILL)[weak], images[weak])


def test_nothing_to_do_hands_the_pictures_on(pictures: Tensor) -> None:
    assert augment(pictures, None, FILL) is pictures


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("size", [4, 5])
def test_tiny_batches_of_tiny_pictures(count: int, size: int) -> None:
    images = torch.arange(count * 3 * size * size).reshape(count, 3, size, size).to(torch.uint8)
    for policy in POLICIES:
        found = augment(images, drawn(count, size, **(FULL | {"policy": policy, "blur": 1.0})), FILL)
        assert found.shape == images.shape and found.dtype == torch.uint8


def test_erased_and_moved_in_are_the_fill() -> None:
    images = torch.zeros(50, 3, SIDE, SIDE, dtype=torch.uint8)
    for changes in ({"erasing": 1.0}, {"translate": 0.5}):
        found = augment(images, drawn(50, **changes), (10.4, 20.6, 30.0))
        # the edge between both is blended
        filled = (found == torch.tensor([10, 21, 30], dtype=torch.uint8).view(1, 3, 1, 1)).all(dim=1)
        assert filled.flatten(1).any(dim=1).float().mean() > 0.9 and 0.02 < filled.float().mean() < 0.5


def test_draws_of_another_batch_or_size_are_refused(pictures: Tensor) -> None:
    draws = drawn(24, **FULL)
    for wrong in (pictures[:3], pictures[:, :, :8, :8], pictures.float()):
        with pytest.raises(ValueError, match=r"the draws are for \(24, 3, 40, 40\) torch.uint8"):
            augment(wrong, draws, FILL)


def noise(images: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    return images + torch.from_numpy(keys % 16).to(torch.uint8)[:, None, None, None]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_pictures")
    module.__dict__.update(
        {
            "noise": noise,
            "floats": lambda images, keys: images.float(),
            "half": lambda images, keys: images[:2],
            "text": lambda images, keys: "pictures",
            "number": 3,
        }
    )
    monkeypatch.setitem(sys.modules, "own_pictures", module)
    return module


def test_a_function_of_ones_own_gets_pictures_and_keys(own_module: types.ModuleType, pictures: Tensor) -> None:
    draws = drawn(24, custom="own_pictures:noise")
    assert torch.equal(augment(pictures, draws, FILL), noise(pictures, draws.keys))
    assert len(np.unique(draws.keys)) == 24


@pytest.mark.parametrize(
    ("name", "given", "allowed", "remedy"),
    [
        ("no_such_module_here:f", "No module named 'no_such_module_here'", "module:function", "PYTHONPATH"),
        ("own_pictures:nois", "has no 'nois'; did you mean 'noise'", "uint8", "correct the name"),
        ("own_pictures:number", "is a int", "uint8", "name a function"),
        ("own_pictures:floats", r"returned \(24, 3, 40, 40\) torch.float32 cpu", "torch.uint8", "dtype"),
        ("own_pictures:half", r"returned \(2, 3, 40, 40\) torch.uint8 cpu", r"(24, 3, 40, 40)", "the number"),
        ("own_pictures:text", "returned str", r"(24, 3, 40, 40)", "the number"),
    ],
)
def test_a_function_that_cannot_be_used_is_explained(
    own_module: types.ModuleType, pictures: Tensor, name: str, given: str, allowed: str, remedy: str
) -> None:
    with pytest.raises(RecipeError, match=given) as caught:
        augment(pictures, drawn(24, custom=name), FILL)
    assert name in caught.value.given and allowed in caught.value.allowed and remedy in caught.value.remedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", POLICIES)
def test_cuda_gives_what_the_cpu_gives_without_waiting(policy: str, pictures: Tensor) -> None:
    """To within a level where float kernels differ; a step later that may be enlarged, hence the share."""
    draws = drawn(24, **(FULL | {"policy": policy}))
    here, there = augment(pictures, draws, FILL), pictures.cuda()
    augment(there, draws, FILL)  # kernels are loaded at their first use, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(there, draws, FILL)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ((found.cpu().int() - here.int()).abs() <= 1).float().mean() > 0.995
