"""Takes up an existing run, and carries out work in a locked run directory, whose summary.json states how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stagewright.api.heed_notices import heeding_notices
from stagewright.api.run import Run, Say
from stagewright.data.dataset import open_images
from stagewright.data.images.decode import Images
from stagewright.data.images.memory_cache import SharedImages
from stagewright.data.manifest import Manifest
from stagewright.data.remote.cache import cache_of
from stagewright.data.sources.verify import moved, verify_images
from stagewright.errors import CheckpointError, Stopped, StorageError
from stagewright.observers.default import default_observers
from stagewright.observers.progress_line import ProgressLine
from stagewright.plan.plan import Plan
from stagewright.report.live_curves import LiveCurves
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Finished, InterimFinished, OpenedTest, RunStopped
from stagewright.rundir.event_text import sentence
from stagewright.rundir.events import read_events
from stagewright.rundir.held_test import keep_hold
from stagewright.rundir.logs import set_results_aside
from stagewright.rundir.summary import Summary, read_summary, write_summary
from stagewright.system.machine import cores
from stagewright.training.finish import finish
from stagewright.training.loop import AfterUpdate, run_plan
from stagewright.training.session import Session
from stagewright.training.setup import RunInputs, open_session
from stagewright.training.summary import summarise


def own_manifest(run: RunDir, plan: Plan) -> Manifest:
    """Returns the manifest of ``run``; CheckpointError if it does not belong to the plan."""
    manifest = Manifest.read(run.manifest)
    if manifest.digest != plan.dataset.digest:
        raise CheckpointError(
            f"{run.manifest} is not the manifest of the run's plan (its digest is {manifest.digest[:12]}, the plan's "
            f"{plan.dataset.digest[:12]})",
            "the manifest.parquet that the run wrote",
            "restore it from a copy",
        )
    return manifest


def own_images(
    run: RunDir, manifest: Manifest, data: str | Path | None, *, everything: bool, quiet: bool
) -> tuple[Manifest, Images, list[str]]:
    """Returns the manifest and the images of a run that is taken up, after they were verified, and notes for its log.

    ``data`` is the new place of the images if they were moved, which the run's manifest then has. ``everything`` compares all
    hashes. DataError if an image is not the same.
    """
    notes: list[str] = []
    if data is not None:
        manifest = moved(manifest, data)
        notes.append(f"the pictures are in {manifest.root} now")
    images = open_images(manifest)
    with ProgressLine("comparing the pictures", quiet=quiet) as progress:
        verify_images(manifest, everything=everything, workers=cores(), progress=progress)
    if data is not None:
        manifest.write(run.manifest)
    return manifest, images, notes


def finished_summary(run: RunDir, say: Say) -> Summary | None:
    """Returns the summary of a run that has finished, or None; if it is damaged, None, so that it is written again."""
    try:
        summary = read_summary(run)
    except CheckpointError:
        say(f"{run.summary} is damaged; it is written again.")
        return None
    return summary if summary.get("status") == "finished" else None


def is_carried_out(run: RunDir, say: Say) -> bool:
    """Returns whether the run has finished at the end of its plan, so that there is nothing to resume; says so, and how."""
    summary = finished_summary(run, say)
    if summary is None or summary.get("stopped_at") is not None:
        return False
    say(f"{run.root} is finished; there is nothing left to do.")
    tell_result(run, say)
    return True


def tell_result(run: RunDir, say: Say) -> None:
    """Says the result of a finished run in the words of the moment when it finished."""
    events = [one.event for one in read_events(run.events, say)] if run.events.is_file() else []
    last = max((at for at, event in enumerate(events) if isinstance(event, Finished | InterimFinished)), default=None)
    told = [] if last is None else [events[last], *(event for event in events[last:] if isinstance(event, OpenedTest))]
    for line in [line for event in told for line in (sentence(event) or "").splitlines()]:
        say(line)


def train_and_finish(session: Session, say: Say, arm: Callable[[Session], AfterUpdate | None] | None = None) -> bool:
    """Carries out the rest of the plan and finishes; returns False if a stop was requested. ``arm`` as for ``resume``."""
    if not session.is_finished and (kept := set_results_aside(session.run, session.state.step)) is not None:
        say(f"The run goes on; the model of step {session.state.step:,} is now in {kept / session.run.bundle.name}")
    if not run_plan(session, arm(session) if arm is not None else None):
        return False
    session.ranks.disband()  # the finish is the work of one process
    return finish(session)


def carry_out(inputs: RunInputs, work: Callable[[Session], bool]) -> Run:
    """Opens a session and calls ``work`` with it, which returns whether the run has finished; summary.json says how it
    ended."""
    if inputs.ranks is None or inputs.ranks.world.is_first:
        own = default_observers(inputs.run, inputs.plan, inputs.execution)
        curves = [] if inputs.execution.quiet else [LiveCurves(inputs.run.root)]
        inputs = replace(inputs, observers=[*own, *curves, *inputs.observers])
    with contextlib.ExitStack() as closing:
        session = open_session(inputs)
        closing.callback(session.recorder.close)
        if isinstance(session.images, SharedImages):
            closing.callback(session.images.close)
        if (cache := cache_of(session.images)) is not None:
            closing.callback(cache.close)
        status, error, reason = "failed", None, None
        closing.callback(_write_notes, session)
        session.ranks.on_lost = lambda sentence: _end(session, "failed", sentence, sentence)
        try:
            keep_hold(inputs.run, inputs.execution.hold_test)
            write_summary(inputs.run, summarise(session, "running"))
            inputs.stop.arm()
            closing.enter_context(heeding_notices(session))
            status = "finished" if work(session) else "paused" if session.is_paused else "stopped"
            reason = session.ranks.why_stopped() if status == "stopped" else None
            if session.mirror is not None:
                session.ranks.disband()  # the others have nothing left to do while this one waits for the mirror
        except Stopped:
            status = "stopped"
            raise
        except BaseException as problem:
            if (lost := session.ranks.lost(problem)) is not None:
                error = str(lost)
                raise lost from problem
            error = f"{type(problem).__name__}: {problem}"
            raise
        finally:
            # On a full disk neither can be written; their errors must not hide the first one.
            with contextlib.suppress(StorageError, OSError):
                if status != "finished":
                    paused = "paused after this evaluation" if status == "paused" else None
                    _end(session, status, error or paused or reason or inputs.stop.reason or status, error)
    return Run(inputs.run.root)


def _write_notes(session: Session) -> None:
    with contextlib.suppress(StorageError, OSError):
        session.recorder.write_notes(session.state.step)


def _end(session: Session, status: str, reason: str, error: str | None = None) -> None:
    """Writes how a run that has not finished has ended."""
    session.recorder.log.emit(RunStopped(step=session.state.step, reason=reason))
    write_summary(session.run, summarise(session, status, error=error))
