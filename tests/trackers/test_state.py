"""trackers/NAME.json, what is refused at the start, and that no library is imported for another's sake."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from picture_folders import write_stripes
from stopping import begin
from tracked_runs import FIELDS, track

from stagewright.api.train import resume, train
from stagewright.errors import CheckpointError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.trackers.names import check_trackers, mlflow_uri, tracker_names, without_secrets
from stagewright.trackers.state import new_state, only_one, read_state, state_path, write_state


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("state")
    return begin(folder / "run", write_stripes(folder / "pictures"), recipes.from_dict(FIELDS))


@pytest.fixture
def run(made: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(made.root, tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_it_is_read_as_it_was_written(run: RunDir) -> None:
    plan = run.read_plan()
    assert read_state(run, plan, "mlflow") is None
    state = new_state(run, plan, "mlflow")
    state.sent, state.sending, state.rows_sha256 = 30, 40, "0" * 64
    write_state(run, state)
    assert read_state(run, plan, "mlflow") == state


@pytest.mark.parametrize(
    "changes", [{"sent": -1}, {"sent": "3"}, {"remote": "../x"}, {"format": 2}, {"sending": 1.5}, {"rows_sha256": "x"}]
)
def test_a_damaged_one_is_refused_with_the_command_that_makes_it_anew(run: RunDir, changes: dict[str, object]) -> None:
    plan = run.read_plan()
    write_state(run, new_state(run, plan, "wandb"))
    path = state_path(run, "wandb")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=r"wandb\.json is damaged") as found:
        read_state(run, plan, "wandb")
    assert f"stagewright track {run.root} --to wandb --rebuild" in found.value.remedy


def test_a_copy_is_refused_and_a_moved_run_goes_on(run: RunDir, tmp_path: Path) -> None:
    plan = run.read_plan()
    write_state(run, new_state(run, plan, "wandb"))
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.root, copy.root)
    with pytest.raises(CheckpointError, match=r"of which .*copy is a copy: both would be sent under the id") as found:
        read_state(copy, plan, "wandb")
    assert "--rebuild sends the copy under an id of its own" in found.value.remedy
    shutil.move(run.root, tmp_path / "elsewhere")
    state = read_state(copy, plan, "wandb")
    assert (
        state is not None and state.directory == str(copy.root) and state.remote == new_state(run, plan, "wandb").remote
    )
    assert new_state(copy, plan, "wandb").remote != state.remote
    assert new_state(copy, plan, "wandb", 1).remote != new_state(copy, plan, "wandb").remote


def test_a_link_out_of_the_run_is_refused(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (run.root / "trackers").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="trackers is a link"):
        write_state(run, new_state(run, run.read_plan(), "wandb"))
    with pytest.raises(CheckpointError, match="trackers is a link"):
        resume(run.root, execution=Execution(pages=False, quiet=True), say=lambda text: None)
    assert not list((tmp_path / "outside").iterdir())


def test_one_process_sends_at_a_time(run: RunDir) -> None:
    with only_one(run, "wandb") as first, only_one(run, "wandb") as second, only_one(run, "mlflow") as other:
        assert (first, second, other) == (True, False, True)
    with only_one(run, "wandb") as again:
        assert again


def test_what_cannot_be_used_is_refused_before_anything_is_done(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="the tracker 'comet'") as unknown:
        train("digits", execution=Execution(track=("comet",)))
    assert unknown.value.allowed == "tensorboard, wandb, mlflow"
    with pytest.raises(RecipeError, match="the tracker 'comet'"):
        resume(run.root, execution=Execution(track=("comet",)))
    with pytest.raises(RecipeError, match="a tracker without a name"):
        tracker_names("wandb,")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow"):
        with pytest.raises(RecipeError, match=f"needs the library {name}, which is not installed") as missing:
            check_trackers([name])
        assert missing.value.remedy == f"pip install 'stagewright[{name}]'"


@pytest.mark.parametrize(
    "uri", ["", "mlruns", "file:///tmp/x", "databricks", "http://", "sqlite://", "postgresql://h/d"]
)
def test_other_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_URI is") as found:
        check_trackers(["mlflow"])
    assert "sqlite:///mlflow.db" in found.value.remedy


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_MODE", "disabled"), ("WANDB_BASE_URL", "api.wandb.ai"), ("WANDB_BASE_URL", "https://")],
)
def test_wrong_variables_of_wandb_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=f"{variable} is '{value}'") as found:
        check_trackers(["wandb"])
    assert f"unset {variable}" in found.value.remedy


def test_a_database_needs_more_than_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else found(name))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_trackers(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(RecipeError, match="needs the library sqlalchemy") as missing:
        check_trackers(["mlflow"])
    assert missing.value.remedy == "pip install 'stagewright[mlflow]'"


def test_a_database_in_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none/mlflow.db")
    with pytest.raises(RecipeError, match=f"there is no folder {tmp_path}/none") as found:
        check_trackers(["mlflow"])
    assert found.value.remedy == f"mkdir -p {tmp_path}/none"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://me:secret@host/x")
    with pytest.raises(RecipeError) as found:
        mlflow_uri()
    assert "secret" not in str(found.value) and without_secrets("http://me:secret@h:1/x@y") == "http://h:1/x@y"


def test_the_command_says_what_is_wrong(run: RunDir) -> None:
    done = track(run.root, "comet", {})
    assert done.returncode == 2 and "error: the tracker 'comet'" in done.stderr


def test_nothing_is_imported_for_a_run_without_trackers() -> None:
    """Neither the training nor the process of one tracker imports the library of another; that process imports no torch."""
    names = "{'torch', 'tensorboard', 'wandb', 'mlflow'} & set(sys.modules)"
    for module, wanted in (
        ("stagewright.api.train", "['torch']"),
        ("stagewright.trackers.follow", "[]"),
        ("stagewright.trackers.tensorboard", "['tensorboard']"),
        ("stagewright.trackers.wandb", "['wandb']"),
    ):
        code = f"import sys, {module}; print(sorted({names}))"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == wanted, module
