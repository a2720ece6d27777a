"""Two seeds are independent replicates: they never share an order, a crop, a mixing draw or an initialisation."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from stagewright.augment.geometry import train_geometry
from stagewright.augment.mixing import draw_mix
from stagewright.data.batches.order import batch_places
from stagewright.engine.build import build_model
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Augment, Evaluation, Mix

SEEDS = range(6)
PASSES = range(6)


def test_orders() -> None:
    """Of neighbouring seeds and passes: where seeds are added to passes, seed 1 pass 0 is seed 0 pass 1."""
    orders = {
        (seed, index): tuple(batch_places(seed, 100, index, 100, 0)[0].tolist()) for seed in SEEDS for index in PASSES
    }
    assert len(set(orders.values())) == len(orders)
    for (_, one), (_, other) in itertools.combinations(orders.items(), 2):
        assert np.mean(np.array(one) == np.array(other)) < 0.1, "two random orders agree in about 1 place of 100"


def test_crops_and_flips() -> None:
    rows, sides = np.arange(200), np.full(200, 500)
    boxes = {}
    for seed in SEEDS:
        for index in PASSES:
            passes = np.full(200, index)
            boxes[seed, index] = train_geometry(Augment(), seed, rows, passes, sides, sides, 224, Evaluation())
    for one, other in itertools.combinations(boxes.values(), 2):
        assert np.mean((one.boxes == other.boxes).all(axis=1)) < 0.02
        assert 0.3 < np.mean(one.flips == other.flips) < 0.7


def test_mixing() -> None:
    draws = [draw_mix(Mix(mixup=0.4), seed, step, 16, 32) for seed in SEEDS for step in range(6)]
    assert len({(draw.lam, tuple(draw.partner.tolist())) for draw in draws}) == len(draws)


def test_initial_weights() -> None:
    info = DatasetInfo(num_train=10, num_val=1, num_test=0, classes=("a", "b"), digest="")

    def initial(seed: int) -> dict[str, torch.Tensor]:
        recipe = recipes.from_dict({"seed": seed, "model": {"options": {"width": 4}}, "image_size": 16})
        return dict(build_model(resolve(recipe, info), pretrained=False)[0].named_parameters())

    first, again, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].std() > 0]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)
