"""Colour operations on batches of 8-bit images, with a separate strength for each image.

All take ``images``, uint8 (B, 3, H, W) in any memory format, do not change them, and return a contiguous uint8 tensor of the
same shape. ``factor``, ``sigma`` etc. are float32 (B,) on the same device. No operation waits for the device. The results
equal those of torchvision's ``transforms.v2.functional`` on single images, to within one level. Grey is
0.2989 R + 0.587 G + 0.114 B, rounded down to a whole level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_GREY = (0.2989, 0.587, 0.114)
_LEVELS = 256


def floats(images: Tensor) -> Tensor:
    """Returns a contiguous float32 copy of ``images`` with levels 0 .. 255."""
    return images.to(torch.float32, memory_format=torch.contiguous_format)


def levels(values: Tensor) -> Tensor:
    """Returns ``values`` in (-1, 256) as uint8, rounded towards 0. Converting to int16 first is four times faster on a CPU."""
    return values.to(torch.int16).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies every level by ``factor``, 0 (black) or more."""
    return levels(floats(images).mul_(_per_image(factor)).clamp_(0, 255))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies every level's distance from the image's mean grey by ``factor``, 0 (uniform grey) or more."""
    values = floats(images)
    mean = _grey(values).floor_().mean(dim=(1, 2, 3), keepdim=True)
    return levels(_contrasted(values, mean, factor).clamp_(0, 255))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies every pixel's distance from its own grey level by ``factor``: 0 gives a grey image, 1 changes nothing."""
    values = floats(images)
    return levels(_saturated(values, _grey(values).floor_(), factor).clamp_(0, 255))


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotates the hue by ``turn``, -0.5 .. 0.5 of the colour circle, in HSV."""
    return levels(_hue_turned(floats(images), turn).add_(0.5))


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Changes brightness, contrast, saturation and hue, in this order, by ``factors``, float32 (B, 4); it rounds only at the
    end."""
    bright, contrasted, saturated, turn = factors.unbind(1)
    values = floats(images).mul_(_per_image(bright)).clamp_(0, 255)
    values = _contrasted(values, _grey(values).mean(dim=(1, 2, 3), keepdim=True), contrasted).clamp_(0, 255)
    values = _saturated(values, _grey(values), saturated).clamp_(0, 255)
    return levels(_hue_turned(values, turn).add_(0.5))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Sets all but the highest ``bits`` (whole numbers 0 .. 8) of each level to 0."""
    kept = torch.bitwise_left_shift(torch.full_like(bits, 255, dtype=torch.int32), 8 - bits.to(torch.int32))
    return images.contiguous() & _per_image(kept).to(torch.uint8)  # the cast keeps the lower eight bits


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts all levels from ``threshold`` (0 .. 255) on."""
    inverted = images.contiguous() >= _per_image(threshold.ceil()).to(torch.uint8)
    return images.contiguous() ^ inverted.view(torch.uint8).neg()  # all bits where inverted


def invert(images: Tensor) -> Tensor:
    """Inverts all levels."""
    return ~images.contiguous()


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel so that its lowest level becomes 0 and its highest 255; a channel with one level does not
    change."""
    planes = images.contiguous()
    # On a CPU, aminmax is 20 times slower than amin and amax together.
    low, high = planes.amin((2, 3), keepdim=True).float(), planes.amax((2, 3), keepdim=True).float()
    scale = (high - low) * (1 / 255)
    flat = scale == 0
    low, scale = low.masked_fill(flat, 0.0), scale.masked_fill(flat, 1.0)
    return levels(floats(planes).sub_(low).div_(scale).clamp_(0, 255))


def equalize(images: Tensor) -> Tensor:
    """Equalizes each channel's histogram by the integer formula of Pillow's ImageOps.equalize."""
    planes = images.contiguous()
    count, (height, width) = planes.shape[0] * 3, planes.shape[2:]
    offset = torch.arange(0, count * _LEVELS, _LEVELS, dtype=torch.int32, device=images.device)
    at = planes.to(torch.int32).view(count, -1).add_(offset[:, None]).view(-1)  # index into all histograms, joined
    one = torch.ones((), dtype=torch.int32, device=images.device)
    histogram = torch.zeros(count * _LEVELS, dtype=torch.int32, device=images.device)
    histogram = histogram.scatter_add_(0, at.long(), one.expand(len(at))).view(count, _LEVELS)
    cumulated = histogram.cumsum(dim=1, dtype=torch.int32)
    highest = cumulated.argmax(dim=1, keepdim=True)  # index of the first maximum: the highest level that occurs
    step = (height * width - histogram.gather(1, highest)).div_(255, rounding_mode="floor")
    below = functional.pad(cumulated[:, :-1], (1, 0))
    spread = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    spread[:, 0] = 0
    same = torch.arange(_LEVELS, dtype=torch.int32, device=images.device)
    table = torch.where(step == 0, same, spread).to(torch.uint8)
    return table.view(-1).index_select(0, at).view(planes.shape)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies every level's distance from the weighted mean of its 3 x 3 neighbourhood by ``factor``; the pixel itself has
    weight 5.

    0 smooths, 1 changes nothing. The outermost pixels do not change, nor do images with a side of less than 3 pixels.
    """
    values = floats(images)
    if min(images.shape[2:]) < 3:
        return levels(values)
    rows = values[..., :-2] + values[..., 1:-1]
    rows += values[..., 2:]
    smooth = rows[:, :, :-2] + rows[:, :, 1:-1]
    smooth += rows[:, :, 2:]
    inner = values[..., 1:-1, 1:-1]
    smooth = smooth.add_(inner, alpha=4.0).mul_(1 / 13).round_()
    inner.add_(smooth.sub_(inner).mul_(_per_image(1 - factor)))
    return levels(values.clamp_(0, 255))


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blurs images with a Gaussian of standard deviation ``sigma`` pixels, more than 0. The kernel is cut off at ``radius``
    pixels (less than the shorter side) and normalised; images are mirrored at their edges."""
    batch, channels, height, width = images.shape
    reach = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    weights = torch.softmax(-((reach / sigma[:, None]) ** 2) / 2, dim=1)
    kernels = weights.repeat_interleave(channels, dim=0)[:, None, None]  # one group and one kernel for each plane
    planes = floats(images).view(1, batch * channels, height, width)
    planes = functional.pad(planes, (radius,) * 4, mode="reflect")
    planes = functional.conv2d(planes, kernels, groups=batch * channels)
    planes = functional.conv2d(planes, kernels.transpose(2, 3), groups=batch * channels)
    return levels(planes.view(images.shape).add_(0.5).clamp_(0, 255))


def erase(images: Tensor, boxes: list[list[int]], fill: Tensor) -> None:
    """Fills the rectangle [top, bottom, left, right] in ``boxes`` of each image with ``fill``, uint8 (3,), in place."""
    colour = fill[:, None, None]
    for image, (top, bottom, left, right) in zip(images, boxes, strict=True):
        image[:, top:bottom, left:right] = colour


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(values: Tensor) -> Tensor:
    red, green, blue = values.split(1, dim=1)
    return red.mul(_GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _contrasted(values: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the distances from ``mean`` (B, 1, 1, 1) by ``factor``, in place; a factor of 1 changes no bit."""
    share = _per_image(factor)
    return values.mul_(share).add_(mean * (1 - share))


def _saturated(values: Tensor, grey: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the distances from ``grey`` (B, 1, H, W) by ``factor``, in place; a factor of 1 changes no bit."""
    return torch.lerp(grey, values, _per_image(factor), out=values)


def _hue_turned(values: Tensor, turn: Tensor) -> Tensor:
    """Rotates the hue of ``values`` (levels 0 .. 255) in place, by conversion to HSV and back without branches.

    The hue (0 .. 6) is computed by sorting the channels, first green and blue, then red and the greater of them: it is
    |sector + (second - third) / chroma|, and the sector records which channels were exchanged. Back: each channel is the lowest
    one plus chroma times a trapezoid function of the hue, which is 1 on one third of the circle and 0 on another.
    """
    red, green, blue = values.unbind(1)
    top = torch.maximum(green, blue)
    swapped, turned = _ones_where_more(blue, green), _ones_where_more(top, red)
    angle = torch.minimum(red, top)
    third = torch.minimum(green, blue, out=green)
    angle.sub_(third)
    lowest = torch.minimum(red, third, out=blue)
    chroma = torch.maximum(red, top, out=top).sub_(lowest)
    sector = turned.mul_(swapped * 12 - 2).sub_(swapped, alpha=6.0)
    angle.div_(chroma.clamp(min=1e-6)).add_(sector).abs_().add_(turn[:, None, None] * 6)
    angle.sub_((angle * (1 / 6)).floor_(), alpha=6.0)
    torch.sub(angle, 3, out=red).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(lowest)
    torch.sub(angle, 2, out=green).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(lowest)
    shape = angle.sub_(4).abs_().neg_().add_(2).clamp_(0, 1)
    lowest.addcmul_(shape, chroma)
    return values


def _ones_where_more(left: Tensor, right: Tensor) -> Tensor:
    """Returns 1.0 where ``left > right``, else 0.0. On a CPU this is four times faster than a comparison converted to float."""
    return (left - right).sign_().clamp_(min=0)
