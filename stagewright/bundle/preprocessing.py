"""Preprocessing of images for a trained model outside training, as in evaluation, and logits in full float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from stagewright.augment.geometry import eval_boxes
from stagewright.augment.normalise import normalise
from stagewright.data.images.decode import crop_resize
from stagewright.data.images.depth import to_8_bit


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a tensor: crop, size and interpolation as in the recipe's ``eval``; ``mean`` and ``std`` refer to
    values in [0, 1]."""

    image_size: int
    crop: float
    fit: Literal["crop", "squash"]
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def view(self, image: Image.Image) -> NDArray[np.uint8]:
        """Returns the cropped and resized part of an upright RGB ``image``: uint8 (image_size, image_size, 3)."""
        width, height = image.size
        boxes = eval_boxes(np.array([width]), np.array([height]), self.crop, self.fit)
        left, top, right, bottom = boxes[0].tolist()
        return crop_resize(image, (left, top, right, bottom), (self.image_size, self.image_size), self.interpolation)

    def batch(self, views: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
        """Returns B views as a normalised float32 tensor (B, 3, image_size, image_size) on ``device``."""
        pixels = torch.from_numpy(np.stack(views)).to(device).permute(0, 3, 1, 2)
        return normalise(pixels, self.mean, self.std)


def upright(image: Image.Image) -> Image.Image:
    """Converts any Pillow image to the form that :meth:`Preprocessing.view` needs: 8-bit RGB with EXIF orientation applied."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(to_8_bit(np.asarray(image)))
    return image.convert("RGB")


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the logits (B, classes) of normalised images in float32, without TF32 and autocast even if the process uses
    them."""
    with torch.inference_mode(), _plain_float32(images.device):
        return model(images).float()


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False))
        yield
