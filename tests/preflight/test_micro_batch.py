"""Finding the micro-batch that fits, with a network that has memory for so many pictures only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.engine.build import build_state
from stagewright.engine.numerics import numerics_of
from stagewright.errors import RecipeError
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.micro_batch import fitted, fitting_micro_batch, largest_stages, largest_that_fits, notice
from stagewright.recipe import recipes

INFO = DatasetInfo(num_train=100, num_val=10, num_test=0, classes=("a", "b"), digest="d")
CPU = torch.device("cpu")


def plan_of(**fields: Any) -> Plan:
    usual = {"model": {"name": "cifar_resnet18", "options": {"width": 4}}, "image_size": 16, "batch_size": 24}
    return resolve(recipes.from_dict({**usual, "epochs": "2ep", **fields}), INFO)


def short_of_memory(model: nn.Module, *, train: int, evaluate: int) -> list[tuple[bool, int]]:
    """Makes ``model`` run out of memory above so many pictures; the passes that were tried, as (training, pictures)."""
    tried: list[tuple[bool, int]] = []
    forward = model.forward

    def limited(images: Tensor) -> Tensor:
        tried.append((model.training, len(images)))
        if len(images) > (train if model.training else evaluate):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
        return forward(images)

    model.forward = limited
    return tried


@pytest.mark.parametrize(
    ("train", "evaluate", "expected"), [(99, 99, 24), (12, 99, 12), (23, 99, 12), (5, 99, 3), (99, 6, 6), (1, 1, 1)]
)
def test_halves_until_training_and_evaluation_fit(train: int, evaluate: int, expected: int) -> None:
    plan = plan_of(average="ema")
    state, _ = build_state(plan, CPU)
    tried = short_of_memory(state.model, train=train, evaluate=evaluate)
    assert fitted(state, plan, plan.stages[0], numerics_of(plan, state.model)) == expected
    assert (True, expected) in tried and (False, expected) in tried
    # two whole updates of the global batch, in parts, came before the evaluation that ended it
    last = tried[-(1 + 2 * -(-24 // expected)) :]
    assert [training for training, _ in last] == [True] * (len(last) - 1) + [False]
    assert sum(count for training, count in last if training) == 2 * 24
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_what_the_network_answers_while_memory_is_tried_does_not_matter() -> None:
    plan = plan_of()
    state, _ = build_state(plan, CPU)
    with torch.no_grad():
        next(state.model.parameters()).fill_(torch.nan)
    assert fitted(state, plan, plan.stages[0], numerics_of(plan, state.model)) == 24


def test_not_even_one_fits() -> None:
    plan = plan_of()
    state, _ = build_state(plan, CPU)
    tried = short_of_memory(state.model, train=0, evaluate=0)
    with pytest.raises(
        RecipeError, match=r"not even one picture at a time[\s\S]*Tried to allocate 2.00 GiB\n[\s\S]*smaller"
    ):
        fitted(state, plan, plan.stages[0], numerics_of(plan, state.model))
    assert [count for _, count in tried] == [24, 12, 6, 3, 2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(8, broken, lambda: pytest.fail("nothing to recover from"), ("", ""))


def test_the_largest_stage_is_tried_and_the_largest_that_trains_all() -> None:
    stages = [
        {"name": "small", "epochs": "1ep", "image_size": 16, "batch_size": 64},
        {"name": "big", "epochs": "1ep", "image_size": 64, "batch_size": 8},
        {"name": "head", "epochs": "1ep", "image_size": 64, "batch_size": 16, "train": "head"},
    ]
    assert [stage.name for stage in largest_stages(plan_of(stages=stages))] == ["head", "big"]
    assert [stage.name for stage in largest_stages(plan_of(stages=stages[:2]))] == ["big"]
    # evaluations at a size of their own count as well
    own = plan_of(stages=stages[:2], eval={"image_size": 128})
    assert [stage.name for stage in largest_stages(own)] == ["small"]


def test_a_notice_names_batch_norm_where_there_is_some() -> None:
    assert "64 at a time, and each update still uses the gradient of all 256" in notice(64, 256, batch_norm=False)
    assert "statistics over 64" in notice(64, 256, batch_norm=True)


def test_nothing_is_tried_on_a_cpu() -> None:
    found = fitting_micro_batch(plan_of(), CPU)
    assert found.micro_batch_size is None and found.notice is None
