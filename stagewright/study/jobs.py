"""Jobs: ordinary runs that belong together, carried out one after the other below a common folder.

Nothing of a job is kept but its run's directory, which is the truth: a job whose run has finished is not done again, one whose
run has begun is resumed, any other begins. So the same jobs given again go on where they were, after whatever ended them. What
makes jobs belong together (folds, and later a grid) is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stagewright.api.run import Run, Say
from stagewright.api.train import resume, train
from stagewright.errors import CheckpointError
from stagewright.plan.budget import Budget
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest
from stagewright.rundir.directory import RunDir
from stagewright.rundir.events import Observer
from stagewright.rundir.summary import read_summary
from stagewright.storage.json_text import ABSENT, Fields


@dataclass(frozen=True)
class Job:
    """What a run is to do; :func:`stagewright.api.train.train` has the same arguments."""

    name: str
    """Name of its run's directory, below the common folder."""
    data: str
    request: RecipeRequest
    budget: Budget | None = None
    expected: str | None = None
    quiet: bool = False
    """Whether what its set-up says stays in the run's log alone, as a job like it has said the same."""


@dataclass(frozen=True)
class Manner:
    """How jobs are carried out, which does not change what comes out."""

    execution: Execution = field(default_factory=Execution)
    observers: Sequence[Observer] = ()
    tiny: bool = False
    say: Say = print
    command: Sequence[str] | None = None


def is_done(run: Path) -> bool:
    """Returns whether the run in the directory ``run`` has carried out its whole plan; False if there is none."""
    try:
        summary = read_summary(RunDir(run))
    except CheckpointError:  # damaged: resuming writes it again
        return False
    return summary.get("status") == "finished" and summary.get("stopped_at") is None


def carry_out(jobs: Iterable[Job], folder: Path, manner: Manner) -> list[Run]:
    """Carries out ``jobs`` in their order, each in its directory below ``folder``; a job that has finished is only read.

    ``jobs`` is asked for the next job when the one before has finished, so that it may depend on that one's run. Returns their
    runs; if a stop was requested in one of them, it is the last, and has not finished. Errors as for train and resume.
    """
    done: list[Run] = []
    for job in jobs:
        done.append(_carried_out(job, folder / job.name, manner))
        if not done[-1].finished:
            break
    return done


def _carried_out(job: Job, place: Path, manner: Manner) -> Run:
    if is_done(place):
        return Run(place)
    common: dict[str, Any] = {"execution": manner.execution, "observers": manner.observers}
    common["say"] = silent if job.quiet else manner.say
    if (place / "plan.json").is_file():
        return resume(place, command=manner.command, **common)
    return train(
        job.data,
        job.request,
        out=place,
        budget=job.budget,
        tiny=manner.tiny,
        expected=job.expected,
        command=manner.command,
        **common,
    )


def silent(text: str) -> None:
    """Says nothing: what is said was said of a job like it."""


class RequestFields(Fields):
    """A :class:`~stagewright.recipe.request.RecipeRequest` as JSON."""

    name: str | None = ABSENT
    """Of a shipped recipe or a file, or ``auto``; absent where ``recipe`` is the recipe itself."""
    recipe: dict[str, Any] | None = ABSENT
    flags: dict[str, Any]
    epochs: str | None
    overrides: Annotated[list[str], Field(max_length=10_000)]


def request_to_dict(request: RecipeRequest) -> dict[str, Any]:
    """Returns a request as plain data for JSON."""
    known = request.base
    base: dict[str, Any] = {"name": str(known)}
    if isinstance(known, Recipe):  # of data only what was given: a setting without effect would be told in every run
        base = {"recipe": {**known.to_dict(), "data": known.data.model_dump(mode="json", exclude_unset=True)}}
    given = {"flags": dict(request.flags), "epochs": request.epochs, "overrides": [*request.overrides]}
    return {**base, **given}


def request_from_dict(content: Mapping[str, Any]) -> RecipeRequest:
    """Returns the request in ``content``, which fits :class:`RequestFields`; RecipeError for an invalid recipe."""
    recipe = content.get("recipe")
    base: Recipe | str = recipes.from_dict(recipe) if recipe is not None else str(content.get("name"))
    return RecipeRequest(base, dict(content["flags"]), content["epochs"], tuple(content["overrides"]))
