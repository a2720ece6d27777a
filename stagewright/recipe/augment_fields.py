"""The fields of a recipe's ``augment``. All are off by default except crop and flip.

They are not nested, because a stage overrides them field by field. :class:`stagewright.recipe.fields.Augment` inherits from
this class; :mod:`stagewright.augment.geometry` draws crop and flip, :mod:`stagewright.augment.draw` everything else.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stagewright.recipe.holds import ON, When
from stagewright.recipe.schema import Frozen
from stagewright.system.named_functions import PREFIX, check_form

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Spread = Annotated[float, Field(ge=0.0)]


class AugmentFields(Frozen):
    """Augmentations of single training images, with their probabilities and strengths."""

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """``random_resized``: random-resized-crop (arXiv:1409.4842); ``pad``: pad by an eighth of the side and crop, as usual for
    CIFAR; ``none``: the crop of the evaluation."""
    scale: Annotated[tuple[Share, Share], When(crop="random_resized")] = (0.25, 1.0)
    """Random-resized-crop: smallest and largest area of the crop, as a share of the image's area."""
    ratio: Annotated[tuple[Positive, Positive], When(crop="random_resized")] = (3 / 4, 4 / 3)
    """Random-resized-crop: smallest and largest aspect ratio (width / height) of the crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""

    copies: Annotated[int, Field(ge=0, le=1000)] = 0
    """0: images are augmented differently in every pass. N: an epoch contains every image without augmentation and N augmented
    copies of it, which are equal in every pass; an epoch has 1 + N times as many images."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Largest rotation in degrees; the angle is uniform in [-rotation, rotation]."""
    translate: Share = 0.0
    """Largest horizontal and vertical shift, as a share of the side; both are uniform in [-translate, translate]."""
    zoom: tuple[Positive, Positive] = (1.0, 1.0)
    """Range of the zoom factor, drawn uniformly. Below 1 the image becomes smaller, and the area around it is filled with the
    mean colour."""
    shear: Annotated[float, Field(ge=0.0, le=60.0)] = 0.0
    """Largest shear angle in degrees along x and along y; both are uniform in [-shear, shear]."""
    perspective: Share = 0.0
    """Perspective distortion: largest distance by which each corner moves inwards, as a share of half the side. 0.5 is strong;
    above 0.66 the image may fold over."""
    perspective_probability: Annotated[Share, When(perspective=ON)] = 0.5
    """Probability of the perspective distortion."""

    policy: Literal["none", "randaugment", "trivialaugment", "augmix", "three_augment"] = "none"
    """Automatic policy: RandAugment (arXiv:1909.13719), TrivialAugment Wide (arXiv:2103.10158), AugMix without its consistency
    loss (arXiv:1912.02781), or 3-Augment: grayscale, solarize or blur (arXiv:2204.07118)."""
    policy_ops: Annotated[int, Field(ge=1, le=8), When(policy="randaugment")] = 2
    """RandAugment: number of operations applied to each image one after another."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30), When(policy="randaugment")] = 9
    """RandAugment: strength of all operations, on a scale of 0 to 30."""

    brightness: Spread = 0.0
    """Colour jitter: brightness is multiplied by a factor that is uniform in [max(0, 1 - brightness), 1 + brightness]."""
    contrast: Spread = 0.0
    """Colour jitter: the distance of each level from the image's mean grey is multiplied by a factor that is uniform in
    [max(0, 1 - contrast), 1 + contrast]."""
    saturation: Spread = 0.0
    """Colour jitter: the distance of each pixel from its own grey level is multiplied by a factor that is uniform in
    [max(0, 1 - saturation), 1 + saturation]."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Colour jitter: the hue is rotated by a share of the colour circle that is uniform in [-hue, hue]."""
    jitter_probability: Annotated[Share, When(brightness=ON), When(contrast=ON), When(saturation=ON), When(hue=ON)] = (
        1.0
    )
    """Probability of colour jitter; brightness, contrast, saturation and hue are then all changed, in this order."""
    grayscale: Share = 0.0
    """Probability of removing all colour."""
    invert: Share = 0.0
    """Probability of inverting all levels (the negative)."""
    posterize: Share = 0.0
    """Probability of reducing each channel to its highest ``posterize_bits`` bits."""
    posterize_bits: Annotated[int, Field(ge=1, le=8), When(posterize=ON)] = 4
    """Posterize: number of bits, out of 8, that stay in each channel."""
    solarize: Share = 0.0
    """Probability of inverting all levels from ``solarize_threshold`` on."""
    solarize_threshold: Annotated[int, Field(ge=0, le=255), When(solarize=ON), When(policy="three_augment")] = 128
    """Solarize, also in 3-Augment: the lowest level, 0 to 255, that is inverted."""
    autocontrast: Share = 0.0
    """Probability of stretching each channel to the full range of levels."""
    equalize: Share = 0.0
    """Probability of equalizing each channel's histogram."""
    sharpness: Share = 0.0
    """Probability of changing the sharpness by ``sharpness_factor``."""
    sharpness_factor: Annotated[Spread, When(sharpness=ON)] = 2.0
    """Sharpness: 0 smooths, 1 changes nothing, values above 1 sharpen."""
    blur: Share = 0.0
    """Probability of a Gaussian blur (as in SimCLR, arXiv:2002.05709)."""
    blur_sigma: Annotated[
        tuple[Positive, Annotated[float, Field(le=20.0)]], When(blur=ON), When(policy="three_augment")
    ] = (0.1, 2.0)
    """Blur, also in 3-Augment: range of the standard deviation in pixels, drawn uniformly."""
    custom: str | None = None
    """A user's function, as ``module:function``, that is called with batches of uint8 images, before erasing;
    docs/augmentation.md describes it. None: no such function."""
    erasing: Share = 0.0
    """Probability that a rectangle is filled with the mean colour (random erasing, arXiv:1708.04896)."""
    erasing_scale: Annotated[tuple[Share, Share], When(erasing=ON)] = (0.02, 0.33)
    """Erasing: smallest and largest area of the rectangle, as a share of the image's area."""
    erasing_ratio: Annotated[tuple[Positive, Positive], When(erasing=ON)] = (0.3, 3.3)
    """Erasing: smallest and largest aspect ratio (height / width) of the rectangle."""

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
                raise ValueError(
                    f"{name} must be [low, high] with low at most high and high above 0, not {[low, high]}"
                )
        return self
