"""A run in its directory, as train and resume hand it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stagewright.bundle.bundle import Bundle, load_bundle
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import Summary, read_summary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run in its directory, as it was left."""

    path: Path

    @property
    def summary(self) -> Summary:
        """``summary.json``: status, accuracies in percent, seconds, which weights were chosen. Empty before the run begins."""
        return read_summary(RunDir(self.path))

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and there is a model."""
        return self.summary.get("status") == "finished"

    @cached_property
    def model(self) -> Bundle:
        """The trained model, ready to predict; BundleError while the run has not finished."""
        return load_bundle(self.path)
