"""A stage that finds the optimum of its head: equal to scikit-learn's, the same bits after a kill, and what it refuses."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from stopping import begin, last_checkpoint, stop_after
from torch import nn

from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.data.dataset import load_dataset
from stagewright.engine.cut import linear_cut
from stagewright.errors import ModelError
from stagewright.model.zoo import create_model
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import BadImages, Computing, Event, Notice
from stagewright.rundir.events import live_events
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
HEAD: dict[str, Any] = {"name": "head", "train": "head", "fit": "optimum", "augment": {"crop": "none", "flip": 0.5}}
ALL: dict[str, Any] = {"name": "all", "epochs": "4st", "lr": 0.001}


def recipe(**fields: Any) -> Any:
    plain = {
        "model": {"name": "cifar_resnet18", "options": {"width": 8}},
        "image_size": 32,
        "batch_size": 12,
        "average": {"kind": "ema", "half_life": "4st"},
        "eval": {"every": "4st"},
        "checkpoints": {"every": "6st"},
        "stages": [HEAD, ALL],
        "data": {"val": 0.2, "test": 0.1},
    }
    return recipes.from_dict({**plain, **fields})


def go(run: RunDir, arm: Any = None, observers: Any = ()) -> bool:
    return resume(run.root, execution=QUIET, say=lambda text: None, arm=arm, observers=observers).finished


def notices(run: RunDir) -> list[str]:
    return [event.text for event in live_events(run.events) if isinstance(event, Notice)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begin(tmp_path_factory.mktemp("optimum") / "r", picture_folder, recipe())
    assert go(run)
    return run


def row(run: RunDir, number: int = 1) -> dict[str, float]:
    names, *rows = (line.split(",") for line in run.steps.read_text().splitlines())
    return {name: float(text) for name, text in zip(names, rows[number - 1], strict=True)}


def test_its_head_is_the_one_that_scikit_learn_finds(tmp_path: Path, picture_folder: Path) -> None:
    made = recipe(stages=[HEAD], average="none", sampling="balanced", class_weights={"down": 2.0})
    run = begin(tmp_path / "r", picture_folder, made)
    taken: list[Any] = []

    def arm(session: Session) -> Any:
        def look(stage: Any, batch: Any) -> None:
            of = session.features.of
            views = [of("train", stage, session.manifest, mirrored=mirrored) for mirrored in (False, True)]
            taken.extend(view.values.numpy() for view in views if view is not None)
            taken.append(session.manifest.labels[batch.rows])

        return look

    assert go(run, arm)
    first, mirrored, labels = taken
    assert not np.array_equal(first, mirrored)
    told = next(text for text in notices(run) if "optimum" in text)
    c = float(told.partition("C = ")[2].partition(")")[0])
    weights = np.where(labels == 1, 1.5, 0.75)  # of the classes across, down and slanted, which have as many images
    model = LogisticRegression(C=c, tol=1e-9, max_iter=10_000)
    both = np.concatenate([first, mirrored]).astype(np.float64)
    model.fit(both - both.mean(axis=0), np.tile(labels, 2), sample_weight=np.tile(weights / 2, 2))
    state = last_checkpoint(run.checkpoints).tensors["model"]
    weight, bias = (state[f"fc.{name}"].double().numpy() for name in ("weight", "bias"))
    assert weight == pytest.approx(model.coef_, abs=0.02 * float(np.abs(model.coef_).max()))
    expected = model.predict(both - both.mean(axis=0))
    mine = (both @ weight.T + bias).argmax(axis=1)
    assert (mine == expected).mean() > 0.98
    numbers = row(run)
    assert numbers["top1"] == pytest.approx(100 * (mine == np.tile(labels, 2)).mean(), abs=0.01)
    assert numbers["loss"] < 0.6 < math.log(3) and numbers["grad_norm"] < 1e-3
    assert (numbers["step"], numbers["epoch"], numbers["lr"]) == (1, 1, 0)


def test_the_average_and_later_stages_begin_at_the_optimum(unbroken: RunDir) -> None:
    rows = [line.split(",") for line in unbroken.metrics.read_text().splitlines()[1:]]
    assert [one[2] for one in rows] == ["head", "all"] and rows[0][7] == rows[0][11]  # raw and averaged are the same
    assert float(rows[0][8]) > 60 and row(unbroken, 1)["lr"] == 0 < row(unbroken, 2)["lr"]


@pytest.mark.parametrize("step", [1, 2])
def test_stopped_after_it_and_resumed_it_is_the_same(
    tmp_path: Path, picture_folder: Path, unbroken: RunDir, step: int
) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe())
    assert not go(run, stop_after(step)) and go(run)
    assert differences(unbroken, run) == []


def test_a_stop_within_the_fit_is_heeded(tmp_path: Path, picture_folder: Path, unbroken: RunDir) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe())

    class AtThirdFit:
        session: Session

        def see(self, event: Event) -> None:
            if isinstance(event, Computing) and event.what == "fits of the head" and event.done == 3:
                self.session.stop.requested = True

        def close(self) -> None: ...

    watcher = AtThirdFit()
    assert not go(run, lambda session: setattr(watcher, "session", session), [watcher])
    assert last_checkpoint(run.checkpoints).step == 0
    assert go(run)
    assert differences(unbroken, run) == []


KILLED = """
import os, signal, sys
from stagewright.api.train import resume
from stagewright.plan.execution import Execution

class Killer:
    def see(self, event):
        if event.kind == "computing" and event.what == "fits of the head" and event.done == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    def close(self): ...

resume(sys.argv[1], execution=Execution(device="cpu", workers=1, pages=False, quiet=True), observers=[Killer()])
"""


def test_killed_within_the_fit_and_resumed_it_is_the_same(
    tmp_path: Path, picture_folder: Path, unbroken: RunDir
) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe())
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.root)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert len(run.steps.read_text().splitlines()) <= 1
    assert go(run)
    assert differences(unbroken, run) == []
    weights = [one.root / "model" / "weights.safetensors" for one in (unbroken, run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [text for text in notices(run) if "optimum" in text][-1] in notices(unbroken)


def test_what_cannot_be_read_or_is_masked_or_not_finite_is_left_out(tmp_path: Path, picture_folder: Path) -> None:
    made = recipe(stages=[HEAD], average="none")
    data = Path(shutil.copytree(picture_folder, tmp_path / "data"))
    run = begin(tmp_path / "r", data, made)
    manifest = load_dataset(str(data), made.data).manifest
    rows = manifest.rows("train")
    masked, infinite, broken = int(rows[4]), int(rows[11]), int(rows[30])

    spoilt: list[int] = []

    def arm(session: Session) -> Any:
        session.state.guard.masked = [masked]

        def spoil(*given: Any) -> Any:
            images = given[1][0]
            if len(images) < 12 or spoilt:
                return None
            spoilt.append(infinite)
            return (images.masked_fill((torch.arange(len(images)) == 11)[:, None, None, None], torch.inf),)

        session.state.model.register_forward_pre_hook(spoil)
        (Path(manifest.root) / manifest.paths[broken].as_py()).write_bytes(b"")

    assert go(run, arm) and spoilt
    text = next(text for text in notices(run) if "not finite" in text)
    assert text.endswith(f"not finite: {manifest.paths[infinite].as_py()}")
    bad = [event for event in live_events(run.events) if isinstance(event, BadImages)]
    assert [event.rows for event in bad if event.step == 1] == [(broken,)]
    assert row(run)["top1"] == pytest.approx(100 * round(row(run)["top1"] * 0.78) / 78, abs=0.01)  # of 39 in two views


class Other(nn.Module):
    """A network with a head that is not one linear layer whose outputs are the logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = nn.Linear(12, 6), kind
        self.head = nn.Linear(6, 3, bias=kind != "without biases")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images.flatten(1))
        if self.kind == "tokens":
            return self.head(torch.stack([features, -features], dim=1)).mean(dim=1)
        once = self.head(features)
        return 2 * once if self.kind == "scaled" else once + self.head(features) if self.kind == "twice" else once


@pytest.mark.parametrize("kind", ["without biases", "tokens", "scaled", "twice"])
def test_other_heads_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match="write fit: updates"):
        linear_cut(Other(kind), torch.ones(2, 3, 2, 2))
    assert linear_cut(Other(""), torch.ones(2, 3, 2, 2)).name == "head"


@pytest.mark.parametrize(
    ("name", "cut"), [("torchvision:mobilenet_v2", "classifier.1"), ("timm:vit_tiny_patch16_224", "head")]
)
def test_networks_of_libraries_are_cut_at_their_last_layer(name: str, cut: str) -> None:
    torch.manual_seed(0)
    assert linear_cut(create_model(name, 3, image_size=32), torch.randn(2, 3, 32, 32)).name == cut


def test_a_network_with_a_convolution_as_head_does_not_begin(tmp_path: Path, picture_folder: Path) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe(model={"name": "torchvision:squeezenet1_0"}))
    with pytest.raises(ModelError, match=r"classifier.1 \(Conv2d\)"):
        go(run)


def test_features_in_a_file_give_the_same_head(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [begin(tmp_path / name, picture_folder, recipe()) for name in ("memory", "file")]
    assert go(runs[0])
    monkeypatch.setattr("stagewright.training.feature_cache.MOST_IN_MEMORY", 1000)
    assert go(runs[1])
    assert differences(*runs) == []


def test_where_no_two_folds_are_possible_the_default_is_taken(tmp_path: Path, picture_folder: Path) -> None:
    made = recipe(stages=[{**HEAD, "data_fraction": 0.05}, ALL])
    run = begin(tmp_path / "r", picture_folder, made)
    assert go(run)
    assert any("the default" in text for text in notices(run))
