"""What is asked of this machine and these pictures before the plan is made: what ``auto`` means in a recipe's fields.

Every answer is found once. It stands in the plan from then on (:class:`stagewright.plan.plan.Measured`), so that no resume
asks again, and what led to it goes into the run's directory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagewright.data.dataset import Dataset
from stagewright.engine.numerics import auto_precision, prepare_torch
from stagewright.errors import RangeTestError
from stagewright.plan.execution import Execution
from stagewright.plan.lr_curve import NAME, lr_text, suggest
from stagewright.plan.plan import Measured, Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.lr_find import RunArtifacts, caption, files_of, sentence, swept_test
from stagewright.preflight.micro_batch import fitting_micro_batch, resident_bytes
from stagewright.preflight.range_test import Sweep
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
    """What the ``auto`` fields of ``recipe`` mean on this machine and data; None where a field asks for nothing.

    What ``known`` holds is not measured again. ``say`` is told what is done and found, ``artifacts`` gets it for the
    run's directory. RangeTestError where no learning rate is found.
    """
    artifacts = artifacts or RunArtifacts()
    if known is None:
        known = Measured(micro_batch_size=_fitting(recipe, dataset, execution, say, artifacts))
    lr = None
    if asks_for_lr(recipe):
        lr = known.lr or _found_lr(recipe, dataset, execution, say, artifacts, known.micro_batch_size)
        if lr == known.lr:
            say(f"lr: auto stays at {lr_text(lr)}, which was found when the run began.")
    return Measured(lr=lr, micro_batch_size=known.micro_batch_size)


def _fitting(recipe: Recipe, dataset: Dataset, execution: Execution, say: Say, artifacts: RunArtifacts) -> int | None:
    """What ``micro_batch_size: auto`` means: how many pictures fit on the device at a time, or None for whole batches."""
    device = choose_device(execution.device)
    if recipe.micro_batch_size != "auto" or device.type != "cuda":
        return None
    # No learning rate makes a difference to memory, so any will do.
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
    """Whether a stage's learning rate hangs on ``lr: auto``."""
    return any((stage.lr or recipe.lr).peak == "auto" for stage in recipe.resolved_stages())


def known_from(earlier: Plan | None, recipe: Recipe, dataset: Dataset) -> Measured | None:
    """What an earlier plan measured, if measuring for ``recipe`` on ``dataset`` would ask the same."""
    if earlier is None or earlier.dataset.digest != dataset.manifest.info().digest:
        return None
    return earlier.measured if _asked(earlier.recipe) == _asked(recipe) else None


def _asked(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what has no bearing on a measurement: names and texts, where data lie, lengths."""
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


def kept_sentence(measured: Measured, source: Path) -> str:
    """What there is to say of a fork whose recipe has ``lr: auto``."""
    assert measured.lr is not None
    return (
        f"lr: auto stays at {lr_text(measured.lr)}, which was found for {source}; --set lr.peak=NUMBER gives another."
    )


def _found_lr(
    recipe: Recipe,
    dataset: Dataset,
    execution: Execution,
    say: Say,
    artifacts: RunArtifacts,
    micro_batch_size: int | None,
) -> float:
    sweep = Sweep()
    say(f"lr: auto: a range test of up to {caption(recipe, sweep)} comes before the plan.")
    test = swept_test(recipe, dataset, execution, sweep, micro_batch_size)
    try:
        found = suggest(test)
    except RangeTestError as error:
        raise RangeTestError(
            f"lr: auto finds none: {error.given}",
            error.allowed,
            f"{error.remedy}. stagewright lr-find DATA shows the curve, and takes other ranges",
        ) from None
    for name, content in files_of(test, found, caption(recipe, sweep)).items():
        artifacts.files[f"{NAME}/{name}"] = content
    note = sentence(found)
    artifacts.notes.append(note)
    say(note)
    return found.lr
