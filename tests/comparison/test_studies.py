"""Comparisons of studies: what was confirmed stands first, validation scores are no results, and figures of what chose."""

from __future__ import annotations

import builtins
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import some_right, write_run

from stagewright.comparison.compared import compare
from stagewright.comparison.page import default_place, page
from stagewright.comparison.search_figures import best_of_each, draw_search, trial_scores
from stagewright.comparison.words import head_sentences
from stagewright.errors import CheckpointError
from stagewright.recipe.yaml_text import write_yaml
from stagewright.study.definition import Study, job_name, read_study
from stagewright.study.ledger import Ledger, StudyJob
from stagewright.study.variants import Variant

FIXED = {"threads": 1, "tiny": False, "precision": "fp32", "plans": {}, "datasets": []}
RATES = [0.01, 0.02, 0.05]


def begun(folder: Path, **content: Any) -> tuple[Study, Ledger]:
    base = {"data": "digits", "recipe": "quick", "equal": {"epochs": 3}, "seeds": [0, 1], "set": {"data.test": 0.3}}
    (folder / "s.yaml").write_text(write_yaml({**base, **content}))
    study, ledger = read_study(str(folder / "s.yaml")), Ledger(folder / "out")
    ledger.write(study, FIXED)
    return study, ledger


def done(ledger: Ledger, job: StudyJob, share: float | None, val: float | None = None, **more: Any) -> None:
    ledger.record(job, ["stagewright", "train"])
    right = None if share is None else some_right(share, job.seed % 1000)
    recipe = {"lr": {"peak": job.variant.name}}
    run = write_run(ledger.run(job.name), job.seed, right, recipe=recipe, **more)
    summary = (run / "summary.json").read_text()[:-1]
    val = (70.0 if share is None else 100 * share) if val is None else val
    (run / "summary.json").write_text(f'{summary}, "top1": {{"val": {val}}}}}')


def job(study: Study, at: int, seed: int, phase: Any = "study") -> StudyJob:
    variant = study.variants[at]
    return StudyJob(job_name(variant, seed), phase, variant, seed)


@pytest.fixture
def confirmed(tmp_path: Path) -> tuple[Study, Ledger]:
    study, ledger = begun(tmp_path, grid={"lr.peak": RATES}, confirm={"top": 2, "seeds": 3})
    for at, seed in itertools.product(range(3), study.seeds):
        done(ledger, job(study, at, seed), None)
    fresh = [job(study, at, seed, "confirmation") for at in (0, 2) for seed in study.confirmation_seeds]
    ledger.confirm(["0.01", "0.05"], [70.0, 69.0], [one.name for one in fresh])
    for one in fresh:
        done(ledger, one, 0.4 if one.variant.name == "0.01" else 0.8)
    return study, ledger


def test_what_was_confirmed_stands_first_and_the_best_is_the_first_row(confirmed: tuple[Study, Ledger]) -> None:
    _, ledger = confirmed
    found = compare([ledger.root])
    assert [(row.name, row.entry.phase, row.tested) for row in found.rows] == [
        ("0.05", "confirmation", 3),
        ("0.01", "confirmation", 3),
        ("0.02", "study", 0),
    ]
    assert found.rows[0].against is None and found.rows[1].against is not None
    assert found.rows[1].against.verdict == "worse" and found.rows[2].scored is None and found.rows[2].ranks is None
    assert [row.entry.trials for row in found.rows] == [6, 6, 6]
    assert found.selection is not None and found.selection.trials == 6 and found.selection.best == pytest.approx(75.0)
    assert any(line.startswith("6 runs chose by validation scores") for line in head_sentences(found))
    assert default_place(found) == ledger.root / "compare.html" and "0.02" in page(found)


def test_a_half_finished_confirmation_compares_nothing_with_one_seed(tmp_path: Path) -> None:
    study, ledger = begun(tmp_path, grid={"lr.peak": RATES}, confirm={"top": 2, "seeds": 3})
    fresh = [job(study, at, seed, "confirmation") for at in (0, 2) for seed in study.confirmation_seeds]
    for one in fresh:
        ledger.record(one, ["stagewright", "train"])
    for one in fresh[:4]:
        done(ledger, one, 0.5)
    found = compare([ledger.root])
    assert [(row.name, row.tested) for row in found.rows] == [("0.01", 3), ("0.05", 0)]
    assert "0.05: one seed has finished" in " ".join(found.notes) and found.rows[1].status == "2 waiting, 1 finished"
    ledger.fail(fresh[5].name, "out of memory")
    assert "1 failed: out of memory" in compare([ledger.root]).rows[1].status


def test_a_study_beside_runs_is_refused(confirmed: tuple[Study, Ledger]) -> None:
    _, ledger = confirmed
    with pytest.raises(CheckpointError, match="beside 1 more"):
        compare([ledger.root, ledger.run("0.01-s0")])


def test_lengths_that_differ_where_the_study_says_equal_are_marked(tmp_path: Path) -> None:
    for equal, marked in ({"epochs": 3}, True), ("as_given", False):
        folder = tmp_path / str(marked)
        folder.mkdir()
        study, ledger = begun(folder, grid={"lr.peak": RATES[:2]}, equal=equal)
        for at, seed in itertools.product(range(2), study.seeds):
            done(ledger, job(study, at, seed), None, steps=100 * (at + 1))
        found = compare([ledger.root])
        assert "epochs" in found.differing and ("epochs" in found.unequal) == marked and "updates" not in found.unequal


def test_the_expected_best_of_n_is_the_mean_over_all_choices() -> None:
    scores = np.random.default_rng(0).permutation([3.0, 1.0, 4.0, 1.5, 9.0, 2.6])
    for highest, best in ((True, max), (False, min)):
        own = best_of_each(scores.tolist(), highest=highest)
        wanted = [np.mean([best(some) for some in itertools.combinations(scores, n)]) for n in range(1, 7)]
        assert own == pytest.approx(wanted)


def searched(folder: Path) -> tuple[Study, Ledger]:
    space = {"lr.peak": {"log": [0.001, 0.5]}, "batch_size": {"choice": [32, 64]}, "mix.mixup": {"range": [0.0, 0.4]}}
    study, ledger = begun(folder, seeds=[0], search={"space": space, "trials": 12, "sampler": "random"})
    random = np.random.default_rng(0)
    for at in range(12):
        rate, mix = float(10 ** random.uniform(-3, -0.4)), float(random.uniform(0, 0.4))
        own = study.at({"lr.peak": rate, "batch_size": ["32", "64"][at % 2], "mix.mixup": mix})
        variant = Variant(f"trial-{at:04d}", own.labels, own.overrides)
        done(ledger, StudyJob(variant.name, "study", variant, 0), None, 50 - 10 * float(np.log10(rate)))
    return study, ledger


def test_a_search_has_its_figures(tmp_path: Path) -> None:
    study, ledger = searched(tmp_path)
    assert len(trial_scores(ledger.root)) == 12
    chosen = compare([ledger.root]).selection
    assert (
        chosen is not None and chosen.trials == 12 and chosen.too_high == 0.0
    )  # each run for itself; all answer the same
    drawings = list(draw_search(study, ledger.root))
    assert [one.name for one in drawings] == ["history", "best_of", "importance", "parallel"]
    assert all(one.svg.startswith("<svg") and "lr.peak" in one.svg for one in drawings[2:])


def test_without_optuna_the_page_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ledger = searched(tmp_path)
    true_import = builtins.__import__

    def without(name: str, *more: Any, **others: Any) -> Any:
        if name.split(".")[0] == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'", name="optuna")
        return true_import(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    html = page(compare([ledger.root]))
    assert "pip install 'stagewright[study]'" in html and "best of n" in html
