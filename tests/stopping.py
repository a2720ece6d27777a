"""How tests stop a run: after an update, as `stagewright.api.resume_check` arms sessions, or in an evaluation, as Ctrl-C does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from stagewright.data.batches.batch import Batch
from stagewright.data.dataset import load_dataset
from stagewright.plan.plan import StagePlan
from stagewright.plan.resolve import resolve
from stagewright.recipe.recipe import Recipe
from stagewright.rundir import checkpoint
from stagewright.rundir.checkpoint import Checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.rundir.event_kinds import Evaluating, Event
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session


def begin(folder: Path, pictures: Path, recipe: Recipe) -> RunDir:
    """A run of ``recipe`` on ``pictures`` that has its plan and no update yet."""
    manifest = load_dataset(str(pictures), recipe.data).manifest
    run = RunDir.create(folder)
    run.write_start(resolve(recipe, manifest.info()), manifest, environment(str(pictures), ["t"], "cpu", ""))
    return run


def last_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint that last.json in ``folder`` names."""
    path = checkpoint.pointed(folder, "last")
    assert path is not None
    return checkpoint.load(path)


def stop_after(step: int) -> Callable[[Session], AfterUpdate]:
    """Arms a session so that it stops once ``step`` updates are done, with the state saved."""

    def arm(session: Session) -> AfterUpdate:
        def stop(stage: StagePlan, batch: Batch) -> None:
            session.stop.requested = session.state.step >= step

        return stop

    return arm


def crash_after(step: int) -> Callable[[Session], AfterUpdate]:
    """Arms a session so that it ends by a RuntimeError right after update ``step``, which saves nothing."""

    def arm(session: Session) -> AfterUpdate:
        def crash(stage: StagePlan, batch: Batch) -> None:
            if session.state.step == step:
                raise RuntimeError("power cut")

        return crash

    return arm


class StopAtEvaluation:
    """An observer that asks for a stop as Ctrl-C does, in the first evaluation."""

    done = False

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluating) and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None: ...
