"""Runs with a mirror in an object store: what it may be used for, fetching a run from it, and its part in the end of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stagewright.api.run import Say
from stagewright.errors import CheckpointError, MirrorError, RecipeError, StagewrightError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.rundir.checkpoint import name_of
from stagewright.rundir.claim import claimed, held, next_free
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import read_summary, write_summary
from stagewright.storage.files import user_path
from stagewright.storage.objects import is_remote, open_store
from stagewright.system.signals import StopSignal
from stagewright.text import printable

if TYPE_CHECKING:  # obstore comes with them
    from obstore.store import ObjectStore

    from stagewright.mirror.owner import Owner
    from stagewright.mirror.remote import Restored
    from stagewright.mirror.thread import Behind, Mirror

_log = logging.getLogger(__name__)
_AFTER_ERROR_SECONDS = 15.0
"""The longest wait for the mirror at the end of a run that has failed."""
_SUMMARY_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class Place:
    """A mirror whose rights were tried, and what it holds."""

    url: str
    store: ObjectStore
    conditional: bool
    """Whether the store carries out conditional writes."""
    unfenced: bool
    """Whether that may be otherwise, as asked for."""
    owner: Owner | None
    """Whose mirror it is or was; None for a new one."""
    plan: Plan | None
    """The plan of the run in it; None if there is none yet."""

    def require(self, plan: Plan) -> None:
        """Raises CheckpointError if the mirror belongs to another plan than ``plan``."""
        from stagewright.mirror.owner import of_another_plan

        if self.owner is not None and self.owner.plan_digest != plan.digest:
            raise of_another_plan(self.url, self.owner, plan.digest)

    def require_new(self) -> None:
        """Raises CheckpointError if the mirror holds a run already."""
        if self.owner is not None:
            raise CheckpointError(
                f"{self.url} already holds the run {printable(self.owner.name)!r} with the plan "
                f"{printable(self.owner.plan_digest)[:12]}, last written by {self.owner}",
                "an empty prefix for a new run",
                f"--resume auto continues it, as stagewright resume {self.url} does; another --mirror starts a new one",
            )

    def restore(self, run: RunDir, plan: Plan) -> list[str]:
        """Fetches the newest checkpoint of the mirror into ``run`` if it is newer than those there; returns notes for the
        log."""
        from stagewright.mirror.remote import restore

        if self.plan is None:
            return []
        return _told(restore(self.store, self.url, run, plan.digest), self.url)


def asked_url(execution: Execution, run: Path | None = None) -> str | None:
    """Returns the URL of the mirror that was asked for, or else that of the run in ``run``; None if there is none."""
    from stagewright.mirror.record import forget, read_record

    if execution.mirror is not None and execution.mirror != "none":
        return _without_slash(execution.mirror)
    record = None if run is None else read_record(run)
    if record is None or run is None:
        return None
    if execution.mirror == "none":
        forget(run)
        return None
    return record.url


def open_place(url: str, execution: Execution, run: Path | None = None) -> Place:
    """Opens the mirror at ``url`` and tries the rights that it needs. StorageError if one is missing, CheckpointError if the
    prefix holds something else."""
    store = open_store(url, allow_http=execution.allow_http)
    from stagewright.mirror.names import OWNER
    from stagewright.mirror.owner import read_owner
    from stagewright.mirror.record import read_record
    from stagewright.mirror.remote import names_in, read_remote_plan
    from stagewright.mirror.trial import TRIAL, try_rights
    from stagewright.storage.objects import patiently

    record = None if run is None else read_record(run)
    unfenced = execution.mirror_unfenced or (record is not None and record.url == url and record.unfenced)
    conditional = try_rights(store, url, unfenced=unfenced)
    seen = patiently(lambda: read_owner(store, url))
    if seen is None and (strange := [name for name in names_in(store, url) if not name.startswith(TRIAL)]):
        raise CheckpointError(
            f"{url} is not empty, and not a mirror: it holds {', '.join(map(printable, strange[:3]))}"
            f"{' ...' if len(strange) > 3 else ''} and no {OWNER}",
            "an empty prefix, or a mirror that stagewright wrote",
            f"give a prefix of its own, such as {url}/run-1",
        )
    plan = None if seen is None else read_remote_plan(store, url)
    if plan is not None and seen is not None and plan.digest != seen[0].plan_digest:
        raise CheckpointError(
            f"{url}/plan.json has the digest {plan.digest[:12]}, and {OWNER} names {printable(seen[0].plan_digest)[:12]}",
            "a mirror as stagewright wrote it",
            "look who has changed it, and restore the plan from a copy",
        )
    return Place(url, store, conditional, unfenced, None if seen is None else seen[0], plan)


@contextlib.contextmanager
def fetched(place: Place, out: Path | None, say: Say) -> Iterator[tuple[RunDir, list[str]]]:
    """Context of the locked run of a mirror in ``out``, by default in ``runs/NAME``: fetched, or brought up to date if it is
    there already. Yields it with notes for its log.

    CheckpointError if the mirror holds no run, or the directory something else.
    """
    if place.plan is None or place.owner is None:
        raise CheckpointError(
            f"{place.url} holds no run yet",
            "the mirror of a run that has begun",
            "stagewright train DATA --mirror URL starts one",
        )
    from stagewright.mirror.record import Record
    from stagewright.mirror.remote import fetch_start

    root = out or _usual_place(place)
    if (root / "plan.json").exists():
        with held(root) as run:
            _require_same(run, place)
            yield run, place.restore(run, place.plan)
        return
    with claimed(root) as run:
        say(f"Fetching {place.url} to {root}")
        Record(place.url, place.unfenced).write(root)  # a fetch that is interrupted is taken up by a resume
        fetch_start(place.store, place.url, run)
        yield run, place.restore(run, place.plan)


def asked_place(execution: Execution, out: Path | None, *, resume: bool) -> Place | None:
    """Returns the opened mirror that a training writes to, or None. CheckpointError if it holds a run and ``resume`` is not
    set."""
    if (url := asked_url(execution, out)) is None:
        return None
    place = open_place(url, execution, out)
    if not resume:
        place.require_new()
    return place


def brought(
    place: Place | None,
    plan: Plan,
    here: tuple[RunDir | None, RunDir | None],
    out: Path | None,
    holding: contextlib.ExitStack,
    say: Say,
) -> tuple[RunDir | None, list[str]]:
    """Returns the run of ``plan`` to go on with, brought up to the newest checkpoint of its mirror, and notes for its log.

    ``here`` is the run of this plan on this disk, and the one in its place, which may have another plan. Without either, the run
    is that of the mirror, fetched to ``out``; None if there is none. CheckpointError if the mirror belongs to another plan, or
    the directory does while the mirror does not.
    """
    same, old = here
    if place is None:
        return same, []
    place.require(plan)
    if same is not None:
        return same, place.restore(same, plan)
    if place.plan is None:
        return None, []
    if old is not None:
        _require_same(old, place)
    return holding.enter_context(fetched(place, out, say))


def taken_up(
    run: str | os.PathLike[str], out: str | Path | None, execution: Execution, holding: contextlib.ExitStack, say: Say
) -> tuple[RunDir, Place | None, list[str]]:
    """Returns the run to resume, locked by ``holding``, its mirror if it has one, and notes for its log.

    ``run`` is a directory, or the URL of a mirror, which is fetched to ``out``. The directory then has the newest checkpoint of
    both. Raises CheckpointError if they belong to different plans.
    """
    text = os.fspath(run)
    if is_remote(text):
        url = _without_slash(text)
        if execution.mirror not in (None, "none") and _without_slash(execution.mirror) != url:
            raise RecipeError(
                f"--mirror {execution.mirror} with the run {url}", "the same URL, or none", "leave out --mirror"
            )
        place = open_place(url, execution)
        old, notes = holding.enter_context(fetched(place, None if out is None else user_path(out), say))
        return old, None if execution.mirror == "none" else place, notes
    if out is not None:
        raise RecipeError(
            f"--out {out} with the run directory {text}", "--out with the URL of a mirror", "leave out --out"
        )
    old = holding.enter_context(held(user_path(text)))
    if (asked := asked_url(execution, old.root)) is None:
        return old, None, []
    place, plan = open_place(asked, execution, old.root), old.read_plan()
    place.require(plan)
    return old, place, place.restore(old, plan)


def refuse_from_start(place: Place | None) -> None:
    """Raises CheckpointError if the mirror holds a run: a start at step 0 would be older than what is there."""
    if place is not None and place.plan is not None:
        raise CheckpointError(
            f"--from-start of a run whose mirror {place.url} holds its checkpoints",
            "a start at step 0 without a mirror, or with an empty one",
            "add --mirror none, or --mirror with another prefix",
        )


def mirror_of_fork(place: Place | None, execution: Execution, plan: Plan) -> Place | None:
    """Returns the mirror of a fork with this plan: that which was asked for by its URL, never that of the run before.
    CheckpointError if it belongs to another plan."""
    if place is None or execution.mirror in (None, "none"):
        return None
    place.require(plan)
    return place


def _without_slash(url: str) -> str:
    """Returns ``url`` without slashes at its end, by which two names of one mirror would differ."""
    return url if url.endswith("://") else url.rstrip("/")


def _usual_place(place: Place) -> Path:
    """Returns ``runs/NAME``, where the run of this name is or may be; the next free number if another run has the name."""
    assert place.owner is not None and place.plan is not None
    name = place.owner.name if re.fullmatch(r"[\w][\w .\-]{0,99}", place.owner.name) else "mirrored"
    root = Path("runs") / name
    if not (root / "plan.json").exists() or RunDir(root).read_plan().digest == place.plan.digest:
        return root
    return next_free(root.parent, re.sub(r"-\d+$", "", name))


def _require_same(run: RunDir, place: Place) -> None:
    found = run.read_plan().digest
    if place.plan is not None and found != place.plan.digest:
        raise CheckpointError(
            f"{run.root} holds a run with the plan {found[:12]}, and {place.url} one with the plan {place.plan.digest[:12]}",
            "a directory and a mirror of the same run",
            "give another --out, or another --mirror",
        )


def _told(restored: Restored, url: str) -> list[str]:
    notes = [f"in the mirror {url}, {one.name} is damaged: {one.reason}" for one in restored.rejected]
    if restored.step is not None:
        notes.append(f"{name_of(restored.step)} was fetched from the mirror {url}")
    return notes


@contextlib.contextmanager
def mirroring(
    place: Place | None, run: RunDir, plan: Plan, execution: Execution, stop: StopSignal, say: Say
) -> Iterator[Mirror | None]:
    """Context in which the run is mirrored; its end waits for what is missing there, at most ``execution.mirror_wait`` seconds.

    MirrorError at the end if another process has taken the mirror over, or if it lacks the trained model; a warning if it lacks
    something else.
    """
    if place is None:
        yield None
        return
    from stagewright.mirror.owner import own_record, take_over
    from stagewright.mirror.thread import Mirror

    mine = own_record(plan.digest, run.root.resolve().name)
    ownership = take_over(place.store, place.url, mine, conditional=place.conditional)
    mirror = Mirror(run, ownership, plan.recipe.checkpoints.keep, stop.ask)
    mirror.start()
    try:
        yield mirror
    except Exception:
        # What failed is told right after, so this waits only for what a working store can take.
        mirror.settle(min(execution.mirror_wait, _AFTER_ERROR_SECONDS), say=say, gives_up=_asked_again(stop))
        raise
    else:
        _conclude(mirror, run, min(execution.mirror_wait, stop.seconds_left), stop, say)
    finally:
        mirror.close()


def _conclude(mirror: Mirror, run: RunDir, seconds: float, stop: StopSignal, say: Say) -> None:
    """Waits for the mirror, writes into summary.json what it lacks, and says so; raises MirrorError as :func:`mirroring`."""
    lacks = mirror.settle(seconds, say=say, gives_up=_asked_again(stop))
    with contextlib.suppress(StagewrightError, OSError):
        summary = read_summary(run)
        if summary:
            summary["mirror"] = {"url": mirror.url, "missing": lacks.words(), "error": lacks.error}
            write_summary(run, summary)
            if lacks.nothing and mirror.fenced is None:
                lacks = mirror.settle(_SUMMARY_SECONDS, say=say, gives_up=lambda: False)
    for text in mirror.notes():
        _log.warning("%s", text)
    if mirror.fenced is not None:
        raise MirrorError(
            f"the mirror {mirror.url} was taken over by {mirror.fenced}: this process uploads nothing more; all is saved in "
            f"{run.root}",
            "one process for a mirror",
            "nothing, if the other process is to carry the run out; else end it, and give stagewright resume "
            f"{run.root} --mirror {mirror.url}",
        )
    if not lacks.nothing:
        _tell_missing(mirror, run, lacks)


def _tell_missing(mirror: Mirror, run: RunDir, lacks: Behind) -> None:
    reason = f": {lacks.error}" if lacks.error else ""
    again = f"stagewright resume {run.root} uploads it"
    if lacks.model:
        raise MirrorError(
            f"the mirror {mirror.url} lacks the trained model ({lacks}){reason}",
            f"a store that answers within --mirror-wait; all is saved in {run.root}",
            again,
        )
    _log.warning("the mirror %s lacks %s%s. All is saved in %s; %s", mirror.url, lacks, reason, run.root, again)


def _asked_again(stop: StopSignal) -> Callable[[], bool]:
    """Returns a function that tells whether a stop was requested since now: whoever asks does not want to wait."""
    before = stop.requested
    return lambda: stop.requested and not before


def bring_up_to_date(
    place: Place | None, run: RunDir, plan: Plan, execution: Execution, stop: StopSignal, say: Say
) -> None:
    """Uploads what the mirror lacks of a run that is carried out; errors as for :func:`mirroring`."""
    if place is None:
        return
    began = time.monotonic()
    stop.arm()
    with mirroring(place, run, plan, execution, stop, say):
        pass
    say(f"The mirror {place.url} has all of it ({time.monotonic() - began:.0f} s).")
