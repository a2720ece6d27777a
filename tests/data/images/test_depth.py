"""Tests the rule that brings grey values to 8 bits, above all that single values do not change all others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stagewright.bundle.preprocessing import upright
from stagewright.data.images.decode import decode
from stagewright.data.images.depth import to_8_bit


def test_rules() -> None:
    assert to_8_bit(np.array([[0, 200]], np.uint16)).tolist() == [[0, 200]]  # 8 bits in a 16-bit file
    assert to_8_bit(np.array([[0, 1023]], np.uint16)).tolist() == [[0, 255]]
    assert to_8_bit(np.array([[-5, 5]], np.int32)).tolist() == [[0, 255]]
    assert to_8_bit(np.array([[0.0, np.nan, 0.5, np.inf]])).tolist() == [[0, 0, 128, 0]]
    assert to_8_bit(np.array([[7.0, 7.0]])).tolist() == [[7, 7]]
    assert to_8_bit(np.array([[-3.0, -3.0]])).tolist() == [[0, 0]]
    assert to_8_bit(np.zeros((0, 4), np.uint16)).shape == (0, 4)
    assert to_8_bit(np.full((5, 5), np.nan)).tolist() == [[0] * 5] * 5


@pytest.mark.parametrize("kind", ["u2", ">u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("size", [4, 32, 1100])
def test_a_hot_pixel_does_not_change_the_others(kind: str, size: int) -> None:
    values = np.random.default_rng(0).integers(0, 900, (size, size)).astype(kind)
    if np.dtype(kind).kind == "f":
        values /= 1000
    plain = to_8_bit(values)
    for hot in (1030, 4100, 65_535, *([] if "u" in kind else [-50_000])):
        damaged = values.copy()
        damaged[1, 2] = hot
        found = to_8_bit(damaged)
        assert found[1, 2] == (255 if hot > 0 else 0)
        found[1, 2] = plain[1, 2]
        assert np.array_equal(found, plain)


def test_one_in_a_thousand_may_be_hot_but_a_bright_part_counts() -> None:
    values = np.full((100, 100), 900, np.uint16)
    values.flat[:10] = 60_000
    assert to_8_bit(values)[-1, -1] == round(900 / 1023 * 255)
    values.flat[:11] = 60_000
    assert to_8_bit(values)[-1, -1] == round(900 / 65_535 * 255)


def test_blocks_change_nothing() -> None:
    values = np.random.default_rng(0).integers(0, 5000, (1500, 1500))
    whole = np.rint(np.clip(values / (2**12 - 1), 0, 1) * 255).astype(np.uint8)
    values[values >= 2**12] = 2**12 - 1
    for kind in ("u2", "i4"):
        assert np.array_equal(to_8_bit(values.astype(kind)), whole)


def png(values: NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_training_and_prediction_see_the_same() -> None:
    values = np.random.default_rng(0).integers(0, 900, (32, 32)).astype(np.uint16)
    values[0, 0] = 1030
    data = png(values)
    given = upright(Image.open(io.BytesIO(data)))  # predict with a Pillow image
    assert np.array_equal(np.asarray(given), np.asarray(decode(data)))
    assert np.asarray(given).mean() > 100
