"""Prepares a run: reads the data set, chooses the recipe and resolves the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stagewright.api.order_notes import with_order_notes
from stagewright.api.run import Say
from stagewright.api.run_threads import computing
from stagewright.data.class_names import display_names
from stagewright.data.dataset import Dataset, in_blocks, load_dataset
from stagewright.data.sample import sample
from stagewright.engine.build import check_trained
from stagewright.engine.lane_check import small_lanes_notice
from stagewright.engine.numerics import auto_precision
from stagewright.errors import RecipeError
from stagewright.observers.progress_line import ProgressLine
from stagewright.plan.cost import Costs
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.auto_fields import known_from, measure
from stagewright.preflight.cost_probe import probe
from stagewright.preflight.early_lanes import check_early
from stagewright.preflight.lr_find import RunArtifacts
from stagewright.preflight.quick_forecast import quick_forecast
from stagewright.preflight.survey import choose_recipe
from stagewright.recipe import recipes
from stagewright.recipe import tiny as rehearsal
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request, recipe_flags
from stagewright.system.device import choose_device
from stagewright.system.machine import cores, process_start_time
from stagewright.system.output import tell
from stagewright.text import span_text


def prepare(
    data: str | Path,
    request: RecipeRequest,
    execution: Execution,
    say: Say,
    *,
    tiny: bool = False,
    earlier: Plan | None = None,
    artifacts: RunArtifacts | None = None,
    known: Dataset | None = None,
) -> tuple[Dataset, Plan]:
    """Reads the data set, measures the recipe's ``auto`` fields, and resolves the plan; writes nothing.

    ``tiny`` as for :func:`stagewright.api.train.train`; ``artifacts`` as for
    :func:`stagewright.preflight.auto_fields.measure`. Choices and measurements of the plan ``earlier`` are reused. ``known`` is
    the data set if it has been read already, with the request's settings.
    """
    check_early(request.preliminary, execution, complete=not (request.is_auto or tiny))
    dataset, recipe = gather(data, request, execution, say, tiny=tiny, earlier=earlier, known=known)
    measured = measure(recipe, dataset, execution, say, known_from(earlier, recipe, dataset), artifacts)
    precision = auto_precision(choose_device(execution.device))
    plan = resolve(recipe, dataset.manifest.info(), precision=precision, measured=measured)
    check_trained(plan)
    dataset = with_order_notes(plan, dataset, execution, say)
    if (notice := small_lanes_notice(plan)) is not None:
        say(notice)
    return dataset, plan


def make_plan(  # the function behind `stagewright plan`: most keywords are its options, by the same names
    data: str | Path,
    recipe: str | Path | Recipe | RecipeRequest = "auto",
    *,
    overrides: Sequence[str] = (),
    tiny: bool = False,
    execution: Execution | None = None,
    model: str | Callable[..., object] | None = None,
    weights: str | Path | None = None,
    epochs: str | float | None = None,
    batch_size: int | None = None,
    lr: str | float | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    say: Say = tell,
) -> Plan:
    """The plan that :func:`stagewright.api.train.train` would carry out: whole steps, sizes and learning rates. Nothing is
    trained, but for what ``lr: auto`` measures, and nothing is written.

    Arguments as for ``train``; ``say`` takes sentences on what was found. StagewrightError for all that a caller can mend.
    """
    flags = recipe_flags(model=model, weights=weights, batch_size=batch_size, lr=lr, image_size=image_size, seed=seed)
    request = as_request(recipe, overrides, flags, epochs)
    _, plan = prepare(data, request, execution or Execution(), say, tiny=tiny)
    return plan


def probed(plan: Plan, dataset: Dataset, execution: Execution, say: Say) -> Costs:
    """Measures the costs of ``plan`` on this machine (:func:`stagewright.preflight.cost_probe.probe`)."""
    say(f"Measuring this machine for about {execution.probe_seconds:g} s.")
    startup_seconds = time.monotonic() - process_start_time()
    with computing(execution, plan, say) as own:
        return probe(plan, dataset, own, Path("runs"), seconds=own.probe_seconds, startup_seconds=startup_seconds)


def tell_time(plan: Plan, dataset: Dataset, execution: Execution, say: Say, began: float) -> None:
    """Says how long a run of ``plan`` will take, measured in about 3 seconds, with what has passed since ``began``
    (``time.perf_counter``), as reading the data; says nothing for other devices than CPUs and for several processes."""
    if choose_device(execution.device).type == "cpu" and execution.processes == 1:
        passed = time.perf_counter() - began
        seconds = passed + quick_forecast(plan, dataset)
        say(f"It should take about {span_text(seconds)} on this machine, from its start to the report.")


def gather(
    data: str | Path,
    request: RecipeRequest,
    execution: Execution,
    say: Say,
    *,
    tiny: bool = False,
    earlier: Plan | None = None,
    known: Dataset | None = None,
) -> tuple[Dataset, Recipe]:
    """Reads the data set, chooses the recipe if it is ``auto``, and tells the user what was found.

    Arguments as for :func:`prepare`.
    """
    dataset = known or read_data(data, request, execution)
    for note in (said := dataset.notes):  # now: choosing a recipe takes seconds
        say(note)
    unused = _unused_settings(str(data), request, dataset)
    recipe, reasons = request.preliminary, ()
    if request.is_auto:
        recipe, reasons = choose_recipe(request, dataset, choose_device(execution.device), earlier)
    names, name_notes = display_names(recipe.data.names, dataset.manifest.classes)
    if names:  # the run stores the names, not where they were
        recipe = recipe.changed(data=recipe.data.model_copy(update={"names": names}))
    if tiny:
        say(rehearsal.describe(recipe))
        dataset, recipe = sample(dataset, **rehearsal.NUM_IMAGES), rehearsal.tiny(recipe)
    if recipe.order == "blocked":
        dataset = in_blocks(dataset)
    for note in (*dataset.notes[len(said) :], *name_notes, *unused, *reasons):
        say(note)
    return dataset, recipe


def read_data(data: str | Path, request: RecipeRequest, execution: Execution) -> Dataset:
    """Reads the data set with the settings of ``request``, and shows how far it is."""
    with ProgressLine(quiet=execution.quiet) as progress:
        return load_dataset(str(data), request.preliminary.data, workers=cores(), progress=progress)


def _unused_settings(data: str, request: RecipeRequest, dataset: Dataset) -> list[str]:
    """Returns notes on settings of the recipe that have no effect since DATA gives the parts; RecipeError if the user has
    requested them for this run."""
    settings = request.preliminary.data
    unused = sorted(dataset.unused & settings.model_fields_set)
    given = [name for name in unused if ("data", name) in recipes.fields_set(request.overrides)]
    if given:
        raise RecipeError(
            f"--set {', '.join(f'data.{name}={getattr(settings, name)}' for name in given)} has no effect: {data!r} gives its "
            "own parts",
            "data.val, data.test, data.near and data.split_seed with data that have no val and test of their own",
            "leave it out; stagewright data split DATA --anew makes other parts",
        )
    return [f"data.{name}={getattr(settings, name)} of the recipe is not used: DATA gives the parts" for name in unused]
