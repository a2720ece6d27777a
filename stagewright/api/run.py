"""The result of train and resume: a handle to a run directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stagewright.api.load_bundle import load_bundle
from stagewright.bundle.bundle import Bundle
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import Summary, read_summary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run that has finished, stopped or is going on, read from its directory ``path``."""

    path: Path

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
