"""What a step is said to feed the network is what the training loop feeds it: bit for bit, mixed, sampled, copied or resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import begin, stop_after
from torch import Tensor, nn

from stagewright.api.train import resume
from stagewright.data.dataset import load_dataset
from stagewright.data.images.decode import FileImages
from stagewright.data.manifest import Manifest
from stagewright.engine.fed import evaluation_views, fed_at, levels
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
STRONG = {"crop": "random_resized", "flip": 0.5, "policy": "randaugment", "hue": 0.1, "erasing": 0.5, "rotation": 10}
MIXED = {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8}


def recipe(**fields: Any) -> Any:
    plain = {
        "model": {"name": "cifar_resnet18", "options": {"width": 4}},
        "batch_size": 10,
        "micro_batch_size": 4,
        "decode": "exact",
        "lr": 0.01,
        "stages": [
            {"name": "strong", "epochs": "6st", "image_size": 16, "augment": STRONG, "mix": MIXED},
            {"name": "plain", "epochs": "3st", "image_size": 24, "augment": {"crop": "pad", "flip": 0.5}},
        ],
        "eval": {"every": "9st"},
        "data": {"val": 0.2, "test": 0.1},
    }
    return recipes.from_dict({**plain, **fields})


class Watch:
    """Arms a session so that it keeps what the network is given in each update, with the labels that the loss is given."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.inputs: dict[int, Tensor] = {}
        self.rows: dict[int, np.ndarray] = {}

    def __call__(self, session: Session) -> AfterUpdate:
        parts: list[Tensor] = []

        def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                parts.append(given[0].detach().clone())

        session.state.model.register_forward_pre_hook(keep)
        stopping = stop_after(self.stop)(session) if self.stop else lambda stage, batch: None

        def after(stage: Any, batch: Any) -> None:
            self.inputs[batch.step], self.rows[batch.step] = torch.cat(parts), batch.rows
            parts.clear()
            stopping(stage, batch)

        return after


def trained(run: RunDir, *stops: int | None) -> Watch:
    """What ``run`` is given by processes that stop after ``stops`` updates; None: at its end."""
    seen = Watch()
    for stop in stops:
        watch = Watch(stop)
        assert resume(run.root, execution=QUIET, say=lambda text: None, arm=watch).finished == (stop is None)
        seen.inputs |= watch.inputs
        seen.rows |= watch.rows
    return seen


def opened(run: RunDir) -> tuple[Plan, Manifest, FileImages]:
    manifest = Manifest.read(run.manifest)
    return run.read_plan(), manifest, FileImages(manifest.root, manifest.paths)


@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({}, (4, None)),  # resumed within the first stage
        ({"channels_last": False, "sampling": "balanced", "decode": "fast", "seed": 7}, (None,)),
        ({"mean": [0.4, 0.5, 0.6], "stages": [{"epochs": "4st", "augment": STRONG | {"copies": 2}}]}, (None,)),
    ],
    ids=["mixed", "sampled", "copies"],
)
def test_each_step_is_fed_these_bits(tmp_path: Path, picture_folder: Path, fields: Any, stops: Any) -> None:
    run = begin(tmp_path / "run", picture_folder, recipe(**fields))
    seen = trained(run, *stops)
    plan, manifest, images = opened(run)
    assert sorted(seen.inputs) == list(range(plan.total_steps))
    kinds = set()
    for step, given in seen.inputs.items():
        fed = fed_at(plan, manifest, images, step)
        kinds.add(fed.draw.kind)
        assert torch.equal(fed.mixed.images, given), f"step {step}"
        assert fed.rows.tolist() == seen.rows[step].tolist()
        assert fed.mixed.labels_a.tolist() == manifest.labels[fed.rows].tolist()
        assert fed.mixed.labels_b.tolist() == manifest.labels[fed.partners].tolist()
    assert fields or kinds == {"none", "mixup", "cutmix"}


def test_the_first_images_are_those_of_the_whole_batch(tmp_path: Path, picture_folder: Path) -> None:
    copied = recipe(stages=[{"epochs": "6st", "image_size": 16, "augment": STRONG | {"copies": 1}, "mix": MIXED}])
    run = begin(tmp_path / "run", picture_folder, copied)
    plan, manifest, images = opened(run)
    for step in range(plan.total_steps):
        whole, some = (fed_at(plan, manifest, images, step, first=count) for count in (None, 3))
        assert len(whole.rows) == 10 and len(some.rows) == 3
        assert torch.equal(some.mixed.images, whole.mixed.images[:3])
        assert torch.equal(some.mixed.labels_b, whole.mixed.labels_b[:3]) and some.mixed.lam == whole.mixed.lam
        assert some.partners.tolist() == whole.partners[:3].tolist()


def test_a_picture_that_cannot_be_read_has_no_weight(tmp_path: Path, picture_folder: Path) -> None:
    run = begin(tmp_path / "run", picture_folder, recipe())
    plan, manifest, images = opened(run)
    images.root = f"{images.root}/gone"
    fed = fed_at(plan, manifest, images, 7)
    assert not fed.mixed.weight.any()
    assert levels(fed.mixed.images, fed.numerics).max() == 0


def test_a_stage_that_finds_an_optimum_shows_its_views(tmp_path: Path, picture_folder: Path) -> None:
    head = {"name": "head", "train": "head", "fit": "optimum", "augment": {"crop": "none", "flip": 0.0}}
    fields = {"model": {"name": "torchvision:mobilenet_v2"}, "image_size": 32, "micro_batch_size": 16}
    run = begin(tmp_path / "run", picture_folder, recipe(**fields, stages=[head, {"epochs": "2st", "norm": "frozen"}]))
    plan, manifest, images = opened(run)
    fed = fed_at(plan, manifest, images, 0)
    rows = manifest.rows("train")
    assert fed.rows.tolist() == rows[np.linspace(0, 41, 10).astype(int)].tolist() and fed.draw.kind == "none"
    views = evaluation_views(plan, manifest, images, fed.stage, fed.rows)
    assert np.array_equal(levels(fed.mixed.images, fed.numerics), views)


def test_levels_are_the_pixels_before_normalisation(picture_folder: Path) -> None:
    dataset = load_dataset(str(picture_folder), recipe().data)
    plan = resolve(recipe(augment={"crop": "none", "flip": 0.0}, stages=[{"epochs": "2st"}]), dataset.manifest.info())
    fed = fed_at(plan, dataset.manifest, dataset.images, 1)
    views = evaluation_views(plan, dataset.manifest, dataset.images, fed.stage, fed.rows)
    assert np.array_equal(levels(fed.mixed.images, fed.numerics), views)
    with pytest.raises(ValueError, match="2"):
        fed_at(plan, dataset.manifest, dataset.images, 2)
