"""The public functions ``train`` and ``resume``, for Python and the command line: set-up, training loop, finish."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagewright.api.carry_out import carry_out, is_carried_out, own_images, own_manifest, train_and_finish
from stagewright.api.fork import forked_plan, new_directory, refuse_without_effect, write_excluded
from stagewright.api.mirrored import (
    Place,
    asked_place,
    bring_up_to_date,
    brought,
    mirror_of_fork,
    mirroring,
    refuse_from_start,
    taken_up,
)
from stagewright.api.pause import check_until, pausing, saved_step
from stagewright.api.prepare import prepare, tell_time
from stagewright.api.ranks import Party, led
from stagewright.api.run import Run, Say
from stagewright.api.run_threads import computing
from stagewright.data.dataset import Dataset
from stagewright.plan.budget import Budget, refuse_second_length
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.auto_fields import asks_for_lr, inherited_lr_notice
from stagewright.preflight.budget_length import within_budget
from stagewright.preflight.early_lanes import check_processes
from stagewright.preflight.lr_find import RunArtifacts
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request, recipe_flags
from stagewright.rundir.claim import claimed_next, held, refuse_used
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import changed_code, code_digests, environment, own_command
from stagewright.rundir.events import Observer
from stagewright.rundir.held_test import Hold, hold_of
from stagewright.rundir.logs import set_record_aside
from stagewright.rundir.summary import record_actual_seconds
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device, computing_with, device_name, require_known_processor
from stagewright.system.memory import memory_in_use
from stagewright.system.output import failsafe_notices
from stagewright.system.signals import StopSignal
from stagewright.trackers.names import usable
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Decide, Session
from stagewright.training.setup import RunInputs


def train(  # the function behind `stagewright train`: most keywords are its options, by the same names
    data: str | Path,
    recipe: str | Path | Recipe | RecipeRequest = "auto",
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    tiny: bool = False,
    budget: str | Budget | None = None,
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    model: str | Callable[..., object] | None = None,
    weights: str | Path | None = None,
    epochs: str | float | None = None,
    batch_size: int | None = None,
    lr: str | float | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    loss: str | Callable[..., object] | None = None,
    optimizer: str | Callable[..., object] | None = None,
    expected: str | None = None,
    decide: Decide | None = None,
    until: str | None = None,
    say: Say = print,
    command: Sequence[str] | None = None,
    party: Party | None = None,
) -> Run:
    """Plans, trains, evaluates and reports; returns the run, finished or stopped on request.

    ``data`` is any form of DATA on the command line, ``recipe`` a name, a file or an object, ``overrides`` as for ``--set``. The
    run is written to ``out``, or to ``runs/RECIPE-N``. If ``out`` holds a run, this is an error, unless ``resume`` is set: then
    that run is continued if its plan is the same, and a changed plan forks to a new directory next to it. ``tiny`` shortens
    every stage to a few steps on a few images (:mod:`stagewright.recipe.tiny`). ``budget``, a time such as ``90s`` from now or a
    :class:`~stagewright.plan.budget.Budget`, chooses the length. ``observers`` are notified too. ``expected`` says for page and
    model card what other runs let expect, ``say`` is called with messages.

    ``decide`` is called with the event of each evaluation, once the state is saved; if it returns False, the run is paused: its
    status is ``paused``, and :func:`resume` goes on with the same bits. ``until``, such as ``40%``, ``12ep`` or ``5000st``,
    pauses it at the first planned evaluation there or later.

    ``model`` to ``optimizer`` replace the recipe's values, as the command's flags do; None keeps them. ``weights`` is a file,
    the directory of a run, ``default`` or ``none``; ``epochs`` a number, or a text such as ``500st``; ``lr`` a number or
    ``auto``. ``model``, ``loss`` and ``optimizer`` are names, or functions at the top level of a module (docs/extend.md).
    ``party``: the processes that carry out the run with this one (:mod:`stagewright.api.ranks`).

    Raises StagewrightError for errors that the caller can fix, and Stopped if a stop is requested during the set-up.
    """
    began, say = time.perf_counter(), failsafe_notices(say)
    with StopSignal() as stop, contextlib.ExitStack() as holding:
        limit, execution = _limit(budget, epochs, until), usable(execution or Execution())
        flags = recipe_flags(model, weights, batch_size, lr, image_size, seed, loss, optimizer)
        request = as_request(recipe, overrides, flags, epochs)
        device = _prepared_device(execution, holding)
        points, artifacts = {"at the start": memory_in_use(device)}, RunArtifacts()
        out, old, mirror, earlier = _place(out, resume, execution, holding)
        dataset, plan = prepare(data, request, execution, say, tiny=tiny, earlier=earlier, artifacts=artifacts)
        execution = holding.enter_context(computing(execution, plan, say, old and old.read_env()))
        points["with the data read"], account = memory_in_use(device), dict[str, Any]()
        if limit is not None:
            plan, account["budget"] = within_budget(plan, dataset, execution, limit, out, say)
        elif request.is_auto and old is None and not tiny:
            tell_time(plan, dataset, execution, say, began)
        same = old if earlier is not None and earlier.digest == plan.digest else None
        same, notes = brought(mirror, plan, (same, old), out, holding, say)
        decide = pausing(until, decide, plan, 0 if same is None else saved_step(same))
        if same is not None and is_carried_out(same, say):
            bring_up_to_date(mirror, same, plan, execution, stop, say)
            return Run(same.root)
        if (run := same) is None:
            env = environment(str(data), command or own_command(), execution.device, device_name(device))
            env |= {"parent": old and str(old.root), "expected": expected, **account, **_hold(execution, old)}
            run = holding.enter_context(new_directory(plan, out, old, say))
            _write_start(run, plan, dataset, artifacts, env)
        notes = [*changed_code(plan.recipe, run.read_env()), *notes]
        copy = holding.enter_context(mirroring(mirror, run, plan, execution, stop, say))
        about = (execution, stop, say, observers, began, points, notes, decide)
        inputs = RunInputs(run, plan, dataset.manifest, dataset.images, *about, mirror=copy)
        done = carry_out(led(party, inputs), lambda session: train_and_finish(session, say))
        _tell_account(run, limit, say)
        return done


def _prepared_device(execution: Execution, holding: contextlib.ExitStack) -> torch.device:
    """Returns the device of the training; torch computes with the threads that were asked for while ``holding`` is open."""
    holding.enter_context(computing_with(execution.threads))
    require_known_processor()
    return choose_device(execution.device)


def _place(
    out: str | Path | None, resume: bool, execution: Execution, holding: contextlib.ExitStack
) -> tuple[Path | None, RunDir | None, Place | None, Plan | None]:
    """Returns where the run is written, None for the next free folder; the locked run that is there if it may be resumed; the
    mirror, if there is one; and the plan of the run in the one or the other."""
    place, old = None if out is None else user_path(out), None
    if place is not None and resume and (place / "plan.json").exists():
        old = holding.enter_context(held(place))
    elif place is not None:
        refuse_used(place)
    mirror = asked_place(execution, place, resume=resume)
    return place, old, mirror, old.read_plan() if old is not None else mirror.plan if mirror is not None else None


def _tell_account(run: RunDir, limit: Budget | None, say: Say) -> None:
    if limit is not None and (told := record_actual_seconds(run, limit)) is not None:
        say(told)


def _limit(budget: str | Budget | None, epochs: object, until: str | None) -> Budget | None:
    """Returns the budget, which counts from now if it is a text; RecipeError if the length is given too, and for a wrong
    ``until``."""
    if until is not None:
        check_until(until)
    if budget is None:
        return None
    refuse_second_length(budget if isinstance(budget, str) else budget.text, epochs)
    return Budget.parse(budget) if isinstance(budget, str) else budget


def _hold(execution: Execution, old: RunDir | None) -> dict[str, Hold]:
    """Returns what env.json of a new run says of its test part: a fork of ``old`` leaves closed what that left closed."""
    hold = (old is not None and hold_of(old)) or execution.hold_test
    return {"hold_test": hold} if hold else {}


def _write_start(run: RunDir, plan: Plan, dataset: Dataset, artifacts: RunArtifacts, env: Mapping[str, Any]) -> None:
    """Writes the files of a run that begins."""
    write_excluded(run, dataset)
    artifacts.write(run.root)
    notes = [*dataset.notes, *artifacts.notes]
    run.write_start(plan, dataset.manifest, {**env, "data_notes": notes, "functions": code_digests(plan.recipe)})


def resume(  # the function behind `stagewright resume`: most keywords are its options
    run: str | os.PathLike[str],
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    from_start: bool = False,
    data: str | Path | None = None,
    verify: bool = False,
    decide: Decide | None = None,
    until: str | None = None,
    say: Say = print,
    command: Sequence[str] | None = None,
    party: Party | None = None,
    arm: Callable[[Session], AfterUpdate | None] | None = None,
) -> Run:
    """Resumes a run from its newest valid checkpoint; a finished run is not changed.

    ``run`` is a directory, or the URL of a mirror (``execution.mirror``), which is fetched to ``out``, by default to
    ``runs/NAME``. A run with a mirror goes on from the newest checkpoint of both.

    ``overrides`` that change the plan fork the run: a new run in the same folder starts from this run's newest weights, and
    names it as its parent. Fields that a started run cannot change raise RecipeError. ``from_start`` moves the old record to a
    subfolder and starts at step 0. ``data`` is the new location of the images if they were moved. Images whose files have
    changed are hashed again (all images with ``verify``); if an image is different, the run is refused with DataError. ``arm``
    is called with the session before the loop, and may return a function that the loop calls after each update (the resume
    check uses it to kill the process). ``decide``, ``until`` and ``party`` as for ``train``. ``say`` is called with messages
    for the user, ``command`` is recorded in the env.json of a fork.

    Raises StagewrightError for errors that the caller can fix, and Stopped if a stop is requested during the set-up.
    """
    began, say = time.perf_counter(), failsafe_notices(say)
    with StopSignal() as stop, contextlib.ExitStack() as holding:
        execution = usable(execution or Execution())
        old, mirror, fetched_notes = taken_up(run, out, execution, holding, say)
        target, plan = old, old.read_plan()
        manifest = own_manifest(old, plan)
        execution = holding.enter_context(computing(execution, plan, say, old.read_env()))
        changed = plan  # not resolved again, because this version of stagewright might resolve the recipe differently
        if overrides:
            recipe = recipes.override(plan.recipe, overrides)
            refuse_without_effect(plan.recipe, recipe)
            changed = resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)
        forks = changed.digest != plan.digest
        check_processes(changed.most_devices, execution.processes, None if forks else old.root)
        plan = forked_plan(old, plan, changed) if forks else changed
        decide = pausing(until, decide, plan, 0 if forks or from_start else saved_step(old))
        if from_start:
            refuse_from_start(mirror)
        if forks:
            mirror = mirror_of_fork(mirror, execution, plan)
            target = holding.enter_context(claimed_next(old.root.parent, old.root.name))
            env = {**old.read_env(), "command": shlex.join(command or own_command()), "parent": str(old.root)}
            env |= {"functions": code_digests(plan.recipe), **_hold(execution, old)}
            target.write_start(plan, manifest, env)
            say(f"A changed plan cannot resume: forked {old.root} to {target.root}, from its newest weights.")
            if asks_for_lr(plan.recipe):
                say(inherited_lr_notice(plan.measured, old.root))
        if from_start and (kept := set_record_aside(target)) is not None:
            say(f"The old record of {target.root} is now in {kept}; the run starts at step 0.")
        if is_carried_out(target, say):
            bring_up_to_date(mirror, target, plan, execution, stop, say)
            return Run(target.root)
        manifest, images, notes = own_images(target, manifest, data, everything=verify, quiet=execution.quiet)
        notes = [*changed_code(plan.recipe, target.read_env()), *fetched_notes, *notes]
        copy = holding.enter_context(mirroring(mirror, target, plan, execution, stop, say))
        about = {"notes": notes, "decide": decide, "mirror": copy}
        inputs = RunInputs(target, plan, manifest, images, execution, stop, say, observers, began, **about)
        return carry_out(led(party, inputs), lambda session: train_and_finish(session, say, arm))
