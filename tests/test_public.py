"""What ``import stagewright`` offers: every name, its types, and what the newer ones do."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

import stagewright as sw
from stagewright.errors import CheckpointError, DataError, RecipeError
from stagewright.rundir.event_kinds import Evaluated, Finished, Started

QUIET = sw.Execution(device="cpu", workers=0, pages=False, quiet=True)
SMALL = [
    *("model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=2ep", "data.val=0.2", "data.test=0.2"),
]
NAMES = {
    *(
        "Budget",
        "Bundle",
        "Event",
        "Execution",
        "Folds",
        "Observer",
        "Plan",
        "Recipe",
        "Run",
        "Stage",
        "StagewrightError",
    ),
    *(
        "compare",
        "evaluate",
        "finish",
        "folds",
        "inspect",
        "load_bundle",
        "load_published",
        "lr_find",
        "make_plan",
        "open_test",
        "preview",
        "resume",
    ),
    *("runs", "split", "train"),
}


def signatures(name: str, value: Any, home: str = "stagewright.") -> Iterator[tuple[str, Any]]:
    """(place, type) of what a person meets at a public name: parameters, results, and the public members of a class."""
    if not inspect.isclass(value):
        yield from ((f"{name}({one})", kind) for one, kind in typing.get_type_hints(value).items())
        return
    for base in value.__mro__:
        if not base.__module__.startswith(home) or issubclass(base, BaseException):
            continue
        yield from (
            (f"{name}.{one}", kind) for one, kind in typing.get_type_hints(base).items() if not one.startswith("_")
        )
        for one, member in vars(base).items():
            if one.startswith("_") and one != "__init__":
                continue
            function = member.func if isinstance(member, cached_property) else member
            function = function.fget if isinstance(function, property) else function
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function):
                yield from signatures(f"{name}.{one}", function)


def has_any(kind: Any) -> bool:
    """Whether Any is within ``kind``."""
    return kind is Any or any(has_any(one) for one in typing.get_args(kind) if not isinstance(one, str))


def test_the_names_are_these() -> None:
    assert set(dir(sw)) == NAMES
    assert all(getattr(sw, name) is not None for name in NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'plan_it'"):
        sw.plan_it  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_public_signature_says_any(name: str) -> None:
    inherited = {"model_config", "model_fields", "model_computed_fields", "model_extra", "model_fields_set"}
    found = [
        (place, kind) for place, kind in signatures(name, getattr(sw, name)) if place.split(".")[-1] not in inherited
    ]
    assert [place for place, kind in found if has_any(kind)] == []
    assert found or name == "StagewrightError"
    if name in NAMES and name[0].islower():
        parameters = inspect.signature(getattr(sw, name)).parameters
        assert len(found) == len(parameters) + 1, "a parameter or the result has no type"


def test_any_would_be_seen() -> None:
    class Part(BaseModel):
        given: dict[str, Any] = {}

    def function(one: list[Any], two: int) -> None: ...

    assert [place for place, kind in signatures("f", function) if has_any(kind)] == ["f(one)"]
    assert [place for place, kind in signatures("Part", Part, home=__name__) if has_any(kind)] == ["Part.given"]


def test_type_checkers_and_python_find_the_same_names() -> None:
    """Names under TYPE_CHECKING are those that are handed out, from the same modules."""
    source = Path(str(sw.__file__)).read_text()
    declared = {
        line.split(" as ")[-1]: line.split()[1].removeprefix("stagewright.")
        for line in source.splitlines()
        if line.startswith("    from stagewright.")
    }
    assert declared == sw._HOMES


def test_names_need_no_torch_before_they_are_used() -> None:
    code = (
        "import sys, stagewright\nstagewright.Event, stagewright.Observer, stagewright.Budget, stagewright.Execution\n"
        "stagewright.runs\n"
    )
    done = subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], capture_output=True)
    assert done.returncode == 0, done.stderr


class Watcher:
    def __init__(self) -> None:
        self.events: list[sw.Event] = []

    def see(self, event: sw.Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> tuple[sw.Run, list[sw.Event]]:
    watcher: sw.Observer = Watcher()
    out = tmp_path_factory.mktemp("public") / "run"
    run = sw.train(picture_folder, "quick", overrides=SMALL, out=out, execution=QUIET, observers=[watcher], say=_silent)
    assert isinstance(watcher, Watcher)
    return run, watcher.events


def _silent(text: str) -> None: ...


def test_an_observer_is_told_of_events(watched: tuple[sw.Run, list[sw.Event]]) -> None:
    run, events = watched
    assert run.finished
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert (
        len(evaluations) >= 2
        and max(one.results["raw"].top1 for one in evaluations) == run.summary["candidates"]["raw"]
    )


def test_a_plan_is_made_without_a_run(
    watched: tuple[sw.Run, list[sw.Event]], picture_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    plan = sw.make_plan(picture_folder, "quick", overrides=SMALL, execution=QUIET, say=said.append)
    assert plan.digest == watched[0].summary["plan_digest"] and said
    assert list(tmp_path.iterdir()) == []
    assert (
        sw.make_plan(picture_folder, "quick", overrides=SMALL, execution=QUIET, tiny=True, say=_silent).total_steps < 20
    )
    with pytest.raises(RecipeError, match="quikc"):
        sw.make_plan(picture_folder, "quikc", execution=QUIET, say=_silent)


def test_a_run_a_folder_and_a_bundle_are_evaluated_alike(
    watched: tuple[sw.Run, list[sw.Event]], picture_folder: Path, tmp_path: Path
) -> None:
    run, _ = watched
    report = sw.evaluate(run, device="cpu", workers=0)
    assert report.top1 == pytest.approx(run.summary["top1"]["test"])
    low, high = report.top1_interval
    assert low <= report.top1 <= high
    assert sum(one.images for one in report.by_class()) == report.result.images == len(report.labels)
    everything = [
        cast(dict[str, Any], sw.evaluate(model, picture_folder, device="cpu", workers=0).to_dict())
        for model in (run, run.path, str(run.path / "model"), sw.load_bundle(run.path))
    ]
    assert all(one == everything[0] for one in everything) and everything[0]["all"]["images"] == 60
    with pytest.raises(CheckpointError, match="is not a run directory"):
        sw.evaluate(run.path / "model")
    with pytest.raises(DataError, match="--split trial"):
        sw.evaluate(run, split="trial")


def test_a_budget_is_made_of_a_text() -> None:
    assert sw.Budget.parse("90s").seconds == 90 and sw.Budget.parse("$5", price=2.5).seconds == 7200
    with pytest.raises(RecipeError, match="--budget 'soon'"):
        sw.Budget.parse("soon")
