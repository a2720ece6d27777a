"""Pictures that bring out what operations do to noise, to smooth and to flat areas, to grey and to real scenes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

SIDE = 40


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """uint8 (24, 3, 40, 40): noise, smooth colour gradients clipped at both ends, flat and grey ones, half-empty ranges."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    coarse = torch.rand(10, 3, 5, 5, generator=random) * 300 - 20
    smooth = functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 255).to(torch.uint8)
    flat = torch.tensor([0, 255, 77], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, SIDE, SIDE)
    grey = noise[:2, :1].expand(2, 3, SIDE, SIDE)
    two_levels = (noise[:1] > 200).to(torch.uint8) * 31 + 100
    few = torch.cat([torch.full((2, 3, SIDE, SIDE), 3, dtype=torch.uint8)])
    few[:, :, :2, :3] = noise[:2, :, :2, :3]
    return torch.cat([noise, smooth, flat, grey, two_levels, few])


@pytest.fixture(scope="session")
def photographs(shared_data: Path) -> Tensor:
    """uint8 (6, 3, 96, 96): real scenes."""
    with zipfile.ZipFile(shared_data / "imagenette-4k.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg")))[::600][:6]
        found = []
        for name in names:
            with archive.open(name) as file:
                found.append(np.asarray(Image.open(file).convert("RGB").resize((96, 96))))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
