"""Runs on Parquet files in an object store: the bits of a run on the unpacked images, for any number of processes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_server import ObjectServer
from parquet_files import parquet_ranges, write_parquet
from rank_runs import QUIET, Parent, parent_of_ranks, store_environment, unequal, write_recipe
from remote_packs import make_folder
from uploaded import upload_folder

from stagewright.api.prepare import prepare
from stagewright.data.dataset import load_dataset
from stagewright.errors import DataError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.recipe.request import as_request

COUNT = 180
CLASSES = ("class-00", "class-01", "class-02")
FIELDS: dict[str, Any] = {
    "order": "blocked",
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 16,
    "batch_size": 24,
    "spread": 3,
    "lr": {"schedule": "cosine", "peak": 0.05},
    "augment": {"crop": "random_resized", "scale": [0.4, 1.0], "flip": 0.5},
    "eval": {"every": "1ep"},
    "epochs": "2ep",
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_ranks(tmp_path_factory.mktemp("ranks")) as parent:
        yield parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """140 pictures for training in 28 row groups, and 40 for validation."""
    root = tmp_path_factory.mktemp("rows")
    files = sorted(make_folder(root / "pictures", COUNT).glob("*/*"))
    files = [files[at] for at in np.random.default_rng(0).permutation(COUNT)]
    for number in range(2):
        write_parquet(files[number:140:2], root / "data" / f"train-0000{number}-of-00002.parquet", CLASSES, rows=5)
    write_parquet(files[140:], root / "data" / "validation-00000-of-00001.parquet", CLASSES, rows=5)
    return root / "data"


@pytest.fixture
def url(folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return upload_folder(folder, f"{bucket}/data")


def train(parent: Parent, source: str | Path, recipe: Path, run: Path, size: int = 1) -> Path:
    parent.run(["train", source, "--recipe", recipe, "--out", run, *QUIET], size, environments=store_environment())
    return run


def test_the_same_bits_as_on_the_unpacked_images(url: str, folder: Path, parent: Parent, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", {**FIELDS, "order": "full"})
    here = train(parent, folder, recipe, tmp_path / "here")
    there = train(parent, url, recipe, tmp_path / "there")
    assert unequal(here, there) == []
    assert json.loads((here / "plan.json").read_text()) == json.loads((there / "plan.json").read_text())


def test_any_number_of_processes_gives_the_same_bits_and_reads_each_row_group_once(
    url: str, parent: Parent, tmp_path: Path, object_server: ObjectServer
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", FIELDS)
    load_dataset(url, Data())  # makes the index
    runs = list[Path]()
    for size in (1, 2, 3):
        shutil.rmtree(tmp_path / "cache" / "blocks", ignore_errors=True)
        object_server.requests(clear=True)
        runs.append(train(parent, url, recipe, tmp_path / f"run-{size}", size))
        asked = parquet_ranges(object_server)
        assert len(asked) == 36 and set(asked.values()) == {1}
    object_server.requests(clear=True)
    runs.append(train(parent, url, recipe, tmp_path / "warm"))
    assert not parquet_ranges(object_server)
    for run in runs[1:]:
        assert unequal(runs[0], run) == []
    told = json.loads((runs[0] / "env.json").read_text())["data_notes"]
    order = r"order: blocked, \d+ blocks, shuffled within windows of 1 in each of 3 lanes; mixing \d+%: "
    assert any(re.match(order, one) for one in told)
    assert any("36 GETs ($0.00 at $0.0004 for 1,000), each block once, as all fit" in one for one in told)


def test_killed_and_resumed_without_the_index(url: str, parent: Parent, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", {**FIELDS, "checkpoints": {"every": "1st"}})
    whole, broken = train(parent, url, recipe, tmp_path / "whole"), tmp_path / "broken"
    fault = {"rank": 0, "do": "SIGKILL", "phase": "training", "step": 5}
    ranks = parent.start(
        ["train", url, "--recipe", recipe, "--out", broken, *QUIET], 1, fault=[fault], environments=store_environment()
    )
    assert ranks.wait(120) == [-9], ranks._errors()
    shutil.rmtree(tmp_path / "cache")
    parent.run(["resume", broken, *QUIET], 2, environments=store_environment())
    assert unequal(whole, broken) == []
    assert not list((tmp_path / "cache").glob("parquet/*.parquet")), "the manifest has what the index had"


def prepared(source: str | Path, *, cache_gb: float | None = None, **fields: Any) -> list[str]:
    """What is said when a run is prepared."""
    said: list[str] = []
    execution = Execution(device="cpu", quiet=True, cache_gb=cache_gb)
    prepare(source, as_request(recipes.from_dict({**FIELDS, **fields})), execution, said.append)
    return said


def test_what_is_refused(url: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(folder)
    assert "Parquet files in an object store" in caught.value.allowed
    with pytest.raises(RecipeError) as small:
        prepared(url, cache_gb=0.0001)
    assert "two windows of blocks" in small.value.allowed
    with pytest.raises(RecipeError) as full:
        prepared(url, cache_gb=0.0006, order="full")
    assert "order: full reads them at random" in full.value.allowed
    assert any("at most, as not all fit" in one for one in prepared(url, cache_gb=0.0008))


def test_row_groups_of_one_class_each_are_refused_unless_asked_for(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    files = sorted(make_folder(tmp_path / "pictures", 400, classes=40).glob("*/*"))
    classes = sorted({file.parent.name for file in files})
    write_parquet(files, tmp_path / "sorted" / "all.parquet", classes, rows=5)
    url = upload_folder(tmp_path / "sorted", f"{bucket}/sorted")
    with pytest.raises(DataError) as caught:
        prepared(url, spread=1)
    assert "of the classes that it has with full" in caught.value.given
    said = prepared(url, spread=1, data={"min_mixing": 0.1})
    assert any(one.startswith("warning: mixing below 80%") for one in said)
