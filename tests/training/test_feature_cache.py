"""Frozen features: where networks can be cut, and that training on features equals training on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from stopping import last_checkpoint, stop_after
from torch import Tensor, nn

from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.data.batches.batch import Batch
from stagewright.data.batches.specs import has_fixed_views
from stagewright.data.dataset import load_dataset
from stagewright.engine.frozen_features import CachedFeatures, Features, find_cut
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.model.zoo import create_model
from stagewright.plan.execution import Execution
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.rundir.event_kinds import Computing, Event
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)


def ready(model: nn.Module, train: str | tuple[str, ...] = "head") -> nn.Module:
    apply_trainable(model, train)
    set_train_mode(model)
    return model


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("torchvision:resnet18", "fc"),
        ("torchvision:mobilenet_v2", "classifier"),  # the dropout before the linear layer is after the cut
        ("timm:mobilenetv2_100", "classifier"),
        ("timm:resnet10t", "fc"),
        ("cifar_resnet18", "fc"),
    ],
)
def test_networks_are_cut_in_front_of_their_heads(name: str, cut: str) -> None:
    torch.manual_seed(0)
    model = ready(create_model(name, 3, image_size=64))
    found = find_cut(model, torch.randn(2, 3, 64, 64))
    assert found is not None and found.name == cut
    features = Features(model, found)
    images = torch.randn(4, 3, 64, 64)
    batch = Batch(0, images, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool), (), rows=np.arange(4))
    kept = features.compute([batch], lambda b: b.images, lambda: False, lambda done: None)
    model.eval()
    assert torch.equal(features.head(kept.values), model(images))
    assert kept.values[0].numel() * 4 == found.bytes_each


def test_training_modes_and_buffers_are_left_as_they_were() -> None:
    model = ready(torchvision.models.mobilenet_v2(num_classes=3))
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    assert find_cut(model, torch.randn(2, 3, 32, 32)) is not None
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


class Random(nn.Module):
    """Dropout in the body has no parameters, so it is not in eval mode when the body is frozen."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.body, self.drop, self.head, self.twice = nn.Linear(12, 6), nn.Dropout(0.5), nn.Linear(6, 2), twice

    def forward(self, images: Tensor) -> Tensor:
        features = self.drop(self.body(images.flatten(1)))
        return self.head(features) + (self.head(features) if self.twice else 0)


class Moving(nn.Module):
    """Batch-norm statistics that change although no parameter of the body trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body, self.head = nn.BatchNorm2d(3, affine=False), nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.norm(images).flatten(1)))


def test_what_cannot_be_cut_is_not() -> None:
    images = torch.randn(2, 3, 2, 2)
    for model in (Random(), Moving()):
        assert find_cut(ready(model, ("head.*",)), images) is None
    calm = Random(twice=True)
    calm.drop.p = 0.0
    assert find_cut(ready(calm, ("head.*",)), images) is None  # its head is called twice
    calm.twice = False
    assert find_cut(ready(calm, ("head.*",)), images) is not None
    assert find_cut(ready(calm, "all"), images) is None
    model = torchvision.models.resnet18(num_classes=3)
    assert find_cut(ready(model, "last:1"), torch.randn(1, 3, 32, 32)) is None  # two separate parts train


def test_a_damaged_picture_keeps_its_name() -> None:
    kept = CachedFeatures(np.array([3, 5, 9]), torch.arange(3.0)[:, None], {5: "OSError: broken"})
    labels, valid = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    batch = kept.replace_images(Batch(0, torch.empty(4, 3, 0, 0), labels, valid, (), rows=np.array([9, 5, 3, 5])))
    assert batch.images[:, 0].tolist() == [2.0, 1.0, 0.0, 1.0]
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.bad_rows == ((5, "OSError: broken"),) * 2


def recipe(**fields: Any) -> Any:
    plain = {
        "model": {"name": "torchvision:mobilenet_v2"},
        "image_size": 32,
        "batch_size": 12,
        "augment": {"crop": "none", "flip": 0},
        "average": {"kind": "ema", "half_life": "4st"},
        "eval": {"every": "4st"},
        "checkpoints": {"every": "6st"},
        "stages": [
            {"name": "head", "epochs": "9st", "train": "head", "lr": 0.3},
            {"name": "all", "epochs": "4st", "lr": 0.01, "augment": {"flip": 0.5}},
        ],
        "data": {"val": 0.2, "test": 0.1},
    }
    return recipes.from_dict({**plain, **fields})


def run_of(folder: Path, pictures: Path, made: Any) -> RunDir:
    manifest = load_dataset(str(pictures), made.data, made.seed).manifest
    run = RunDir.create(folder)
    run.write_start(resolve(made, manifest.info()), manifest, environment(str(pictures), ["t"], "cpu", ""))
    return run


def go(run: RunDir, arm: Any = None) -> bool:
    return resume(run.root, execution=QUIET, say=lambda text: None, arm=arm).finished


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = run_of(tmp_path_factory.mktemp("features") / "r", picture_folder, recipe())
    assert go(run)
    return run


def test_a_head_on_features_learns_as_on_pictures(tmp_path: Path, picture_folder: Path, unbroken: RunDir) -> None:
    plain = run_of(tmp_path / "plain", picture_folder, recipe())

    def never(session: Session) -> None:
        session.features.cuts = {}  # type: ignore[misc]

    assert go(plain, never)
    losses = [
        [float(line.split(",")[5]) for line in run.steps.read_text().splitlines()[1:]] for run in (plain, unbroken)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    assert "are computed once" in unbroken.events.read_text() and "are computed once" not in plain.events.read_text()
    weights = [last_checkpoint(run.checkpoints).tensors["model"] for run in (plain, unbroken)]
    assert weights[0].keys() == weights[1].keys()


def test_its_steps_read_no_picture(tmp_path: Path, picture_folder: Path) -> None:
    run = run_of(tmp_path / "r", picture_folder, recipe(stages=[{"epochs": "60st", "train": "head"}]))
    sessions: list[Session] = []
    assert go(run, sessions.append)
    assert sessions[0].batches.train_times.images == 0
    assert sessions[0].state.step == 60


@pytest.mark.parametrize("step", [1, 4, 8, 9, 10, 12])
def test_stopped_and_resumed_it_is_the_same(tmp_path: Path, picture_folder: Path, unbroken: RunDir, step: int) -> None:
    run = run_of(tmp_path / "r", picture_folder, recipe())

    assert not go(run, stop_after(step)) and go(run)
    assert differences(unbroken, run) == []


def test_a_stop_while_features_are_computed_is_heeded(tmp_path: Path, picture_folder: Path, unbroken: RunDir) -> None:
    run = run_of(tmp_path / "r", picture_folder, recipe())

    class AtOnce:
        session: Session

        def see(self, event: Event) -> None:
            if isinstance(event, Computing):
                self.session.stop.requested = True

        def close(self) -> None: ...

    watcher = AtOnce()
    arm = lambda session: setattr(watcher, "session", session)  # noqa: E731
    assert not resume(run.root, execution=QUIET, say=lambda text: None, arm=arm, observers=[watcher]).finished
    assert last_checkpoint(run.checkpoints).step == 0
    assert go(run)
    assert differences(unbroken, run) == []


def test_only_stages_that_see_pictures_alike_are_meant(picture_folder: Path) -> None:
    info = load_dataset(str(picture_folder), recipe().data, 0).manifest.info()
    for fields, alike in (
        ({}, True),
        ({"augment": {"crop": "none", "flip": 0.5}}, False),
        ({"augment": {"crop": "pad", "flip": 0}}, False),
        ({"augment": {"crop": "none", "flip": 0, "copies": 1}}, False),
        ({"augment": {"crop": "none", "flip": 0, "rotation": 5}}, False),
        ({"augment": {"crop": "none", "flip": 0, "policy": "randaugment"}}, False),
        ({"mix": {"mixup": 0.2}}, False),
        ({"mix": {"mixup": 0.2, "probability": 0.0}}, True),
    ):
        plan = resolve(recipe(**fields), info)
        assert has_fixed_views(plan.stages[0]) is alike, fields
