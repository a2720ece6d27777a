"""The training loop: carries out a plan from the present state to its end, or until a stop is requested."""

from __future__ import annotations

import time
from collections.abc import Callable

from stagewright.data.batches.batch import Batch
from stagewright.errors import DataError, Interrupted, NotFinite
from stagewright.plan.plan import StagePlan
from stagewright.training.evaluator import Evaluator
from stagewright.training.guard import Guard
from stagewright.training.rollback import Rollback
from stagewright.training.session import Session

AfterUpdate = Callable[[StagePlan, Batch], None]
"""Called after each update, before anything else, with its stage and batch. It may raise, or request a stop with
``session.stop.requested = True``."""


def run_plan(session: Session, after_update: AfterUpdate | None = None) -> bool:
    """Carries out the session's plan from ``state.step`` on; returns True at its end, False if it was stopped or paused.

    Stopping after any step and calling this again on the saved state gives the same weights, bit for bit on the same machine
    and versions (on CUDA with ``deterministic``). A pending evaluation, which a stop has interrupted, is done first.
    """
    state, rollback = session.state, Rollback(session, Guard(session.plan))
    eval_steps = frozenset(session.plan.eval_steps)
    session.clock.switch("train")
    session.ranks.at("training", state.step)  # from here on a read that does not end is missed
    while True:
        try:
            if state.step in eval_steps and state.evaluated_step < state.step:
                if not evaluate_and_save(session, rollback):
                    return False
                continue  # after a rollback by the guard, another evaluation may be pending
            if session.is_finished:
                return True
            rollback.take_snapshot()
            if not train_until_event(session, rollback, after_update):
                return False
        except Interrupted:
            rollback.save()
            return False
        except DataError:  # too many images cannot be read; save what was trained before
            rollback.save()
            raise


def train_until_event(session: Session, rollback: Rollback, after_update: AfterUpdate | None) -> bool:
    """Trains from ``state.step`` on until no update is left or the guard has rolled back; returns False to stop the run."""
    plan, state, ranks = session.plan, session.state, session.ranks
    due = frozenset(plan.eval_steps) | frozenset(plan.save_steps)
    stage = None
    saved_at = time.monotonic()
    with session.train_batches(first_step=state.step) as batches:
        for batch in batches:
            if stage is None or batch.step >= stage.end_step:
                stage = plan.stage_at(batch.step)
                counts = session.enter(stage)
                if batch.step == stage.first_step:
                    session.begin(stage, counts)
            ranks.at("training", batch.step, f"pictures of step {batch.step + 1}")
            batch = session.with_cached_features(batch)
            if stage.fit == "updates":  # an optimum is found from all images by each process
                batch = ranks.with_all_bad_rows(batch)
            rollback.before_update(batch)
            if not session.update(stage, batch):
                rollback.halve_micro_batch(batch.step)
                return True  # rolled back, so the batches must be read again from there
            if after_update is not None:
                after_update(stage, batch)
            if not rollback.check():
                return True
            overdue = time.monotonic() - saved_at > 60.0 * session.execution.save_minutes
            overdue, stopping = ranks.agreed(overdue, session.stop.requested)
            if state.step in due or overdue or stopping:
                if not evaluate_and_save(session, rollback, overdue=overdue, stopping=stopping):
                    return False
                if state.step <= batch.step:
                    return True  # rolled back, because the evaluation gave numbers that are not finite
                saved_at = time.monotonic()
            rollback.take_snapshot()  # after the evaluation, so that it is not pending after a rollback
            if session.is_finished:
                break
    return True


def evaluate_and_save(
    session: Session, rollback: Rollback, *, overdue: bool = False, stopping: bool | None = None
) -> bool:
    """Evaluates and saves if either is due at this step; returns False to stop or pause the run.

    Saving comes second, so that the checkpoint contains the score; then ``session.decide`` is asked whether the run goes on.
    ``stopping`` is whether a stop was requested; None if nobody has asked.
    """
    plan, state, ranks = session.plan, session.state, session.ranks
    stopping = ranks.stops() if stopping is None else stopping
    improved, evaluated = False, None
    if state.step in plan.eval_steps and state.evaluated_step < state.step and not stopping:
        try:
            evaluated = Evaluator(session).evaluate()
            improved = state.best is not None and state.best.step == state.step
        except Interrupted:
            pass
        except NotFinite as error:
            rollback.handle_not_finite(error)
            return not ranks.stops()
        stopping = ranks.stops()
    asks = evaluated is not None and session.decide is not None
    if state.step in plan.save_steps or improved or overdue or stopping or asks or session.is_finished:
        rollback.save()
    if evaluated is not None:
        session.is_paused = ranks.tell(session.decide is not None and session.decide(evaluated) is False)
    return not (stopping or session.is_paused)
