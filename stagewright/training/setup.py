"""Opens a session: builds or restores the state, opens files, observers and clock; does all that can fail before step 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from stagewright.augment.custom import load_custom
from stagewright.data.images import native
from stagewright.data.images.decode import Images
from stagewright.data.images.memory_cache import cache_for_plan
from stagewright.data.manifest import Manifest
from stagewright.engine.build import build_state, checkpoint_bytes
from stagewright.engine.numerics import numerics_of, prepare_torch
from stagewright.engine.state import TrainState
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import MemoryUse, Notice, Rejected, Resumed, Started
from stagewright.rundir.events import EventLog, Observer
from stagewright.rundir.held_test import hold_of
from stagewright.rundir.logs import refuse_lost, restore_logs
from stagewright.storage.files import check_room, write_json
from stagewright.system.device import choose_device, device_name, require_known_processor
from stagewright.system.memory import Points, memory_in_use
from stagewright.system.signals import StopSignal
from stagewright.training.clock import Clock
from stagewright.training.ranks import Ranks
from stagewright.training.recorder import Recorder
from stagewright.training.session import Decide, Session
from stagewright.training.streaming import host_ranks, prepare_cache

if TYPE_CHECKING:  # it needs the library for object stores
    from stagewright.mirror.thread import Mirror


@dataclass(frozen=True, eq=False)
class RunInputs:
    """The arguments of :func:`open_session`."""

    run: RunDir
    """The directory, locked by this process."""
    plan: Plan
    manifest: Manifest
    images: Images
    execution: Execution
    stop: StopSignal
    say: Callable[[str], None] = lambda text: None
    """Called with sentences for the user, e.g. ``print``."""
    observers: Sequence[Observer] = ()
    began: float | None = None
    """The ``time.perf_counter`` at which the set-up began; None: now."""
    memory: Points = field(default_factory=dict)
    """Memory in use at earlier points, by their names."""
    notes: Sequence[str] = ()
    """Sentences for the log."""
    decide: Decide | None = None
    """Asked after each evaluation, once it is saved; False pauses the run."""
    ranks: Ranks | None = None
    """The processes that carry out the run together; None: this one is alone."""
    mirror: Mirror | None = None
    """The run's copy in an object store, of which this process is the owner."""


def open_session(inputs: RunInputs) -> Session:
    """Builds or restores the state and opens the run's files; everything that can fail before the first step does so here."""
    run, plan, manifest, images = inputs.run, inputs.plan, inputs.manifest, inputs.images
    require_known_processor()
    device = choose_device(inputs.execution.device)
    execution = replace(inputs.execution, device=str(device))
    prepare_torch(plan.recipe, device)
    for name in {stage.augment.custom for stage in plan.stages if stage.augment.custom}:
        load_custom(name)  # raises now if it does not exist; build_state calls model, loss and optimizer
    restored, rejected = checkpoint.newest(run.checkpoints, plan.digest)
    for one in rejected:
        inputs.say(f"Passed over {one.name}: {one.reason}")
    if restored is None:
        refuse_lost(run, rejected)
    notes = list(inputs.notes)
    ranks = inputs.ranks or Ranks.alone(inputs.stop)
    prepare_cache(images, plan, manifest, execution, host_ranks(ranks.world))
    if execution.keep_decoded:
        images = cache_for_plan(plan, manifest, images, not_shared=notes.append if execution.shared_pictures else None)
    points = {**inputs.memory, "before the model": memory_in_use(device)}
    state, weights = build_state(plan, device, restored.tensors if restored else None)
    points["with the model on the device"] = memory_in_use(device)
    if restored is not None:
        point_again(run, state)
    else:
        check_room(run.root, checkpoint_bytes(state, plan))
    if weights is not None:
        write_json(run.weights, weights.to_dict())
    notes += restore_logs(run, restored)
    clock = Clock(
        state.seconds, "setup", torch.cuda.synchronize if device.type == "cuda" else lambda: None, since=inputs.began
    )
    again = run.events.exists()
    several = {"processes": ranks.world.size if ranks.several else None}
    where: dict[str, Any] = {"device": str(device), "device_name": device_name(device), **several}
    resumed = Resumed(
        step=state.step,
        checkpoint=checkpoint.name_of(state.step) if restored else None,
        rejected=tuple(Rejected(name=one.name, reason=one.reason) for one in rejected),
        **where,
    )
    log = EventLog(run.events, list(inputs.observers), resumed=resumed if again else None)
    recorder = Recorder(run, plan, manifest, log, clock, device, mirror=inputs.mirror)
    recorder.resume(state)
    if not again:
        log.emit(Started(step=0, **where))
        for note in run.read_env().get("data_notes", []):
            log.emit(Notice(step=0, text=note, already_shown=True))
        if account := run.read_env().get("budget"):
            log.emit(Notice(step=0, text=account["text"], already_shown=True))
    else:
        notes += _changed_machine(run, device)
    for line in (*notes, *(weights.lines() if weights is not None else ())):
        log.emit(Notice(step=state.step, text=line))
    log.emit(MemoryUse(step=state.step, points=points))
    if execution.hold_test or hold_of(run):
        manifest = manifest.closed()
        recorder.estimator.num_closed = manifest.num_closed
    numerics = numerics_of(plan, state.model, manifest)
    inputs.say(f"Writing to {run.root}")
    own = (images, run, execution, numerics, state, recorder, clock)
    return Session(plan, manifest, *own, stop=inputs.stop, decide=inputs.decide, ranks=ranks, mirror=inputs.mirror)


def _changed_machine(run: RunDir, device: torch.device) -> list[str]:
    """Returns notes on what computes otherwise than where the run began, so that its bits may differ from an unbroken one's."""
    env, notes = run.read_env(), list[str]()
    if (decoder := native.describe()) != env.get("decoder", decoder):
        notes.append(
            f"pictures are decoded by {decoder} now and were by {env['decoder']}: within rounding, not the same"
        )
    now, first = device_name(device), env.get("device_name")
    if first and now != first:
        notes.append(f"the run computes on {now} now and began on {first}: sums may differ in their last bits")
    return notes


def point_again(run: RunDir, state: TrainState) -> None:
    """Writes last.json and best.json again from the restored state: a kill right after a save leaves old ones."""
    checkpoint.point(run.checkpoints, "last", state.step)
    if state.best is not None and (run.checkpoints / checkpoint.name_of(state.best.step)).is_dir():
        checkpoint.point(run.checkpoints, "best", state.best.step)
