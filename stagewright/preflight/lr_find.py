"""The learning-rate range test as a command: runs it and creates its plot, files and messages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from stagewright.data.dataset import Dataset
from stagewright.errors import RangeTestError, StorageError
from stagewright.observers.progress_line import ProgressLine
from stagewright.plan.execution import Execution
from stagewright.plan.lr_curve import MEANING, NAME, RangeTest, Suggestions, check_method, lr_grid, lr_text, suggest
from stagewright.preflight.range_test import Sweep, range_test
from stagewright.preflight.upper import asks_for_upper, upper_of
from stagewright.recipe.recipe import Recipe
from stagewright.storage.files import user_path, write_whole
from stagewright.system.device import choose_device


@dataclass
class RunArtifacts:
    """Notes and files from measurements, for a run's directory; empty if nothing was measured."""

    notes: list[str] = field(default_factory=list)
    """Sentences about the results."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents of files by their path in the run's directory."""

    def write(self, root: Path) -> None:
        """Writes the files to the folder ``root``, each completely or not at all."""
        for path, content in self.files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(root / path, content, durable=False)


def run_range_test(
    recipe: Recipe, dataset: Dataset, execution: Execution, sweep: Sweep, micro_batch_size: int | None = None
) -> RangeTest:
    """Runs the range test of ``recipe`` on ``dataset`` and returns its curve."""
    if asks_for_upper(recipe):
        recipe = recipe.with_upper(upper_of(recipe, len(dataset.manifest.classes)))
    with ProgressLine("trying learning rates", quiet=execution.quiet) as progress:
        return range_test(
            recipe,
            dataset.manifest,
            dataset.images,
            choose_device(execution.device),
            sweep=sweep,
            micro_batch_size=micro_batch_size,
            workers=execution.workers,
            progress=progress,
        )


def range_test_files(test: RangeTest, found: Suggestions | None, note: str) -> dict[str, bytes]:
    """Returns the files of a range test by name: ``lr-find.csv``, the plot ``lr-find.png`` with ``note`` next to its title, and,
    if there are suggestions, ``lr-find.json``, from which the plot can be drawn again."""
    from stagewright.report.lr_plot import draw_range_test

    files = {f"{NAME}.csv": test.csv(), f"{NAME}.png": draw_range_test(test, found, note).png}
    if found is not None:
        content = {**found.to_dict(), "planned": test.planned, "caption": note}
        files[f"{NAME}.json"] = json.dumps(content, indent=1).encode()
    return files


def caption(recipe: Recipe, sweep: Sweep) -> str:
    """Returns a short description of a sweep for the user."""
    first = (recipe.without_optima() or recipe).resolved_stages()[0]
    return f"{sweep.steps} updates of {first.batch_size:,} pictures at {first.image_size} px"


def sentence(found: Suggestions) -> str:
    """Returns a sentence about the result of a range test."""
    others = ", ".join(f"{name} {lr_text(lr)}" for name, lr in found.lrs.items() if name != found.chosen)
    text = f"lr: auto is {lr_text(found.lr)}, {MEANING[found.chosen]} ({found.chosen}; {others})"
    return "; ".join([text, *found.notes])


def find_lr(
    recipe: Recipe, dataset: Dataset, execution: Execution, *, sweep: Sweep, choose: str, out: Path | None
) -> tuple[RangeTest, Suggestions]:
    """Runs the range test and writes its curve and plot to the folder ``out`` if one is given, even if it finds no learning rate.

    RangeTestError if it finds none; for an invalid sweep or an unknown method it is raised before anything runs.
    """
    check_method(choose)
    lr_grid(sweep.lr_min, sweep.lr_max, sweep.steps)
    if out is not None:
        out = user_path(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {out} cannot be created: {error.strerror or error}",
                "a folder",
                "give another folder with --out",
            ) from None
    test = run_range_test(recipe, dataset, execution, sweep)
    try:
        found = suggest(test, choose)
    except RangeTestError as error:
        if out is None:
            raise
        RunArtifacts(files=range_test_files(test, None, caption(recipe, sweep))).write(out)
        raise RangeTestError(
            error.given, error.allowed, f"{error.remedy}. {out / 'lr-find.png'} shows the curve"
        ) from None
    if out is not None:
        RunArtifacts(files=range_test_files(test, found, caption(recipe, sweep))).write(out)
    return test, found
