"""Forks: new runs that start with the weights of another run; and recipe fields that a started run cannot change."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from stagewright.api.run import Say
from stagewright.data.dataset import Dataset
from stagewright.errors import CheckpointError, RecipeError
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe.differences import differing
from stagewright.recipe.recipe import Recipe
from stagewright.rundir import checkpoint
from stagewright.rundir.claim import claimed, claimed_next
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import write_whole
from stagewright.text import path_cell, table_cell

_FREE = frozenset({"checkpoints.every", "checkpoints.keep", "data.max_unreadable"})
"""Fields that may change in a started run, because they have no effect on its result."""


def write_excluded(run: RunDir, dataset: Dataset) -> None:
    """Writes the files that are excluded from the data set, with reasons, to ``excluded.csv``, if there are any."""
    if not dataset.excluded:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "reason"])
    writer.writerows([path_cell(one.path), table_cell(one.reason)] for one in dataset.excluded)
    write_whole(run.root / "excluded.csv", text.getvalue().encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def new_directory(plan: Plan, out: Path | None, old: RunDir | None, say: Say) -> Iterator[RunDir]:
    """Creates and locks a new run directory: ``out``, or a numbered one, next to ``old`` if the plan forks from that run."""
    if out is None:
        claim = claimed_next(Path("runs"), plan.recipe.name)
    elif old is None:
        claim = claimed(out)
    else:
        claim = claimed_next(out.parent, out.name)
    with claim as run:
        if old is not None:
            what = ", ".join(changed_fields(old.read_plan(), plan))
            say(f"The plan of {out} is different ({what}): this run forks to {run.root}.")
        yield run


def refuse_without_effect(old: Recipe, new: Recipe) -> None:
    """Raises RecipeError for overrides that cannot take effect in a started run: data, order, name and description."""
    fixed = [
        path
        for path, _, _ in differing(old.to_dict(), new.to_dict())
        if path.split(".")[0] in ("data", "name", "description", "order")
    ]
    fixed = [path for path in fixed if path not in _FREE]
    if fixed:
        raise RecipeError(
            f"--set {', '.join(fixed)} cannot change in a run that has begun: its pictures, their split, order and name stay",
            f"fields that take effect, which fork the run; and {', '.join(sorted(_FREE))}, which do not change the result",
            "stagewright train DATA starts a new run with them (--weights RUN starts from this run's model)",
        )


def changed_fields(old: Plan, new: Plan) -> list[str]:
    """Returns in what two plans differ: paths of recipe fields, data set, precision, or the version that resolved them."""
    fields = [path for path, _, _ in differing(old.recipe.to_dict(), new.recipe.to_dict())]
    if old.dataset.digest != new.dataset.digest:
        fields.append("the data set")
    if old.precision != new.precision:
        fields.append(f"precision {old.precision}, now {new.precision}")
    return fields or ["the way this version resolves recipes"]


def forked_plan(old: RunDir, plan: Plan, changed: Plan) -> Plan:
    """Returns the changed plan, starting from the old run's newest weights unless the recipe now names others."""
    recipe = changed.recipe
    if recipe.model.weights == plan.recipe.model.weights:
        newest, _ = checkpoint.newest(old.checkpoints, plan.digest)
        if newest is None:
            raise CheckpointError(
                f"{old.root} has no valid checkpoint to fork from",
                "a run with a valid checkpoint",
                "train again with the changed recipe, or give --set model.weights=FILE",
            )
        source = old.checkpoints / checkpoint.name_of(newest.step) / checkpoint.STATE
        recipe = recipe.changed(model={**recipe.model.model_dump(), "weights": str(source.resolve())})
    return resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)
