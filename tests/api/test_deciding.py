"""Every fact that decides a result: that it is seen where it differs, and named where it is not recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagewright.api.diff import Difference, diff

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def against(small_run: Path, tmp_path: Path) -> Callable[..., Difference]:
    """Compares ``small_run`` with a copy in which ``change`` has changed the content of ``file``."""

    def compare(file: str, change: Change) -> Difference:
        copy = shutil.copytree(small_run, tmp_path / f"copy{len([*tmp_path.iterdir()])}")
        path = copy / file
        if file.endswith(".jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                change(line)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        return diff(small_run, copy)

    return compare


def rows(found: Difference, area: str) -> dict[str, tuple[Any, Any]]:
    return {place.name: (place.one, place.other) for place in getattr(found, area)}


def setting(*keys: Any, to: Any) -> Change:
    """Sets a value within nested ones, to ``to`` or to what it makes of the old one."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to(content[keys[-1]]) if callable(to) else to

    return change


@pytest.mark.parametrize(
    ("file", "keys", "to", "area", "name"),
    [
        ("plan.json", ("recipe", "optimizer", "weight_decay"), 0.7, "recipe", "optimizer.weight_decay"),
        ("plan.json", ("recipe", "eval", "select"), "last", "recipe", "eval.select"),
        ("plan.json", ("total_steps",), 3, "recipe", "(updates)"),
        ("plan.json", ("precision",), "bf16", "computing", "precision"),
        ("plan.json", ("eval_precision",), "other", "computing", "evaluation precision"),  # than this processor's
        ("plan.json", ("stages", 0, "lanes"), 3, "computing", "lanes"),
        ("plan.json", ("stages", 0, "micro_batch_size"), 2, "computing", "micro-batch size"),
        ("plan.json", ("measured", "lr"), 0.125, "computing", "learning rate of lr: auto"),
        ("plan.json", ("measured", "upper"), "last:2", "computing", "layers of train: upper"),
        ("summary.json", ("guard", "micro_batch_size"), 2, "computing", "micro-batch size"),
        ("summary.json", ("unreadable",), 4, "computing", "unreadable pictures"),
        ("summary.json", ("stopped_at",), 50.0, "computing", "finished early, after updates"),
        ("env.json", ("decoder",), "Pillow", "computing", "decoder"),
        ("env.json", ("cpu",), "Z80", "hardware", "cpu"),
        ("env.json", ("cores",), 77, "hardware", "cores"),
        ("env.json", ("platform",), "CP/M", "hardware", "platform"),
        *(
            ("env.json", (name,), "0.0.1", "versions", name)
            for name in ("stagewright", "git_commit", "python", "torch", "torchvision", "timm", "numpy", "pillow")
        ),
        ("env.json", ("functions",), {"my:loss": "ab" * 32}, "versions", "my:loss"),
        ("weights.json", ("origin",), {"kind": "file", "name": "w.pth", "sha256": "ab" * 32}, "weights", "origin"),
        ("weights.json", ("head",), "fresh", "weights", "head"),
        ("weights.json", ("tensors", "loaded"), 5, "weights", "tensors loaded"),
        ("weights.json", ("tensors", "fresh"), 5, "weights", "tensors fresh"),
        ("weights.json", ("fresh",), ["fc.weight"], "weights", "fresh ones"),
        ("weights.json", ("skipped",), [{"name": "fc.bias", "reason": "x"}], "weights", "unused ones"),
        ("weights.json", ("stages", 0, "trains"), "head", "weights", "trained parts"),
        ("weights.json", ("stages", 0, "parameters"), 12, "weights", "trained parameters"),
    ],
)
def test_each_fact_is_seen(
    against: Callable[..., Difference], file: str, keys: tuple[Any, ...], to: Any, area: str, name: str
) -> None:
    found = against(file, setting(*keys, to=to))
    one, other = rows(found, area)[name]
    assert one != other and not found.equal and len(found.areas) == 1 and not found.unknown
    assert found.verdict == f"they differ in {found.areas[0]}" and len(found.same) == 5
    assert json.loads(json.dumps(found.to_dict()))[area][0]["name"] in rows(found, area)


@pytest.mark.parametrize(
    ("device", "name", "area", "row"),
    [
        ("cpu", "CPU, 64 threads", "threads", 64),
        ("cuda:0", "H200", "device", "H200"),
    ],
)
def test_device_and_threads(against: Callable[..., Difference], device: str, name: str, area: str, row: object) -> None:
    def change(line: dict[str, Any]) -> None:
        if line["kind"] == "started":
            line["clock"] |= {"device": device, "device_name": name}

    found = against("events.jsonl", change)
    assert rows(found, "computing")[area][1] == row and found.areas == ("computing",)


def test_threads_of_each_process_whose_work_counts(small_run: Path, tmp_path: Path) -> None:
    def resumed(step: int, threads: int) -> str:
        clock = {"device": "cpu", "device_name": f"CPU, {threads} threads"}
        line = {"kind": "resumed", "step": step, "checkpoint": None, "rejected": [], "clock": clock}
        return json.dumps(line) + "\n"

    copy = shutil.copytree(small_run, tmp_path / "copy")
    events = (copy / "events.jsonl").read_text()
    (copy / "events.jsonl").write_text(events + resumed(4, 7) + resumed(4, 5))
    assert rows(diff(small_run, copy), "computing")["threads"] == (1, "1, then 5"), "the second has done nothing"
    (copy / "events.jsonl").write_text(events + resumed(0, 3))
    assert rows(diff(small_run, copy), "computing")["threads"] == (1, 3)


def test_the_seed_alone(against: Callable[..., Difference]) -> None:
    found = against("plan.json", setting("recipe", "seed", to=7))
    assert found.by_seed_alone and found.verdict == "they differ by the seed alone: 0 and 7" and not found.equal

    def both(plan: dict[str, Any]) -> None:
        plan["recipe"] |= {"seed": 7, "smoothing": 0.3}

    assert not against("plan.json", both).by_seed_alone


def test_names_of_tensors_say_nothing_where_their_numbers_differ(against: Callable[..., Difference]) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["fresh"], weights["tensors"]["fresh"] = ["fc.weight"], 5

    assert rows(against("weights.json", change), "weights").keys() == {"tensors fresh"}


@pytest.mark.parametrize(
    ("keys", "to", "named"),
    [
        (("recipe", "checkpoints"), {"every": "1ep", "keep": 99}, "checkpoints.keep"),
        (("recipe", "data", "names"), {"down": "Down"}, "data.names"),
        (("recipe", "data", "max_pixels"), 10**6, "data.max_pixels"),
        (("recipe", "name"), "another", None),
        (("recipe", "description"), "another", None),
    ],
)
def test_what_decides_nothing_does_not_count(
    against: Callable[..., Difference], keys: tuple[str, ...], to: object, named: str | None
) -> None:
    def change(plan: dict[str, Any]) -> None:
        for key in keys[:-1]:
            plan = plan.setdefault(key, {})
        plan[keys[-1]] = to

    found = against("plan.json", change)
    assert found.equal and found.recipe == () and found.verdict == "equal in all that decides the result"
    assert (named in {place.name for place in found.without_effect}) == (named is not None)


def test_the_path_of_the_same_weights_does_not_count(small_run: Path, tmp_path: Path) -> None:
    runs = []
    for name, sha in (("a", "ab"), ("b", "ab"), ("c", "cd")):
        copy = shutil.copytree(small_run, tmp_path / name)
        for file, keys, to in (
            ("plan.json", ("recipe", "model", "weights"), f"/{name}/w.pth"),
            ("weights.json", ("origin",), {"kind": "file", "name": f"/{name}/w.pth", "sha256": sha * 32}),
        ):
            content = json.loads((copy / file).read_text())
            setting(*keys, to=to)(content)
            (copy / file).write_text(json.dumps(content))
        runs.append(copy)
    found = diff(runs[0], runs[1])
    assert found.equal and [place.name for place in found.without_effect] == ["model.weights"]
    found = diff(runs[0], runs[2])
    assert rows(found, "recipe").keys() == {"model.weights"} and rows(found, "weights").keys() == {"origin"}


@pytest.mark.parametrize("key", ["cpu", "torch", "decoder"])
def test_what_one_run_has_not_recorded_is_not_known(against: Callable[..., Difference], key: str) -> None:
    found = against("env.json", lambda env: env.pop(key))
    assert found.unknown == (key,) and not found.areas and not found.equal and len(found.same) == 5
    assert found.verdict == f"equal in all that both have recorded; not known: {key}"


def test_plans_that_differ_in_nothing_shown_are_not_called_equal(against: Callable[..., Difference]) -> None:
    found = against("plan.json", setting("digest", to="0" * 64))
    assert not found.equal and "digests differ" in found.verdict
