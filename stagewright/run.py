"""The loop: carries out a plan from the state at hand to its end, or to the step at which a stop is asked for."""

from __future__ import annotations

import time

from stagewright.errors import DataError, Interrupted, NotFinite
from stagewright.session import Session


def carry_out(session: Session) -> bool:
    """Carries out the session's plan from ``state.step`` on; True at its end, False where a stop was asked for.

    Stopping after any step and calling again on the saved state gives the same weights, bit for bit on the same machine
    and versions (on CUDA with ``deterministic``). An evaluation that a stop interrupted is made up for first.
    """
    plan, state = session.plan, session.state
    eval_steps, save_steps = frozenset(plan.eval_steps), frozenset(plan.save_steps)
    session.clock.switch("train")
    while True:
        try:
            if state.step in eval_steps and state.evaluated_step < state.step:
                if not settle(session, eval_steps, save_steps):
                    return False
                continue  # the guard may have gone back, to where another evaluation is owed
            if session.over:
                return True
            session.recovery.keep(state)
            if not go_on(session, eval_steps, save_steps):
                return False
        except Interrupted:
            session.save()
            return False
        except DataError:  # the pictures are gone; what was trained on those that could be read is not lost
            session.save()
            raise


def go_on(session: Session, eval_steps: frozenset[int], save_steps: frozenset[int]) -> bool:
    """Reads and trains from ``state.step`` on, until no update is left or the guard has gone back; False to stop."""
    plan, state, stop = session.plan, session.state, session.stop
    stage = None
    saved_at = time.monotonic()
    with session.batches(first_step=state.step) as batches:
        for batch in batches:
            if stage is None or batch.step >= stage.end_step:
                stage = plan.stage_at(batch.step)
                counts = session.enter(stage)
                if batch.step == stage.first_step:
                    session.begin(stage, counts)
            if not session.update(stage, batch) or not session.recovery.check(session):
                return True  # it has gone back, and reads from there
            overdue = time.monotonic() - saved_at > 60.0 * session.execution.save_minutes
            if state.step in eval_steps or state.step in save_steps or overdue or stop.requested:
                if not settle(session, eval_steps, save_steps, overdue=overdue):
                    return False
                if state.step <= batch.step:
                    return True  # the evaluation found spoilt weights: it has gone back
                saved_at = time.monotonic()
            session.recovery.keep(state)  # behind the evaluation, so that going back owes none
            if session.over:
                break
    return True


def settle(session: Session, eval_steps: frozenset[int], save_steps: frozenset[int], *, overdue: bool = False) -> bool:
    """Evaluates where the step asks for it, then saves, so that a checkpoint knows its score; False to stop here."""
    state, stop = session.state, session.stop
    stopping = stop.requested
    improved = False
    if state.step in eval_steps and state.evaluated_step < state.step and not stopping:
        try:
            session.evaluate()
            improved = state.best is not None and state.best.step == state.step
        except Interrupted:
            pass
        except NotFinite as error:
            session.recovery.spoilt(session, error)
            return not stop.requested
        stopping = stop.requested
    if state.step in save_steps or improved or overdue or stopping or session.over:
        session.save()
    return not stopping
