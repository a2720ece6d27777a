"""Training from the outside: set-up, the loop, the finish. What the command line and ``import stagewright`` call."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stagewright import checkpoint, recipes
from stagewright.augment.custom import load_custom
from stagewright.build import (
    auto_precision,
    build_state,
    checkpoint_bytes,
    choose_device,
    device_name,
    numerics_of,
    prepare_torch,
)
from stagewright.clock import Clock
from stagewright.data import native
from stagewright.data.decode import Images
from stagewright.data.kept import keep
from stagewright.data.manifest import Manifest
from stagewright.data.sources import Dataset, load_dataset, open_images
from stagewright.errors import CheckpointError, Stopped, StorageError
from stagewright.events import EventLog, Observer
from stagewright.finish import finish, read_summary, write_summary
from stagewright.machine import cores
from stagewright.model.bundle import Bundle, load_bundle
from stagewright.observers.console import Console, ScanProgress
from stagewright.observers.pages import Pages
from stagewright.observers.textlog import TextLog
from stagewright.plan import Plan
from stagewright.recipe import Recipe
from stagewright.record import Recorder
from stagewright.resolve import resolve
from stagewright.run import carry_out
from stagewright.rundir import RunDir, check_room, environment, lock, next_free, own_command
from stagewright.session import Execution, Session
from stagewright.state import TrainState
from stagewright.stop import StopSignal

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run in its directory, as it was left."""

    path: Path

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json``: status, accuracies in percent, seconds, which weights were chosen."""
        return read_summary(RunDir(self.path))

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"

    @cached_property
    def model(self) -> Bundle:
        """The trained model, ready to predict; BundleError while the run has not finished."""
        return load_bundle(self.path)


def train(
    data: str | Path,
    recipe: str | Path | Recipe = "quick",
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    say: Say = print,
    command: Sequence[str] | None = None,
) -> Run:
    """Plans, trains, evaluates and reports; returns the run, finished or stopped on request.

    ``data`` is any DATA form, ``recipe`` a name, a file or an object, ``overrides`` as for ``--set``. The run goes to
    ``out``, or to ``runs/RECIPE-N``. An ``out`` that holds a run is an error, unless ``resume``: then the same plan goes on
    there, and a changed plan forks into a new directory beside it. ``observers`` are told what happens beside the
    console, the log and the pages. Raises StagewrightError for all that a caller can mend, Stopped during the set-up.
    """
    began = time.perf_counter()
    with StopSignal() as stop:
        chosen = recipes.override(recipe, overrides) if isinstance(recipe, Recipe) else None
        chosen = chosen or recipes.load(str(recipe), overrides)
        execution = execution or Execution()
        dataset, plan = prepare(data, chosen, execution, say)
        run, parent = _directory(plan, None if out is None else Path(out), resume, say)
        created = not run.plan.exists()
        if created:
            env = environment(str(data), command or own_command(), execution.device, _device_name(execution))
            run.write_start(plan, dataset.manifest, {**env, "parent": parent, "data_notes": list(dataset.notes)})
            write_excluded(run, dataset)
        elif read_summary(run).get("status") == "finished":
            say(f"{run.root} is finished; nothing is left to do.")
            return Run(run.root)
        try:
            return _carry(run, plan, dataset.manifest, dataset.images, execution, observers, stop, say, began)
        except BaseException:
            if created and not run.events.exists():  # it failed in the set-up, so the directory holds nothing of worth
                shutil.rmtree(run.root, ignore_errors=True)
            raise


def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    say: Say = print,
    command: Sequence[str] | None = None,
    arm: Callable[[Session], None] | None = None,
) -> Run:
    """Goes on with a run from its newest valid checkpoint; a finished run is left as it is.

    ``overrides`` that change the plan fork: a new run beside it begins with this one's newest weights, and names it
    as its parent. ``arm`` is handed the session before the loop begins; the resume check plants its kills there.
    """
    began = time.perf_counter()
    with StopSignal() as stop:
        old = RunDir.existing(Path(run))
        plan, manifest = old.read_plan(), Manifest.read(old.manifest)
        execution = execution or Execution()
        target = old
        changed = plan  # as it was written: this version of stagewright might resolve the recipe in another way
        if overrides:
            changed = resolve(recipes.override(plan.recipe, overrides), plan.dataset, precision=plan.precision)
        if changed.digest == plan.digest:
            plan = changed  # at most how often is saved, which changes nothing that comes out
        else:
            target, plan = _fork(old, plan, changed)
            env = {**old.read_env(), "command": shlex.join(command or own_command()), "parent": str(old.root)}
            target.write_start(plan, manifest, env)
            say(f"A changed plan does not resume: forked {old.root} to {target.root}, from its newest weights.")
        if read_summary(target).get("status") == "finished":
            say(f"{target.root} is finished; nothing is left to do.")
            return Run(target.root)
        return _carry(target, plan, manifest, open_images(manifest), execution, observers, stop, say, began, arm)


def prepare(data: str | Path, recipe: Recipe, execution: Execution, say: Say) -> tuple[Dataset, Plan]:
    """Reads the data set and resolves the plan, telling what was found; nothing is written."""
    with ScanProgress(quiet=execution.quiet) as progress:
        dataset = load_dataset(str(data), recipe.data, recipe.seed, workers=cores(), progress=progress)
    for note in dataset.notes:
        say(note)
    return dataset, resolve(recipe, dataset.manifest.info(), precision=auto_precision(choose_device(execution.device)))


def write_excluded(run: RunDir, dataset: Dataset) -> None:
    """Lists the files that the scan left out, with reasons, in ``excluded.csv`` (only where there are any)."""
    if not dataset.excluded:
        return
    import csv

    with (run.root / "excluded.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows([one.path, one.reason] for one in dataset.excluded)


def _directory(plan: Plan, out: Path | None, resuming: bool, say: Say) -> tuple[RunDir, str | None]:
    """The run's directory, and the parent it forks from."""
    if out is None:
        return RunDir.create(next_free(Path("runs"), plan.recipe.name)), None
    if not (resuming and (out / "plan.json").exists()):
        return RunDir.create(out), None
    old = RunDir(out)
    if old.read_plan().digest == plan.digest:
        return old, None
    new = RunDir.create(next_free(out.parent, out.name))
    say(
        f"The plan of {out} is another ({', '.join(changed_fields(old.read_plan(), plan))}): this one forks to {new.root}."
    )
    return new, str(out)


def changed_fields(old: Plan, new: Plan) -> list[str]:
    """Paths of the recipe fields in which two plans differ, or what else does (data set, precision)."""
    differing = list(_differing(old.recipe.plain(), new.recipe.plain(), ""))
    if old.dataset.digest != new.dataset.digest:
        differing.append("the data set")
    if old.precision != new.precision:
        differing.append(f"precision {old.precision}, now {new.precision}")
    return differing or ["the way this version resolves recipes"]


def _differing(old: Any, new: Any, path: str) -> Sequence[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in {**old, **new}:
            found.extend(_differing(old.get(key), new.get(key), f"{path}.{key}".lstrip(".")))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [one for at in range(len(old)) for one in _differing(old[at], new[at], f"{path}[{at}]")]
    return [] if old == new else [path]


def _fork(old: RunDir, plan: Plan, changed: Plan) -> tuple[RunDir, Plan]:
    """A new directory for the changed plan, which begins with the old run's newest weights unless it names others."""
    recipe = changed.recipe
    if recipe.model.weights == plan.recipe.model.weights:
        newest, _ = checkpoint.newest(old.checkpoints, plan.digest)
        if newest is None:
            raise CheckpointError(
                f"{old.root} has no valid checkpoint to fork from",
                "a run that saved one",
                "train anew with the changed recipe, or give --set model.weights=FILE",
            )
        source = old.checkpoints / checkpoint.name_of(newest.step) / checkpoint.STATE
        recipe = recipe.changed(model={**recipe.model.model_dump(), "weights": str(source.resolve())})
    forked = resolve(recipe, plan.dataset, precision=plan.precision)
    return RunDir.create(next_free(old.root.parent, old.root.name)), forked


def _device_name(execution: Execution) -> str:
    return device_name(choose_device(execution.device))


def _carry(
    run: RunDir,
    plan: Plan,
    manifest: Manifest,
    images: Images,
    execution: Execution,
    observers: Sequence[Observer],
    stop: StopSignal,
    say: Say,
    began: float,
    arm: Callable[[Session], None] | None = None,
) -> Run:
    """Set-up, loop and finish in one directory, alone in it; every way out leaves its mark in summary.json."""
    with lock(run.root), contextlib.ExitStack() as closing:
        session = open_session(run, plan, manifest, images, execution, observers, stop, say, began)
        closing.callback(session.recorder.close)
        status, error = "failed", None
        try:
            write_summary(session, "running")
            if arm is not None:
                arm(session)
            stop.arm()
            complete = carry_out(session) and finish(session)
            status = "finished" if complete else "stopped"
        except Stopped:
            status = "stopped"
            raise
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"
            raise
        finally:
            # On a full disk neither can be written, and the error under way says more than theirs would.
            with contextlib.suppress(StorageError, OSError):
                if status != "finished":
                    session.recorder.log.emit("stopped", session.state.step, reason=error or stop.reason or status)
                    write_summary(session, status, error=error)
    return Run(run.root)


def open_session(
    run: RunDir,
    plan: Plan,
    manifest: Manifest,
    images: Images,
    execution: Execution,
    observers: Sequence[Observer],
    stop: StopSignal,
    say: Say,
    began: float | None = None,
) -> Session:
    """Builds or restores the state and takes up the run's files; everything that can fail before the first step does.

    ``began`` is the moment (``time.perf_counter``) from which the set-up is charged.
    """
    device = choose_device(execution.device)
    execution = replace(execution, device=str(device))
    prepare_torch(plan.recipe, device)
    for name in {stage.augment.custom for stage in plan.stages if stage.augment.custom}:
        load_custom(name)  # a function that is not there is told of now, not in the middle of the run
    restored, rejected = checkpoint.newest(run.checkpoints, plan.digest)
    for one in rejected:
        say(f"Passed over {one.name}: {one.reason}")
    if rejected and restored is None:
        say("No checkpoint is left that can be used: the run starts over at step 0.")
    if execution.keep_decoded:
        smallest, exact = min(stage.image_size for stage in plan.stages), plan.recipe.decode == "exact"
        images = keep(images, manifest.widths, manifest.heights, smallest, exact=exact)
    state, lines = build_state(plan, device, restored)
    if restored is not None:
        relink(run, state)
    else:
        check_room(run.root, checkpoint_bytes(state, plan))
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
    elif (decoder := native.describe()) != run.read_env().get("decoder", decoder):
        text = f"pictures are decoded by {decoder} now and were by {run.read_env()['decoder']}: within rounding, not the same"
        log.emit("notice", state.step, text=text)
    for line in lines:
        log.emit("notice", state.step, text=line)
    numerics = numerics_of(plan)
    say(f"Writing to {run.root}")
    return Session(plan, manifest, images, run, execution, numerics, state, recorder, clock, stop)


def relink(run: RunDir, state: TrainState) -> None:
    """Points ``last`` and ``best`` to where the restored state says: a kill between saving and linking leaves them behind."""
    checkpoint.link(run.checkpoints, "last", state.step)
    if state.best is not None and (run.checkpoints / checkpoint.name_of(state.best.step)).is_dir():
        checkpoint.link(run.checkpoints, "best", state.best.step)


def _own_observers(run: RunDir, plan: Plan, execution: Execution) -> list[Observer]:
    stages = [(stage.name, stage.first_step, stage.num_steps) for stage in plan.stages]
    own: list[Observer] = [Console(plan.total_steps, stages, quiet=execution.quiet), TextLog(run.log)]
    return [*own, Pages(run.root)] if execution.pages else own
