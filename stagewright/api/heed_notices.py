"""What a run does with the notice that its machine will be taken away: it stops after the present update, saved."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress

from stagewright.distributed.verdict import is_launched
from stagewright.errors import StagewrightError
from stagewright.rundir.event_kinds import Saved
from stagewright.rundir.events import live_events
from stagewright.system.notices import SECONDS, Provider, slow_save, watching
from stagewright.training.session import Session


def heeding_notices(session: Session) -> AbstractContextManager[None]:
    """Context in which a notice requests a stop of the run. Does nothing where the launcher watches, and in all processes of a
    host but the first."""
    if is_launched() or session.ranks.world.local_rank > 0:
        return nullcontext()

    def found(provider: Provider) -> None:
        session.notice_seconds = SECONDS[provider]
        known = _save_seconds(session)
        if known is not None and known > SECONDS[provider]:
            session.recorder.later.append(slow_save(known, SECONDS[provider]))

    return watching(lambda notice: session.stop.ask(str(notice), notice.seconds), found)


def _save_seconds(session: Session) -> float | None:
    """Returns how long the last save of the run took, in an earlier process."""
    with suppress(StagewrightError, OSError):
        saved = [event for event in live_events(session.run.events) if isinstance(event, Saved)]
        return saved[-1].seconds if saved else None
    return None
