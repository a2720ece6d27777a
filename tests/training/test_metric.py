"""eval.metric: which weights it selects, when it stops early, and what the finished run says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stopping import begin, stop_after

from stagewright.api.run import Run
from stagewright.api.train import resume
from stagewright.engine.evaluate import Evaluation, Predictions
from stagewright.engine.state import EarlyStopping, Score
from stagewright.errors import RecipeError
from stagewright.measures.metrics import METRICS, Metric, goodness
from stagewright.measures.overview import metric_value
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Evaluation as EvaluationFields
from stagewright.recipe.recipe import Recipe, Stop
from stagewright.report.read import read_run
from stagewright.report.results import choice_sentence
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluated
from stagewright.rundir.events import live_events
from stagewright.training.early_stopping import update_early_stopping
from stagewright.training.evaluator import is_better, verdict

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
FIELDS: dict[str, Any] = {
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 8,
    "batch_size": 8,
    "epochs": "16st",
    "lr": {"schedule": "constant", "peak": 0.1},
    "augment": {"crop": "none", "flip": 0},
    "average": {"kind": "ema", "half_life": "3st"},
    "data": {"val": 0.4, "test": 0.2},
}


def result(predicted: list[int], labels: list[int], sure: float = 0.8) -> Evaluation:
    """Answers that give ``sure`` to the predicted class of two."""
    right = np.array(predicted) == np.array(labels)
    shares = np.full((len(labels), 2), 1 - sure, np.float32)
    shares[np.arange(len(labels)), predicted] = sure
    true = shares[np.arange(len(labels)), labels]
    own = np.full(len(labels), sure, np.float32)
    losses = -np.log(true.astype(np.float64))
    answers = Predictions(
        *(np.array(predicted), own, true, np.ones(len(labels), bool), np.array(labels), losses), probabilities=shares
    )
    return Evaluation(float(losses.mean()), 100 * float(right.mean()), None, len(labels), 0, answers, 2)


LABELS = [0] * 8 + [1] * 2
MAJORITY = result([0] * 10, LABELS)
"""80 % right, and no image of the rare class."""
BOTH = result([0] * 5 + [1] * 5, LABELS)
"""70 % right, all of the rare class."""


def test_the_better_weights_depend_on_the_metric() -> None:
    for metric, better in (("top1", "raw"), ("balanced_accuracy", "ema"), ("macro_f1", "ema"), ("auc", "ema")):
        score = verdict(3, {"raw": MAJORITY, "ema": BOTH}, metric)  # type: ignore[arg-type]
        assert score.weights == better
    unsure = result([0] * 10, LABELS, sure=0.6)
    assert verdict(3, {"raw": MAJORITY, "ema": unsure}, "log_loss").weights == "raw"
    assert verdict(3, {"raw": MAJORITY, "ema": MAJORITY}, "log_loss").weights == "ema"


def test_top1_is_not_said_twice() -> None:
    assert verdict(3, {"raw": MAJORITY}) == Score(3, "raw", 80.0) and Score(3, "raw", 80.0).metric == 80.0
    assert verdict(3, {"raw": BOTH}, "balanced_accuracy") == Score(3, "raw", 70.0, 0.8125)


def test_better_is_lower_for_the_loss() -> None:
    first, second = Score(1, "raw", 50.0, 0.4), Score(2, "raw", 60.0, 0.6)
    assert is_better("macro_f1", second, first) and not is_better("macro_f1", first, second)
    assert is_better("log_loss", first, second) and not is_better("log_loss", second, first)
    assert not is_better("log_loss", first, first)
    assert is_better("auc", first, Score(0, "raw", 90.0, float("nan")))


@pytest.mark.parametrize("metric", METRICS)
def test_early_stopping_follows_the_metric(metric: Metric) -> None:
    recipe = Recipe(eval=EvaluationFields(metric=metric), stop=Stop(patience=2))
    better, worse = (0.2, 0.4) if metric == "log_loss" else (0.4, 0.2)
    watch = update_early_stopping(recipe, EarlyStopping(worse, 1), MAJORITY, better)
    assert watch == EarlyStopping(better, 0)
    assert update_early_stopping(recipe, watch, MAJORITY, worse) == EarlyStopping(better, 1)
    own = Recipe(eval=EvaluationFields(metric=metric), stop=Stop(patience=2, metric="val_top1"))
    assert update_early_stopping(own, EarlyStopping(70.0, 1), MAJORITY, worse) == EarlyStopping(80.0, 0)


def _run(folder: Path, pictures: Path, metric: str, **fields: Any) -> RunDir:
    recipe = {**FIELDS, "eval": {"every": "2st", "metric": metric}, **fields}
    return begin(folder, pictures, recipes.from_dict(recipe))


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_the_best_weights_are_those_of_the_metric(picture_folder: Path, tmp_path: Path, metric: Metric) -> None:
    run = _run(tmp_path / "run", picture_folder, metric)
    assert not resume(run.root, execution=QUIET, say=lambda text: None, arm=stop_after(7)).finished
    assert resume(run.root, execution=QUIET, say=lambda text: None).finished
    summary = Run(run.root).summary
    found = {
        (event.step, kind): one.metric
        for event in live_events(run.events)
        if isinstance(event, Evaluated) and event.metric == metric
        for kind, one in event.results.items()
    }
    assert len(found) == 16 and None not in found.values()
    chosen = summary["chosen"]
    assert chosen is not None and summary["metric"] == metric
    best = max(goodness(metric, value) for value in found.values() if value is not None)
    assert goodness(metric, found[chosen["step"], chosen["weights"]] or 0.0) == best
    record = read_run(run.root)
    answers = record.predictions["val"].answers(len(record.classes))
    assert answers is not None and answers.probabilities is not None
    name = {"auc": "macro_auc"}.get(metric, metric)
    assert summary["measures"]["val"][name]["value"] == metric_value(metric, answers)
    assert record.measures["test"].to_dict() == summary["measures"]["test"]
    said = "highest validation macro AUC" if metric == "auc" else "lowest validation log loss"
    assert said in choice_sentence(record)


def _plan(metric: str, num_val: int, classes: int) -> Plan:
    info = DatasetInfo(
        num_train=64, num_val=num_val, num_test=0, classes=tuple(f"c{at}" for at in range(classes)), digest=""
    )
    return resolve(recipes.from_dict({**FIELDS, "eval": {"metric": metric}}), info)


def test_a_metric_that_cannot_be_measured_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"eval\.metric=auc: 20,000 validation pictures of 1,000 classes") as error:
        _plan("auc", 20_000, 1000)
    assert "top1, balanced_accuracy, macro_f1, log_loss" in error.value.remedy
    assert _plan("macro_f1", 20_000, 1000) and _plan("auc", 10_000, 1000)
    with pytest.raises(RecipeError, match=r"eval\.metric=macro_f1 without validation pictures"):
        _plan("macro_f1", 0, 3)
