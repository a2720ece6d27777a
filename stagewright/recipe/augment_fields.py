"""The fields of a recipe's ``augment``: flat, because stages merge them field by field; off by default but crop and flip.

Without torch. :class:`stagewright.recipe.recipe.Augment` is made of it; :mod:`stagewright.augment.geometry` draws crop and
flip, :mod:`stagewright.augment.draw` all the rest.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stagewright.recipe.schema import Frozen
from stagewright.system.named_functions import PREFIX, check_form

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Spread = Annotated[float, Field(ge=0.0)]


class AugmentFields(Frozen):
    """Everything that may happen to a training picture on its own, and how often and how strongly."""

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """``random_resized`` (arXiv:1409.4842), ``pad`` (pad by an eighth and crop, as for CIFAR), or the evaluation's view."""
    scale: tuple[Share, Share] = (0.25, 1.0)
    """Random-resized-crop: share of the picture's area."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Random-resized-crop: width / height."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""

    copies: Annotated[int, Field(ge=0, le=1000)] = 0
    """0: every pass augments anew. N: the pictures as they are, and N augmented copies of each that are the same in every
    pass; an epoch is as much longer."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Rotated by an angle uniform within this many degrees either way."""
    translate: Share = 0.0
    """Moved across and down by uniform shares of the side, up to this much either way."""
    zoom: tuple[Positive, Positive] = (1.0, 1.0)
    """Enlarged by a factor uniform in this range; below 1 the picture shrinks and its surroundings are filled."""
    shear: Annotated[float, Field(ge=0.0, le=60.0)] = 0.0
    """Sheared along x and along y by angles uniform within this many degrees either way."""
    perspective: Share = 0.0
    """Each corner moves inwards by uniform shares of half the side, up to this much: 0.5 is strong, above 0.66 may fold."""
    perspective_probability: Share = 0.5
    """Probability of the perspective."""

    policy: Literal["none", "randaugment", "trivialaugment", "augmix", "three_augment"] = "none"
    """RandAugment (arXiv:1909.13719), TrivialAugment Wide (arXiv:2103.10158), AugMix's mixture without its consistency loss
    (arXiv:1912.02781), or 3-Augment: grey, solarized or blurred (arXiv:2204.07118)."""
    policy_ops: Annotated[int, Field(ge=1, le=8)] = 2
    """RandAugment: operations one after another on each picture."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment: strength of all operations, on a scale of 0 to 30."""

    brightness: Spread = 0.0
    """Brightness times a factor uniform in [max(0, 1 - this), 1 + this]; likewise contrast and saturation."""
    contrast: Spread = 0.0
    """Distance from the picture's mean grey times such a factor."""
    saturation: Spread = 0.0
    """Distance from the pixel's own grey times such a factor."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Hue turned by a share of the colour circle, uniform up to this much either way."""
    jitter_probability: Share = 1.0
    """Probability that brightness, contrast, saturation and hue (in this order) are changed, all or none."""
    grayscale: Share = 0.0
    """Probability of losing all colour."""
    invert: Share = 0.0
    """Probability of the negative."""
    posterize: Share = 0.0
    """Probability of keeping ``posterize_bits`` of each channel's 8 bits."""
    posterize_bits: Annotated[int, Field(ge=1, le=8)] = 4
    """Posterize: bits that are kept."""
    solarize: Share = 0.0
    """Probability of inverting all levels from ``solarize_threshold`` on; 3-Augment takes its threshold from here too."""
    solarize_threshold: Annotated[int, Field(ge=0, le=255)] = 128
    """Solarize: the lowest level, of 0 to 255, that is inverted."""
    autocontrast: Share = 0.0
    """Probability of stretching each channel to the full range of levels."""
    equalize: Share = 0.0
    """Probability of spreading each channel's levels evenly over the full range."""
    sharpness: Share = 0.0
    """Probability of sharpening by ``sharpness_factor``."""
    sharpness_factor: Spread = 2.0
    """Sharpness: 0 is smooth, 1 the picture itself, 2 and more sharper."""
    blur: Share = 0.0
    """Probability of a Gaussian blur (as in SimCLR, arXiv:2002.05709)."""
    blur_sigma: tuple[Positive, Annotated[float, Field(le=20.0)]] = (0.1, 2.0)
    """Blur: standard deviation in pixels, uniform in this range; 3-Augment takes it from here too."""
    custom: str | None = None
    """``module:function`` of one's own on batches of uint8 pictures, before erasing; docs/augmentation.md says how."""
    erasing: Share = 0.0
    """Probability that a rectangle is filled with the mean colour (random erasing, arXiv:1708.04896)."""
    erasing_scale: tuple[Share, Share] = (0.02, 0.33)
    """Erasing: share of the area that is erased."""
    erasing_ratio: tuple[Positive, Positive] = (0.3, 3.3)
    """Erasing: height / width of the rectangle."""

    @field_validator("policy", mode="before")
    @classmethod
    def _policy_off_in_words(cls, value: object) -> object:
        return "none" if value in (None, False, "off") else value

    @field_validator("custom")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value in (None, "none"):
            return None
        return check_form(value.removeprefix(PREFIX), prefix="")

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("scale", "ratio", "zoom", "blur_sigma", "erasing_scale", "erasing_ratio"):
            low, high = getattr(self, name)
            if low > high or high <= 0:
                raise ValueError(f"{name} must rise from low to high, not {[low, high]}")
        return self
