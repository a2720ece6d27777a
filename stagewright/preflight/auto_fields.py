"""Measures the values of a recipe's ``auto`` fields on this machine and data, before the plan is made.

Each value is measured once and stored in the plan (:class:`stagewright.plan.plan.Measured`), so that a resumed run does not
measure again. The curves behind it are written to the run's directory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagewright.data.dataset import Dataset
from stagewright.engine.numerics import auto_eval_precision, auto_precision, prepare_torch
from stagewright.errors import RangeTestError
from stagewright.plan.execution import Execution
from stagewright.plan.lr_curve import NAME, lr_text, suggest
from stagewright.plan.plan import Measured, Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.lr_find import RunArtifacts, caption, range_test_files, run_range_test, sentence
from stagewright.preflight.micro_batch import fitting_micro_batch, resident_bytes
from stagewright.preflight.range_test import Sweep
from stagewright.preflight.upper import asks_for_upper, upper_of
from stagewright.recipe.recipe import Recipe
from stagewright.system.device import choose_device
from stagewright.system.isolation import preserve_global_state

Say = Callable[[str], None]


def measure(
    recipe: Recipe,
    dataset: Dataset,
    execution: Execution,
    say: Say,
    known: Measured | None = None,
    artifacts: RunArtifacts | None = None,
) -> Measured:
    """Returns the values of the ``auto`` fields of ``recipe`` on this machine and data; None for a field that is not ``auto``.

    Values in ``known`` are not measured again. ``say`` is called with sentences about progress and results; ``artifacts``
    collects notes and files for the run's directory. RangeTestError if no learning rate is found.
    """
    artifacts = artifacts or RunArtifacts()
    upper = None
    if asks_for_upper(recipe):
        upper = (known and known.upper) or upper_of(recipe, len(dataset.manifest.classes))
        recipe = recipe.with_upper(upper)
    spread = known.spread if known is not None else None
    if known is None and execution.processes > 1 and recipe.spread == 1:
        spread = execution.processes
    if spread is not None:
        recipe = recipe.changed(spread=spread)  # for what is measured
    if known is None:
        known = Measured(micro_batch_size=_fitting(recipe, dataset, execution, say, artifacts))
    lr = None
    if asks_for_lr(recipe):
        lr = known.lr or _measured_lr(recipe, dataset, execution, say, artifacts, known.micro_batch_size)
        if lr == known.lr:
            say(f"lr: auto is {lr_text(lr)}, as found when the run began.")
    precision = known.eval_precision or auto_eval_precision(choose_device(execution.device))
    asked = recipe.eval.precision == "auto"
    return Measured(
        lr=lr,
        micro_batch_size=known.micro_batch_size,
        spread=spread,
        upper=upper,
        eval_precision=precision if asked else None,
    )


def _fitting(recipe: Recipe, dataset: Dataset, execution: Execution, say: Say, artifacts: RunArtifacts) -> int | None:
    """Returns the value of ``micro_batch_size: auto``: how many images fit on the device at once, or None for whole batches."""
    device = choose_device(execution.device)
    if recipe.micro_batch_size != "auto" or device.type != "cuda":
        return None
    # The learning rate does not affect memory, so any value will do.
    plan = resolve(recipe, dataset.manifest.info(), precision=auto_precision(device), measured=Measured(lr=1e-3))
    with preserve_global_state():
        prepare_torch(recipe, device)
        reserved = resident_bytes(plan, dataset) if execution.keep_decoded else 0
        found = fitting_micro_batch(plan, device, reserved_bytes=reserved)
    if found.notice is not None:
        artifacts.notes.append(found.notice)
        say(found.notice)
    return found.micro_batch_size


def asks_for_lr(recipe: Recipe) -> bool:
    """Whether the learning rate of any stage depends on ``lr: auto``."""
    timed = [stage for stage in recipe.resolved_stages() if stage.fit == "updates"]
    return any((stage.lr or recipe.lr).peak == "auto" for stage in timed)


def known_from(earlier: Plan | None, recipe: Recipe, dataset: Dataset) -> Measured | None:
    """Returns the measured values of an earlier plan if they are valid for ``recipe`` on ``dataset``, else None."""
    if earlier is None or earlier.dataset.digest != dataset.manifest.info().digest:
        return None
    return earlier.measured if _relevant_fields(earlier.recipe) == _relevant_fields(recipe) else None


def _relevant_fields(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe without the fields that do not affect a measurement: names, texts, the place of the data, lengths."""
    left_out = ("name", "description", "checkpoints", "data", "epochs", "eval")
    lengths = {"lr": ("warmup", "milestones"), "average": ("half_life",)}

    def without(content: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in content.items() if name not in left_out}
        for part in lengths.keys() & kept.keys():
            if isinstance(kept[part], dict):
                kept[part] = {name: value for name, value in kept[part].items() if name not in lengths[part]}
        return kept

    stages = [stage.model_dump(mode="json", exclude_unset=True) for stage in recipe.stages]
    return {**without(recipe.to_dict()), "stages": [without(stage) for stage in stages]}


def inherited_lr_notice(measured: Measured, source: Path) -> str:
    """Returns the notice for a fork whose recipe has ``lr: auto``."""
    assert measured.lr is not None
    return f"lr: auto is {lr_text(measured.lr)}, as found for {source}; --set lr.peak=NUMBER sets another value."


def _measured_lr(
    recipe: Recipe,
    dataset: Dataset,
    execution: Execution,
    say: Say,
    artifacts: RunArtifacts,
    micro_batch_size: int | None,
) -> float:
    sweep = Sweep()
    say(f"lr: auto: running a range test of up to {caption(recipe, sweep)} before the plan is made.")
    test = run_range_test(recipe, dataset, execution, sweep, micro_batch_size)
    try:
        found = suggest(test)
    except RangeTestError as error:
        raise RangeTestError(
            f"lr: auto: no learning rate was found: {error.given}",
            error.allowed,
            f"{error.remedy}. stagewright lr-find DATA shows the curve and accepts other ranges",
        ) from None
    for name, content in range_test_files(test, found, caption(recipe, sweep)).items():
        artifacts.files[f"{NAME}/{name}"] = content
    note = sentence(found)
    artifacts.notes.append(note)
    say(note)
    return found.lr
