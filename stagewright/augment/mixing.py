"""Mixup and cutmix: one draw for each batch, a pure function of (seed, step), and its application to the batch.

Each image is mixed with that of its partner; ``lam`` is the share of the image itself. Instead of soft labels the loss is
``sum(weight * (lam * CE(labels_a) + (1 - lam) * CE(labels_b)))``, which is equivalent, also with label smoothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from stagewright import rng
from stagewright.plan.lanes import lane_starts
from stagewright.recipe.recipe import Mix

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class MixDraw:
    """The mixing of a batch of B images."""

    kind: Literal["none", "mixup", "cutmix"]
    lam: float
    """Share of the image itself, in [0, 1]: of each pixel (mixup) or of the area (cutmix); 1.0 for none."""
    box: Box | None
    """Cutmix: top, bottom, left, right in pixels of the region that comes from the partner; may be empty."""
    partner: NDArray[np.int64]
    """int64 (B,): a permutation of the batch, in which the images of each lane are each other's partners."""

    def of(self, start: int, end: int) -> MixDraw:
        """Returns the mixing of the images ``start`` to ``end - 1``, which are whole lanes."""
        return replace(self, partner=self.partner[start:end] - start)


@dataclass(frozen=True, slots=True, eq=False)
class MixedBatch:
    """A batch after mixing."""

    images: Tensor
    """float (B, 3, H, W), in the memory format of the input."""
    labels_a: Tensor
    """int64 (B,): the images' labels, with weight ``lam``."""
    labels_b: Tensor
    """int64 (B,): their partners' labels, with weight ``1 - lam``."""
    lam: float
    weight: Tensor
    """float32 (B,): 1.0, or 0.0 where the image or its partner could not be read."""


def draw_mix(mix: Mix, seed: int, step: int, batch_size: int, image_size: int, lanes: int = 1) -> MixDraw:
    """Draws the mixing of the batch of ``step`` (counted over the run): mixup (arXiv:1710.09412) or cutmix
    (arXiv:1905.04899) with the recipe's probabilities, ``lam`` from Beta(alpha, alpha), and a random partner for each image from
    its own lane.

    The centre of cutmix's box is uniform over the pixels; the box is clipped at the border, and ``lam`` is the exact share of
    the remaining area.
    """
    key = rng.key(seed, rng.Stream.MIX, step)
    mixed, cut, share, x, y = rng.uniform(key, 5).tolist()
    if (mix.mixup == 0 and mix.cutmix == 0) or mixed >= mix.probability:
        return MixDraw("none", 1.0, None, np.arange(batch_size, dtype=np.int64))
    partner = np.empty(batch_size, np.int64)
    for lane, (start, end) in enumerate(pairwise(lane_starts(batch_size, lanes))):
        partner[start:end] = start + rng.permutation(rng.key(key, 1 + lane), end - start)
    if mix.cutmix == 0 or (mix.mixup > 0 and cut >= mix.cutmix_share):
        return MixDraw("mixup", _beta(share, mix.mixup), None, partner)
    box = _cutmix_box(_beta(share, mix.cutmix), int(x * image_size), int(y * image_size), image_size)
    top, bottom, left, right = box
    return MixDraw("cutmix", 1 - (bottom - top) * (right - left) / image_size**2, box, partner)


def apply_mix(images: Tensor, labels: Tensor, valid: Tensor, draw: MixDraw) -> MixedBatch:
    """Returns the batch mixed according to ``draw``. ``images`` is not changed; it is returned itself if nothing is mixed.

    ``images`` float (B, 3, H, W), ``labels`` int64 (B,), ``valid`` bool (B,), all on one device. A sample gets weight 0 if its
    image or that of its partner is invalid: part of its pixels are missing, so neither label would be correct.
    """
    if draw.kind == "none":
        return MixedBatch(images, labels, labels, 1.0, valid.to(torch.float32))
    partner = torch.from_numpy(draw.partner).to(images.device)
    weight = (valid & valid[partner]).to(torch.float32)
    if draw.box is None:
        mixed = images[partner].mul_(1 - draw.lam).add_(images, alpha=draw.lam)
    else:
        top, bottom, left, right = draw.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partner]
    return MixedBatch(mixed, labels, labels[partner], draw.lam, weight)


def _beta(uniform: float, alpha: float) -> float:
    """Returns a draw from Beta(alpha, alpha), computed by the inverse distribution function.

    It is rounded to 24 bits, because SciPy's last bits may differ between versions, and so that lam and 1 - lam are exact in
    float32.
    """
    return round(float(betaincinv(alpha, alpha, uniform)) * 2**24) / 2**24


def _cutmix_box(lam: float, x: int, y: int, image_size: int) -> Box:
    """Returns the paper's square around pixel (x, y) with the area 1 - lam of the image, clipped at the border."""
    half = int(0.5 * math.sqrt(1 - lam) * image_size)
    return max(y - half, 0), min(y + half, image_size), max(x - half, 0), min(x + half, image_size)
