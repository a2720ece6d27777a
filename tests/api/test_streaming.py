"""Runs on a pack in an object store: the bits of a run on the same pack on the disk, whatever happens on the way."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_server import ObjectServer
from rank_runs import QUIET, Parent, parent_of_ranks, store_environment, unequal, write_recipe
from remote_packs import SIDE, SmallPack, make_folder, make_pack, upload

from stagewright.api.prepare import prepare
from stagewright.data.pack.build import pack
from stagewright.errors import DataError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.recipe.request import as_request

COUNT = 180
FIELDS: dict[str, Any] = {
    "order": "blocked",
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 16,
    "batch_size": 24,
    "spread": 3,
    "lr": {"schedule": "cosine", "peak": 0.05},
    "augment": {"crop": "random_resized", "scale": [0.4, 1.0], "flip": 0.5},
    "eval": {"every": "1ep"},
    "checkpoints": {"every": "1st"},
    "epochs": "2ep",
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_ranks(tmp_path_factory.mktemp("ranks")) as parent:
        yield parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(tmp_path_factory.mktemp("small"), COUNT)


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    return write_recipe(folder.parent / "recipe.yaml", FIELDS)


@pytest.fixture(scope="module")
def unbroken(folder: Path, recipe: Path, parent: Parent) -> Path:
    """A finished run on the pack on the disk."""
    run = folder.parent / "unbroken"
    parent.run(["train", folder, "--recipe", recipe, "--out", run, *QUIET], 1)
    return run


@pytest.fixture
def small(folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPack:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return upload(folder, bucket)


def ranges(server: ObjectServer) -> Counter[str]:
    """How often each range of a part was asked for."""
    asked = [one for one in server.requests() if one["method"] == "GET" and ".arrow" in one["path"]]
    return Counter(f"{one['path']} {one['range']}" for one in asked)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_bits_and_reads_each_block_once(
    size: int,
    small: SmallPack,
    recipe: Path,
    unbroken: Path,
    parent: Parent,
    tmp_path: Path,
    object_server: ObjectServer,
) -> None:
    object_server.requests(clear=True)
    run = tmp_path / "run"
    parent.run(["train", small.url, "--recipe", recipe, "--out", run, *QUIET], size, environments=store_environment())
    assert unequal(unbroken, run) == []
    asked = ranges(object_server)
    assert len(asked) > 15 and set(asked.values()) == {1}
    told = json.loads((run / "env.json").read_text())["data_notes"]
    order = r"order: blocked, \d+ blocks, shuffled within windows of 1 in each of 3 lanes; mixing \d+%: "
    assert any(re.match(order, one) for one in told)
    assert any("GETs ($0.00 at $0.0004 for 1,000), each block once, as all fit" in one for one in told)


def _killed_at(
    step: int, small: SmallPack, recipe: Path, parent: Parent, run: Path, object_server: ObjectServer
) -> None:
    fault = {"rank": 0, "do": "SIGKILL", "phase": "training", "step": step}
    ranks = parent.start(
        ["train", small.url, "--recipe", recipe, "--out", run, *QUIET],
        1,
        fault=[fault],
        environments=store_environment(),
    )
    assert ranks.wait(120) == [-9], ranks._errors()
    parent.run(["resume", run, *QUIET], 1 + step % 3, environments=store_environment())


@pytest.mark.parametrize("step", [0, 4, 7])
def test_killed_and_resumed_by_another_number_of_processes(
    step: int,
    small: SmallPack,
    recipe: Path,
    unbroken: Path,
    parent: Parent,
    tmp_path: Path,
    object_server: ObjectServer,
) -> None:
    _killed_at(step, small, recipe, parent, tmp_path / "run", object_server)
    assert unequal(unbroken, tmp_path / "run") == []


@pytest.mark.long
def test_killed_at_every_step(
    small: SmallPack, recipe: Path, unbroken: Path, parent: Parent, tmp_path: Path, object_server: ObjectServer
) -> None:
    total = json.loads((unbroken / "plan.json").read_text())["total_steps"]
    for step in range(total):
        run = tmp_path / f"run-{step}"
        _killed_at(step, small, recipe, parent, run, object_server)
        assert unequal(unbroken, run) == [], f"killed before update {step}"


def test_a_store_that_stays_away_ends_the_run_which_goes_on_later(
    small: SmallPack, recipe: Path, unbroken: Path, parent: Parent, tmp_path: Path, object_server: ObjectServer
) -> None:
    run = tmp_path / "run"
    arguments = ["train", small.url, "--recipe", recipe, "--out", run, *QUIET]
    number = object_server.add_fault("slow", path="part-", skip=9)
    short = store_environment(STAGEWRIGHT_STORE_PATIENCE="0")
    ranks = parent.start(arguments, 1, environments=short)
    assert ranks.wait(120) == [2], ranks._errors()
    assert "cannot be read; the first is" in ranks.said(0) and "slow down or is busy" in ranks.said(0)
    object_server.lift(number)
    saved = json.loads((run / "checkpoints" / "last.json").read_text())
    assert saved["step"] >= 0
    parent.run(["resume", run, *QUIET], 1, environments=store_environment())
    assert unequal(unbroken, run) == []


def prepared(source: str | Path, *, cache_gb: float | None = None, **fields: Any) -> list[str]:
    """What is said when a run is prepared."""
    said: list[str] = []
    execution = Execution(device="cpu", quiet=True, cache_gb=cache_gb)
    prepare(source, as_request(recipes.from_dict({**FIELDS, **fields})), execution, said.append)
    return said


def test_a_cache_that_is_too_small_is_refused_with_numbers(small: SmallPack) -> None:
    with pytest.raises(RecipeError) as caught:
        prepared(small.url, cache_gb=0.0005)
    assert "a cache of 0.0005 GB" in caught.value.given and "two windows of blocks" in caught.value.allowed
    assert "--cache-gb 0.000" in caught.value.remedy
    with pytest.raises(RecipeError) as caught:
        prepared(small.url, cache_gb=0.0006, order="full")
    assert "order: full reads them at random" in caught.value.allowed and "--set order=blocked" in caught.value.remedy
    assert any("at most, as not all fit" in one for one in prepared(small.url, cache_gb=0.001))
    with pytest.raises(RecipeError, match="--cache-gb -1"):
        Execution(cache_gb=-1.0)


def test_blocked_needs_a_pack(picture_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(picture_folder)
    assert "whose pictures do not lie in blocks" in caught.value.given and "data pack" in caught.value.remedy


def test_batches_of_few_classes_are_refused_unless_asked_for(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "pictures", 400, classes=40)
    for order in ("listed", "mixed"):
        pack(str(source), tmp_path / f"{order}.pack", Data(), size=SIDE, encoding="raw", order=order)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "listed.pack", spread=1)
    assert "of the classes that it has with full" in caught.value.given and "data.min_mixing=0." in caught.value.remedy
    said = prepared(tmp_path / "listed.pack", spread=1, data={"min_mixing": 0.1})
    assert any(one.startswith("warning: mixing below 80%") for one in said)
    assert not any("warning" in one for one in prepared(tmp_path / "mixed.pack", spread=1))


def test_a_run_is_evaluated_on_a_pack_in_a_store(
    small: SmallPack, unbroken: Path, parent: Parent, tmp_path: Path
) -> None:
    asked = ["evaluate", unbroken, "--json", "--device", "cpu"]
    found = []
    for data in (small.folder, small.url):
        ranks = parent.run([*asked[:2], data, *asked[2:]], 1, environments=store_environment())
        found.append(json.loads((ranks.folder / "0.out").read_text()))
    assert found[0]["measures"] == found[1]["measures"] and found[0]["classes"] == found[1]["classes"]
    assert found[1]["unreadable"] == 0 and found[1]["source"] != found[0]["source"]
    ranks = parent.run(["predict", unbroken, small.url], 1, code=2, environments=store_environment())
    assert "is in an object store" in ranks.said(0) and "stagewright evaluate RUN" in ranks.said(0)
