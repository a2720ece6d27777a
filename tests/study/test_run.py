"""Studies that are carried out: every run as if alone, stopped and gone on, confirmed with the test part closed until then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core
import typer.main
from commands import typed
from mlflow_server import stored_points
from small_recipe import NETWORK
from tracked_runs import assert_same, expected, tensorboard_points, without_result

from stagewright.api.evaluate import evaluate
from stagewright.api.run import Run
from stagewright.api.train import train
from stagewright.cli.main import app
from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, RecipeError, StagewrightError, StorageError
from stagewright.plan.budget import Budget
from stagewright.plan.execution import Execution
from stagewright.recipe.yaml_text import write_yaml
from stagewright.rundir.directory import RunDir
from stagewright.study.definition import Study, read_study
from stagewright.study.ledger import Ledger
from stagewright.study.run import Manner, run_study
from stagewright.study.status import study_status
from stagewright.study.store import ENVIRONMENT
from stagewright.system.children import module_command
from stagewright.system.device import computing_with

SMALL: dict[str, Any] = {
    **NETWORK,
    "epochs": "12st",
    "eval": {"every": "3st"},
    "checkpoints": {"every": "2st", "keep": 3},
}


@pytest.fixture(autouse=True)
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    yield


def study(folder: Path, pictures: Path, **content: Any) -> Study:
    (folder / "small.yaml").write_text(write_yaml(SMALL))
    base = {"data": str(pictures), "recipe": str(folder / "small.yaml"), "equal": {"steps": 12}, "seeds": [0]}
    common = {"set": {"data.val": 0.3, "data.test": 0.3}}
    (folder / "s.yaml").write_text(write_yaml({**base, **common, **content}))
    return read_study(str(folder / "s.yaml"))


def manner(said: list[str] | None = None, **more: Any) -> Manner:
    notes = said if said is not None else []
    return Manner(execution=Execution(device="cpu", threads=1), say=notes.append, **more)


def carried_out(folder: Path, one: Study, said: list[str] | None = None, **more: Any) -> Ledger:
    return run_study(one, folder / "out", manner(said, **more))


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> tuple[Study, Ledger, list[str]]:
    """A grid with its confirmation."""
    folder, said = tmp_path_factory.mktemp("confirmed"), list[str]()
    one = study(folder, picture_folder, grid={"lr.peak": [0.001, 0.02]}, confirm={"top": 1, "seeds": 1})
    return one, carried_out(folder, one, said, processes=2), said


def test_each_run_is_the_one_of_the_printed_command(tmp_path: Path, confirmed: tuple[Study, Ledger, list[str]]) -> None:
    one, ledger, _ = confirmed
    for job in ledger.jobs():
        execution = Execution(device="cpu", threads=1, pages=False, quiet=True, hold_test=job.phase == "study")
        with computing_with(1):
            request = one.request(job.variant, job.seed)
            alone = train(one.data, request, out=tmp_path / job.name, execution=execution, say=lambda text: None)
        for name in ("model/weights.safetensors", "steps.csv", "metrics.csv"):
            assert (alone.path / name).read_bytes() == (ledger.run(job.name) / name).read_bytes(), (job.name, name)


def test_only_the_confirmation_opens_the_test_part(confirmed: tuple[Study, Ledger, list[str]]) -> None:
    one, ledger, said = confirmed
    status = study_status(ledger)
    phases = {job.job.phase: job.test_top1 for job in status.jobs}
    assert phases["study"] is None and phases["confirmation"] is not None
    assert {job.job.seed for job in status.jobs if job.job.phase == "confirmation"} == {*one.confirmation_seeds}
    for job in ledger.jobs():
        there = (ledger.run(job.name) / "evaluations" / "test.parquet").is_file()
        assert there == (job.phase == "confirmation")
    best = status.ranking[0]
    assert ledger.confirmation() is not None and ledger.confirmation()["variants"] == [best[0].name]  # type: ignore[index]
    assert any(line.startswith("Confirming") for line in said)


WITHOUT_A_RUN = {
    "train",
    "plan",
    "lr-find",
    "resume-check",
    "models",
    "doctor",
    "demo",
    "recipes",
    "data",
    "study",
    "launch",
}
"""Commands that take no run: what they read of DATA is no run's test part."""


def test_no_command_opens_the_test_part_of_a_search_run(
    tmp_path: Path,
    confirmed: tuple[Study, Ledger, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, ledger, _ = confirmed
    names = [job.name for job in ledger.jobs() if job.phase == "study"]
    run, other = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    for name, place in zip(names, (run, other), strict=True):
        shutil.copytree(ledger.run(name), place)
    held = Manifest.read(RunDir(run).manifest)
    picture = Path(held.root) / held.paths[int(held.rows("test")[0])].as_py()
    refused: list[list[object]] = [
        ["evaluate", run],
        ["evaluate", run, "--split", "test"],
        ["evaluate", run, "--split", "test", "--record"],
        ["evaluate", run, "--split", "test", "--record", "--again"],
        ["evaluate", run, one.data],
        ["evaluate", run / "model", one.data],
        ["evaluate", run, "--at", "precision=0.9", "--split", "test"],
        ["predict", run, picture],
    ]
    allowed: list[list[object]] = [
        ["finish", run],
        ["resume", run],
        ["resume", run, "--set", "lr.peak=0.003", "--no-pages"],
        ["report", run],
        ["report", run, "--saliency"],
        ["report", run, other],
        ["compare", run, other],
        ["compare", run, other, "--format", "json"],
        ["runs", run.parent, "--json"],
        ["evaluate", run, "--split", "val"],
        ["track", run, "--to", "tensorboard"],
    ]
    for words in refused:
        code, out, err = typed(capsys, monkeypatch, *words)
        assert code == 2, words
        assert "test" in err and "top-1" not in out, words
    for words in allowed:
        code, _, _ = typed(capsys, monkeypatch, *words)
        assert code == 0, words
    for name in ("why", "diff"):
        assert typed(capsys, monkeypatch, name, run, other)[0] == 1  # they differ
    tried = {str(words[0]) for words in (*refused, *allowed)} | {"why", "diff"}
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup) and tried | WITHOUT_A_RUN == set(command.commands)
    made = [path for path in run.parent.iterdir() if (path / "summary.json").is_file()]
    assert len(made) == 3  # with the fork
    for place in made:
        assert Run(place).summary["top1"]["test"] is None
        assert not (place / "evaluations" / "test.parquet").exists()
    with pytest.raises(StagewrightError):
        evaluate(run)


@pytest.mark.long
def test_trackers_get_every_run_and_no_score_of_a_closed_test_part(tmp_path: Path, picture_folder: Path) -> None:
    """Two runs at a time send to the same database, which both make. The confirmation opens the test part, for its run alone."""
    one = study(tmp_path, picture_folder, grid={"lr.peak": [0.001, 0.02]}, seeds=[0, 1], confirm={"top": 1, "seeds": 1})
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["study", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "-j", "2", "--device", "cpu"]
    command = module_command("stagewright", [*words, "--threads", "1", "--track", "tensorboard,mlflow"])
    done = subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True)
    assert done.returncode == 0, done
    ledger = Ledger(tmp_path / "out")
    jobs = {job.name: job for job in ledger.jobs()}
    assert len(jobs) == 5 and one.confirm is not None
    stored = stored_points(tmp_path / "mlflow.db")
    for name, job in jobs.items():
        run = ledger.run(name)
        remote = json.loads((run / "trackers" / "mlflow.json").read_bytes())["remote"]
        for points in (tensorboard_points(run), stored[remote]):
            assert_same(without_result(points), expected(run))
            tags = {tag for tag, *_ in points if tag.startswith("final/")}
            assert "final/val_top1" in tags
            assert any("test" in tag for tag in tags) == (job.phase == "confirmation"), (name, tags)
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    parents = connection.execute("select distinct value from tags where key = 'mlflow.parentRunId'").fetchall()
    (parent,) = connection.execute("select run_uuid, name, status from runs where name = 'out'").fetchall()
    connection.close()
    assert parents == [(parent[0],)] and parent[1:] == ("out", "FINISHED")


def test_a_tracker_that_cannot_be_used_is_refused_before_the_study_begins(tmp_path: Path, picture_folder: Path) -> None:
    one = study(tmp_path, picture_folder, grid={"lr.peak": [0.001, 0.02]}, seeds=[0])
    with pytest.raises(RecipeError, match="the tracker 'comet'"):
        run_study(one, tmp_path / "out", Manner(execution=Execution(device="cpu", track=("comet",))))
    assert not (tmp_path / "out").exists()


def test_after_a_run_only_its_best_and_last_checkpoint_stay_and_no_page(
    confirmed: tuple[Study, Ledger, list[str]],
) -> None:
    _, ledger, _ = confirmed
    for job in ledger.jobs():
        place = ledger.run(job.name)
        assert len([*(place / "checkpoints").glob("step_*")]) <= 2
        assert not (place / "report.html").exists() and not (place / "plots").exists()


def test_the_same_command_again_does_nothing(confirmed: tuple[Study, Ledger, list[str]]) -> None:
    one, ledger, _ = confirmed
    before = {job.name: (ledger.run(job.name) / "events.jsonl").read_bytes() for job in ledger.jobs()}
    run_study(one, ledger.root, manner())
    assert before == {job.name: (ledger.run(job.name) / "events.jsonl").read_bytes() for job in ledger.jobs()}


def test_a_changed_study_and_other_threads_are_refused(
    tmp_path: Path, picture_folder: Path, confirmed: tuple[Study, Ledger, list[str]]
) -> None:
    one, ledger, _ = confirmed
    other = study(tmp_path, picture_folder, grid={"lr.peak": [0.001, 0.03]}, confirm={"top": 1, "seeds": 1})
    with pytest.raises(RecipeError, match="the study has changed since its beginning"):
        run_study(other, ledger.root, manner())
    with pytest.raises(CheckpointError, match=r"--threads 2, but the runs of .* compute with 1"):
        run_study(one, ledger.root, Manner(execution=Execution(device="cpu", threads=2)))


def test_a_study_that_was_confirmed_cannot_grow(
    tmp_path: Path, picture_folder: Path, confirmed: tuple[Study, Ledger, list[str]]
) -> None:
    one, ledger, _ = confirmed
    content = {**one.content, "seeds": [0, 1]}
    (tmp_path / "more.yaml").write_text(write_yaml({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(RecipeError, match="is confirmed: its test part was opened"):
        run_study(read_study(str(tmp_path / "more.yaml")), ledger.root, manner())


def test_a_folder_with_something_else_is_refused(tmp_path: Path, picture_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        carried_out(tmp_path, study(tmp_path, picture_folder, grid={"lr.peak": [0.001, 0.02]}))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_run_that_fails_by_itself_is_a_row_with_its_reason(tmp_path: Path, picture_folder: Path) -> None:
    one = study(
        tmp_path,
        picture_folder,
        variants={"good": {}, "wild": {"lr.peak": 1e30, "guard.rollbacks": 0}},
    )
    ledger = carried_out(tmp_path, one, processes=2)
    status = study_status(ledger)
    states = {job.job.variant.name: job for job in status.jobs}
    assert states["good"].state == "done" and states["wild"].state == "failed"
    assert states["wild"].reason
    assert [variant.name for variant, _, _ in status.ranking] == ["good"]
    carried_out(tmp_path, one)  # not tried again
    assert study_status(ledger).count("failed") == 1


def test_a_search_pauses_at_rungs_and_goes_on_with_the_best(tmp_path: Path, picture_folder: Path) -> None:
    search = {
        "space": {"lr.peak": {"log": [1e-6, 0.05]}, "model.options.width": {"choice": [4, 6]}},
        "trials": 4,
        "sampler": "random",
        "rungs": {"first": "25%", "eta": 2},
    }
    one = study(tmp_path, picture_folder, search=search)
    ledger = carried_out(tmp_path, one)
    status = study_status(ledger)
    assert len(status.jobs) == 4 and status.count("paused") >= 1 and status.count("done") >= 1
    paused = [job for job in status.jobs if job.state == "paused"]
    assert all(0.2 < job.done < 1 for job in paused)
    said: list[str] = []
    carried_out(tmp_path, one, said, more=1)
    after = study_status(ledger)
    assert after.count("paused") == len(paused) - 1
    [name] = [line.split()[0] for line in said if line.endswith("goes on to its end.")]
    [job] = [job for job in ledger.jobs() if job.name == name]
    with computing_with(1):
        execution = Execution(device="cpu", threads=1, pages=False, quiet=True, hold_test=True)
        alone = train(one.data, one.request(job.variant, 0), out=tmp_path / "alone", execution=execution)
    for file in ("model/weights.safetensors", "steps.csv", "metrics.csv"):
        assert (alone.path / file).read_bytes() == (ledger.run(name) / file).read_bytes(), file


def test_runs_of_equal_time_go_one_at_a_time(tmp_path: Path, picture_folder: Path) -> None:
    one = study(tmp_path, picture_folder, equal={"time": "20s"}, grid={"lr.peak": [0.001, 0.02]})
    with pytest.raises(RecipeError, match="one at a time"):
        carried_out(tmp_path, one, processes=2)


def test_no_run_begins_that_cannot_end_within_the_budget(tmp_path: Path, picture_folder: Path) -> None:
    one = study(tmp_path, picture_folder, grid={"lr.peak": [0.001, 0.02]})
    ledger = carried_out(tmp_path, one, budget=Budget("1s", 1.0, None, time.monotonic()))
    assert study_status(ledger).count("waiting") == 2


def test_a_signal_saves_the_runs_and_the_same_command_goes_on(
    tmp_path: Path, picture_folder: Path, confirmed: tuple[Study, Ledger, list[str]]
) -> None:
    one = study(tmp_path, picture_folder, equal={"steps": 400}, grid={"lr.peak": [0.001, 0.02]})
    command = [sys.executable, "-m", "stagewright", "study", "run", str(tmp_path / "s.yaml"), "--out", "out"]
    process = subprocess.Popen([*command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    ledger, until = Ledger(tmp_path / "out"), time.monotonic() + 120
    names = [f"{variant.name}-s0" for variant in one.variants]
    steps = ledger.run(names[0]) / "steps.csv"
    while time.monotonic() < until and not (steps.is_file() and len(steps.read_bytes().splitlines()) > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "the same command goes on" in said
    assert ledger.state(names[0]) == "interrupted"
    assert Run(ledger.run(names[0])).summary["status"] == "stopped"


def test_show_tells_how_far_it_is(
    confirmed: tuple[Study, Ledger, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ledger, _ = confirmed
    code, out, _ = typed(capsys, monkeypatch, "study", "show", ledger.root)
    assert code == 0 and "3 runs: 3 done." in out and "Confirmed with fresh seeds" in out
    code, out, _ = typed(capsys, monkeypatch, "study", "show", ledger.root, "--json")
    content = json.loads(out)
    assert content["counts"]["done"] == 3 and len(content["ranking"]) == 2
    code, _, err = typed(capsys, monkeypatch, "study", "show", ledger.root.parent)
    assert code == 2 and "holds no study" in err


def test_without_optuna_the_command_that_installs_it_is_said(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(tmp_path, picture_folder, grid={"lr.peak": [0.001, 0.02]})
    monkeypatch.delitem(sys.modules, "stagewright.study.store")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(StorageError, match=r"pip install 'stagewright\[study\]'"):
        carried_out(tmp_path, one)
    assert not (tmp_path / "out").exists()
