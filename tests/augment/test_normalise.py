from __future__ import annotations

import pytest
import torch

from stagewright.augment.normalise import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch(*, channels_last: bool, shape: tuple[int, int, int, int] = (3, 3, 10, 7)) -> torch.Tensor:
    every_value = torch.arange(shape[0] * shape[1] * shape[2] * shape[3]).reshape(shape).mul(37).remainder(256)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return every_value.to(torch.uint8).contiguous(memory_format=layout)


def plain(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.double() / 255 - mean) / std


@pytest.mark.parametrize("from_channels_last", [True, False])
@pytest.mark.parametrize("to_channels_last", [True, False])
def test_equals_the_plain_formula_in_either_layout(from_channels_last: bool, to_channels_last: bool) -> None:
    images = batch(channels_last=from_channels_last)
    before = images.clone()
    result = normalise(images, MEAN, STD, channels_last=to_channels_last)
    torch.testing.assert_close(result.double(), plain(images), rtol=0, atol=1e-6)
    layout = torch.channels_last if to_channels_last else torch.contiguous_format
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_narrow_dtype_rounds_the_float32_result_once(channels_last: bool) -> None:
    images = batch(channels_last=True)
    wide = normalise(images, MEAN, STD, channels_last=channels_last)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = normalise(images, MEAN, STD, dtype=dtype, channels_last=channels_last)
        assert narrow.dtype == dtype and torch.equal(narrow, wide.to(dtype))


def test_a_single_picture_and_a_strided_view() -> None:
    images = batch(channels_last=True, shape=(5, 3, 8, 8))
    for part in (images[:1], images[::2], images[:, :, 1:5, 2:6]):
        torch.testing.assert_close(normalise(part, MEAN, STD).double(), plain(part), rtol=0, atol=1e-6)
