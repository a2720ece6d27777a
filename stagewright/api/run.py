"""The result of train and resume: a handle to a run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stagewright.api.evaluate import EvaluationReport, evaluate
from stagewright.api.evaluation_data import ClassMap
from stagewright.api.load_bundle import load_bundle
from stagewright.bundle.bundle import Bundle
from stagewright.report.answered import Confusion, Mistakes, confusion, mistakes
from stagewright.report.drawing import Plots
from stagewright.report.history import History, history
from stagewright.report.read import RunRecord, read_run
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import Summary, read_summary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A run that has finished, stopped or is going on, read from its directory ``path``; each property reads it anew.

    It can be given wherever the directory of a run can. ``Run(Path("runs/auto-1"))`` is a run of before.
    """

    path: Path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def summary(self) -> Summary:
        """Content of ``summary.json``: status, accuracies in percent, seconds, selected weights. Empty before the run begins."""
        return read_summary(RunDir(self.path))

    @property
    def finished(self) -> bool:
        """Whether the run has finished, at the end of its plan or before (:func:`stagewright.api.finish.finish`), so that it has
        a trained model."""
        return self.summary.get("status") == "finished"

    @cached_property
    def model(self) -> Bundle:
        """The trained model, ready to predict; of a run that has not finished, the model of its checkpoint
        (:func:`stagewright.api.load_bundle.load_bundle`), loaded once for this object."""
        return load_bundle(self.path)

    @property
    def history(self) -> History:
        """One row for each evaluation: a ``pandas.DataFrame`` where pandas is installed, else a dict of arrays
        (:func:`stagewright.report.history.history` names the columns)."""
        return history(self._record)

    @property
    def confusion(self) -> Confusion:
        """The confusion matrix of the test images, or of the validation images where there are no others, with the names of the
        classes. CheckpointError if the run has not answered any yet, DataError for more than 5,000 classes."""
        return confusion(self._record)

    def mistakes(self, most: int = 20) -> Mistakes:
        """Returns at most ``most`` wrong answers to the test images, or else to the validation images, the most confident first;
        errors as for :attr:`confusion`, and DataError if ``most`` is below 1."""
        return mistakes(self._record, most)

    def plot(self, *names: str) -> Plots:
        """Returns figures of the report, which a notebook shows: ``loss``, ``accuracy``, ``lr``, ``confusion``, ``classes``,
        ``roc``, ``precision-recall``; without ``names`` the first two. RecipeError for a figure that the run does not have."""
        from stagewright.report.card import plots  # matplotlib comes with it, which a training does not need

        return plots(self._record, names or ("loss", "accuracy"))

    def evaluate(
        self,
        data: str | Path | None = None,
        *,
        split: str | None = None,
        overrides: Sequence[str] = (),
        class_map: ClassMap | str | Path | None = None,
        near: bool = True,
        device: str = "auto",
        workers: int | None = None,
    ) -> EvaluationReport:
        """Evaluates the model on ``data``, or on its own test images (:func:`stagewright.api.evaluate.evaluate`)."""
        return evaluate(
            self,
            data,
            split=split,
            overrides=overrides,
            class_map=class_map,
            near=near,
            device=device,
            workers=workers,
        )

    @property
    def _record(self) -> RunRecord:
        return read_run(self.path)

    def _repr_html_(self) -> str:
        from stagewright.report.card import run_html

        return run_html(self._record)
