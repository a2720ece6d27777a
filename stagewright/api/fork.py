"""A run that begins with the weights of another, and what a run that has begun cannot change."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stagewright.api.run import Say
from stagewright.data.dataset import Dataset
from stagewright.errors import CheckpointError, RecipeError
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe.recipe import Recipe
from stagewright.rundir import checkpoint
from stagewright.rundir.claim import claimed, claimed_next
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import write_whole

_FREE = frozenset({"checkpoints.every", "checkpoints.keep", "data.max_unreadable"})
"""What may change in a run that has begun, without effect on what comes out."""


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
def new_directory(plan: Plan, out: Path | None, old: RunDir | None, say: Say) -> Iterator[RunDir]:
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


def refuse_without_effect(old: Recipe, new: Recipe) -> None:
    """RecipeError for overrides that a resume would take and not follow: the split, the name and texts are settled."""
    fixed = [
        path
        for path in _differing(old.to_dict(), new.to_dict(), "")
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
    differing = list(_differing(old.recipe.to_dict(), new.recipe.to_dict(), ""))
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


def forked_plan(old: RunDir, plan: Plan, changed: Plan) -> Plan:
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
