"""Cross-validation in one command: a run for each fold, whose test part is the fold, and their results together.

The folds are decided once, before anything trains, and stored as tables. The first run decides what ``auto`` and ``--budget``
leave open; the others follow its recipe, each with a seed of its own. Weights are chosen on validation images that a run takes
from its training images, so that no answer to a held-out image had a part in any choice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stagewright.api.run import Run, Say
from stagewright.data.splits.fold_data import fold_name, table_name
from stagewright.errors import CheckpointError, RecipeError, StagewrightError
from stagewright.measures.folds import FoldAccuracy
from stagewright.measures.overview import Overview
from stagewright.plan.budget import Budget, refuse_second_length
from stagewright.plan.execution import Execution
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request, recipe_flags
from stagewright.report.answered import Confusion, Mistakes, confusion, mistakes
from stagewright.report.history import History, as_frame
from stagewright.rundir.claim import next_free
from stagewright.rundir.directory import RunDir
from stagewright.rundir.events import Observer
from stagewright.rundir.summary import read_summary
from stagewright.storage.files import user_path
from stagewright.study.fold_definition import FILE, asked_for, begin, check_same, definition, recipe_for_tables, undo
from stagewright.study.fold_results import FINAL, Pooled, expected_text, pool, run_folder, write_results
from stagewright.study.folder import opened
from stagewright.study.jobs import Job, Manner, carry_out, is_done, request_from_dict
from stagewright.system.notebook import heading, table
from stagewright.system.output import failsafe_notices
from stagewright.system.signals import keeps
from stagewright.text import counted, percent_text, seconds_text

_SECONDS = ("setup_seconds", "train_seconds", "eval_seconds", "checkpoint_seconds")


@dataclass(frozen=True)
class Folds(os.PathLike[str]):
    """A cross-validation in the folder ``path``, finished or not, read from its files. It can be given wherever a path can.

    ``Folds(Path("runs/cats"))`` is one of before.
    """

    path: Path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @cached_property
    def num_folds(self) -> int:
        """How many folds there are; CheckpointError if ``path`` is no folder of folds."""
        return int(definition(self.path)["folds"])

    @property
    def runs(self) -> list[Run]:
        """The runs that have begun, in the order of the folds; each an ordinary run."""
        places = [run_folder(self.path, at, self.num_folds) for at in range(self.num_folds)]
        return [Run(place) for place in places if (place / "plan.json").is_file()]

    @property
    def finished(self) -> bool:
        """Whether the runs of all folds have finished."""
        return all(is_done(run_folder(self.path, at, self.num_folds)) for at in range(self.num_folds))

    @property
    def final(self) -> Run | None:
        """The run on the images of all folds, which :meth:`finish` makes; None before it has begun."""
        run = Run(self.path / FINAL)
        return run if (run.path / "plan.json").is_file() else None

    @property
    def accuracy(self) -> FoldAccuracy:
        """Accuracy of all held-out images with its 95 % interval, of each fold, their mean and standard deviation; in [0, 1]."""
        return self.pooled.accuracy

    @property
    def mean(self) -> float:
        """Mean of the folds' accuracies in percent."""
        return 100.0 * self.accuracy.mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy of the procedure, in percent (:func:`stagewright.measures.folds.accuracy_of_folds`)."""
        found = self.accuracy.pooled
        return 100.0 * (found.low or 0.0), 100.0 * (1.0 if found.high is None else found.high)

    @property
    def measures(self) -> Overview:
        """All measures over the held-out images; their intervals take the answers for independent."""
        return self.pooled.measures

    @property
    def confusion(self) -> Confusion:
        """The confusion matrix of all held-out images, each answered by the run that did not train on it."""
        return confusion(self.pooled.record)

    def mistakes(self, most: int = 20) -> Mistakes:
        """Returns at most ``most`` wrong answers to held-out images, the most confident first."""
        return mistakes(self.pooled.record, most)

    @property
    def out_of_fold(self) -> History:
        """One row for each held-out image: a ``pandas.DataFrame`` where pandas is installed, else a dict of arrays. Columns:
        ``path``, ``fold`` (from 1), ``label``, ``predicted``, ``probability``, ``true_probability``, ``correct``, ``loss``,
        ``group``."""
        table = self.pooled.table
        return as_frame({name: np.array(table[name].to_pylist()) for name in table.column_names})

    def finish(
        self, *, execution: Execution | None = None, observers: Sequence[Observer] = (), say: Say = print
    ) -> Run:
        """Trains one model on the images of all folds and returns its run (:func:`finish_folds`)."""
        found = finish_folds(self.path, Manner(execution or Execution(), observers, say=failsafe_notices(say))).final
        assert found is not None
        return found

    @cached_property
    def pooled(self) -> Pooled:
        """The answers of all folds together; CheckpointError if not all have finished."""
        if not self.finished:
            raise CheckpointError(
                f"{self.path} has folds that have not finished",
                "a folder of which all folds have finished",
                f"stagewright resume {self.path} goes on",
            )
        return pool(self.path, self.num_folds)

    def _repr_html_(self) -> str:
        if not self.finished:
            return heading(f"{self.path.name}: {len(self.runs)} of {self.num_folds} folds have begun", str(self.path))
        low, high = self.interval
        found = self.accuracy
        rows = [
            (f"fold {at + 1}", percent_text(100.0 * value, 2), f"{count:,}")
            for at, (value, count) in enumerate(zip(found.by_fold, self.pooled.counts, strict=True))
        ]
        title = f"top-1 {percent_text(100.0 * (found.pooled.value or 0.0), 2)} (95 % interval {low:.1f} to {high:.1f})"
        note = f"{self.path} · {self.num_folds} folds, mean {100 * found.mean:.2f} %, standard deviation {100 * found.sd:.2f}"
        return heading(title, note) + table(("", "top-1", "pictures"), rows)


def folds(  # the function behind `stagewright train --folds`: most keywords are its options, by the same names
    data: str | Path,
    k: int | Literal["given"] = 5,
    recipe: str | Path | Recipe | RecipeRequest = "auto",
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    tiny: bool = False,
    budget: str | Budget | None = None,
    execution: Execution | None = None,
    observers: Sequence[Observer] = (),
    model: str | Callable[..., object] | None = None,
    weights: str | Path | None = None,
    epochs: str | float | None = None,
    batch_size: int | None = None,
    lr: str | float | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    loss: str | Callable[..., object] | None = None,
    optimizer: str | Callable[..., object] | None = None,
    say: Say = print,
    command: Sequence[str] | None = None,
) -> Folds:
    """Trains once for each of ``k`` folds of ``data``, on all other folds, and returns the results together.

    ``k`` is a number from 2 to 100, or ``given``: DATA is a table with a column ``fold``. Everything is written to ``out``, or to
    ``runs/RECIPE-folds-N``, each run in ``foldNofK`` below it. The same call with the same ``out`` goes on where it was: finished
    runs are not repeated, one that was stopped or killed is resumed with the same bits. ``budget`` is divided by the folds. Other
    arguments as for :func:`stagewright.api.train.train`.

    Raises StagewrightError for errors that the caller can fix, and Stopped if a stop is requested during the set-up.
    """
    say = failsafe_notices(say)
    _refuse_hold(execution)
    if budget is not None:
        refuse_second_length(budget if isinstance(budget, str) else budget.text, epochs)
        budget = Budget.parse(budget) if isinstance(budget, str) else budget
    flags = recipe_flags(model, weights, batch_size, lr, image_size, seed, loss, optimizer)
    request = as_request(recipe, overrides, flags, epochs)
    manner = Manner(execution or Execution(), observers, tiny, say, command)
    root = user_path(out) if out is not None else next_free(Path("runs"), f"{request.preliminary.name}-folds")
    asked = asked_for(str(data), k, request, tiny, budget)
    with keeps(lambda: _kept(root), resumable=True):
        if (root / FILE).exists():
            check_same(root, asked)
            return _carried_out(root, manner, budget)
        begin(root, asked, request, manner)
        try:
            return _carried_out(root, manner, budget)
        except StagewrightError:
            undo(root)  # unless a run has begun: what the first one refuses is to be mended and given again
            raise


def resume_folds(root: str | os.PathLike[str], manner: Manner) -> Folds:
    """Goes on with the folds in the folder ``root``; folds that are finished are only read. CheckpointError if there are none."""
    _refuse_hold(manner.execution)
    place = user_path(root)
    with keeps(lambda: _kept(place), resumable=True):
        return _carried_out(place, manner, None)


def finish_folds(root: str | os.PathLike[str], manner: Manner) -> Folds:
    """Trains one model on the images of all folds, with the recipe of the folds, in ``final`` below ``root``.

    It takes its validation images from them as the runs of the folds did; its page and its model card say that the score is that
    of the folds. Resumes where it was stopped. CheckpointError if not all folds have finished.
    """
    place = user_path(root)
    known = definition(place)
    with keeps(lambda: _kept(place), resumable=True), opened(place, FILE, ()):
        left = [at + 1 for at in range(known["folds"]) if not is_done(run_folder(place, at, known["folds"]))]
        if left:
            raise CheckpointError(
                f"{counted(len(left), 'fold')} of {known['folds']} in {place} have not finished: {', '.join(map(str, left))}",
                "a folder of which all folds have finished",
                f"stagewright resume {place} goes on; of a single one, stagewright finish "
                f"{run_folder(place, left[0] - 1, known['folds'])} makes a model now",
            )
        recipe = _recipe_of_first(place, known["folds"], known["seed"])
        recipe = recipe.changed(data={**recipe.data.model_dump(mode="json", exclude_unset=True), "test": 0.0})
        expected = expected_text(pool(place, known["folds"]))
        job = Job(FINAL, str(place / "all.csv"), RecipeRequest(recipe), expected=expected)
        manner.say(f"Training on all {known['images']:,} pictures, without held-out ones: {place / FINAL}")
        carry_out([job], place, replace(manner, tiny=known["tiny"]))
        write_results(place, known)
        return Folds(place)


def _carried_out(root: Path, manner: Manner, budget: Budget | None) -> Folds:
    """Trains what is left to train, and writes the results if nothing is."""
    known = definition(root)
    with opened(root, FILE, ()):
        manner = replace(manner, tiny=known["tiny"])
        try:
            carry_out(_jobs(root, known, manner, budget), root, manner)
        except RecipeError as error:
            if error.given.startswith("--budget"):
                raise RecipeError(
                    error.given, f"for each of {known['folds']} folds: {error.allowed}", error.remedy
                ) from error
            raise
        found = Folds(root)
        if found.finished:
            write_results(root, known)
        return found


def _jobs(root: Path, known: Mapping[str, Any], manner: Manner, budget: Budget | None) -> Iterator[Job]:
    """Yields the job of each fold, and says between them how far it is."""
    count = known["folds"]
    if budget is None and known["budget"] is not None and not (run_folder(root, 0, count) / "plan.json").is_file():
        budget = _budget_again(root, known)
    for at in range(count):
        place, request = run_folder(root, at, count), request_from_dict(known["request"])
        begun = is_done(place)
        if at > 0:
            request = RecipeRequest(_recipe_of_first(root, count, known["seed"] + at))
        if not begun:
            manner.say(f"Fold {at + 1} of {count}: {place}")
        share = _share(budget, count) if at == 0 else None
        yield Job(fold_name(at, count), str(root / table_name(at, count)), request, share, quiet=at > 0)
        if not begun:
            manner.say(_fold_told(root, at, count))


def _share(budget: Budget | None, count: int) -> Budget | None:
    """Returns the part of a budget for the first of ``count`` runs; the others take as many steps."""
    if budget is None:
        return None
    seconds = (budget.seconds - budget.spent_seconds) / count
    return Budget(f"{budget.text} / {count}", max(seconds, 1.0), budget.price, time.monotonic())


def _budget_again(root: Path, known: Mapping[str, Any]) -> Budget:
    try:
        return Budget.parse(known["budget"])
    except RecipeError:  # an amount of money, whose price is not stored
        raise RecipeError(
            f"{root} was begun with --budget {known['budget']}, and its first fold has not begun",
            "the command with which it was begun, with its --price",
            "give that command again",
        ) from None


def _recipe_of_first(root: Path, count: int, seed: int) -> Recipe:
    """Returns the recipe of the first fold's run, with another ``seed``."""
    recipe = recipe_for_tables(RunDir(run_folder(root, 0, count)).read_plan().recipe)
    return recipe.changed(seed=seed, name=recipe.name.removesuffix("-tiny"))


def _fold_told(root: Path, at: int, count: int) -> str:
    """Returns a sentence on the fold that has finished, and how long the others will take."""
    finished = [read_summary(RunDir(run_folder(root, one, count))) for one in range(at + 1)]
    seconds = [sum(float(one.get(part) or 0.0) for part in _SECONDS) for one in finished]
    score = percent_text(finished[-1]["top1"].get("test"), 2)
    left = count - at - 1
    more = f"; {left} to go, about {seconds_text(left * sum(seconds) / len(seconds))}" if left else ""
    return f"Fold {at + 1} of {count}: {score} of its held-out pictures{more}."


def _refuse_hold(execution: Execution | None) -> None:
    """RecipeError if the test parts are to stay closed: of folds they are what is measured."""
    if execution is not None and execution.hold_test:
        raise RecipeError(
            "--hold-test with --folds",
            "one of them: the held-out fold of each run is its test part, and its score is what folds are for",
            "leave --hold-test out; a test part that DATA has of its own is in no fold and stays closed",
        )


def _kept(root: Path) -> str:
    if (root / FILE).is_file():
        return f"continue with stagewright resume {root}, or with the same command"
    return "nothing had been trained; the same command begins again"
