"""weights.json: what is written is read again, what it says in words, and that damaged or missing ones are no error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.rundir.directory import RunDir
from stagewright.rundir.initial_weights import read_weights, weights_sentence

PLAN = "0123456789abcdef" * 4


def stage(trains: str, steps: int, fit: str = "updates") -> dict[str, Any]:
    return {"name": trains, "train": trains, "trains": trains, "parameters": 10, "steps": steps, "fit": fit}


def content(**changes: Any) -> dict[str, Any]:
    return {
        "origin": {
            "kind": "library",
            "library": "torchvision",
            "name": "swin_t.IMAGENET1K_V1",
            "trained_on": "ImageNet",
        },
        "tensors": {"loaded": 171, "resampled": 0, "fresh": 2, "fresh_in_head": 2, "skipped": 2},
        "head": "fresh",
        "head_rows": 0,
        "resampled": [],
        "fresh": ["head.weight", "head.bias"],
        "skipped": [{"name": "head.weight", "reason": "1000 classes"}],
        "parameters": {"loaded": 90, "all": 100},
        "stages": [stage("head", 60), stage("all", 120)],
        **changes,
    }


def read(folder: Path, found: object, problems: list[str] | None = None) -> Any:
    (folder / "weights.json").write_text(json.dumps(found))
    return read_weights(RunDir(folder), None if problems is None else problems.append)


RUN = {"folder": "/a/finetune-1", "plan_digest": PLAN, "step": 1200, "weights": "ema"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "ImageNet weights swin_t.IMAGENET1K_V1; head fresh; head 60 steps, then all 120"),
        ({"origin": {"kind": "random"}, "head": "none"}, "random weights; head 60 steps, then all 120"),
        (
            {"origin": {"kind": "function", "name": "python:own:net"}, "head": "none", "stages": [stage("all", 1)]},
            "weights as python:own:net makes them; all 1 step",
        ),
        (
            {"origin": {"kind": "library", "library": "timm", "name": "vit.dino"}, "stages": [stage("all", 5000)]},
            "weights timm:vit.dino; head fresh; all 5,000 steps",
        ),
        (
            {"origin": {"kind": "file", "name": "~/w/net.pth", "sha256": PLAN}, "head": "loaded"},
            "weights of the file net.pth (SHA-256 0123456789ab); head loaded; head 60 steps, then all 120",
        ),
        (
            {"origin": {"kind": "run", "name": "runs/a", "run": RUN}, "head": "rows", "head_rows": 2},
            "ema weights of the run finetune-1 at step 1,200 (plan 0123456789ab); head loaded for 2 classes; head 60 steps, then "
            "all 120",
        ),
        (
            {"tensors": {"loaded": 1, "resampled": 0, "fresh": 5, "fresh_in_head": 2, "skipped": 0}},
            "ImageNet weights swin_t.IMAGENET1K_V1; head fresh; 3 other tensors fresh; head 60 steps, then all 120",
        ),
        (
            {"stages": [stage("head", 1, "optimum"), stage("head and last 3 blocks", 9), stage("all", 20), stage("all", 3)]},
            "ImageNet weights swin_t.IMAGENET1K_V1; head fresh; head to its optimum, then head and last 3 blocks 9 steps, then "
            "all 23",
        ),
    ],
)  # fmt: skip
def test_the_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = read(tmp_path, content(**changes))
    assert found is not None and weights_sentence(found) == said


def test_runs_of_older_versions_have_none(tmp_path: Path) -> None:
    assert read_weights(RunDir(tmp_path)) is None


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"origin": {"kind": "stolen"}}, "origin.kind is 'stolen'"),
        ({"tensors": {"loaded": -1}}, "tensors"),
        ({"head": 5}, "head is 5"),
        ({"stages": None}, "stages is None"),
        ({"parameters": {"loaded": 1.5, "all": 2}}, "parameters.loaded is 1.5"),
    ],
)
def test_a_damaged_one_is_said_and_left_out(tmp_path: Path, changes: dict[str, Any], wrong: str) -> None:
    problems: list[str] = []
    assert read(tmp_path, content(**changes), problems) is None
    assert len(problems) == 1 and problems[0].startswith("weights.json cannot be read") and wrong in problems[0]
    del (short := content())["head"]
    assert read(tmp_path, short, problems) is None and "head is missing" in problems[1]
    assert read(tmp_path, short) is None
