"""Training from the outside: set-up, the loop, the finish. What the command line and ``import stagewright`` call."""

from __future__ import annotations

import contextlib
import csv
import io
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stagewright import checkpoint, recipes
from stagewright.budget import Budget, close_account
from stagewright.build import auto_precision, choose_device, device_name
from stagewright.claim import claimed, claimed_next, held, refuse_used
from stagewright.costs import Costs
from stagewright.data.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.sample import sample
from stagewright.data.sources import Dataset, load_dataset, open_images
from stagewright.data.verify import moved, verify_images
from stagewright.errors import CheckpointError, RecipeError, Stopped, StorageError
from stagewright.events import Observer
from stagewright.execution import Execution
from stagewright.finish import finish, read_summary, write_summary
from stagewright.machine import cores, process_began
from stagewright.measure import Findings, asks_for_lr, kept_sentence, known_from, measure
from stagewright.memory import Points, memory_in_use
from stagewright.model.bundle import Bundle, load_bundle
from stagewright.observers.console import ScanProgress
from stagewright.opening import open_session
from stagewright.pending import Pending, wanted
from stagewright.plan import Plan
from stagewright.probe import probe, within_budget
from stagewright.recipe import Recipe
from stagewright.recipes import tiny as rehearsal
from stagewright.resolve import resolve
from stagewright.run import carry_out
from stagewright.rundir import RunDir, environment, own_command
from stagewright.runlogs import set_record_aside
from stagewright.session import Session
from stagewright.stop import StopSignal
from stagewright.storage.files import user_path, write_whole
from stagewright.survey import settle
from stagewright.system.output import forgiving

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
    recipe: str | Path | Recipe | Pending = "auto",
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    tiny: bool = False,
    budget: Budget | None = None,
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    say: Say = print,
    command: Sequence[str] | None = None,
) -> Run:
    """Plans, trains, evaluates and reports; returns the run, finished or stopped on request.

    ``data`` is any DATA form, ``recipe`` a name, a file or an object, ``overrides`` as for ``--set``. The run goes to
    ``out``, or to ``runs/RECIPE-N``. An ``out`` that holds a run is an error, unless ``resume``: then the same plan goes on
    there, and a changed plan forks into a new directory beside it. ``tiny`` rehearses: every stage in a few steps, on a few
    pictures (:mod:`stagewright.recipes.tiny`). ``observers`` are told what happens beside the console, the log and the pages.
    ``budget`` chooses the length (:mod:`stagewright.budget`). Raises StagewrightError for all that a caller can mend, Stopped
    during the set-up.
    """
    began, say = time.perf_counter(), forgiving(say)
    with StopSignal() as stop, contextlib.ExitStack() as holding:
        chosen = wanted(recipe, overrides)
        execution = execution or Execution()
        device = choose_device(execution.device)
        points = {"at the start": memory_in_use(device)}
        out = None if out is None else user_path(out)
        old = None
        if out is not None and resume and (out / "plan.json").exists():
            old = holding.enter_context(held(out))
        elif out is not None:
            refuse_used(out)
        earlier = None if old is None else old.read_plan()
        findings = Findings()
        dataset, plan = prepare(data, chosen, execution, say, tiny=tiny, earlier=earlier, findings=findings)
        points["with the data read"] = memory_in_use(device)
        account: dict[str, Any] = {}
        if budget is not None:
            plan, account["budget"] = within_budget(plan, dataset, execution, budget, out, say)
        if old is not None and earlier is not None and earlier.digest == plan.digest:
            run = old
            if _is_finished(run, say):
                say(f"{run.root} is finished; nothing is left to do.")
                return Run(run.root)
        else:
            run = holding.enter_context(_new_directory(plan, out, old, say))
            env = environment(str(data), command or own_command(), execution.device, device_name(device))
            notes = [*dataset.notes, *findings.notes]
            write_excluded(run, dataset)
            findings.write(run.root)
            parent = None if old is None else str(old.root)
            run.write_start(plan, dataset.manifest, {**env, "parent": parent, "data_notes": notes, **account})
        done = _carry(run, plan, dataset.manifest, dataset.images, execution, observers, stop, say, began, points)
        if budget is not None and (told := close_account(run, budget)) is not None:
            say(told)
        return done


def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    from_start: bool = False,
    data: str | Path | None = None,
    verify: bool = False,
    say: Say = print,
    command: Sequence[str] | None = None,
    arm: Callable[[Session], None] | None = None,
) -> Run:
    """Goes on with a run from its newest valid checkpoint; a finished run is left as it is.

    ``overrides`` that change the plan fork: a new run in the same folder begins with this one's newest weights, and names it
    as its parent; RecipeError for those that a run which has begun cannot follow. ``from_start`` keeps all that the run has
    recorded under another name and begins at step 0. ``data`` says where the pictures are now, if they moved. Pictures whose
    files changed are hashed again, with ``verify`` all of them, and a run whose pictures are others is refused.
    ``arm`` is handed the session before the loop begins; the resume check
    plants its kills there. Raises StagewrightError for all that a caller can mend, Stopped during the set-up.
    """
    began, say = time.perf_counter(), forgiving(say)
    with StopSignal() as stop, contextlib.ExitStack() as holding:
        target = old = holding.enter_context(held(user_path(run)))
        plan = old.read_plan()
        manifest = _own_manifest(old, plan)
        execution = execution or Execution()
        changed = plan  # as it was written: this version of stagewright might resolve the recipe in another way
        if overrides:
            recipe = recipes.override(plan.recipe, overrides)
            _refuse_without_effect(plan.recipe, recipe)
            changed = resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)
        if changed.digest == plan.digest:
            plan = changed  # at most how often is saved, which changes nothing that comes out
        else:
            plan = _forked_plan(old, plan, changed)
            target = holding.enter_context(claimed_next(old.root.parent, old.root.name))
            env = {**old.read_env(), "command": shlex.join(command or own_command()), "parent": str(old.root)}
            target.write_start(plan, manifest, env)
            say(f"A changed plan does not resume: forked {old.root} to {target.root}, from its newest weights.")
            if asks_for_lr(plan.recipe):
                say(kept_sentence(plan.measured, old.root))
        if from_start and (kept := set_record_aside(target)) is not None:
            say(f"What {target.root} had recorded is kept in {kept}; it begins at step 0.")
        if _is_finished(target, say):
            say(f"{target.root} is finished; nothing is left to do.")
            return Run(target.root)
        notes = []
        if data is not None:
            manifest = moved(manifest, user_path(data))
            notes.append(f"the pictures are in {manifest.root} now")
        images = open_images(manifest)
        with ScanProgress("comparing the pictures", quiet=execution.quiet) as progress:
            verify_images(manifest, everything=verify, workers=cores(), progress=progress)
        if data is not None:
            manifest.write(target.manifest)
        return _carry(target, plan, manifest, images, execution, observers, stop, say, began, {}, arm, notes)


def prepare(
    data: str | Path,
    recipe: Recipe | Pending,
    execution: Execution,
    say: Say,
    *,
    tiny: bool = False,
    earlier: Plan | None = None,
    findings: Findings | None = None,
) -> tuple[Dataset, Plan]:
    """Reads the data set, measures what the recipe leaves to that, and resolves the plan; nothing is written.

    ``tiny`` as for :func:`train`; what the plan ``earlier`` has chosen and measured is not asked again; ``findings`` as for
    :func:`stagewright.measure.measure`.
    """
    dataset, settled = gather(data, recipe, execution, say, tiny=tiny, earlier=earlier)
    measured = measure(settled, dataset, execution, say, known_from(earlier, settled, dataset), findings)
    precision = auto_precision(choose_device(execution.device))
    return dataset, resolve(settled, dataset.manifest.info(), precision=precision, measured=measured)


def probed(plan: Plan, dataset: Dataset, execution: Execution, say: Say) -> Costs:
    """What ``plan`` takes on this machine (:func:`stagewright.probe.probe`), before a run of it is begun."""
    say(f"Measuring this machine for about {execution.probe_seconds:g} s.")
    startup_seconds = time.monotonic() - process_began()
    return probe(
        plan, dataset, execution, Path("runs"), seconds=execution.probe_seconds, startup_seconds=startup_seconds
    )


def gather(
    data: str | Path,
    recipe: Recipe | Pending,
    execution: Execution,
    say: Say,
    *,
    tiny: bool = False,
    earlier: Plan | None = None,
) -> tuple[Dataset, Recipe]:
    """Reads the data set and settles the recipe, telling what was found. Arguments as for :func:`prepare`."""
    with ScanProgress(quiet=execution.quiet) as progress:
        dataset = load_dataset(str(data), recipe.data, recipe.seed, workers=cores(), progress=progress)
    reasons: tuple[str, ...] = ()
    if isinstance(recipe, Pending):
        recipe, reasons = settle(recipe, dataset, choose_device(execution.device), earlier)
    if tiny:
        say(rehearsal.describe(recipe))
        dataset, recipe = sample(dataset, **rehearsal.PICTURES), rehearsal.tiny(recipe)
    for note in (*dataset.notes, *reasons):
        say(note)
    return dataset, recipe


def write_excluded(run: RunDir, dataset: Dataset) -> None:
    """Lists the files that the scan left out, with reasons, in ``excluded.csv`` (only where there are any)."""
    if not dataset.excluded:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "reason"])
    writer.writerows([one.path, one.reason] for one in dataset.excluded)
    write_whole(run.root / "excluded.csv", text.getvalue().encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def _new_directory(plan: Plan, out: Path | None, old: RunDir | None, say: Say) -> Iterator[RunDir]:
    """A new run's directory, held: ``out``, or a numbered one; next to ``old`` where the plan forks from that run."""
    if out is None:
        claim = claimed_next(Path("runs"), plan.recipe.name)
    elif old is None:
        claim = claimed(out)
    else:
        claim = claimed_next(out.parent, out.name)
    with claim as run:
        if old is not None:
            what = ", ".join(changed_fields(old.read_plan(), plan))
            say(f"The plan of {out} is another ({what}): this one forks to {run.root}.")
        yield run


def _own_manifest(run: RunDir, plan: Plan) -> Manifest:
    """The manifest of ``run``; CheckpointError where it is another run's."""
    manifest = Manifest.read(run.manifest)
    if manifest.digest != plan.dataset.digest:
        raise CheckpointError(
            f"{run.manifest} is not the one that the plan was made for (digest {manifest.digest[:12]}, planned "
            f"{plan.dataset.digest[:12]})",
            "the manifest.parquet that the run wrote",
            "restore it from a copy",
        )
    return manifest


def _is_finished(run: RunDir, say: Say) -> bool:
    """Whether nothing is left to do; a summary that is damaged says nothing, and is written again."""
    try:
        return read_summary(run).get("status") == "finished"
    except CheckpointError:
        say(f"{run.summary} is damaged; it is written again.")
        return False


_FREE = frozenset({"checkpoints.every", "checkpoints.keep", "data.max_unreadable"})
"""What may change in a run that has begun, without effect on what comes out."""


def _refuse_without_effect(old: Recipe, new: Recipe) -> None:
    """RecipeError for overrides that a resume would take and not follow: the split, the name and texts are settled."""
    fixed = [
        path
        for path in _differing(old.plain(), new.plain(), "")
        if path.split(".")[0] in ("data", "name", "description")
    ]
    fixed = [path for path in fixed if path not in _FREE]
    if fixed:
        raise RecipeError(
            f"--set {', '.join(fixed)} cannot change in a run that has begun: its pictures, their parts and its name are settled",
            f"fields that take effect, which fork the run; and {', '.join(sorted(_FREE))}, which change nothing that comes out",
            "stagewright train DATA begins a new run with them (--weights RUN starts from this run's model)",
        )


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


def _forked_plan(old: RunDir, plan: Plan, changed: Plan) -> Plan:
    """The changed plan, which begins with the old run's newest weights unless it names others."""
    recipe = changed.recipe
    if recipe.model.weights == plan.recipe.model.weights:
        newest, _ = checkpoint.newest(old.checkpoints, plan.digest)
        if newest is None:
            raise CheckpointError(
                f"{old.root} has no valid checkpoint to fork from",
                "a run that saved one",
                "train again with the changed recipe, or give --set model.weights=FILE",
            )
        source = old.checkpoints / checkpoint.name_of(newest.step) / checkpoint.STATE
        recipe = recipe.changed(model={**recipe.model.model_dump(), "weights": str(source.resolve())})
    return resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)


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
    points: Points,
    arm: Callable[[Session], None] | None = None,
    notes: Sequence[str] = (),
) -> Run:
    """Set-up, loop and finish in one directory, which is held; every way out leaves its mark in summary.json."""
    with contextlib.ExitStack() as closing:
        session = open_session(run, plan, manifest, images, execution, observers, stop, say, began, points, notes)
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
