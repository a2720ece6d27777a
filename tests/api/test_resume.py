"""The main promise: a run that is stopped anywhere and resumed equals the uninterrupted run, bit for bit."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stopping import last_checkpoint, stop_after

from stagewright.api.resume_check import Kill, differences, run_in_process, start_process
from stagewright.api.train import resume
from stagewright.data.batches.loader import load_batches
from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.tiny import tiny
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.rundir.event_kinds import Evaluating, Event
from stagewright.rundir.step_table import read_rows
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=2, pages=False, quiet=True, save_minutes=1e9)


def three_stages() -> Recipe:
    """16/24/32 px, other batch sizes, head first, mixing then none, EMA, SWA last; RandAugment and augmented
    copies; dropout, drop-path and clipping."""
    return recipes.from_dict(
        {
            "name": "three",
            "seed": 5,
            "model": {"name": "cifar_resnet18", "options": {"width": 4}, "drop_path": 0.2},
            "optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "clip_norm": 1.0},
            "lr": {"schedule": "one_cycle", "peak": 0.1, "momentum": [0.85, 0.95]},
            "augment": {"crop": "random_resized", "scale": [0.4, 1.0]},
            "eval": {"every": "3st"},
            "checkpoints": {"every": "4st", "keep": 2},
            "data": {"val": 0.2, "test": 0.2},
            "stages": [
                {
                    **{"name": "small", "epochs": "5st", "image_size": 16, "batch_size": 12, "data_fraction": 0.5},
                    **{"train": "head", "mix": {"mixup": 0.4, "cutmix": 1.0}},
                },
                {
                    **{"name": "middle", "epochs": "6st", "image_size": 24, "batch_size": 8},
                    **{"mix": {"mixup": 0.4, "cutmix": 1.0}, "average": {"kind": "ema", "half_life": "2st"}},
                    "on_enter": "reset_optimizer",
                    "augment": {"policy": "randaugment", "brightness": 0.3, "erasing": 0.5},
                },
                {
                    **{"name": "full", "epochs": "5st", "image_size": 32, "batch_size": 6, "label_smoothing": 0.1},
                    # frozen norms, so that a pending evaluation after a resume must use the modes of its own stage
                    "train": "last:3",
                    "average": {"kind": "swa", "every": "2st", "recalibrate": 12},
                    "lr": {"schedule": "swa", "peak": 0.02, "warmup": "2st"},
                    "augment": {"crop": "pad", "rotation": 15, "blur": 0.5, "copies": 1},
                },
            ],
        }
    )


Start = Callable[..., tuple[RunDir, Plan]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Start:
    """Makes a new run directory, ready for its first step."""
    manifests: dict[str, Manifest] = {}

    def make(recipe: Recipe | None = None) -> tuple[RunDir, Plan]:
        recipe = recipe or three_stages()
        if "it" not in manifests:
            manifests["it"] = load_dataset(str(picture_folder), recipe.data).manifest
        plan = resolve(recipe, manifests["it"].info())
        run = RunDir.create(tmp_path_factory.mktemp("run") / "r")
        run.write_start(plan, manifests["it"], environment(str(picture_folder), ["test"], "cpu", ""))
        return run, plan

    return make


def go(
    run: RunDir, arm: Callable[[Session], AfterUpdate | None] | None = None, execution: Execution = QUIET, **more: Any
) -> bool:
    """Resumes the run; returns whether it finished."""
    return resume(run.root, execution=execution, say=lambda text: None, arm=arm, **more).finished


@pytest.fixture(scope="module")
def unbroken(start: Start) -> RunDir:
    run, _ = start()
    assert go(run)
    return run


def test_stopped_after_every_step(start: Start, unbroken: RunDir) -> None:
    run, plan = start()
    for step in range(1, plan.total_steps + 1):
        assert not go(run, stop_after(step))
        assert last_checkpoint(run.checkpoints).step == step
    assert go(run)
    assert differences(unbroken, run) == []


@pytest.mark.long
def test_stopped_once_at_each_step(start: Start, unbroken: RunDir) -> None:
    for step in range(1, 17):
        run, _ = start()
        assert not go(run, stop_after(step))
        assert go(run)
        assert differences(unbroken, run) == [], f"stopped after step {step}"


def test_stopped_in_every_evaluation(start: Start, unbroken: RunDir) -> None:
    class StopInEvaluation:
        def __init__(self, session: Session, seen: set[tuple[int, int]]) -> None:
            self.session, self.seen, self.count = session, seen, 0

        def __call__(self, step: int, done: int) -> None:
            self.count += 1
            if (step, self.count) not in self.seen:
                self.seen.add((step, self.count))
                self.session.stop.requested = True

    run, plan = start()
    seen: set[tuple[int, int]] = set()
    sessions = 0

    class Watcher:
        hit: StopInEvaluation | None = None

        def see(self, event: Event) -> None:
            if isinstance(event, Evaluating) and self.hit is not None:
                self.hit(event.step, event.done)

        def close(self) -> None: ...

    while True:
        watcher = Watcher()

        def arm(session: Session, watcher: Watcher = watcher) -> None:
            watcher.hit = StopInEvaluation(session, seen)

        sessions += 1
        if go(run, arm, observers=[watcher]):
            break
        assert sessions < 200
    assert {step for step, _ in seen} >= set(plan.eval_steps)
    assert differences(unbroken, run) == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_worker_count_changes_nothing(start: Start, unbroken: RunDir, workers: int) -> None:
    run, _ = start()
    assert go(run, execution=Execution(device="cpu", workers=workers, prefetch=1 + workers, pages=False, quiet=True))
    assert differences(unbroken, run) == []


def test_worker_count_may_change_on_resume(start: Start, unbroken: RunDir) -> None:
    run, plan = start()
    for step, workers in zip(range(2, plan.total_steps, 3), [0, 3, 1, 2, 0, 3], strict=False):
        go(run, stop_after(step), Execution(device="cpu", workers=workers, pages=False, quiet=True))
    assert go(run)
    assert differences(unbroken, run) == []


@pytest.mark.long
def test_kill_in_evaluation_and_at_stage_changes(start: Start, unbroken: RunDir) -> None:
    run, plan = start()
    # 9 and 15 are after an evaluation and before the next save: its row in metrics.csv must be removed
    for moment in [Kill(6), Kill(9), Kill(plan.eval_steps[3], evaluating=True), Kill(12), Kill(15)]:
        run_in_process(run.root, QUIET, moment)
    run_in_process(run.root, QUIET, None)
    assert differences(unbroken, run) == []


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.long)])
def test_kills_at_random_moments(start: Start, unbroken: RunDir, kills: int) -> None:
    """kill -9 from outside at random moments: in set-up, steps, evaluation, saving and finishing."""
    moments = random.Random(0)
    killed, runs = 0, 0
    deadline = time.monotonic() + 20 * kills
    while killed < kills:
        assert time.monotonic() < deadline
        run, _ = start()
        runs += 1
        for _ in range(60):
            process = start_process(run.root, QUIET, None)
            process.join(moments.uniform(0.02, 1.5))
            if process.exitcode is None and killed < kills:
                process.kill()
                killed += 1
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode == 0:
                break
        assert differences(unbroken, run) == [], f"run {runs}, {killed} kills so far"


@pytest.mark.parametrize("step", [5, 6, 7])
def test_swa_may_be_interrupted(start: Start, step: int) -> None:
    """What system B lost its last epochs to: an SWA stage that was stopped, and whose learning rate rose on resuming."""
    small = {"model": {"name": "cifar_resnet18", "options": {"width": 4}}, "image_size": 32}
    recipe = tiny(recipes.load("imagenet-resnet50")).changed(**small, data={"val": 0.2, "test": 0.2})
    (unbroken, plan), (run, _) = start(recipe), start(recipe)
    swa = plan.stages[-1]
    assert swa.average.kind == "swa" and swa.first_step < step < swa.end_step
    assert go(unbroken)
    assert not go(run, stop_after(step)) and go(run)
    assert differences(unbroken, run) == []
    rates = [float(row["lr"]) for row in read_rows(run.steps)]
    assert rates == [plan.hyper(at).lr for at in range(plan.total_steps)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert set(rates[swa.first_step :]) == {swa.peak_lr}


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(start: Start, unbroken: RunDir) -> None:
    run, _ = start()
    go(run, stop_after(10))
    state = run.checkpoints / "step_000010" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    assert go(run)
    assert differences(unbroken, run) == []
    resumed = [line for line in run.events.read_text().splitlines() if '"resumed"' in line]
    assert any('"step_000010"' in line and "rejected" in line for line in resumed)


def test_state_remembers_this_and_no_more(start: Start, unbroken: RunDir) -> None:
    from stagewright.engine.state import REMEMBERED

    content = last_checkpoint(unbroken.checkpoints).tensors
    assert tuple(content) == (*REMEMBERED, "logs"), "the logs are in the checkpoint, but are not part of the state"
    assert REMEMBERED == (
        "step",
        "model",
        "optimizer",
        "average",
        "scaler",
        "best",
        "latest",
        "evaluated_step",
        "early_stopping",
        "guard",
        "seconds",
    )


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    import threading

    assert [t.name for t in threading.enumerate() if t.name.startswith("stagewright")] == []


def test_reads_that_take_long_are_told_of(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*given: Any, on_slow: Callable[[np.ndarray, float], None], **named: Any) -> Any:
        on_slow(np.arange(5), 61.0)
        return load_batches(*given, on_slow=on_slow, **named)

    monkeypatch.setattr("stagewright.training.batches.load_batches", slowly)
    run, _ = start()
    assert not go(run, stop_after(1))
    assert "and 2 more for 61 s now: is the storage in order?" in run.events.read_text()
