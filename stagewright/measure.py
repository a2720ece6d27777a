"""What is asked of this machine and these pictures before the plan is made: what ``auto`` means in a recipe's fields.

Every answer is found once. It stands in the plan from then on (:class:`stagewright.plan.Measured`), so that no resume
asks again, and what led to it goes into the run's directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagewright.build import auto_precision, choose_device, prepare_torch
from stagewright.data.sources import Dataset
from stagewright.errors import RangeTestError, StorageError
from stagewright.execution import Execution
from stagewright.lrcurve import MEANING, NAME, RangeTest, Suggestions, check_method, lr_text, suggest, swept
from stagewright.lrfind import Sweep, range_test
from stagewright.microbatch import fitting_micro_batch, resident_bytes
from stagewright.plan import Measured, Plan
from stagewright.recipe import Recipe
from stagewright.resolve import resolve
from stagewright.storage.files import user_path, write_whole
from stagewright.traceless import traceless

Say = Callable[[str], None]


@dataclass
class Findings:
    """What measuring leaves for a run's directory. Empty where nothing was measured."""

    notes: list[str] = field(default_factory=list)
    """Sentences on what was found."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents by path within the run's directory."""

    def write(self, root: Path) -> None:
        """Writes the files, each whole or not at all."""
        for path, content in self.files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(root / path, content, durable=False)


def measure(
    recipe: Recipe,
    dataset: Dataset,
    execution: Execution,
    say: Say,
    known: Measured | None = None,
    findings: Findings | None = None,
) -> Measured:
    """What the ``auto`` fields of ``recipe`` mean on this machine and data; None where a field asks for nothing.

    What ``known`` holds is not measured again. ``say`` is told what is done and found, ``findings`` gets it for the
    run's directory. RangeTestError where no learning rate is found.
    """
    findings = findings or Findings()
    if known is None:
        known = Measured(micro_batch_size=_fitting(recipe, dataset, execution, say, findings))
    lr = None
    if asks_for_lr(recipe):
        lr = known.lr or _found_lr(recipe, dataset, execution, say, findings, known.micro_batch_size)
        if lr == known.lr:
            say(f"lr: auto stays at {lr_text(lr)}, which was found when the run began.")
    return Measured(lr=lr, micro_batch_size=known.micro_batch_size)


def _fitting(recipe: Recipe, dataset: Dataset, execution: Execution, say: Say, findings: Findings) -> int | None:
    """What ``micro_batch_size: auto`` means: how many pictures fit on the device at a time, or None for whole batches."""
    device = choose_device(execution.device)
    if recipe.micro_batch_size != "auto" or device.type != "cuda":
        return None
    # No learning rate makes a difference to memory, so any will do.
    plan = resolve(recipe, dataset.manifest.info(), precision=auto_precision(device), measured=Measured(lr=1e-3))
    with traceless():
        prepare_torch(recipe, device)
        reserved = resident_bytes(plan, dataset) if execution.keep_decoded else 0
        found = fitting_micro_batch(plan, device, reserved_bytes=reserved)
    if found.notice is not None:
        findings.notes.append(found.notice)
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

    return {**without(recipe.plain()), "stages": [without(stage) for stage in recipe.plain()["stages"]]}


def kept_sentence(measured: Measured, source: Path) -> str:
    """What there is to say of a fork whose recipe has ``lr: auto``."""
    assert measured.lr is not None
    return (
        f"lr: auto stays at {lr_text(measured.lr)}, which was found for {source}; --set lr.peak=NUMBER gives another."
    )


def _found_lr(
    recipe: Recipe, dataset: Dataset, execution: Execution, say: Say, findings: Findings, micro_batch_size: int | None
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
        findings.files[f"{NAME}/{name}"] = content
    note = sentence(found)
    findings.notes.append(note)
    say(note)
    return found.lr


def swept_test(
    recipe: Recipe, dataset: Dataset, execution: Execution, sweep: Sweep, micro_batch_size: int | None = None
) -> RangeTest:
    """The range test of ``recipe`` on ``dataset``."""
    return range_test(
        recipe,
        dataset.manifest,
        dataset.images,
        choose_device(execution.device),
        sweep=sweep,
        micro_batch_size=micro_batch_size,
        workers=execution.workers,
    )


def files_of(test: RangeTest, found: Suggestions | None, note: str) -> dict[str, bytes]:
    """``lr-find.csv``, the annotated plot ``lr-find.png``, whose title ``note`` goes with, and, where there are suggestions,
    ``lr-find.json``, with which the plot can be drawn again."""
    from stagewright.report.lrplot import draw_range_test

    files = {f"{NAME}.csv": test.csv(), f"{NAME}.png": draw_range_test(test, found, note).png}
    if found is not None:
        content = {**found.plain(), "planned": test.planned, "caption": note}
        files[f"{NAME}.json"] = json.dumps(content, indent=1).encode()
    return files


def caption(recipe: Recipe, sweep: Sweep) -> str:
    """What a sweep consists of."""
    first = recipe.resolved_stages()[0]
    return f"{sweep.steps} updates of {first.batch_size:,} pictures at {first.image_size} px"


def sentence(found: Suggestions) -> str:
    """What a range test found, in one sentence."""
    others = ", ".join(f"{name} {lr_text(lr)}" for name, lr in found.lrs.items() if name != found.chosen)
    text = f"lr: auto is {lr_text(found.lr)}, {MEANING[found.chosen]} ({found.chosen}; {others})"
    return "; ".join([text, *found.notes])


def find_lr(
    recipe: Recipe, dataset: Dataset, execution: Execution, *, sweep: Sweep, choose: str, out: Path
) -> tuple[RangeTest, Suggestions]:
    """The range test as a command of its own: its curve and plot are in the folder ``out`` even where it finds nothing.

    RangeTestError then, and before anything runs for an impossible sweep or an unknown suggestion.
    """
    check_method(choose)
    swept(sweep.lr_min, sweep.lr_max, sweep.steps)
    out = user_path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be made: {error.strerror or error}", "a folder", "give another place with --out"
        ) from None
    test = swept_test(recipe, dataset, execution, sweep)
    try:
        found = suggest(test, choose)
    except RangeTestError as error:
        Findings(files=files_of(test, None, caption(recipe, sweep))).write(out)
        raise RangeTestError(error.given, error.allowed, f"{error.remedy}. {out / 'lr-find.png'} shows it") from None
    Findings(files=files_of(test, found, caption(recipe, sweep))).write(out)
    return test, found
