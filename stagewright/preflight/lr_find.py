"""The learning-rate range test as a command: its plot, its file, its sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from stagewright.data.dataset import Dataset
from stagewright.errors import RangeTestError, StorageError
from stagewright.plan.execution import Execution
from stagewright.plan.lr_curve import MEANING, NAME, RangeTest, Suggestions, check_method, lr_grid, lr_text, suggest
from stagewright.preflight.range_test import Sweep, range_test
from stagewright.recipe.recipe import Recipe
from stagewright.storage.files import user_path, write_whole
from stagewright.system.device import choose_device


@dataclass
class RunArtifacts:
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
    from stagewright.report.lr_plot import draw_range_test

    files = {f"{NAME}.csv": test.csv(), f"{NAME}.png": draw_range_test(test, found, note).png}
    if found is not None:
        content = {**found.to_dict(), "planned": test.planned, "caption": note}
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
    lr_grid(sweep.lr_min, sweep.lr_max, sweep.steps)
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
        RunArtifacts(files=files_of(test, None, caption(recipe, sweep))).write(out)
        raise RangeTestError(error.given, error.allowed, f"{error.remedy}. {out / 'lr-find.png'} shows it") from None
    RunArtifacts(files=files_of(test, found, caption(recipe, sweep))).write(out)
    return test, found
