"""The resume check: a shortened run of the user's recipe and data is killed and resumed, and compared with an uninterrupted
run bit for bit.

Each process is killed by SIGKILL, which a program cannot handle: after a given update, in the middle of an evaluation, or right
after the first update of a stage. Compared are the final states, the events, steps.csv, metrics.csv and the final models.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from stagewright.api.prepare import prepare
from stagewright.api.train import resume
from stagewright.data.batches.batch import Batch
from stagewright.data.dataset import Dataset
from stagewright.data.images.decode import ArrayImages
from stagewright.data.manifest import Manifest
from stagewright.data.sample import sample_manifest
from stagewright.errors import DataError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, StagePlan
from stagewright.plan.resolve import resolve
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request
from stagewright.rng import Stream, key, uniform
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.rundir.event_kinds import Evaluating, Event
from stagewright.rundir.events import comparable, live_events
from stagewright.system.children import safe_path_for_children
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

Say = Callable[[str], None]

_TRAIN_IMAGES, _VAL_IMAGES = 512, 128


@dataclass(frozen=True)
class Kill:
    """The moment at which a process is killed."""

    step: int
    """Number of finished updates."""
    evaluating: bool = False
    """Whether it is killed in the evaluation after that step, after its first batch, instead of right after the update."""

    def __str__(self) -> str:
        return f"in the evaluation after step {self.step}" if self.evaluating else f"after step {self.step}"

    def arm(self, session: Session) -> AfterUpdate:
        """Returns a function for the training loop that kills the process right after the update."""

        def die(stage: StagePlan, batch: Batch) -> None:
            if session.state.step == self.step:
                _die()

        return die


class _KillAtStep:
    """Observer that kills its own process at the first progress event of the evaluation after ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluating) and event.step == self.step:
            _die()

    def close(self) -> None: ...


def check(
    data: str,
    recipe: str | Path | Recipe | RecipeRequest,
    *,
    steps: int,
    kills: int,
    device: str = "auto",
    workers: int | None = None,
    say: Say = print,
) -> bool:
    """Runs ``recipe`` on a part of ``data`` in about ``steps`` updates, with kills; returns whether every bit is equal.

    It is killed ``kills`` times at random steps, after the first update of each stage, and once in an evaluation. ``say`` is
    called with the progress and the differences found.
    """
    execution = Execution(device=device, workers=workers, pages=False, quiet=True, save_minutes=1e9)
    dataset, asked = prepare(data, as_request(recipe), execution, say)
    refuse_in_memory(dataset)
    with tempfile.TemporaryDirectory(prefix="stagewright-check-") as folder:
        manifest = sampled(dataset)
        short = shortened(asked.recipe, steps)
        plan = resolve(short, manifest.info(), precision=asked.precision, measured=asked.measured)
        unbroken, broken = (start_run(Path(folder) / name, plan, manifest, data) for name in ("unbroken", "broken"))
        say(f"Rehearsal: {plan.total_steps} steps in {len(plan.stages)} stages on {len(manifest)} of the pictures.")
        say("Uninterrupted run ...")
        run_in_process(unbroken.root, execution, None)
        for moment in kill_moments(plan, kills):
            run_in_process(broken.root, execution, moment)
            say(f"Killed {moment}, resumed.")
        run_in_process(broken.root, execution, None)
        found = differences(unbroken, broken)
    for line in found:
        say(f"DIFFERENT: {line}")
    if not found:
        say("Equal bit for bit: weights, optimizer, averages, events, steps.csv, metrics.csv and the final model.")
    return not found


def refuse_in_memory(dataset: Dataset) -> None:
    """Raises DataError if another process cannot open the images of ``dataset``."""
    if isinstance(dataset.images, ArrayImages) and not dataset.manifest.source.startswith("torchvision:"):
        raise DataError(
            "the pictures are only in memory", "DATA that another process can open", "write them to a folder"
        )


def sampled(dataset: Dataset) -> Manifest:
    """Returns the manifest of some of the images of ``dataset``, of each part."""
    return sample_manifest(dataset.manifest, train=_TRAIN_IMAGES, val=_VAL_IMAGES, test=_VAL_IMAGES)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """Returns the recipe with ``steps`` updates in total, divided evenly among its stages, with short intervals. A stage that
    finds an optimum keeps its single update.

    Each stage evaluates about twice and saves about three times, mostly at other steps than the evaluations and kills.
    """
    each = max(2, steps // len(recipe.stages))
    stages = [
        {**stage.model_dump(exclude_unset=True), **({"epochs": f"{each}st"} if stage.fit == "updates" else {})}
        for stage in recipe.stages
    ]
    evaluation = {**recipe.eval.model_dump(exclude_unset=True), "every": f"{max(1, each // 2)}st"}
    saves = {**recipe.checkpoints.model_dump(exclude_unset=True), "every": f"{max(1, each // 3)}st"}
    return recipe.changed(stages=tuple(stages), eval=evaluation, checkpoints=saves)


def kill_moments(plan: Plan, kills: int) -> list[Kill]:
    """Returns the moments to kill at, ascending: ``kills`` random steps, each stage's first step, and a middle evaluation."""
    draws = uniform(key(plan.recipe.seed, Stream.FAULT), kills)
    steps = {1 + int(draw * plan.total_steps) for draw in draws} | {stage.first_step + 1 for stage in plan.stages}
    chosen = [Kill(step) for step in sorted(steps)]
    if plan.eval_steps:
        chosen.append(Kill(plan.eval_steps[len(plan.eval_steps) // 2], evaluating=True))
    return sorted(chosen, key=lambda kill: (kill.step, kill.evaluating))


def differences(one: RunDir, other: RunDir) -> list[str]:
    """Returns in what two runs of the same plan differ, apart from times, one sentence each; [] if every bit is equal."""
    found = _unequal(_final(one), _final(other), "state")
    for name in ("steps", "metrics"):
        if getattr(one, name).read_bytes() != getattr(other, name).read_bytes():
            found.append(f"{getattr(one, name).name} differs")
    if comparable(live_events(one.events)) != comparable(live_events(other.events)):
        found.append("events.jsonl differs beyond times and restarts")
    weights = [(run.bundle / "weights.safetensors").read_bytes() for run in (one, other)]
    if weights[0] != weights[1]:
        found.append("the final model's weights differ")
    return found


def run_in_process(run: Path, execution: Execution, moment: Kill | None) -> None:
    """Resumes ``run`` in a new process, which is killed at ``moment``, or runs to its end if that is None.

    RuntimeError if the process ended in another way.
    """
    process = start_process(run, execution, moment)
    process.join()
    expected = 0 if moment is None else -signal.SIGKILL
    if process.exitcode != expected:
        raise RuntimeError(f"the process in {run} ended with {process.exitcode}, not {expected}")


def start_process(run: Path, execution: Execution, moment: Kill | None) -> ForkServerProcess:
    """Starts a process that resumes ``run`` and is killed at ``moment``, unless that is None."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that later processes start with torch imported
    process = context.Process(target=_resume, args=(run, execution, moment))
    with safe_path_for_children():
        process.start()
    return process


def _resume(run: Path, execution: Execution, moment: Kill | None) -> None:
    observers = [_KillAtStep(moment.step)] if moment and moment.evaluating else []
    arm = moment.arm if moment and not moment.evaluating else None
    resume(run, execution=execution, observers=observers, say=lambda text: None, arm=arm)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start_run(root: Path, plan: Plan, manifest: Manifest, data: str) -> RunDir:
    """Returns a new run directory at ``root`` in which nothing is trained yet."""
    run = RunDir.create(root)
    run.write_start(plan, manifest, environment(data, ["stagewright", "resume-check", data], "", ""))
    return run


def _final(run: RunDir) -> dict[str, Any]:
    content = checkpoint.load(checkpoint.pointed(run.checkpoints, "last") or run.checkpoints / "last").tensors
    return {name: value for name, value in content.items() if name not in ("seconds", "logs")}


def _unequal(one: Any, other: Any, path: str) -> list[str]:
    """Returns the paths at which two nested states are not equal bit for bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return [] if same and _bytes(one) == _bytes(other) else [f"{path} differs"]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for name in one for line in _unequal(one[name], other[name], f"{path}.{name}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [line for at in range(len(one)) for line in _unequal(one[at], other[at], f"{path}[{at}]")]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
