"""Budgets: parsing, the choice of a length from made-up costs, and a real run whose costs were made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import stagewright as sw
from stagewright.data.dataset import Dataset
from stagewright.errors import RecipeError
from stagewright.plan import budget as budgets
from stagewright.plan.budget import Budget, Choice, apply, fit, least_factor, scaled
from stagewright.plan.cost import Costs, StageCost, forecast
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight import budget_length
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.rundir.event_kinds import Notice
from stagewright.rundir.events import read_events
from stagewright.text import compact, span_text

INFO = DatasetInfo(num_train=1000, num_val=100, num_test=100, classes=("a", "b"), digest="d")
TWO_STAGES = [{"name": "small", "epochs": 0.6, "batch_size": 50}, {"name": "full", "epochs": 0.4}]


def recipe(**fields: Any) -> Recipe:
    return recipes.from_dict(fields)


def stage_cost(**changes: Any) -> StageCost:
    usual: dict[str, Any] = {
        **{"step_seconds": 0.1, "load_seconds": 0.01, "compute_seconds": 0.1, "entry_seconds": 1.0},
        **{"eval_fixed_seconds": 0.1, "eval_image_seconds": 0.001, "recalibrate_seconds": 0.0, "save_seconds": 0.05},
        **{"train_gb": 1.0, "eval_gb": 0.5},
    }
    return StageCost(**{**usual, **changes})


def costs(*stages: StageCost, **changes: Any) -> Costs:
    usual: dict[str, Any] = {
        **{"startup_seconds": 3.0, "setup_seconds": 1.0, "first_image_seconds": 0.0},
        **{
            "checkpoint_bytes": 10**7,
            "finish_seconds": 0.5,
            "page_seconds": 1.5,
            "page_drag_seconds": 0.0,
            "probe_seconds": 5.0,
            "device": "CPU",
        },
    }
    return Costs(stages=stages, **{**usual, **changes})


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that budgets read, to be set by hand."""
    now = [1000.0]
    monkeypatch.setattr(budgets.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("1h 30m 5s", 5405), ("0.5h", 1800), (" 2H ", 7200)],
)
def test_times(text: str, seconds: float) -> None:
    assert Budget.parse(text).seconds == seconds


def test_money_is_time_at_a_price() -> None:
    assert Budget.parse("$5", 2.5).seconds == 7200
    assert Budget.parse("$0.10", 6.0).seconds == pytest.approx(60)


@pytest.mark.parametrize("text", ["45", "", "h", "m5", "5x", "1m1h", "-5m", "0s", "1.2.3s", "$", "$x", "inf"])
def test_what_is_no_budget_is_told_the_forms(text: str) -> None:
    with pytest.raises(RecipeError, match=r"90s, 45m, 2h, 1h30m, or \$5 together with --price"):
        Budget.parse(text, 1.0)


def test_money_needs_a_price_above_nothing() -> None:
    with pytest.raises(RecipeError, match=r"without a price[\s\S]*--price 2.5"):
        Budget.parse("$5")
    for price in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match="--price"):
            Budget.parse("45m", price)


@settings(max_examples=25, deadline=None)
@example(seconds=959.0, step=0.234375, evaluation=5.0, units=("300st", "20st"))  # 2 % more would evaluate 204 times
@given(
    seconds=st.floats(30, 1e6),
    step=st.floats(0.01, 2.0),
    evaluation=st.floats(0.0, 20.0),
    units=st.sampled_from([(0.5, 0.5), ("3ep", "2ep"), ("300st", "20st"), ("4000img", "500img"), ("3ep", "50st")]),
)
def test_the_longest_run_that_fits(seconds: float, step: float, evaluation: float, units: tuple[Any, Any]) -> None:
    """What is chosen ends in time, and hardly more would not."""
    first, last = units
    plan = resolve(recipe(epochs="8ep", stages=[{"epochs": first}, {"epochs": last, "batch_size": 20}]), INFO)
    measured = costs(stage_cost(step_seconds=step), stage_cost(eval_fixed_seconds=evaluation, step_seconds=2 * step))
    budget = Budget.parse(f"{seconds}s", began=1000.0 - 10.0)
    room = 0.98 * seconds - 10.0 - budgets.EXIT_SECONDS
    try:
        fitted = fit(plan, measured, budget)
    except RecipeError:
        least = apply(plan, Choice(least_factor(plan), None))
        assert forecast(least, measured).ahead_seconds > room
        return
    assert fitted.expected.ahead_seconds <= room
    assert fitted.predicted_seconds == pytest.approx(10.0 + fitted.expected.ahead_seconds)
    more = apply(plan, Choice(1.02 * fitted.choice.factor, fitted.choice.every))
    slack = 3 * step + 2 * evaluation + 1.0  # whole steps; an evaluation more or less
    too_often = len(more.eval_steps) > budgets.MOST_EVALUATIONS  # then fewer, longer marks would be chosen for it
    assert too_often or forecast(more, measured).ahead_seconds + slack > room


def test_stages_keep_their_shares_and_the_learning_rate_comes_down() -> None:
    chosen = recipe(
        epochs="100ep",
        stages=TWO_STAGES,
        lr={"schedule": "cosine", "peak": 0.1, "warmup": "10ep"},
        batch_size=50,
    )
    plan = resolve(chosen, INFO)
    fitted = fit(plan, costs(stage_cost(), stage_cost()), Budget.parse("60s"))
    first, last = fitted.plan.stages
    assert first.num_steps / last.num_steps == pytest.approx(1.5, rel=0.03)
    assert fitted.plan.hyper(fitted.plan.total_steps - 1).lr < 0.001
    # a warm-up of ten epochs would be longer than the whole of this run
    assert last.epochs_before + last.epochs_given < 30
    rates = [fitted.plan.hyper(step).lr for step in range(fitted.plan.total_steps)]
    assert rates.index(max(rates)) == pytest.approx(0.1 * fitted.plan.total_steps, abs=2)


def test_milestones_and_half_lives_stretch_with_the_run() -> None:
    chosen = recipe(
        stages=[{"epochs": "90ep", "average": {"kind": "ema", "half_life": "2ep"}}],
        lr={"schedule": "piecewise", "peak": 0.1, "milestones": {"30ep": 0.1, "60ep": 0.01}},
    )
    half = scaled(chosen, 0.5)
    assert list(half.lr.milestones) == ["15ep", "30ep"]
    assert half.stages[0].average is not None and str(half.stages[0].average.half_life) == "1ep"
    assert str(half.stages[0].epochs) == "45ep"


@pytest.mark.parametrize(
    ("length", "factor", "expected"),
    [("16ep", 0.123456, "1.975ep"), ("100ep", 3.33333, "333.3ep"), ("1ep", 0.000123456, "0.0001234ep"),
     ("500st", 0.5019, "250st"), ("3st", 0.1, "1st"), ("20000img", 1.00009, "20001img"), ("30ep", 1000.0, "30000ep")],
)  # fmt: skip
def test_lengths_are_rounded_down(length: str, factor: float, expected: str) -> None:
    assert str(scaled(recipe(epochs=length), factor).epochs) == expected


def test_too_little_is_refused_with_the_least_that_would_do() -> None:
    plan = resolve(recipe(epochs="20ep", batch_size=50), INFO)  # 20 steps an epoch
    measured = costs(stage_cost(step_seconds=2.0))
    with pytest.raises(RecipeError) as caught:
        fit(plan, measured, Budget.parse("30s"))
    assert "--budget 30s is not enough for one epoch in total (20 steps)" in caught.value.given
    named = caught.value.allowed.split()[1]
    assert fit(plan, measured, Budget.parse(named)).plan.total_steps >= 20
    with pytest.raises(RecipeError):
        fit(plan, measured, Budget.parse(f"{Budget.parse(named).seconds - 5.1}s"))
    with pytest.raises(RecipeError, match=r"\(\$0\.0\d\) or more"):
        fit(plan, measured, Budget.parse("$0.001", 2.0))


def test_recipes_shorter_than_an_epoch_may_shrink_to_a_step_a_stage() -> None:
    plan = resolve(recipe(stages=[{"epochs": "10st"}, {"epochs": "5st"}], batch_size=50), INFO)
    least = apply(plan, Choice(least_factor(plan), None))
    assert [stage.num_steps for stage in least.stages] == [2, 1]


def test_evaluations_become_rare_where_they_would_eat_the_budget() -> None:
    plan = resolve(recipe(epochs="100ep", batch_size=50), INFO)
    dear = costs(stage_cost(step_seconds=0.01, eval_fixed_seconds=2.0))
    fitted = fit(plan, dear, Budget.parse("100s"))
    assert fitted.choice.every is not None
    assert fitted.expected.eval_seconds + fitted.expected.checkpoint_seconds <= 0.16 * 100
    assert 5 <= len(fitted.plan.eval_steps) <= 8
    assert fitted.plan.save_steps == fitted.plan.eval_steps
    assert fitted.predicted_seconds > 95  # what they gave up is trained
    assert "instead of one every 1ep" in fitted.sentence()


def test_very_long_runs_do_not_evaluate_thousands_of_times() -> None:
    plan = resolve(recipe(epochs="10ep", batch_size=100), INFO)
    cheap = costs(stage_cost(step_seconds=0.01, eval_fixed_seconds=0.0, eval_image_seconds=0.0))
    fitted = fit(plan, cheap, Budget.parse("10h"))
    assert fitted.plan.stages[0].epochs_given > 100_000
    assert 100 <= len(fitted.plan.eval_steps) <= 200
    assert fitted.predicted_seconds > 0.97 * 36_000


def test_evaluations_stay_as_they_are_where_they_cost_little() -> None:
    plan = resolve(recipe(epochs="10ep", batch_size=100), INFO)
    fitted = fit(plan, costs(stage_cost(eval_fixed_seconds=0.0)), Budget.parse("60s"))
    assert fitted.choice.every is None and fitted.plan.recipe.eval == plan.recipe.eval


def test_the_same_choice_gives_the_same_plan_again() -> None:
    plan = resolve(recipe(epochs="100ep", stages=TWO_STAGES), INFO)
    fitted = fit(plan, costs(stage_cost(eval_fixed_seconds=9.0), stage_cost()), Budget.parse("99s"))
    choice = Choice.from_dict(json.loads(json.dumps(fitted.to_dict()))["choice"])
    assert apply(plan, choice) == fitted.plan


def test_what_is_gone_of_the_budget_counts(clock: list[float]) -> None:
    plan = resolve(recipe(epochs="10ep", batch_size=100), INFO)
    budget = Budget.parse("60s")
    quick = costs(stage_cost(eval_fixed_seconds=0.0, eval_image_seconds=0.0, save_seconds=0.0))
    whole = fit(plan, quick, budget)
    clock[0] += 20.0
    less = fit(plan, quick, budget)
    assert 198 <= whole.plan.total_steps - less.plan.total_steps <= 202


def test_probing_takes_a_tenth_at_most() -> None:
    assert Budget.parse("60s").probe_seconds(10.0) == pytest.approx(6.0)
    assert Budget.parse("150s").probe_seconds(10.0) == 10.0
    assert Budget.parse("20m").probe_seconds(10.0) == pytest.approx(24.0), "longer for long budgets"
    assert Budget.parse("9h").probe_seconds(10.0) == 60.0 and Budget.parse("9h").probe_seconds(90.0) == 90.0


def test_words() -> None:
    assert [span_text(s) for s in (9.94, 99.9, 100.4, 754.7, 3599.9, 7260)] == [
        *("9.9 s", "99.9 s", "1 min 40 s", "12 min 35 s", "1 h 0 min", "2 h 1 min")
    ]
    assert [compact(s) for s in (0, 45, 150, 3600, 5430)] == ["0s", "45s", "2m30s", "1h", "1h30m30s"]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Instead of a real probe; the plans that were probed."""
    probed: list[Plan] = []

    def measure(plan: Plan, dataset: Dataset, execution: Execution, folder: Path, **more: Any) -> Costs:
        probed.append(plan)
        return costs(*(stage_cost(step_seconds=1.0, entry_seconds=0.0) for _ in plan.stages))

    monkeypatch.setattr(budget_length, "probe", measure)
    return probed


SMALL = ["model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=50ep", "data.val=0.2", "data.test=0.2"]
QUIET = Execution(device="cpu", workers=0, pages=False, quiet=True)


def test_a_run_within_a_budget(picture_folder: Path, tmp_path: Path, made_up: list[Plan]) -> None:
    """The length stands in the recipe, the account in env.json, the log and the summary; a restart chooses the same."""
    said: list[str] = []

    def train(text: str = "20s") -> sw.Run:
        return sw.train(
            picture_folder, "quick", overrides=SMALL, out=tmp_path / "run", resume=True, execution=QUIET,
            say=said.append, budget=Budget.parse(text),
        )  # fmt: skip

    run = train()
    summary, plan = run.summary, json.loads((run.path / "plan.json").read_text())
    account = summary["budget"]
    assert account is not None
    assert summary["status"] == "finished" and account["seconds"] == 20
    assert 10 < account["predicted_seconds"] <= 0.98 * 20
    assert plan["total_steps"] == account["steps"] == summary["total_steps"]
    assert 5 < plan["total_steps"] < 20  # at a second each
    assert plan["recipe"]["epochs"] != "50ep" and account.get("actual_seconds") == 0.0  # by the clock of this test
    assert json.loads((run.path / "env.json").read_text())["budget"]["asked"] == "20s"
    notices = [one.event.text for one in read_events(run.path / "events.jsonl") if isinstance(one.event, Notice)]
    assert account["text"] in notices
    assert any("predicted" in line and "taken" in line for line in said)
    assert train().path == run.path and len(made_up) == 1
    other = train("30s")
    assert other.path != run.path and len(made_up) == 2


def test_nothing_is_written_where_the_budget_is_too_small(
    picture_folder: Path, tmp_path: Path, made_up: list[Plan]
) -> None:
    with pytest.raises(RecipeError, match="is not enough for one epoch"):
        sw.train(
            picture_folder, "quick", overrides=SMALL, out=tmp_path / "run", execution=QUIET, say=lambda text: None,
            budget=Budget.parse("2s"),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
