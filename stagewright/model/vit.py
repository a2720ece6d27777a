"""A Vision Transformer specified by patch, depth, heads and width (arXiv:2010.11929), for training from scratch.

The implementation is timm's ``VisionTransformer``; this module defines the argument names and their defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagewright.errors import ModelError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def vit(  # each keyword is one of the options that a recipe gives
    num_classes: int,
    *,
    image_size: int,
    patch: int | None = None,
    depth: int = 6,
    heads: int = 6,
    width: int = 384,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> VisionTransformer:
    """Builds a ViT with class token and learned positions for ``image_size`` pixels: (B, 3, H, W) -> (B, num_classes).

    ``patch`` defaults to 4 for up to 64 pixels and to 16 above. ``dropout`` is applied as in the paper (appendix B.1): to the
    embedded patches and after every dense layer except the q, k and v projections. ``drop_path`` rises linearly from 0 to its
    value in the last block. Positions are resampled for images of other sizes, so image sizes may differ between stages if
    each is a multiple of ``patch``. Raises ModelError if the arguments are invalid or do not fit together.
    """
    from timm.models.vision_transformer import VisionTransformer  # here, because this import takes seconds

    patch = patch or (4 if image_size <= 64 else 16)
    numbers = {"patch": patch, "depth": depth, "heads": heads, "width": width}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"model.options.{name} is {value!r}",
                "an integer of at least 1",
                "correct it, or leave it out for the usual size",
            )
    if image_size % patch:
        divisors = ", ".join(str(n) for n in range(2, image_size // 2 + 1) if image_size % n == 0)
        raise ModelError(
            f"vit: patches of {patch} pixels do not tile pictures of {image_size}",
            f"a patch that divides {image_size}: {divisors or image_size}",
            "change model.options.patch or image_size",
        )
    if width % heads:
        raise ModelError(
            f"vit: a width of {width} cannot be divided among {heads} heads",
            "a width that is a multiple of heads (64 per head is usual)",
            f"use e.g. width {heads * max(1, round(width / heads))}",
        )
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
    )
