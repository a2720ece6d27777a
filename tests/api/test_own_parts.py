"""A run of one's own network, loss and optimizer is a run as any other: staged, exactly resumable, bundled, evaluated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_parts
import pytest
from commands import typed
from stopping import last_checkpoint, stop_after

import stagewright as sw
from stagewright.api.resume_check import differences
from stagewright.errors import BundleError, ModelError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.report.write import write
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Notice
from stagewright.rundir.events import read_events
from stagewright.system import named_functions

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
OWN = {"model": own_parts.Net, "loss": own_parts.focal, "optimizer": own_parts.lion}


def silent(text: str) -> None: ...


def staged() -> sw.Recipe:
    """Head first, then more, then all; mixing, EMA then SWA, layer-wise rates; evaluations and saves between."""
    return recipes.from_dict(
        {
            "name": "own",
            "lr": {"schedule": "cosine", "peak": 0.003},
            "optimizer": {"weight_decay": 0.01, "layer_decay": 0.7, "options": {"betas": [0.9, 0.99]}},
            "batch_size": 8,
            "micro_batch_size": 5,
            "image_size": 16,
            "class_weights": "balanced",
            "eval": {"every": "2st"},
            "checkpoints": {"every": "3st"},
            "data": {"val": 0.2, "test": 0.2},
            "stages": [
                {"epochs": "3st", "train": "head", "mix": {"mixup": 0.3}, "average": "ema"},
                {"epochs": "3st", "train": "last:1", "label_smoothing": 0.1, "average": "ema"},
                {"epochs": "3st", "average": {"kind": "swa", "every": "1st", "recalibrate": 8}, "image_size": 24},
            ],
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> sw.Run:
    out = tmp_path_factory.mktemp("own") / "run"
    return sw.train(picture_folder, staged(), out=out, execution=QUIET, say=silent, **OWN)


def test_the_recipe_holds_the_names(finished: sw.Run) -> None:
    recipe = recipes.load(str(finished.path / "recipe.yaml"))
    assert recipe.functions() == {
        "model.name": "python:own_parts:Net",
        "loss": "python:own_parts:focal",
        "optimizer.name": "python:own_parts:lion",
    }
    assert recipe.optimizer.options == {}, "they were another optimizer's"
    assert recipe.optimizer.weight_decay == 0.01


def test_the_recipe_file_alone_trains_the_same(finished: sw.Run, picture_folder: Path, tmp_path: Path) -> None:
    again = sw.train(picture_folder, finished.path / "recipe.yaml", out=tmp_path / "r", execution=QUIET, say=silent)
    assert differences(RunDir(finished.path), RunDir(again.path)) == []


@pytest.mark.parametrize("step", [2, 3, 5, 8])
def test_it_resumes_exactly(finished: sw.Run, picture_folder: Path, tmp_path: Path, step: int) -> None:
    run = RunDir.create(tmp_path / "r")
    plan = RunDir(finished.path).read_plan()
    for name in ("manifest.parquet", "env.json", "recipe.yaml", "plan.json"):
        shutil.copy(finished.path / name, run.root / name)
    assert not sw.resume(run.root, execution=QUIET, say=silent, arm=stop_after(step)).finished
    assert sw.resume(run.root, execution=QUIET, say=silent).finished
    assert plan.digest == run.read_plan().digest
    assert differences(RunDir(finished.path), run) == []


def test_it_answers_is_evaluated_and_reported(finished: sw.Run, picture_folder: Path) -> None:
    bundle = finished.model
    assert bundle.spec.model == "python:own_parts:Net" and isinstance(bundle.model, own_parts.Net)
    assert len(list(bundle.predict(picture_folder / "down"))) == 20
    report = sw.evaluate(finished.path, device="cpu", workers=1)
    assert report.result.top1 == pytest.approx(finished.summary["top1"]["test"])
    assert "python:own_parts:Net" in write(finished.path).read_text()
    assert "`Net` of the Python module `own_parts`" in (finished.path / "model" / "README.md").read_text()


def test_the_averages_and_frozen_parts_are_as_with_any_network(finished: sw.Run) -> None:
    content = last_checkpoint(finished.path / "checkpoints").tensors
    assert set(content["average"]) == set(own_parts.Net(3).state_dict())
    assert {score["weights"] for score in (content["best"], content["latest"])} <= {"raw", "ema", "swa"}


def test_its_weights_go_on_to_other_classes(finished: sw.Run, picture_folder: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    for name in ("across", "down"):
        shutil.copytree(picture_folder / name, two / f"new {name}")
    overrides = [f"model.weights={finished.path}", "stages=[{epochs: 2st}]", "optimizer.options={}"]
    run = sw.train(
        two, staged(), overrides=overrides, out=tmp_path / "r", execution=QUIET, say=silent, model=own_parts.Net
    )
    notices = [one.event.text for one in read_events(run.path / "events.jsonl") if isinstance(one.event, Notice)]
    assert any("no class in common with these; it starts random" in text for text in notices)
    assert run.model.classes == ("new across", "new down")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of its own, current, as a person starts in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(own_parts.__file__, folder / "their_parts.py")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(named_functions, "_told", set())
    yield folder
    sys.modules.pop("their_parts", None)


THEIRS = ["model.name=python:their_parts:Net", "loss=python:their_parts:focal", "optimizer.options={}"]


def test_whoever_opens_it_is_told_whose_code_runs(
    elsewhere: Path, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (elsewhere / "r.yaml").write_text(recipes.to_yaml(recipes.override(staged(), THEIRS)))

    def opened(what: Any) -> list[str]:
        caplog.clear()
        named_functions._told.clear()
        what()
        return caplog.messages

    model = f"model.name is code: Net, imported from {elsewhere / 'their_parts.py'}."
    loss = f"loss is code: focal, imported from {elsewhere / 'their_parts.py'}."
    given: dict[str, Any] = {"execution": QUIET, "say": silent}
    trained = opened(lambda: sw.train(picture_folder, "r.yaml", out="r", overrides=["stages=[{epochs: 2st}]"], **given))
    assert trained == [model, loss]
    assert opened(lambda: sw.load_bundle("r")) == [model]
    assert opened(lambda: sw.resume("r", overrides=["seed=1"], arm=stop_after(2), **given)) == [model, loss]


def test_where_its_code_is_not_a_bundle_is_refused(
    elsewhere: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.override(staged(), [*THEIRS, "stages=[{epochs: 2st}]"])
    run = sw.train(picture_folder, recipe, out="r", execution=QUIET, say=silent).path.resolve()
    code, out, _ = typed(capsys, monkeypatch, "predict", run, picture_folder / "down", "--device", "cpu")
    assert code == 0 and "down" in out
    sys.modules.pop("their_parts")
    monkeypatch.chdir("/")
    with pytest.raises(
        BundleError, match=r"made by python:their_parts:Net, which this Bundle does not hold.*No module"
    ) as e:
        sw.load_bundle(run)
    assert "add its folder to PYTHONPATH" in e.value.remedy
    code, _, err = typed(capsys, monkeypatch, "predict", run, picture_folder / "down", "--device", "cpu")
    assert code == 2 and "their_parts" in err


def test_changed_code_is_noticed_on_resume(elsewhere: Path, picture_folder: Path) -> None:
    recipe = recipes.override(staged(), THEIRS)
    own: dict[str, Any] = {"execution": QUIET, "say": silent}

    class StopEarly:
        def see(self, event: sw.Event) -> None:
            if event.kind == "evaluated":
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        sw.train(picture_folder, recipe, out="r", observers=[StopEarly()], **own)
    env = json.loads(Path("r/env.json").read_text())
    assert set(env["functions"]) == set(recipe.functions().values()) and all(env["functions"].values())
    with Path("their_parts.py").open("a") as file:
        file.write("\n# changed\n")
    assert sw.resume("r", **own).finished
    notices = [one.event.text for one in read_events(Path("r/events.jsonl")) if isinstance(one.event, Notice)]
    assert any("their_parts.py has changed since this run began" in text for text in notices)


@pytest.mark.parametrize(
    ("own", "error", "given"),
    [
        ({"model": lambda num_classes: None}, RecipeError, "model.name is a lambda"),
        ({"loss": own_parts.mean_loss}, ModelError, "loss: python:own_parts:mean_loss gave"),
        ({"optimizer": own_parts.deaf}, ModelError, "optimizer.name: python:own_parts:deaf moved"),
        ({"model": own_parts.gives_text}, ModelError, "returned a str"),
        ({"model": "resnet8"}, ModelError, "model 'resnet8' is unknown"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_update(
    own: dict[str, Any], error: type[Exception], given: str, picture_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=given):
        sw.train(
            picture_folder,
            staged(),
            overrides=["optimizer.options={}"],
            out=tmp_path / "r",
            execution=QUIET,
            say=silent,
            **own,
        )
    assert not (tmp_path / "r" / "checkpoints").exists() or not any((tmp_path / "r" / "checkpoints").iterdir())


def test_auto_chooses_around_ones_own_network(picture_folder: Path, tmp_path: Path) -> None:
    overrides = ["epochs=2st", "image_size=16", "data.val=0.2", "data.test=0.2"]
    run = sw.train(
        picture_folder, overrides=overrides, out=tmp_path / "r", execution=QUIET, say=silent, model=own_parts.Net
    )
    recipe = recipes.load(str(run.path / "recipe.yaml"))
    assert recipe.model.name == "python:own_parts:Net" and recipe.model.weights is None
    assert recipe.loss == "cross_entropy"


@pytest.mark.long
def test_the_command_line_takes_a_name(elsewhere: Path, picture_folder: Path) -> None:
    words = [
        "train",
        picture_folder,
        "-r",
        "quick",
        "--model",
        "python:their_parts:Net",
        "--out",
        "r",
        "--device",
        "cpu",
    ]
    words += ["--set", "epochs=2st", "--set", "image_size=16", "--set", "data.val=0.2", "--set", "data.test=0.2"]
    done = subprocess.run([sys.executable, "-m", "stagewright", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"model.name is code: Net, imported from {elsewhere / 'their_parts.py'}.") == 1
