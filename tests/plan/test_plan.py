from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.errors import RecipeError
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import Recipe

INFO = DatasetInfo(num_train=1000, num_val=100, num_test=100, classes=("a", "b"), digest="d")


def recipe(**fields: Any) -> Recipe:
    return recipes.from_dict(fields)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.floats(0.05, 4), st.integers(1, 300), st.sampled_from([0.3, 0.5, 1.0])), min_size=1, max_size=4
    )
)
def test_stages_tile_the_run_and_give_what_was_asked(sizes: list[tuple[float, int, float]]) -> None:
    stages = [{"epochs": f"{e}ep", "batch_size": b, "data_fraction": f} for e, b, f in sizes]
    plan = resolve(recipe(stages=stages), INFO)
    assert [s.first_step for s in plan.stages] == [0, *(s.end_step for s in plan.stages[:-1])]
    assert plan.total_steps == plan.stages[-1].end_step
    for stage in plan.stages:
        off = abs(stage.epochs_given - stage.epochs_asked) * stage.num_images
        assert stage.num_steps == 1 or off <= stage.batch_size / 2 + 1e-6
        positions = stage.num_steps * stage.batch_size
        assert (stage.num_passes - 1) * stage.num_images < positions <= stage.num_passes * stage.num_images
        assert stage.end_step in plan.eval_steps and stage.end_step in plan.save_steps
    # passes run on over stages, so that no stage repeats another's crops
    assert [s.first_pass for s in plan.stages[1:]] == [s.first_pass + s.num_passes for s in plan.stages[:-1]]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_evaluations_fall_on_epoch_ends() -> None:
    plan = resolve(recipe(stages=[{"epochs": "2.5ep"}, {"epochs": "2ep", "batch_size": 250}], batch_size=100), INFO)
    assert plan.eval_steps == (10, 20, 25, 29, 33)
    assert [plan.stage_before(s).epoch_at(s) for s in plan.eval_steps] == [1.0, 2.0, 2.5, 3.5, 4.5]
    often = resolve(recipe(epochs="3ep", batch_size=100, eval={"every": 0.25}), INFO)
    assert often.eval_steps == (8, 15, 22, 30)


def test_hyper_refuses_steps_outside() -> None:
    plan = resolve(recipe(epochs="10st"), INFO)
    for step in (-1, 10):
        with pytest.raises(ValueError, match=r"0 \.\. 9"):
            plan.hyper(step)


def test_linear_scaling_with_batch_and_cap() -> None:
    """System E's progressive resizing: base_lr = min(0.1 * batch / 256, 0.4)."""
    stages = [{"epochs": "1ep", "batch_size": b} for b in (512, 256, 64)]
    plan = resolve(recipe(stages=stages, lr={"schedule": "constant", "peak": 0.1, "batch": 256, "cap": 0.15}), INFO)
    assert [stage.peak_lr for stage in plan.stages] == [0.15, 0.1, 0.025]


def test_lr_scale_multiplies_the_runs_schedule_and_lr_replaces_it() -> None:
    stages = [{"epochs": "5st"}, {"epochs": "5st", "lr_scale": 0.5}, {"epochs": "5st", "lr": 0.01}]
    plan = resolve(recipe(stages=stages, lr={"schedule": "linear", "peak": 1.0}), INFO)
    expected = (
        [1 - i / 15 for i in range(5)]
        + [0.5 * (1 - i / 15) for i in range(5, 10)]
        + [0.01 * (1 - i / 5) for i in range(5)]
    )
    assert [plan.hyper(s).lr for s in range(15)] == pytest.approx(expected)


def test_swa_anneals_from_the_lr_before_and_cannot_raise_it_on_resume() -> None:
    """System B diverged when an SWA scheduler came back from a checkpoint raising the LR. Here there is none."""
    stages = [
        {"epochs": "10st"},
        {
            "epochs": "10st",
            "average": "swa",
            "lr": {"schedule": "swa", "peak": 0.02, "warmup": "4st", "anneal": "linear"},
        },
    ]
    plan = resolve(recipe(stages=stages, lr={"schedule": "constant", "peak": 0.1}), INFO)
    lrs = [plan.hyper(s).lr for s in range(10, 20)]
    assert lrs[0] == pytest.approx(0.1) and lrs[4:] == pytest.approx([0.02] * 6)
    assert all(a >= b for a, b in itertools.pairwise(lrs))
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert [again.hyper(s).lr for s in range(10, 20)] == lrs


def test_ema_weights_are_bias_corrected_and_mean_the_same_at_every_batch_size() -> None:
    for batch in (50, 200):
        plan = resolve(recipe(epochs="4ep", batch_size=batch, average={"kind": "ema", "half_life": "1ep"}), INFO)
        betas = [plan.hyper(s).average_weight for s in range(plan.total_steps)]
        assert betas[0] == 1.0
        share = [0.0] * plan.total_steps  # weight of each step's parameters in the final average
        for at, beta in enumerate(betas):
            share = [old * (1 - beta) for old in share]
            share[at] = beta
        assert math.fsum(share) == pytest.approx(1)
        epoch = 1000 // batch
        assert share[-1 - epoch] / share[-1] == pytest.approx(0.5)


def test_ema_runs_on_over_a_seam_and_swa_averages_equally() -> None:
    ema = {"kind": "ema", "half_life": "20st"}
    one = resolve(recipe(epochs="30st", average=ema), INFO)
    two = resolve(recipe(stages=[{"epochs": "10st"}, {"epochs": "20st"}], average=ema), INFO)
    assert [two.hyper(s).average_weight for s in range(30)] == pytest.approx(
        [one.hyper(s).average_weight for s in range(30)]
    )
    swa = resolve(recipe(epochs="11st", average={"kind": "swa", "every": "4st"}), INFO)
    assert [swa.hyper(s).average_weight for s in range(11)] == [0, 0, 0, 1.0, 0, 0, 0, 0.5, 0, 0, 1 / 3]


def test_half_life_of_a_tenth_of_a_two_epoch_run_works() -> None:
    plan = resolve(recipe(epochs="2ep", batch_size=100, average={"kind": "ema", "half_life": 0.1}), INFO)
    assert plan.stages[0].average_log_decay == pytest.approx(math.log(0.5) / 2)  # 200 pictures, 2 steps


def test_digest_follows_what_decides_the_result_and_nothing_else() -> None:
    base = resolve(recipe(epochs="10st"), INFO)
    same = resolve(
        recipe(epochs="10st", name="x", description="y", checkpoints={"keep": 9, "every": "1st"}, data={"path": "p"}),
        INFO,
    )
    assert same.digest == base.digest
    for change in (
        {"seed": 1},
        {"lr": 0.2},
        {"optimizer": {"clip_norm": 1.0}},
        {"precision": "bf16"},
        {"micro_batch_size": 8},
    ):
        assert resolve(recipe(epochs="10st", **change), INFO).digest != base.digest
    assert resolve(recipe(epochs="10st"), INFO.model_copy(update={"digest": "e"})).digest != base.digest


def test_altered_plan_is_refused() -> None:
    content: dict[str, Any] = resolve(recipe(epochs="10st"), INFO).to_json()
    content["stages"][0]["peak_lr"] = 9.0
    with pytest.raises(RecipeError, match=r"digest.*\n.*an unchanged plan.json.*\n.*restore plan.json"):
        Plan.from_json(content)
    with pytest.raises(RecipeError, match="format 99"):
        Plan.from_json({**content, "format": 99})


def test_shares_must_add_up() -> None:
    with pytest.raises(RecipeError, match=r"add up to 0.7"):
        resolve(recipe(epochs="10ep", stages=[{"epochs": 0.5}, {"epochs": 0.2}]), INFO)


def test_warmup_of_a_run_crosses_stages() -> None:
    stages = [{"epochs": "1ep", "batch_size": 100}, {"epochs": "4ep", "batch_size": 200}]
    plan = resolve(recipe(stages=stages, lr={"schedule": "cosine", "warmup": "2ep"}), INFO)
    assert plan.stages[1].curve.warmup_steps == 15  # 10 steps of the first stage's epoch, 5 of the second's


def test_steps_as_json() -> None:
    plan = resolve(recipe(epochs="7st"), INFO)
    rows = list(plan.steps())
    assert [row["step"] for row in rows] == list(range(7))
    assert json.loads(json.dumps(rows)) == rows and {"lr", "momentum", "average_weight"} <= rows[0].keys()


def test_epochs_stretch_every_stage() -> None:
    made = recipe(stages=[{"epochs": "15ep"}, {"epochs": "30ep"}]).with_epochs(Duration(9, "epochs"))
    assert [str(stage.epochs) for stage in made.stages] == ["3ep", "6ep"]
    shares = recipe(epochs="10ep", stages=[{"epochs": 0.5}, {"epochs": 0.5}]).with_epochs(Duration(4, "epochs"))
    assert str(shares.epochs) == "4ep" and resolve(shares, INFO).stages[1].epochs_given == pytest.approx(2, abs=0.05)


def test_ends_of_a_stage_are_those_of_its_steps() -> None:
    """Found without walking all steps, and equal to walking them: at every schedule, within and across stages."""
    from stagewright.plan.plan import stage_ends

    schedules: list[dict[str, Any]] = [
        {"schedule": "one_cycle", "momentum": [0.85, 0.95], "warmup": 0.37},
        {"schedule": "cosine", "warmup": "2ep"},
        {"schedule": "linear", "span": "stage", "warmup": "3st"},
        {"schedule": "piecewise", "milestones": {"1ep": 0.3, "2ep": 1.0, "3ep": 0.1}},
        {"schedule": "piecewise", "milestones": {"1ep": 0.3, "2ep": 1.0, "3ep": 0.1}, "interpolate": True},
    ]
    for schedule in schedules:
        plan = resolve(recipe(stages=[{"epochs": "1.7ep"}, {"epochs": "2ep", "batch_size": 30}], lr=schedule), INFO)
        for stage in plan.stages:
            hypers = [stage.hyper(step) for step in range(stage.first_step, stage.end_step)]
            ends = stage_ends(stage)
            assert (ends["lr_first"], ends["lr_last"]) == (hypers[0].lr, hypers[-1].lr)
            top = max(hypers, key=lambda hyper: hyper.lr)
            assert (ends["lr_peak"], ends["momentum_peak"]) == (top.lr, top.momentum), schedule


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"epochs": "1000000000ep"}, "the stages come to"),
        ({"epochs": "1e18st"}, "the stages come to"),
        (
            {"epochs": "100000000st", "eval": {"every": "1st"}},
            "eval.every: 1st comes 100,000,000 times in stage 'main'",
        ),
        (
            {"epochs": "100000000st", "eval": {"every": "1"}, "checkpoints": {"every": "1e-9"}},
            "checkpoints.every: 1e-09 comes 100,000,000 times",
        ),
    ],
)
def test_a_plan_that_nobody_can_carry_out_or_write_down_is_refused_at_once(fields: dict[str, Any], given: str) -> None:
    with pytest.raises(RecipeError) as error:
        resolve(recipes.from_dict({"batch_size": 100, **fields}), INFO)
    assert given in error.value.given


def test_evaluations_more_often_than_every_step_come_after_every_step() -> None:
    short = resolve(recipes.from_dict({"epochs": "20st", "eval": {"every": "0.001ep"}}), INFO)
    assert short.eval_steps == tuple(range(1, 21))


def test_a_stage_inherits_what_the_optimizer_does_on_entry() -> None:
    stages = [{"epochs": "1ep"}, {"epochs": "1ep", "on_enter": "keep_optimizer"}]
    plan = resolve(recipe(stages=stages, optimizer={"on_enter": "reset_optimizer"}), INFO)
    assert [stage.on_enter for stage in plan.stages] == ["reset_optimizer", "keep_optimizer"]
