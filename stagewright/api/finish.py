"""The public function ``finish``: makes the model of a run that has not carried out its plan, from its checkpoints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stagewright.api.carry_out import (
    carry_out,
    finished_summary,
    own_images,
    own_manifest,
    tell_result,
    train_and_finish,
)
from stagewright.api.run import Run, Say
from stagewright.plan.execution import Execution
from stagewright.rundir import checkpoint
from stagewright.rundir.claim import held
from stagewright.rundir.environment import changed_code
from stagewright.rundir.events import Observer
from stagewright.rundir.logs import no_checkpoint
from stagewright.storage.files import user_path
from stagewright.system.device import computing_with
from stagewright.system.output import failsafe_notices
from stagewright.system.signals import StopSignal
from stagewright.text import done_text
from stagewright.training.finish import finish as finish_now
from stagewright.training.session import Session
from stagewright.training.setup import RunInputs


def finish(
    run: str | os.PathLike[str],
    *,
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    data: str | Path | None = None,
    say: Say = print,
) -> Run:
    """Finishes a stopped or crashed run with what it has saved, without further training; a finished run is not changed.

    Of the checkpointed weights, those that the recipe selects (``eval.select``) are evaluated and written as for a run that has
    reached its end; if the newest checkpoint was not evaluated yet, its weights are candidates too. Summary, report and model
    say at which share of the plan the run was stopped. :func:`stagewright.api.train.resume` can still go on, with the same bits
    as if this had not been called; the model then moves to the run's folder ``interim/``. ``data`` is the new location of the
    images if they were moved. Arguments as for ``resume``.

    CheckpointError if the run has no checkpoint or another process is carrying it out; StagewrightError for all that a caller
    can fix, and Stopped if a stop is requested during the set-up.
    """
    began, say = time.perf_counter(), failsafe_notices(say)
    with StopSignal() as stop, contextlib.ExitStack() as holding:
        target = holding.enter_context(held(user_path(run)))
        plan = target.read_plan()
        manifest = own_manifest(target, plan)
        done = finished_summary(target, say)
        if done is not None and (target.bundle / "model.json").is_file():
            part = done.get("stopped_at") is not None
            how = f"stopped at {done_text(done['step'], plan.total_steps)}" if part else "at the end of its plan"
            say(f"{target.root} is finished already, {how}; its model is {target.bundle}.")
            tell_result(target, say)
            return Run(target.root)
        if not any(checkpoint.steps(target.checkpoints)):
            raise no_checkpoint(target, ())
        # Each image is read once or twice, so nothing is kept decoded.
        execution = replace(execution or Execution(), keep_decoded=False)
        holding.enter_context(computing_with(execution.threads))
        manifest, images, notes = own_images(target, manifest, data, everything=False, quiet=execution.quiet)
        notes = [*changed_code(plan.recipe, target.read_env()), *notes]
        inputs = RunInputs(target, plan, manifest, images, execution, stop, say, observers, began, notes=notes)

        def work(session: Session) -> bool:
            return train_and_finish(session, say) if session.is_finished else finish_now(session)

        return carry_out(inputs, work)
