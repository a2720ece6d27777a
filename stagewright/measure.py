"""What is asked of this machine and these pictures before the plan is made: what ``auto`` means in a recipe's fields.

Every answer is found once. It stands in the plan from then on (:class:`stagewright.plan.Measured`), so that no resume
asks again, and what led to it goes into the run's directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stagewright.build import choose_device
from stagewright.data.sources import Dataset
from stagewright.errors import RangeTestError, StorageError
from stagewright.lrcurve import MEANING, RangeTest, Suggestions, check_method, lr_text, suggest, swept
from stagewright.lrfind import Sweep, range_test
from stagewright.plan import Measured, Plan
from stagewright.recipe import Recipe
from stagewright.session import Execution

Say = Callable[[str], None]

FOLDER = "lr-find"
"""In a run's directory: ``lr-find.csv`` and ``lr-find.png`` of the range test."""


@dataclass
class Findings:
    """What measuring leaves for a run's directory. Empty where nothing was measured."""

    notes: list[str] = field(default_factory=list)
    """Sentences on what was found."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents by path within the run's directory."""

    def write(self, root: Path) -> None:
        """Writes the files, each whole or not at all."""
        from stagewright.report.theme import write_atomically  # brings matplotlib, which few runs need here

        for path, content in self.files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(root / path, content)


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
    known, findings = known or Measured(), findings or Findings()
    lr = None
    if asks_for_lr(recipe):
        lr = known.lr or _found_lr(recipe, dataset, execution, say, findings)
        if lr == known.lr:
            say(f"lr: auto stays at {lr_text(lr)}, which was found when the run began.")
    return Measured(lr=lr, micro_batch_size=known.micro_batch_size)


def asks_for_lr(recipe: Recipe) -> bool:
    """Whether a stage's learning rate hangs on ``lr: auto``."""
    return any((stage.lr or recipe.lr).peak == "auto" for stage in recipe.resolved_stages())


def known_from(earlier: Plan | None, recipe: Recipe, dataset: Dataset) -> Measured | None:
    """What an earlier plan measured, if measuring for ``recipe`` on ``dataset`` would ask the same."""
    if earlier is None or earlier.dataset.digest != dataset.manifest.info().digest:
        return None
    return earlier.measured if _asked(earlier.recipe) == _asked(recipe) else None


def _asked(recipe: Recipe) -> dict[str, object]:
    """The recipe without what has no bearing on a measurement: names and texts, where data lie, lengths."""
    content = recipe.plain()
    content["stages"] = [
        {name: value for name, value in stage.items() if name != "epochs"} for stage in content["stages"]
    ]
    left_out = ("name", "description", "checkpoints", "data", "epochs")
    return {name: value for name, value in content.items() if name not in left_out}


def kept_sentence(measured: Measured, source: Path) -> str:
    """What there is to say of a fork whose recipe has ``lr: auto``."""
    assert measured.lr is not None
    return (
        f"lr: auto stays at {lr_text(measured.lr)}, which was found for {source}; --set lr.peak=NUMBER gives another."
    )


def _found_lr(recipe: Recipe, dataset: Dataset, execution: Execution, say: Say, findings: Findings) -> float:
    sweep = Sweep()
    say(f"lr: auto: a range test of up to {caption(recipe, sweep)} comes before the plan.")
    test = swept_test(recipe, dataset, execution, sweep)
    try:
        found = suggest(test)
    except RangeTestError as error:
        raise RangeTestError(
            f"lr: auto finds none: {error.given}",
            error.allowed,
            f"{error.remedy}. stagewright lr-find DATA shows the curve, and takes other ranges",
        ) from None
    for name, content in files_of(test, found, caption(recipe, sweep)).items():
        findings.files[f"{FOLDER}/{name}"] = content
    note = sentence(found)
    findings.notes.append(note)
    say(note)
    return found.lr


def swept_test(recipe: Recipe, dataset: Dataset, execution: Execution, sweep: Sweep) -> RangeTest:
    """The range test of ``recipe`` on ``dataset``."""
    device = choose_device(execution.device)
    return range_test(recipe, dataset.manifest, dataset.images, device, sweep=sweep, workers=execution.workers)


def files_of(test: RangeTest, found: Suggestions | None, note: str) -> dict[str, bytes]:
    """``lr-find.csv`` and the annotated plot ``lr-find.png``, whose title ``note`` goes with."""
    from stagewright.report.lrplot import draw_range_test

    return {"lr-find.csv": test.csv(), "lr-find.png": draw_range_test(test, found, note).png}


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
