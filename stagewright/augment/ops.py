"""Colour operations on batches of 8-bit pictures, with a strength for each picture.

All take ``images``, uint8 (B, 3, H, W) in any layout, which stay as they are, and give uint8 of the same shape, lying
in memory as planes. ``factor``, ``sigma`` and so on are float32 (B,) on the same device. Nothing here waits for the
device. What a picture becomes is what torchvision's ``transforms.v2.functional`` makes of it alone, to within one
level; grey is 0.2989 R + 0.587 G + 0.114 B, cut off to a whole level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_GREY = (0.2989, 0.587, 0.114)
_LEVELS = 256


def floats(images: Tensor) -> Tensor:
    """``images`` as float32 planes of 0 .. 255, copied."""
    return images.to(torch.float32, memory_format=torch.contiguous_format)


def levels(values: Tensor) -> Tensor:
    """``values`` in (-1, 256) as uint8, cut off towards 0. By way of int16, which is four times faster on a CPU."""
    return values.to(torch.int16).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Every level times ``factor``, 0 (black) or more."""
    return levels(floats(images).mul_(_per_picture(factor)).clamp_(0, 255))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Every level's distance from the picture's mean grey times ``factor``, 0 (flat) or more."""
    values = floats(images)
    mean = _grey(values).floor_().mean(dim=(1, 2, 3), keepdim=True)
    return levels(_contrasted(values, mean, factor).clamp_(0, 255))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Every pixel's distance from its own grey times ``factor``: 0 is grey, 1 the picture itself."""
    values = floats(images)
    return levels(_saturated(values, _grey(values).floor_(), factor).clamp_(0, 255))


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Colours turned by ``turn``, -0.5 .. 0.5 of the colour circle, in HSV."""
    return levels(_hue_turned(floats(images), turn).add_(0.5))


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue by ``factors``, float32 (B, 4), one after another and rounded once."""
    bright, contrasted, saturated, turn = factors.unbind(1)
    values = floats(images).mul_(_per_picture(bright)).clamp_(0, 255)
    values = _contrasted(values, _grey(values).mean(dim=(1, 2, 3), keepdim=True), contrasted).clamp_(0, 255)
    values = _saturated(values, _grey(values), saturated).clamp_(0, 255)
    return levels(_hue_turned(values, turn).add_(0.5))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The upper ``bits`` (whole numbers 0 .. 8) of each level."""
    kept = torch.bitwise_left_shift(torch.full_like(bits, 255, dtype=torch.int32), 8 - bits.to(torch.int32))
    return images.contiguous() & _per_picture(kept).to(torch.uint8)  # the cast keeps the lower eight bits


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Levels from ``threshold`` on (0 .. 255) inverted."""
    inverted = images.contiguous() >= _per_picture(threshold.ceil()).to(torch.uint8)
    return images.contiguous() ^ inverted.view(torch.uint8).neg()  # all bits where inverted


def invert(images: Tensor) -> Tensor:
    """The negative."""
    return ~images.contiguous()


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched such that its lowest level becomes 0 and its highest 255; one of a single level stays."""
    planes = images.contiguous()
    # aminmax is 20 times slower than both on a CPU.
    low, high = planes.amin((2, 3), keepdim=True).float(), planes.amax((2, 3), keepdim=True).float()
    scale = (high - low) * (1 / 255)
    flat = scale == 0
    low, scale = low.masked_fill(flat, 0.0), scale.masked_fill(flat, 1.0)
    return levels(floats(planes).sub_(low).div_(scale).clamp_(0, 255))


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram evened out, by the whole-number formula of Pillow's ImageOps.equalize."""
    planes = images.contiguous()
    count, (height, width) = planes.shape[0] * 3, planes.shape[2:]
    offset = torch.arange(0, count * _LEVELS, _LEVELS, dtype=torch.int32, device=images.device)
    at = planes.to(torch.int32).view(count, -1).add_(offset[:, None]).view(-1)  # place in one row of all histograms
    one = torch.ones((), dtype=torch.int32, device=images.device)
    histogram = torch.zeros(count * _LEVELS, dtype=torch.int32, device=images.device)
    histogram = histogram.scatter_add_(0, at.long(), one.expand(len(at))).view(count, _LEVELS)
    cumulated = histogram.cumsum(dim=1, dtype=torch.int32)
    highest = cumulated.argmax(dim=1, keepdim=True)  # the first place of the maximum: the highest level that occurs
    step = (height * width - histogram.gather(1, highest)).div_(255, rounding_mode="floor")
    below = functional.pad(cumulated[:, :-1], (1, 0))
    spread = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    spread[:, 0] = 0
    same = torch.arange(_LEVELS, dtype=torch.int32, device=images.device)
    table = torch.where(step == 0, same, spread).to(torch.uint8)
    return table.view(-1).index_select(0, at).view(planes.shape)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Every level's distance from the mean of its 3 x 3 neighbourhood, itself counting five times, times ``factor``.

    0 smooths, 1 changes nothing; the outermost pixels stay, and so do pictures of less than 3 pixels.
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
    inner.add_(smooth.sub_(inner).mul_(_per_picture(1 - factor)))
    return levels(values.clamp_(0, 255))


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """A Gaussian of standard deviation ``sigma`` pixels, more than 0, cut off ``radius`` pixels (less than the shorter
    side) away and normalised; the picture is mirrored at its edges."""
    batch, channels, height, width = images.shape
    reach = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    weights = torch.softmax(-((reach / sigma[:, None]) ** 2) / 2, dim=1)
    kernels = weights.repeat_interleave(channels, dim=0)[:, None, None]  # a group for each plane, each with its kernel
    planes = floats(images).view(1, batch * channels, height, width)
    planes = functional.pad(planes, (radius,) * 4, mode="reflect")
    planes = functional.conv2d(planes, kernels, groups=batch * channels)
    planes = functional.conv2d(planes, kernels.transpose(2, 3), groups=batch * channels)
    return levels(planes.view(images.shape).add_(0.5).clamp_(0, 255))


def erase(images: Tensor, boxes: list[list[int]], fill: Tensor) -> None:
    """Fills the rectangle [top, bottom, left, right] in ``boxes`` of each picture with ``fill``, uint8 (3,), in place."""
    colour = fill[:, None, None]
    for picture, (top, bottom, left, right) in zip(images, boxes, strict=True):
        picture[:, top:bottom, left:right] = colour


def _per_picture(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(values: Tensor) -> Tensor:
    red, green, blue = values.split(1, dim=1)
    return red.mul(_GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _contrasted(values: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Distances from ``mean`` (B, 1, 1, 1) times ``factor``, written into ``values``; a factor of 1 changes no bit."""
    share = _per_picture(factor)
    return values.mul_(share).add_(mean * (1 - share))


def _saturated(values: Tensor, grey: Tensor, factor: Tensor) -> Tensor:
    """Distances from ``grey`` (B, 1, H, W) times ``factor``, written into ``values``; a factor of 1 changes no bit."""
    return torch.lerp(grey, values, _per_picture(factor), out=values)


def _hue_turned(values: Tensor, turn: Tensor) -> Tensor:
    """Through HSV and back without a branch, written into ``values``, planes of 0 .. 255.

    Hue (0 .. 6) by sorting the channels: |sector + (second - third) / chroma|, where green and blue, then red and the
    greater of them, are brought into order and the sector keeps account. Back: each channel is the lowest one plus
    chroma times a trapezoid of the hue, which is 1 for a third of the circle and 0 for another.
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
    """1.0 where ``left > right``, else 0.0; on a CPU four times faster than a comparison cast to floats."""
    return (left - right).sign_().clamp_(min=0)
