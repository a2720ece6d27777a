"""Costs of several runs: they take turns, medians are written, and no other process may work beside them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagewright.errors import CheckpointError, ModelError, RecipeError, StagewrightError
from stagewright.plan.execution import Execution
from stagewright.preflight import model_costs
from stagewright.preflight.model_costs import measure_costs
from stagewright.rundir.costs import CostsFields, read_costs
from stagewright.rundir.directory import RunDir
from stagewright.storage.lock import is_held, lock

QUIET = Execution(device="cpu", workers=0, pages=False, quiet=True)


@pytest.fixture
def runs(small_run: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(small_run, tmp_path / "runs" / name)) for name in ("a", "b")]


class Figures:
    """Stands for the processes: gives figures in their order, and remembers what it was asked for."""

    def __init__(self, *figures: CostsFields) -> None:
        self.figures, self.asked = list(figures), list[tuple[str, bool, bool]]()

    def __call__(self, run: RunDir, execution: Execution, seconds: float, *, counts: bool, trains: bool) -> CostsFields:
        assert is_held(run.root)
        self.asked.append((run.root.name, counts, trains))
        return self.figures.pop(0)


def figures(speed: float, **changes: Any) -> CostsFields:
    given = {"train_images_per_second": speed, "latency_ms": 1000 / speed, "others_cores": 0.1, "rounds": 1}
    return CostsFields(**{**given, **changes})


def test_runs_take_turns_and_get_medians(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"train_images_per_second": None, "training_problem": "the pictures are gone"}
    asked = Figures(
        figures(100, macs=7, parameters=3), figures(10, **gone), figures(400), figures(20, **gone), figures(200),
        figures(40, others_cores=0.3, train_images_per_second=None),
    )  # fmt: skip
    monkeypatch.setattr(model_costs, "_in_process", asked)
    said: list[str] = []
    a, b = measure_costs(runs, say=said.append)
    assert asked.asked == [
        *[("a", True, True), ("b", True, True)],
        *[("a", False, True), ("b", False, False)] * 2,
    ]
    assert (a.train_images_per_second, a.latency_ms, a.rounds, a.macs, a.parameters) == (200, 5, 3, 7, 3)
    assert (a.is_disturbed, a.others_cores, a.training_problem) == (False, 0.1, None)
    assert (b.train_images_per_second, b.training_problem, b.latency_ms) == (None, "the pictures are gone", 50)
    assert (b.is_disturbed, b.others_cores) == (True, 0.3) and b.measured_at is not None
    assert [read_costs(RunDir(run)) for run in runs] == [a, b]
    assert len(said) == 6 and said[0] == "Round 1 of 3, a: trains 100 images/s, latency 10.00 ms."
    assert said[5].startswith("Round 3 of 3, b: training is not measured, latency 25.00 ms, disturbed: other")
    assert not any(map(is_held, runs))


def test_a_machine_that_does_not_tell_its_load(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_costs, "_in_process", Figures(figures(100, others_cores=None)))
    found = measure_costs([runs[0], runs[0]], rounds=1)
    assert [one.is_disturbed for one in found] == [None, None]


@pytest.mark.long
def test_one_is_measured_in_a_process_of_its_own(runs: list[Path]) -> None:
    before = {path.name for path in runs[0].iterdir()}
    (found,) = measure_costs(runs[:1], rounds=1, seconds=0.2, execution=QUIET)
    assert found.macs is not None and found.train_images_per_second is not None and found.latency_ms is not None
    assert {path.name for path in runs[0].iterdir()} - before <= {".lock", "costs.json"}


@contextlib.contextmanager
def at_work(runs: list[Path], where: str) -> Iterator[None]:
    """A process at the run itself, at one beside it, at the folder of both, or at their study, between two runs."""
    if where == "study":
        (folder := runs[0].parent.parent / "processes").mkdir()
        (folder / "left").touch()
        with (folder / "123-abc").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:
        with lock({"run": runs[0], "beside": runs[1], "folder": runs[0].parent}[where]):
            yield


@pytest.mark.parametrize("where", ["run", "beside", "folder", "study"])
def test_nothing_is_measured_beside_other_work(runs: list[Path], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(model_costs, "_in_process", Figures(figures(1)))
    named = {"run": "/a", "beside": "/b", "folder": "/runs", "study": runs[0].parent.parent.name}[where]
    with at_work(runs, where), pytest.raises(CheckpointError, match=f"{named}: a process works there now"):
        measure_costs(runs[:1], rounds=1)
    assert not (runs[0] / "costs.json").exists()
    measure_costs(runs[:1], rounds=1)  # it has ended


def test_work_that_begins_meanwhile_ends_the_measurement(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_costs, "_in_process", Figures(figures(1), figures(1)))
    with contextlib.ExitStack() as stack, pytest.raises(CheckpointError, match="measured alone"):
        measure_costs(runs[:1], rounds=2, say=lambda text: stack.enter_context(lock(runs[1])) and None)
    assert not (runs[0] / "costs.json").exists() and not is_held(runs[0])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no luck')", "ended with 1: ValueError: no luck"),
        ("import os; os.kill(os.getpid(), 9)", "-9: was"),
    ],
)
def test_a_process_that_ends_without_a_result(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setattr(model_costs, "module_command", lambda module, arguments: [sys.executable, "-c", code])
    with pytest.raises(StagewrightError, match=said):
        measure_costs(runs[:1])


def test_the_error_of_a_process_is_that_of_the_command(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"kind": "ModelError", "error": ["no such network", "others", "take one"]})
    code = f"import sys, pathlib; pathlib.Path(sys.argv[1]).with_name('result.json').write_text({content!r})"
    monkeypatch.setattr(model_costs, "module_command", lambda module, given: [sys.executable, "-c", code, *given])
    with pytest.raises(ModelError, match="no such network\n  allowed: others\n  to do:   take one"):
        measure_costs(runs[:1])
    assert not (runs[0] / "costs.json").exists()


def test_a_process_does_not_outlive_an_interruption() -> None:
    process = subprocess.Popen(["sleep", "60"])
    model_costs._end(process)  # pyright: ignore[reportPrivateUsage]
    assert process.poll() == -15


def test_what_is_given(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_costs, "_in_process", Figures())  # nothing is begun that must fail
    with pytest.raises(CheckpointError, match="not a run directory"):
        measure_costs([runs[0].parent])
    content = json.loads((runs[1] / "plan.json").read_text())
    (runs[1] / "plan.json").write_text(json.dumps({**content, "total_steps": 10**6}))
    with pytest.raises(CheckpointError, match=r"plan\.json states digest"):
        measure_costs(runs)
    runs = runs[:1]
    for rounds, seconds in ((0, 5.0), (101, 5.0), (3, 0.0), (3, float("nan"))):
        with pytest.raises(RecipeError, match="measurement"):
            measure_costs(runs, rounds=rounds, seconds=seconds)
    assert measure_costs([]) == []
