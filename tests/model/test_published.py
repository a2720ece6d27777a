"""Published weights: the views and classes that the libraries state."""

from __future__ import annotations

from typing import Any

import pytest
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import get_pretrained_cfg
from torchvision.models import get_model_weights, get_weight

from stagewright.errors import ModelError
from stagewright.model.catalog import model_names
from stagewright.model.published import matching_wnids, published


def test_torchvisions_numbers_are_its_presets() -> None:
    weights = get_weight("ResNet50_Weights.IMAGENET1K_V2")
    found, view = published("resnet50"), weights.transforms()
    assert found.name == "torchvision:resnet50.IMAGENET1K_V2"
    assert (found.resize, found.size, found.mode, found.interpolation) == (232, 224, "center", "bilinear")
    assert ([found.resize], [found.size], list(found.mean)) == (view.resize_size, view.crop_size, view.mean)
    assert published("resnet50.IMAGENET1K_V1").resize == 256
    swag = published("vit_h_14.IMAGENET1K_SWAG_E2E_V1")
    assert (swag.resize, swag.size, swag.interpolation) == (518, 518, "bicubic")


def test_the_classes_of_torchvision_are_in_the_order_of_the_wnids() -> None:
    """torchvision names its outputs by words: nearly all are among those of the WordNet number at the same place."""
    found = published("resnet50")
    names = get_weight("ResNet50_Weights.IMAGENET1K_V2").meta["categories"]
    assert found.wnids == tuple(sorted(found.wnids)) and len(found.wnids) == 1000
    same = sum(name.casefold() in words.casefold() for name, words in zip(names, found.words, strict=True))
    assert same > 950
    assert found.class_names()[0] == "n01440764 tench" and len(set(found.class_names())) == 1000


def test_timms_numbers_are_those_of_its_validation() -> None:
    found = published("timm:resnet50.a1_in1k")
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg("resnet50.a1_in1k").to_dict(), use_test_size=True)  # pyright: ignore
    transform: Any = create_transform(**config)
    assert (found.resize, found.size, found.interpolation) == (288, 288, "bicubic")
    assert transform.transforms[0].size == found.resize and tuple(transform.transforms[1].size) == (288, 288)
    assert published("timm:vit_base_patch16_224.augreg_in21k").class_names()[0].startswith("n")
    squash = published("timm:convnextv2_huge.fcmae_ft_in22k_in1k_384")
    assert (squash.mode, squash.resize, squash.size) == ("squash", 384, 384)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cifar_resnet18", "has no published weights"),
        ("timm:vit_base_patch16_clip_224.openai", "512 outputs, which are not the classes of ImageNet"),
        ("resnet5000", "is unknown"),
    ],
)
def test_names_without_such_weights_are_refused(name: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as error:
        published(name)
    assert error.value.allowed and error.value.remedy


def test_every_name_of_torchvision_has_its_numbers() -> None:
    for name in model_names("torchvision"):
        for entry in get_model_weights(name):
            if entry.meta["categories"] is not None:
                found, view = published(f"torchvision:{name}.{entry.name}"), entry.transforms()
                assert ([found.resize], [found.size]) == (view.resize_size, view.crop_size)


def test_names_of_folders_are_matched_by_number_or_word() -> None:
    found = published("mobilenet_v2")
    names = ["n01440764", "n03000684_chain_saw", "tench", "Garbage_Truck", "crane", "n99999999", "dog"]
    assert matching_wnids(names, found) == {
        "n01440764": "n01440764 tench",
        "n03000684_chain_saw": "n03000684 chain saw",
        "tench": "n01440764 tench",
        "Garbage_Truck": "n03417042 garbage truck",
    }, "crane is a bird and a machine"
