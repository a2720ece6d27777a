"""Runs on any number of ranks: the same bits, also if ranks are lost and other numbers of them go on.

The recipe has all that could depend on the number of ranks (:func:`rank_runs.recipe`).
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_runs import QUIET, RESNET, VIT, Parent, parent_of_ranks, recipe, unequal, write_pictures, write_recipe

NETWORKS = {"resnet": RESNET, "vit": VIT}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_ranks(tmp_path_factory.mktemp("ranks")) as parent:
        yield parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture(scope="module")
def unbroken(parent: Parent, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of one process, from which others differ in nothing."""
    folder = tmp_path_factory.mktemp("unbroken")
    plan = write_recipe(folder / "recipe.yaml", recipe())
    parent.run(["train", pictures, "--recipe", plan, "--out", folder / "run", *QUIET], 1)
    return folder / "run"


def trained_with_bad_image(
    parent: Parent, folder: Path, size: int, fields: dict[str, Any], fault: dict[str, Any] | None = None
) -> Path:
    """A finished run of ``size`` ranks, to which one training picture becomes unreadable right after it was found good."""
    pictures, plan = folder / "stripes", folder / "recipe.yaml"
    if not pictures.exists():
        write_pictures(pictures)
        write_recipe(plan, fields)
    bad = pictures / "train" / "down" / "03.jpg"
    content = bad.read_bytes()
    run = folder / f"run-{size}{'-' + fault['do'] if fault else ''}"
    spoil = {"rank": None, "do": "spoil", "path": str(bad)}
    parent.run(
        ["train", pictures, "--recipe", plan, "--out", run, *QUIET], size, fault=[spoil, *([fault] if fault else [])]
    )
    bad.write_bytes(content)
    return run


@pytest.mark.parametrize(
    ("network", "optimizer", "sizes"),
    [
        ("resnet", "sgd", [1, 2, 3]),
        ("vit", "adamw", [1, 4]),
        pytest.param("resnet", "sgd", [1, 4, 5, 8], marks=pytest.mark.long),
        pytest.param("resnet", "adamw", [1, 2, 3, 4, 5, 8], marks=pytest.mark.long),
        pytest.param("resnet", "lamb", [1, 2, 3, 4, 5, 8], marks=pytest.mark.long),
        pytest.param("vit", "sgd", [1, 2, 3, 4, 5, 8], marks=pytest.mark.long),
        pytest.param("vit", "adamw", [1, 2, 3, 5, 8], marks=pytest.mark.long),
        pytest.param("vit", "lamb", [1, 2, 3, 4, 5, 8], marks=pytest.mark.long),
    ],
)
def test_any_number_of_ranks_gives_the_same_bits(
    parent: Parent, tmp_path: Path, network: str, optimizer: str, sizes: list[int]
) -> None:
    fields = recipe(NETWORKS[network], optimizer)
    first, *others = [trained_with_bad_image(parent, tmp_path, size, fields) for size in sizes]
    assert [unequal(first, other) for other in others] == [[]] * len(others)
    _has_all_that_it_is_about(first)


def _has_all_that_it_is_about(run: Path) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    bad = {event["step"] for event in events if event["kind"] == "bad_image"}
    stages = {event["step"]: event["name"] for event in events if event["kind"] == "stage"}
    assert list(stages.values()) == ["optimum", "head", "features", "frozen", "all", "swa"]
    assert any(4 < step <= 7 for step in bad) and any(step > 10 for step in bad)  # on kept features and on images
    assert sum("are computed once" in event.get("text", "") for event in events) >= 4
    evaluated = [set(event["results"]) for event in events if event["kind"] == "evaluated"]
    assert {"raw", "ema"} in evaluated and {"raw", "swa"} in evaluated
    with (run / "steps.csv").open() as file:
        norms = [float(row["grad_norm"]) for row in csv.DictReader(file)]
    assert max(norms) > 1.0, "nothing was clipped"


def test_another_order_of_additions_is_seen(parent: Parent, tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    fields = recipe(stages=[{"epochs": "3st"}], lr=0.05)
    usual = trained_with_bad_image(parent, tmp_path, 2, fields)
    other = trained_with_bad_image(parent, tmp_path, 2, fields, {"rank": None, "do": "tree"})
    found = unequal(usual, other)
    assert any(line.startswith("state.model") for line in found) and "the final model's weights differ" in found
    assert "steps.csv differs" in found


def killed(parent: Parent, run: Path, size: int, rank: int, phase: str, step: int) -> None:
    """Resumes ``run`` on ``size`` ranks, of which one is killed."""
    fault = {"rank": rank, "do": "SIGKILL", "phase": phase, "step": step}
    ranks = parent.start(["resume", run, *QUIET], size, fault=[fault])
    codes = ranks.wait(60)
    assert codes == [-9 if one == rank else 69 for one in range(size)], (codes, ranks._errors())


def begun(parent: Parent, unbroken: Path, pictures: Path, folder: Path, size: int, rank: int, step: int) -> Path:
    """The directory of a run whose ``rank`` of ``size`` was killed in a training step."""
    fault = {"rank": rank, "do": "SIGKILL", "phase": "training", "step": step}
    arguments = ["train", pictures, "--recipe", unbroken.parent / "recipe.yaml", "--out", folder / "run", *QUIET]
    codes = parent.start(arguments, size, fault=[fault]).wait(60)
    assert codes == [-9 if one == rank else 69 for one in range(size)]
    return folder / "run"


def test_ranks_that_are_killed_where_it_matters(parent: Parent, unbroken: Path, pictures: Path, tmp_path: Path) -> None:
    """At a seam, in an evaluation, while features are computed and while rank 0 saves; each time other ranks go on."""
    run = begun(parent, unbroken, pictures, tmp_path, 3, rank=1, step=4)
    killed(parent, run, 2, rank=1, phase="features", step=4)
    killed(parent, run, 4, rank=0, phase="evaluation", step=7)
    killed(parent, run, 2, rank=0, phase="saving", step=13)
    parent.run(["resume", run, *QUIET], 3)
    assert unequal(unbroken, run) == []


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_ranks_that_are_killed_at_random(
    parent: Parent, unbroken: Path, pictures: Path, tmp_path: Path, kills: int
) -> None:
    """A run that ends before it was killed often enough is compared, and another one begun."""
    draw, done, at = random.Random(kills), 0, 0
    while done < kills:
        at += 1
        run, finished = tmp_path / f"run-{at}", False
        arguments = ["train", pictures, "--recipe", unbroken.parent / "recipe.yaml", "--out", run, *QUIET]
        while not finished:
            size = draw.choice([2, 3, 4]) if done < kills else draw.choice([1, 2, 3, 4])
            ranks = parent.start(arguments, size)
            if done < kills:
                _await(run / "checkpoints")
                time.sleep(draw.uniform(0.3, 2.5))
                with suppress(ProcessLookupError):  # it has ended
                    ranks.kill(draw.randrange(size), 9)
            codes = ranks.wait(120)
            finished = codes[0] == 0
            if not finished:
                # A rank that is killed before all are connected is for the others one that did not come.
                assert set(codes) <= {-9, 69, 0, 2} and codes.count(-9) == 1, (codes, ranks._errors())
                done += 1
            arguments = ["resume", run, *QUIET]
        assert unequal(unbroken, run) == []


def _await(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)


@pytest.mark.parametrize("count", [1, 7, 50])
def test_each_image_counts_once(parent: Parent, tmp_path: Path, count: int) -> None:
    """With fewer images than ranks, fewer than a batch, and several batches: the numbers of one rank."""
    pictures = write_pictures(tmp_path / "stripes", val=17, test=0)
    spare = sorted((pictures / "val").glob("*/*.jpg"))[count:]
    for path in spare:
        path.unlink()
    fields = recipe(stages=[{"epochs": "2st", "batch_size": 8}], spread=4, lr=0.05)
    plan = write_recipe(tmp_path / "recipe.yaml", fields)
    runs = [tmp_path / "run-1", tmp_path / "run-4"]
    for run, size in zip(runs, (1, 4), strict=True):
        parent.run(["train", pictures, "--recipe", plan, "--out", run, *QUIET], size)
    assert unequal(*runs) == []
    with (runs[1] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows and all(np.isfinite(float(row["val_loss"])) for row in rows)
    shutil.rmtree(pictures)
