"""Opening a run: state, files, observers and clock of a session, made or taken up; all that can fail before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from stagewright import checkpoint
from stagewright.augment.custom import load_custom
from stagewright.build import build_state, checkpoint_bytes, choose_device, device_name, numerics_of, prepare_torch
from stagewright.clock import Clock
from stagewright.data import native
from stagewright.data.decode import Images
from stagewright.data.kept import keep_for
from stagewright.data.manifest import Manifest
from stagewright.events import EventLog, Observer
from stagewright.execution import Execution
from stagewright.memory import Points, memory_in_use
from stagewright.observers.console import Console
from stagewright.observers.pages import Pages
from stagewright.observers.textlog import TextLog
from stagewright.plan import Plan
from stagewright.record import Recorder
from stagewright.rundir import RunDir, check_room
from stagewright.runlogs import refuse_lost, restore_logs
from stagewright.session import Session
from stagewright.state import TrainState
from stagewright.stop import StopSignal


def open_session(
    run: RunDir,
    plan: Plan,
    manifest: Manifest,
    images: Images,
    execution: Execution,
    observers: Sequence[Observer],
    stop: StopSignal,
    say: Callable[[str], None],
    began: float | None = None,
    points: Points | None = None,
    notes: Sequence[str] = (),
) -> Session:
    """Builds or restores the state and takes up the run's files; everything that can fail before the first step does.

    ``began`` is the moment (``time.perf_counter``) from which the set-up is charged, ``points``: what memory was in use
    before. ``notes`` are sentences for the log.
    """
    device = choose_device(execution.device)
    execution = replace(execution, device=str(device))
    prepare_torch(plan.recipe, device)
    for name in {stage.augment.custom for stage in plan.stages if stage.augment.custom}:
        load_custom(name)  # a function that is not there is told of now, not in the middle of the run
    restored, rejected = checkpoint.newest(run.checkpoints, plan.digest)
    for one in rejected:
        say(f"Passed over {one.name}: {one.reason}")
    if restored is None:
        refuse_lost(run, rejected)
    if execution.keep_decoded:
        images = keep_for(plan, manifest, images)
    points = {**(points or {}), "before the model": memory_in_use(device)}
    state, lines = build_state(plan, device, restored)
    points["with the model on the device"] = memory_in_use(device)
    if restored is not None:
        point_again(run, state)
    else:
        check_room(run.root, checkpoint_bytes(state, plan))
    notes = [*notes, *restore_logs(run, restored)]
    clock = Clock(
        state.seconds, "setup", torch.cuda.synchronize if device.type == "cuda" else lambda: None, since=began
    )
    again = run.events.exists()
    log = EventLog(
        run.events,
        [*_own_observers(run, plan, execution), *observers],
        resume_step=state.step if again else None,
        checkpoint=checkpoint.name_of(state.step) if restored else None,
        rejected=[{"name": one.name, "reason": one.reason} for one in rejected],
    )
    recorder = Recorder(run, plan, manifest, log, clock, device)
    recorder.resume(state)
    if not again:
        log.emit("started", 0, clock={"device": str(device), "device_name": device_name(device)})
        for note in run.read_env().get("data_notes", []):
            log.emit("notice", 0, text=note, clock={"told": True})
        if account := run.read_env().get("budget"):
            log.emit("notice", 0, text=account["text"], clock={"told": True})
    elif (decoder := native.describe()) != run.read_env().get("decoder", decoder):
        text = f"pictures are decoded by {decoder} now and were by {run.read_env()['decoder']}: within rounding, not the same"
        log.emit("notice", state.step, text=text)
    for line in (*notes, *lines):
        log.emit("notice", state.step, text=line)
    log.emit("memory", state.step, clock={"points": points, "told": True})
    numerics = numerics_of(plan, state.model, manifest)
    say(f"Writing to {run.root}")
    return Session(plan, manifest, images, run, execution, numerics, state, recorder, clock, stop)


def point_again(run: RunDir, state: TrainState) -> None:
    """Makes last.json and best.json say what the restored state says: a kill after a save leaves them behind."""
    checkpoint.point(run.checkpoints, "last", state.step)
    if state.best is not None and (run.checkpoints / checkpoint.name_of(state.best.step)).is_dir():
        checkpoint.point(run.checkpoints, "best", state.best.step)


def _own_observers(run: RunDir, plan: Plan, execution: Execution) -> list[Observer]:
    stages = [(stage.name, stage.first_step, stage.num_steps) for stage in plan.stages]
    own: list[Observer] = [Console(plan.total_steps, stages, quiet=execution.quiet), TextLog(run.log)]
    return [*own, Pages(run.root)] if execution.pages else own
