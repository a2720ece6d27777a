"""The published weights of torchvision and timm for ImageNet: the view that each was measured with, and its classes.

The numbers come from the libraries: torchvision's ``transforms`` of a weights entry; timm's ``pretrained_cfg``, with the size
and share of its own validation (``test_input_size``, ``test_crop_pct``) where it has them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import floor
from typing import Literal

from stagewright.errors import ModelError
from stagewright.model.catalog import ModelName, find_model
from stagewright.model.zoo import Numbers, model_normalisation

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Published:
    """Weights of a library, as they were measured. ``resize``, ``size``, ``mode`` and ``interpolation`` are those of
    :class:`stagewright.data.images.resize_crop.ResizeCrop`."""

    name: str
    """The weights with library and tag, e.g. ``torchvision:mobilenet_v2.IMAGENET1K_V2``."""
    resize: int
    size: int
    mode: Literal["center", "squash", "border"]
    interpolation: Literal["bilinear", "bicubic"]
    mean: Numbers
    std: Numbers
    wnids: tuple[str, ...]
    """The WordNet number of each output, e.g. ``n01440764``."""
    words: tuple[str, ...]
    """The words for each output, separated by commas, e.g. ``tench, Tinca tinca``."""

    def class_names(self) -> tuple[str, ...]:
        """Returns a name for each output: its WordNet number and its first word."""
        return tuple(f"{wnid} {_lemmas(words)[0]}" for wnid, words in zip(self.wnids, self.words, strict=True))


def published(name: str) -> Published:
    """Returns the published weights of a model's ``name``, with the tag in it or else the library's default.

    ModelError for a name that is unknown or has no such weights, and for weights whose classes are not ImageNet's.
    """
    found = find_model(name)
    if found.library not in ("torchvision", "timm"):
        raise ModelError(
            f"{name} has no published weights",
            "a model of torchvision or timm, e.g. resnet50, timm:vit_small_patch16_224, resnet50.IMAGENET1K_V1",
            "stagewright models lists them",
        )
    return _of_torchvision(found) if found.library == "torchvision" else _of_timm(found)


def _of_torchvision(found: ModelName) -> Published:
    from stagewright.model.pretrained import torchvision_weights

    weights = torchvision_weights(found)
    view = weights.transforms()
    mean, std = model_normalisation(f"torchvision:{found.full_name}")
    wnids, words = _imagenet(found, len(weights.meta.get("categories") or ()))
    resize, size = int(view.resize_size[0]), int(view.crop_size[0])
    name = f"torchvision:{found.name}.{weights.name}"
    return Published(name, resize, size, "center", view.interpolation.value, mean, std, wnids, words)


def _of_timm(found: ModelName) -> Published:
    import timm
    from timm.data.config import resolve_data_config

    config = timm.get_pretrained_cfg(found.full_name)
    numbers = config.to_dict() if config is not None else {}
    view = resolve_data_config(pretrained_cfg=numbers, use_test_size=True)
    channels, height, width = view["input_size"]
    mode, interpolation = view["crop_mode"], view["interpolation"]
    known = mode in ("center", "squash", "border") and interpolation in ("bilinear", "bicubic")
    if channels != 3 or height != width or not known:
        raise ModelError(
            f"{found} was measured with inputs of {channels} x {height} x {width}, crop {mode!r}, {interpolation}",
            "square RGB inputs; crop center, squash or border; bilinear or bicubic",
            "use other weights of this model or another model",
        )
    wnids, words = _imagenet(found, int(numbers.get("num_classes") or 0))
    mean, std = model_normalisation(f"timm:{found.full_name}")
    name = f"timm:{found.name}.{config.tag}" if config is not None and config.tag else str(found)
    return Published(name, floor(height / view["crop_pct"]), height, mode, interpolation, mean, std, wnids, words)


def _imagenet(found: ModelName, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns WordNet number and words of each of ``count`` outputs; ModelError if no label set of ImageNet has so many."""
    from timm.data.imagenet_info import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        raise ModelError(
            f"the published weights of {found} have {count:,} outputs, which are not the classes of ImageNet",
            "weights for ImageNet's 1,000 classes, or one of its larger sets that timm lists",
            "name other weights of this model, e.g. one with in1k in its tag",
        )
    return _label_set(subset)


@cache
def _label_set(subset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    return tuple(info.label_names()), tuple(info.label_descriptions())


def matching_wnids(names: Sequence[str], weights: Published) -> dict[str, str]:
    """Returns the class of ``weights`` (:meth:`Published.class_names`) for those of ``names`` that are, or begin with, one of
    its WordNet numbers, or are one of its words that no other output has. Upper and lower case do not matter."""
    by_wnid = dict(zip(weights.wnids, weights.class_names(), strict=True))
    by_word = _by_word(weights)
    found: dict[str, str] = {}
    for name in names:
        number = _WNID.match(name)
        wnid = number[0] if number else by_word.get(_plain(name))
        if wnid in by_wnid:
            found[name] = by_wnid[wnid]
    return found


@cache
def _by_word(weights: Published) -> dict[str, str]:
    pairs = [
        (_plain(word), wnid)
        for wnid, words in zip(weights.wnids, weights.words, strict=True)
        for word in _lemmas(words)
    ]
    times = Counter(word for word, _ in set(pairs))
    return {word: wnid for word, wnid in pairs if times[word] == 1}


def _lemmas(words: str) -> list[str]:
    return [word.strip() for word in words.split(",")]


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word).strip().casefold()
