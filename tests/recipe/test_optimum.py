"""Stages that find an optimum: what they refuse, and that they change nothing about the lengths of the others."""

from __future__ import annotations

from typing import Any

import pytest

from stagewright.api.resume_check import shortened
from stagewright.errors import RangeTestError, RecipeError
from stagewright.plan.budget import least_factor, scaled
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.auto_fields import asks_for_lr
from stagewright.preflight.micro_batch import largest_stages
from stagewright.recipe import recipes
from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.tiny import tiny

INFO = DatasetInfo(num_train=100, num_val=20, num_test=20, classes=("a", "b"), digest="")
HEAD: dict[str, Any] = {"name": "head", "train": "head", "fit": "optimum", "augment": {"crop": "none"}}


def recipe(*stages: dict[str, Any], **fields: Any) -> Recipe:
    return recipes.from_dict({"batch_size": 10, "stages": list(stages), **fields})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": "3ep"}, r"stages\[1\].epochs: has no effect where fit is optimum \(it is one update\)"),
        ({"lr": 0.1}, r"stages\[1\].lr: has no effect .* leave it out"),
        ({"lr_scale": 2.0}, "lr_scale: has no effect"),
        ({"weight_decay": 0.1}, "weight_decay: has no effect"),
        ({"momentum": 0.5}, "momentum: has no effect"),
        ({"clip_norm": 1.0}, "clip_norm: has no effect"),
        ({"train": "all"}, "train: is 'all'; fit: optimum needs train: head"),
        ({"train": "last:1"}, "needs train: head"),
        ({"mix": {"mixup": 0.2}}, "mix: .*write mix: none in the stage"),
        ({"augment": {"flip": 0.5}}, r"augment.crop: is random_resized; .*augment: \{crop: none\}"),
        ({"augment": {"crop": "none", "rotation": 5}}, r"augment.rotation: .*augment: \{rotation: 0.0\} in the stage"),
        ({"augment": {"crop": "none", "copies": 2}}, "augment.copies"),
        ({"augment": {"crop": "none", "policy": "randaugment"}}, r"augment: \{policy: none\}"),
        ({"augment": {"crop": "none", "zoom": [0.9, 1.1]}}, r"augment: \{zoom: \[1.0, 1.0\]\}"),
        ({"augment": {"crop": "none", "custom": "some:function"}}, r"augment: \{custom: none\}"),
    ],
)
def test_what_has_no_optimum_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe({"epochs": "3ep"}, {**HEAD, **changes})


def test_what_the_recipe_sets_counts_too() -> None:
    for fields, said in (({"mix": {"cutmix": 1.0}}, "mix: none"), ({"loss": "bce"}, "cross_entropy, not bce")):
        with pytest.raises(RecipeError, match=said):
            recipe(HEAD, {"epochs": "3ep"}, **fields)
    recipe({**HEAD, "mix": "none"}, {"epochs": "3ep"}, mix={"cutmix": 1.0})
    recipe({**HEAD, "augment": {"crop": "none", "erasing": 0.0}}, {"epochs": "3ep"}, augment={"erasing": 0.2})


def test_a_setting_of_the_run_is_refused_where_no_stage_has_a_length() -> None:
    with pytest.raises(RecipeError, match="no stage has a length"):
        recipes.override(recipe(HEAD), ["epochs=3ep"])
    with pytest.raises(RecipeError, match="no stage of this recipe has a length"):
        recipes.stretch(recipe(HEAD), "3")
    with pytest.raises(RecipeError, match="leave the budget out"):
        least_factor(resolve(recipe(HEAD), INFO))


def others(plan: Plan) -> list[dict[str, Any]]:
    """The stages of updates, without what merely counts from the run's first step, and their rates."""
    moved = ("index", "first_step", "first_pass", "epochs_before", "curve_first_step")
    stages = [stage for stage in plan.stages if stage.fit == "updates"]
    return [
        {
            **stage.model_dump(exclude={*moved}),
            "lrs": [stage.hyper(s).lr for s in range(stage.first_step, stage.end_step)],
        }
        for stage in stages
    ]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("lengths", [(0.25, 0.75), ("3ep", "5ep"), ("7st", "9st")])
def test_the_others_are_as_without_it(at: int, lengths: tuple[Any, Any]) -> None:
    first, second = ({"name": f"{length} long", "epochs": length} for length in lengths)
    fields: dict[str, Any] = {
        "epochs": "8ep",
        "lr": {"schedule": "one_cycle", "warmup": 0.2},
        "average": {"kind": "ema", "half_life": 0.1},
    }
    without = resolve(recipe(first, second, **fields), INFO)
    stages = [first, second]
    stages.insert(at, {**HEAD, "average": "none"})
    plan = resolve(recipe(*stages, **fields), INFO)
    if at == 1:  # the average begins anew after a stage without one
        for stage in (*(found := others(plan)), *(expected := others(without))):
            del stage["average_log_before"]
        assert found == expected
    else:
        assert others(plan) == others(without)
    one = plan.stages[at]
    assert (one.num_steps, one.batch_size, one.micro_batch_size, one.epochs_given) == (1, 100, 10, 1.0)
    assert one.hyper(one.first_step).lr == 0.0 and one.end_step in plan.eval_steps
    assert plan.total_steps == without.total_steps + 1
    assert Plan.from_json(plan.to_json()) == plan


def test_the_only_stage_with_a_length_may_leave_it_out() -> None:
    plan = resolve(recipe(HEAD, {"name": "all"}, epochs="3ep"), INFO)
    assert [stage.num_steps for stage in plan.stages] == [1, 30]
    with pytest.raises(RecipeError, match="every stage of several needs a length"):
        recipe(HEAD, {"name": "all"}, {"epochs": "3ep"}, epochs="3ep")
    with pytest.raises(RecipeError, match=r"add up to 0.5"):
        resolve(recipe(HEAD, {"epochs": 0.5}, epochs="3ep"), INFO)


def test_other_lengths_leave_it_as_it_is() -> None:
    for given in (recipe(HEAD, {"epochs": "3ep"}, {"epochs": "6ep"}), recipe(HEAD, {"epochs": 1.0}, epochs="9ep")):
        for changed in (given.with_epochs(Duration(18.0, "epochs")), scaled(given, 2.0)):
            assert changed.stages[0] == given.stages[0]
            plans = [resolve(one, INFO) for one in (given, changed)]
            assert plans[1].total_steps - 1 == 2 * (plans[0].total_steps - 1)
    plan = resolve(recipe(HEAD, {"epochs": "4ep"}), INFO)
    assert least_factor(plan) == 0.25
    assert [stage.num_steps for stage in resolve(tiny(plan.recipe), INFO).stages] == [1, 4]
    assert [stage.num_steps for stage in resolve(shortened(plan.recipe, 20), INFO).stages] == [1, 10]


def test_measurements_before_the_run_leave_it_out() -> None:
    only, both = recipe(HEAD, lr={"peak": "auto"}), recipe(HEAD, {"epochs": "3ep"}, lr={"peak": "auto"})
    assert not asks_for_lr(only) and asks_for_lr(both)
    assert resolve(only, INFO).total_steps == 1
    assert only.without_optima() is None
    assert both.without_optima() == recipe({"epochs": "3ep"}, lr={"peak": "auto"})
    plan = resolve(recipe(HEAD, {"epochs": "3ep", "train": "head"}), INFO)
    assert [stage.index for stage in largest_stages(plan)] == [1]
    assert largest_stages(resolve(only, INFO)) == []


def test_a_range_test_needs_a_learning_rate() -> None:
    import torch

    from stagewright.preflight.range_test import _lengthened  # pyright: ignore[reportPrivateUsage]

    with pytest.raises(RangeTestError, match="needs no learning rate"):
        _lengthened(recipe(HEAD), None, torch.device("cpu"), 10, None)  # pyright: ignore[reportArgumentType]
