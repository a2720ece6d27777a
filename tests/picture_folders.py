"""Small pictures in class folders, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_noise(
    root: Path,
    classes: Iterable[str],
    count: int,
    size: Callable[[int], tuple[int, int]],
    ending: Callable[[int], str] = lambda at: ".png",
    save: Callable[[int], dict[str, Any]] = lambda at: {},
) -> Path:
    """Writes ``count`` pictures of noise of each class; number ``at`` has ``size(at)``, height and width, the file ``ending(at)``
    and the options ``save(at)``."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for at in range(count):
            pixels = np.random.default_rng(100 * label + at).integers(0, 256, (*size(at), 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{at:02d}{ending(at)}", **save(at))
    return root


def write_stripes(folder: Path) -> Path:
    """Writes 24 training and 8 validation pictures of each of two classes: stripes across and down."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for label, name in enumerate(("across", "down")):
            (folder / split / name).mkdir(parents=True)
            for at in range(count):
                y, x = np.mgrid[:16, :16]
                wave = 128 + 80 * np.sin((x, y)[label] * 0.8 + random.uniform(0, 6)) + random.normal(0, 20, (16, 16))
                pixels = np.repeat(wave[..., None], 3, 2).clip(0, 250).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{at:02d}.png")
    return folder
