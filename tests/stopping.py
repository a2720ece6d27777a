"""How tests stop a run: after an update, as `stagewright.resume_check` arms sessions, or in an evaluation, as Ctrl-C does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagewright import checkpoint
from stagewright.checkpoint import Checkpoint
from stagewright.data.loader import Batch
from stagewright.plan import StagePlan
from stagewright.session import Session


def last_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint that last.json in ``folder`` names."""
    path = checkpoint.pointed(folder, "last")
    assert path is not None
    return checkpoint.load(path)


def stop_after(step: int) -> Callable[[Session], None]:
    """Arms a session so that it stops once ``step`` updates are done, with the state saved."""

    def arm(session: Session) -> None:
        update = session.update

        def update_then_stop(stage: StagePlan, batch: Batch) -> bool:
            done = update(stage, batch)
            session.stop.requested = session.state.step >= step
            return done

        session.update = update_then_stop

    return arm


class StopAtEvaluation:
    """An observer that asks for a stop as Ctrl-C does, in the first evaluation."""

    done = False

    def see(self, event: dict[str, Any]) -> None:
        if event["kind"] == "evaluating" and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None: ...
