"""Finds which blocks ``train: upper`` means for a network; a function of the network's structure and of the image size."""

from __future__ import annotations

import torch

from stagewright.engine.cut import find_cut
from stagewright.model.block_costs import upper_blocks
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.model.zoo import create_model
from stagewright.recipe.recipe import Recipe


def asks_for_upper(recipe: Recipe) -> bool:
    """Whether a stage of ``recipe`` trains the ``upper`` blocks."""
    return any(stage.train == "upper" for stage in recipe.resolved_stages())


def upper_of(recipe: Recipe, num_classes: int) -> str:
    """Returns ``last:N`` for the recipe's network, or ``all`` if it has no blocks or cannot be cut in front of them.

    The network is built on the CPU with random weights; torch's random state stays as it is.
    """
    size, spec = max(stage.image_size or 0 for stage in recipe.resolved_stages()), recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(spec.name, num_classes, image_size=size, drop_path=spec.drop_path, options=spec.options)
        images = torch.zeros(2, 3, size, size)
        count = upper_blocks(model, images)
        if not count:
            return "all"
        apply_trainable(model, f"last:{count}")
        set_train_mode(model, "frozen")
        return f"last:{count}" if find_cut(model, images) is not None else "all"
