"""The range test: what is read from curves, that the sweep leaves no trace, and that a run measures once in its life."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stopping import StopAtEvaluation
from torch.amp.grad_scaler import GradScaler
from typer.testing import CliRunner, Result

import stagewright as sw
from stagewright.api import resume_check
from stagewright.api.resume_check import differences
from stagewright.cli.main import app
from stagewright.data.dataset import Dataset, load_dataset
from stagewright.engine.build import build_state
from stagewright.errors import RangeTestError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.lr_curve import METHODS, RangeTest, blown_up, lr_grid, smooth, suggest, weight_of_past
from stagewright.plan.resolve import resolve
from stagewright.preflight import auto_fields, lr_find
from stagewright.preflight import range_test as lrfind
from stagewright.preflight.range_test import Sweep, range_test
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.report.gallery import Gallery
from stagewright.report.html import page
from stagewright.report.lr_plot import draw_range_test
from stagewright.report.plots import draw
from stagewright.report.read import read_run
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Notice
from stagewright.rundir.events import read_events
from stagewright.system.isolation import preserve_global_state

CPU = torch.device("cpu")
QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
SHORT = Sweep(1e-5, 10.0, 30)
CLEAR = Sweep(1e-4, 10.0, 60)
"""Here the loss of the tiny network falls by 11 and more standard errors, whatever the seed; 6 are asked for."""


def silent(text: str) -> None: ...


def with_smoothed(smoothed: np.ndarray, planned: int = 100) -> RangeTest:
    """The test whose smoothed losses are these."""
    past = weight_of_past(planned)
    running = smoothed * (1 - past ** np.arange(1, len(smoothed) + 1))
    losses = (running - past * np.concatenate([[0.0], running[:-1]])) / (1 - past)
    test = RangeTest(lr_grid(1e-7, 10.0, planned)[: len(smoothed)], losses, planned)
    assert test.smoothed == pytest.approx(smoothed)
    return test


def falling(begin: int, end: int, low: float = 1.3, until: int = 100) -> np.ndarray:
    """2.3 up to update ``begin``, a straight line to ``low`` at ``end``, and after ten more a steep rise."""
    at = np.arange(until)
    curve = np.interp(at, [begin, end], [2.3, low])
    return np.where(at > end + 10, low + 0.05 * (at - end - 10), curve)


def test_smoothing_is_the_weighted_mean() -> None:
    losses = np.random.default_rng(0).normal(2, 1, 50)
    for count in (1, 2, 17, 50):
        weights = 0.9 ** np.arange(count)[::-1]
        assert smooth(losses[:count], 100)[-1] == pytest.approx((weights * losses[:count]).sum() / weights.sum())
    assert weight_of_past(100) == pytest.approx(0.9) and weight_of_past(1000) == pytest.approx(0.99)


def test_suggestions_of_a_known_curve() -> None:
    test = with_smoothed(falling(30, 60))
    found = suggest(test)
    # The descent counts from a tenth of the fall (update 33) to nine tenths (57): two thirds of the way is update 49.
    assert found.lrs["valley"] == pytest.approx(test.lrs[49], rel=0.1)
    assert found.lrs["minimum"] == pytest.approx(test.lrs[60] / 10, rel=0.01)
    assert test.lrs[30] <= found.lrs["steepest"] <= test.lrs[60]
    assert (found.chosen, found.lr) == ("valley", found.lrs["valley"]) and found.notes == ()
    for name in METHODS:
        assert suggest(test, name).lr == found.lrs[name]


def test_steepest_is_before_the_minimum() -> None:
    curve = falling(30, 60)
    curve[45:60] -= np.linspace(0, 0.3, 15)  # steeper here, until update 59
    curve[60:70] = 0.99
    curve[80:] = 3.0
    curve[90:] = 2.0  # a wobble of the divergence, steeper than all
    test = with_smoothed(curve)
    assert test.lrs[45] <= suggest(test).lrs["steepest"] <= test.lrs[60]


def test_the_last_descent_counts() -> None:
    """A curve that falls, comes back and falls for good: the first fall is no stretch to stand in."""
    curve = falling(50, 70)
    curve[35:45] = 1.7
    assert suggest(with_smoothed(curve)).lrs["valley"] == pytest.approx(lr_grid(1e-7, 10, 100)[63], rel=0.25)


def test_still_falling_at_the_end_is_said() -> None:
    found = suggest(with_smoothed(falling(40, 99)))
    assert any("still falling" in note and "--lr-max" in note for note in found.notes)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.1])
def test_a_flat_curve_is_refused(noise: float, seed: int) -> None:
    losses = 2.3 + noise * np.random.default_rng(seed).standard_normal(100)
    with pytest.raises(RangeTestError, match=r"stays at 2\.[\s\S]*allowed:[\s\S]*--lr-max[\s\S]*a number"):
        suggest(RangeTest(lr_grid(1e-7, 10, 100), losses, 100))


@pytest.mark.parametrize("seed", range(20))
def test_a_curve_that_only_rises_is_refused(seed: int) -> None:
    at = np.arange(100)
    losses = 0.2 + 0.01 * np.random.default_rng(seed).standard_normal(100) + np.maximum(0, at - 5) * 0.01
    test = RangeTest(lr_grid(1e-7, 10, 100), losses, 100)
    with pytest.raises(RangeTestError, match=r"where it has risen[\s\S]*--lr-min[\s\S]*give a small number"):
        suggest(test)
    early = RangeTest(test.lrs[:60], losses[:60], 100)
    with pytest.raises(RangeTestError, match=r"where it has diverged"):
        suggest(early)
    with pytest.raises(RangeTestError, match=r"where it has diverged"):
        suggest(RangeTest(test.lrs[:4], np.array([2.3, 2.4, 9.0, np.nan]), 100))


def test_a_noisy_fall_is_found() -> None:
    for seed in range(20):
        losses = falling(40, 65, low=1.8) + 0.1 * np.random.default_rng(seed).standard_normal(100)
        test = RangeTest(lr_grid(1e-7, 10, 100), losses, 100)
        assert test.lrs[40] < suggest(test).lr < test.lrs[75]


@settings(max_examples=300, deadline=None)
@given(
    losses=st.lists(st.floats(0, 20), min_size=1, max_size=100),
    planned=st.integers(20, 200),
    low=st.floats(1e-9, 1e-3),
    factor=st.floats(1.5, 1e9),
    broken=st.booleans(),
)
def test_suggestions_lie_in_the_swept_range(
    losses: list[float], planned: int, low: float, factor: float, broken: bool
) -> None:
    lrs = lr_grid(low, low * factor, planned)[: len(losses)]
    seen = np.array(losses[:planned])
    seen[-1] = np.nan if broken else seen[-1]
    try:
        found = suggest(RangeTest(lrs, seen, planned))
    except RangeTestError:
        return
    assert set(found.lrs) == set(METHODS)
    assert all(lrs[0] <= lr <= lrs[-1] for lr in found.lrs.values())
    assert (
        found.lrs["steepest"]
        <= lrs[int(np.nanargmin(RangeTest(lrs, seen, planned).smoothed[planned // 10 :])) + planned // 10] * 1.01
    )


def test_when_a_sweep_ends() -> None:
    rising = smooth(np.array([2.0] * 20 + [30.0] * 20), 100)
    ends = [blown_up(rising[:count], 100) for count in range(1, 41)]
    first = ends.index(True)
    assert rising[first] > 8.0 >= rising[first - 1]
    assert not blown_up(np.array([0.001, 0.1]), 100), "two losses are too few to judge by"
    assert blown_up(np.array([2.0, np.inf]), 100)


def test_impossible_sweeps_are_refused() -> None:
    for low, high, steps in ((1.0, 0.1, 100), (0.0, 1.0, 100), (1e-3, float("inf"), 100), (1e-7, 10.0, 19)):
        with pytest.raises(RangeTestError, match=r"allowed:[\s\S]*to do:"):
            lr_grid(low, high, steps)
    with pytest.raises(RangeTestError, match="valley, steepest, minimum"):
        suggest(with_smoothed(falling(30, 60)), "vally")


def test_the_plot_is_drawn_for_every_shape() -> None:
    test = with_smoothed(falling(30, 60))
    drawing = draw_range_test(test, suggest(test, "steepest"), "note")
    assert drawing.png.startswith(b"\x89PNG") and "steepest is chosen" in drawing.alt
    for text in ("valley", "(chosen)", "note", "1e-5"):
        assert text in drawing.svg
    broken = RangeTest(test.lrs[:5], np.array([2.3, 2.3, 9.0, 80.0, np.nan]), 100)
    flat = RangeTest(test.lrs, np.full(100, 2.3), 100)
    for other in (broken, flat):
        assert draw_range_test(other, None).png.startswith(b"\x89PNG")


# The sweep itself, on a tiny network.


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipes.from_dict(
        {
            "seed": 3,
            "model": {"name": "cifar_resnet18", "options": {"width": 4}},
            "optimizer": {"nesterov": True},
            "lr": {"schedule": "one_cycle", "peak": "auto", "momentum": [0.85, 0.95]},
            "stages": [
                {"epochs": "4st", "image_size": 16, "mix": {"mixup": 0.2}},
                {"epochs": "4st", "image_size": 24, "lr_scale": 0.5},
            ],
            "batch_size": 16,
            "average": {"kind": "ema", "half_life": "2st"},
            "eval": {"every": "4st"},
            "data": {"val": 0.2, "test": 0.2},
        }
    )


@pytest.fixture(scope="module")
def dataset(recipe: Recipe, picture_folder: Path) -> Dataset:
    return load_dataset(str(picture_folder), recipe.data)


def tried(recipe: Recipe, dataset: Dataset, sweep: Sweep = SHORT, **more: Any) -> RangeTest:
    return range_test(recipe, dataset.manifest, dataset.images, CPU, sweep=sweep, workers=0, **more)


def test_a_sweep_is_a_function_of_recipe_seed_and_data(recipe: Recipe, dataset: Dataset) -> None:
    few = Sweep(1e-5, 1.0, 20)
    one, again = tried(recipe, dataset, few), tried(recipe, dataset, few)
    assert np.array_equal(one.losses, again.losses) and np.array_equal(one.lrs, again.lrs)
    threads = range_test(recipe, dataset.manifest, dataset.images, CPU, sweep=few, workers=2)
    assert np.array_equal(one.losses, threads.losses)
    longer = recipe.changed(stages=tuple({**s.model_dump(exclude_unset=True), "epochs": "9ep"} for s in recipe.stages))
    assert np.array_equal(one.losses, tried(longer, dataset, few).losses), "lengths have no bearing"
    assert not np.array_equal(one.losses, tried(recipe.changed(seed=4), dataset, few).losses)
    bigger = recipe.with_stage(0, image_size=24)
    assert not np.array_equal(one.losses, tried(bigger, dataset, few).losses)
    assert one.lrs[0] == 1e-5 and np.diff(np.log(one.lrs)) == pytest.approx(np.log(1e5) / 19)
    assert len(one.csv().splitlines()) == 1 + len(one.lrs)


def test_the_first_loss_is_that_of_the_untrained_run(recipe: Recipe, dataset: Dataset, tmp_path: Path) -> None:
    """The same weights, pictures, augmentation, mixing: the run's own first step has the same loss."""
    fixed = recipe.changed(lr={**recipe.lr.model_dump(), "peak": 0.01})
    run = sw.train(dataset.manifest.source, fixed, out=tmp_path / "run", execution=QUIET, say=silent)
    first = (run.path / "steps.csv").read_text().splitlines()
    loss = dict(zip(first[0].split(","), first[1].split(","), strict=True))["loss"]
    assert tried(recipe, dataset).losses[0] == pytest.approx(float(loss), abs=1e-6)


def states() -> list[Any]:
    numpy_state = np.random.get_state(legacy=False)
    cudnn = torch.backends.cudnn
    return [
        torch.get_rng_state().tolist(),
        json.dumps(numpy_state, default=lambda array: array.tolist()),
        random.getstate(),
        (cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()),
        (torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")),
        (torch.is_grad_enabled(), torch.get_num_threads(), sys.getswitchinterval()),
    ]


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_leaves_no_trace(
    recipe: Recipe, dataset: Dataset, tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed = recipe.changed(lr={**recipe.lr.model_dump(), "peak": 0.01})
    run = sw.train(picture_folder, fixed, out=tmp_path / "run", execution=QUIET, say=silent)
    plan = RunDir(run.path).read_plan()
    before, _ = build_state(plan, CPU)
    weights = {name: tensor.clone() for name, tensor in before.model.state_dict().items()}
    torch.manual_seed(77)
    known, files, pictures = states(), files_below(tmp_path), files_below(picture_folder)
    test = tried(recipe, dataset)
    assert not np.allclose(test.losses[:5], test.losses[-5:], rtol=0.1), "it has trained"
    assert states() == known
    assert files_below(tmp_path) == files and files_below(picture_folder) == pictures
    after, _ = build_state(plan, CPU)
    for state in (before, after):
        assert all(torch.equal(weights[name], tensor) for name, tensor in state.model.state_dict().items())
    assert sw.resume(run.path, execution=QUIET, say=silent).finished


def test_traceless_restores_all_that_it_says() -> None:
    before = states()
    with pytest.raises(ZeroDivisionError), preserve_global_state():
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
        assert all(one != other for one, other in zip(before[:5], states()[:5], strict=True))
        _ = 1 / 0
    assert states() == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_cpu(recipe: Recipe, dataset: Dataset, precision: str) -> None:
    mixed = tried(recipe.changed(precision=precision), dataset)
    full = tried(recipe, dataset)
    assert mixed.losses[:5] == pytest.approx(full.losses[:5], rel=0.05) and not np.array_equal(
        mixed.losses, full.losses
    )


def with_scale(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    build = lrfind.build_state

    def built(*arguments: Any) -> Any:
        state, lines = build(*arguments)
        state.scaler = GradScaler("cpu", init_scale=scale)
        return state, lines

    monkeypatch.setattr(lrfind, "build_state", built)


def test_updates_that_fp16_leaves_out_are_not_counted(
    recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp16 = recipe.changed(precision="fp16")
    with_scale(monkeypatch, 2.0**36)
    test = tried(fp16, dataset, Sweep(1e-5, 0.1, 20))
    assert 5 <= test.skipped < lrfind._MOST_SKIPPED
    assert len(test.lrs) == 20 and test.lrs[-1] == pytest.approx(0.1), "the sweep is whole all the same"
    curve = with_smoothed(falling(30, 60))
    noted = suggest(RangeTest(curve.lrs, curve.losses, 100, skipped=test.skipped))
    assert any(f"skipped {test.skipped} updates" in note for note in noted.notes)


def test_a_scale_that_never_fits_ends_the_sweep(
    recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scale(monkeypatch, 2.0**100)
    test = tried(recipe.changed(precision="fp16"), dataset, Sweep(1e-5, 0.1, 20))
    assert test.skipped == lrfind._MOST_SKIPPED and test.ended_early
    with pytest.raises(RangeTestError):
        suggest(test)


def test_a_diverging_sweep_ends_early(recipe: Recipe, dataset: Dataset) -> None:
    test = tried(recipe, dataset, Sweep(1e-2, 1e8, 40))
    assert test.ended_early and len(test.lrs) < 40
    assert not np.isfinite(test.smoothed[-1]) or test.smoothed[-1] > 4 * test.smoothed[4:].min()


# Runs whose recipe says `lr: auto`.


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows with every range test; sweeps are shorter than a run's own."""
    calls: list[int] = []

    def test(*arguments: Any, **more: Any) -> RangeTest:
        calls.append(1)
        return range_test(*arguments, **{**more, "sweep": CLEAR})

    monkeypatch.setattr(lr_find, "range_test", test)
    yield calls


def go(data: Path, recipe: Recipe, out: Path, **more: Any) -> sw.Run:
    return sw.train(data, recipe, out=out, **{"execution": QUIET, "say": silent, **more})


def test_a_run_measures_once_in_its_life(
    recipe: Recipe, picture_folder: Path, tmp_path: Path, counted: list[int]
) -> None:
    whole = go(picture_folder, recipe, tmp_path / "whole")
    said: list[str] = []
    broken = go(picture_folder, recipe, tmp_path / "broken", observers=[StopAtEvaluation()], say=said.append)
    assert whole.finished and not broken.finished and len(counted) == 2
    assert sw.resume(broken.path, execution=QUIET, say=silent).finished and len(counted) == 2
    assert differences(RunDir(whole.path), RunDir(broken.path)) == []

    plan = RunDir(broken.path).read_plan()
    assert plan.measured.lr is not None and plan.recipe.lr.peak == "auto"
    assert [stage.peak_lr for stage in plan.stages] == [plan.measured.lr, plan.measured.lr * 0.5]
    assert recipes.load(str(broken.path / "recipe.yaml")).lr.peak == "auto"
    table = (broken.path / "lr-find" / "lr-find.csv").read_text().splitlines()
    assert table[0] == "step,lr,loss,smoothed" and len(table) > 10
    assert (broken.path / "lr-find" / "lr-find.png").read_bytes().startswith(b"\x89PNG")
    record = read_run(broken.path)
    assert record.range_test is not None and not record.problems
    again = {drawing.name: drawing for drawing in draw(record)}["lr-find"]
    assert again.png == (broken.path / "lr-find" / "lr-find.png").read_bytes(), "the report shows the same plot"
    assert again.alt in page(record, [again], Gallery(record))
    notices = [one.event.text for one in read_events(broken.path / "events.jsonl") if isinstance(one.event, Notice)]
    (told,) = [text for text in notices if text.startswith("lr: auto is ")]
    assert told in said and f"{plan.measured.lr:.3g}" in told


def test_a_damaged_range_test_is_left_out_and_said(picture_folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    run = go(picture_folder, recipe, tmp_path / "run")
    file = run.path / "lr-find" / "lr-find.json"
    for content, problem in (
        ("{", "lr-find.json cannot be read"),
        ('{"planned": 30}', "lr-find is left out: its table and lr-find.json do not belong together"),
    ):
        file.write_text(content)
        record = read_run(run.path)
        assert record.range_test is None and record.problems[0].startswith(problem)
    file.unlink()
    assert read_run(run.path).range_test is None and not read_run(run.path).problems


def test_resume_auto_takes_the_value_from_the_plan(
    recipe: Recipe, picture_folder: Path, tmp_path: Path, counted: list[int]
) -> None:
    out = tmp_path / "run"
    assert not go(picture_folder, recipe, out, observers=[StopAtEvaluation()]).finished
    said: list[str] = []
    again = go(picture_folder, recipe, out, resume=True, say=said.append)
    assert again.path == out and again.finished and len(counted) == 1
    assert any("lr: auto is" in line for line in said)
    other = go(picture_folder, recipe.changed(optimizer={"weight_decay": 1e-5}), out, resume=True)
    assert other.path == tmp_path / "run-1" and len(counted) == 2, "another recipe asks another question"


def test_a_fork_keeps_the_value(recipe: Recipe, picture_folder: Path, tmp_path: Path, counted: list[int]) -> None:
    parent = go(picture_folder, recipe, tmp_path / "run")
    said: list[str] = []
    forked = sw.resume(parent.path, overrides=["label_smoothing=0.1"], execution=QUIET, say=said.append)
    found = RunDir(parent.path).read_plan().measured
    assert forked.path == tmp_path / "run-1" and RunDir(forked.path).read_plan().measured == found
    assert len(counted) == 1 and any("lr: auto is" in line and "lr.peak=NUMBER" in line for line in said)
    given_lr = sw.resume(parent.path, overrides=["lr.peak=0.02"], execution=QUIET, say=silent)
    assert RunDir(given_lr.path).read_plan().stages[0].peak_lr == 0.02 and len(counted) == 1


def test_nothing_is_measured_where_nothing_asks(
    recipe: Recipe, picture_folder: Path, tmp_path: Path, counted: list[int]
) -> None:
    fixed = recipe.changed(lr={"peak": 0.05})
    run = go(picture_folder, fixed, tmp_path / "run")
    assert not (run.path / "lr-find").exists() and RunDir(run.path).read_plan().measured.lr is None
    own = recipe.with_stage(0, lr=0.05).with_stage(1, lr=0.01, lr_scale=None)
    assert not auto_fields.asks_for_lr(own) and auto_fields.asks_for_lr(recipe)
    assert not counted


def test_a_run_whose_curve_says_nothing_is_not_begun(
    recipe: Recipe, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = RangeTest(lr_grid(1e-7, 10, 100), np.full(100, 1.1), 100)
    monkeypatch.setattr(lr_find, "range_test", lambda *arguments, **more: flat)
    with pytest.raises(RangeTestError, match=r"lr: auto: no learning rate was found: the loss[\s\S]*lr-find DATA"):
        go(picture_folder, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_check_rehearses_such_a_recipe(
    recipe: Recipe, picture_folder: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Path] = []

    def in_this_process(run: Path, execution: Execution, moment: resume_check.Kill | None) -> None:
        done.append(run)
        if moment is None:
            sw.resume(run, execution=execution, say=silent)

    monkeypatch.setattr(resume_check, "run_in_process", in_this_process)
    assert resume_check.check(str(picture_folder), recipe, steps=4, kills=1, workers=0, say=silent)
    assert len(counted) == 1 and len(done) > 2


def test_the_plan_alone_needs_a_value(recipe: Recipe, dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"lr.peak is auto, but no learning rate was measured[\s\S]*lr-find"):
        resolve(recipe, dataset.manifest.info())


def test_the_command(recipe: Recipe, picture_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.to_yaml(recipe))

    clear = ["--steps", "60", "--lr-min", "1e-4"]

    def command(*words: str, out: str = "found") -> Result:
        own = ["lr-find", str(picture_folder), "--recipe", str(path), "--out", str(tmp_path / out), "-j", "0"]
        return CliRunner().invoke(app, [*own, *words])

    done = command(*clear, "--suggest", "steepest", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["chosen"] == "steepest" and answer["lr"] == answer["suggestions"]["steepest"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "found").iterdir()}
    assert files.keys() == {"lr-find.csv", "lr-find.json", "lr-find.png"}
    table = command(*clear)
    assert "> valley" in table.output and "two thirds" in table.output and "--lr " in table.output
    assert (tmp_path / "found" / "lr-find.csv").read_bytes() == files["lr-find.csv"], "the same bits again"

    wrong = command("--suggest", "vally", out="other")
    assert isinstance(wrong.exception, RangeTestError) and "did you mean 'valley'" in str(wrong.exception)
    none = command("--steps", "20", "--lr-max", "1e-6", out="flat")
    assert isinstance(none.exception, RangeTestError) and str(tmp_path / "flat" / "lr-find.png") in str(none.exception)
    assert (tmp_path / "flat" / "lr-find.png").exists() and not (tmp_path / "other").exists()


def test_plan_measures_too_and_says_so(
    recipe: Recipe, picture_folder: Path, tmp_path: Path, counted: list[int]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.to_yaml(recipe))
    done = CliRunner().invoke(app, ["plan", str(picture_folder), "--recipe", str(path), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "lr: auto: running a range test" in done.output and "lr: auto is " in done.output and len(counted) == 1
