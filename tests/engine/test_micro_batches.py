from __future__ import annotations

import pytest
import torch

from stagewright.data.batches.batch import Batch
from stagewright.engine.build import build_state
from stagewright.engine.micro_batches import micro_batch_sizes
from stagewright.engine.numerics import numerics_of
from stagewright.engine.step import update
from stagewright.errors import RecipeError
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

INFO = DatasetInfo(num_train=50, num_val=10, num_test=0, classes=("a", "b"), digest="x")


@pytest.mark.parametrize(
    ("batch_size", "most", "sizes"),
    [
        (8, 8, [8]),
        (8, 9, [8]),
        (8, 3, [3, 3, 2]),
        (5, 4, [3, 2]),
        (7, 3, [3, 2, 2]),
        (5, 2, [2, 2, 1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_sizes(batch_size: int, most: int, sizes: list[int]) -> None:
    assert micro_batch_sizes(batch_size, most) == sizes


def test_sizes_are_complete_within_the_limit_and_single_only_where_they_must_be() -> None:
    for batch_size in range(1, 60):
        for most in range(1, 60):
            sizes = micro_batch_sizes(batch_size, most)
            assert sum(sizes) == batch_size and max(sizes) <= most and min(sizes) >= 1
            assert 1 not in sizes or batch_size == 1 or most <= 2


def plan(**fields: object) -> Plan:
    usual = {"model": {"name": "mobilenet_v2"}, "image_size": 32, "epochs": "2st"}
    return resolve(recipes.from_dict({**usual, **fields}), INFO)


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"batch_size": 1}, "batches of 1 train on one image alone"),
        ({"batch_size": 8, "micro_batch_size": 1}, "batches of 8 in micro-batches of 1 train on one image alone"),
        ({"batch_size": 5, "micro_batch_size": 2}, "batches of 5 in micro-batches of 2 train on one image alone"),
    ],
)
def test_batch_norm_that_would_see_one_value_is_refused_at_the_set_up(fields: dict[str, int], given: str) -> None:
    with pytest.raises(RecipeError) as error:
        build_state(plan(**fields), torch.device("cpu"))
    assert given in error.value.given and "2 images or more" in error.value.allowed


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 5, "micro_batch_size": 4},
        {"batch_size": 1, "image_size": 64},
        {"batch_size": 1, "train": "head"},
        {"batch_size": 1, "model": {"name": "vit", "options": {"patch": 16, "width": 24, "depth": 1, "heads": 2}}},
    ],
)
def test_where_one_image_is_enough_it_trains(fields: dict[str, object]) -> None:
    made = plan(**fields)
    state, _ = build_state(made, torch.device("cpu"))
    stage = made.stages[0]
    shape = (stage.batch_size, 3, stage.image_size, stage.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, valid = torch.zeros(stage.batch_size, dtype=torch.int64), torch.ones(stage.batch_size, dtype=torch.bool)
    from stagewright.model.groups import apply_trainable, set_train_mode

    apply_trainable(state.model, stage.train)
    set_train_mode(state.model)
    stats = update(state, made, stage, Batch(0, images, labels, valid, ()), numerics_of(made, state.model))
    assert torch.isfinite(stats).all()


def test_a_micro_batch_of_one_by_lack_of_memory_is_refused_in_words() -> None:
    made = plan(batch_size=4)
    state, _ = build_state(made, torch.device("cpu"))
    state.model.train()
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(0, images, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool), ())
    with pytest.raises(RecipeError, match="in micro-batches of 1 train on one image alone"):
        update(state, made, made.stages[0], batch, numerics_of(made, state.model), micro_batch_size=1)
