"""The facts about the initial weights of a run, and what each stage trains of them; from these come the log's lines and
weights.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from stagewright.model.fit import COUNTER
from stagewright.model.groups import trainable_names
from stagewright.model.origin import Origin
from stagewright.model.weights import WeightsReport
from stagewright.plan.plan import Plan, StagePlan
from stagewright.system.named_functions import is_named

_NAMED = 50
"""Largest number of tensors that are named in each list."""


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """The weights before the first update. Without a ``report`` nothing was loaded, and all of them are as they were made."""

    origin: Origin
    tensors: int
    """Number of tensors of the network, without the counters of batch norms."""
    parameters: int
    stages: tuple[dict[str, Any], ...]
    """For each stage of the plan: its name, what trains (as planned and in words), how many parameters, for how many steps."""
    report: WeightsReport | None = None
    note: str = ""
    """Notice about the choice of the network's name; empty if there is none."""

    def lines(self) -> list[str]:
        """Returns sentences for the log."""
        return [*([self.note] if self.note else []), *(self.report.lines() if self.report is not None else [])]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for weights.json (:class:`stagewright.rundir.initial_weights.WeightsFields`)."""
        report = self.report or WeightsReport(self.origin, (), parameters=self.parameters)
        loaded = [name for name in report.loaded if not name.endswith(COUNTER)]
        fresh = [*(name for name, _ in report.skipped), *report.missing] if self.report is not None else []
        return {
            "origin": self.origin.to_dict(),
            "tensors": {
                "loaded": len(loaded) - len(report.resampled),
                "resampled": len(report.resampled),
                "fresh": self.tensors - len(loaded),
                "fresh_in_head": report.head_fresh,
                "skipped": len(report.unused),
            },
            "head": report.head,
            "head_rows": report.head_rows,
            "resampled": [asdict(one) for one in report.resampled[:_NAMED]],
            "fresh": fresh[:_NAMED],
            "skipped": [{"name": name, "reason": why} for name, why in report.unused[:_NAMED]],
            "parameters": {"loaded": report.loaded_parameters, "all": self.parameters},
            "stages": list(self.stages),
        }


def initial_weights(plan: Plan, model: nn.Module, report: WeightsReport | None, note: str) -> InitialWeights:
    """Returns the facts about ``model``, which has the initial weights of ``plan``, of which ``report`` says what was loaded.

    ModelError for a stage whose ``train`` does not fit the model.
    """
    name = plan.recipe.model.name
    made = Origin("function", name) if is_named(name) else Origin("random")
    return InitialWeights(
        made if report is None else report.origin,
        sum(not name.endswith(COUNTER) for name in model.state_dict()),
        sum(parameter.numel() for parameter in model.parameters()),
        tuple(_stage(model, stage) for stage in plan.stages),
        report,
        note,
    )


def _stage(model: nn.Module, stage: StagePlan) -> dict[str, Any]:
    names = trainable_names(model, stage.train)
    return {
        "name": stage.name,
        "train": stage.train if isinstance(stage.train, str) else list(stage.train),
        "trains": trained_text(stage.train),
        "parameters": sum(parameter.numel() for name, parameter in model.named_parameters() if name in names),
        "steps": stage.num_steps,
        "fit": stage.fit,
    }


def trained_text(train: str | Sequence[str]) -> str:
    """Returns in words what ``train`` of a stage selects: ``all``, ``head``, ``head and last 3 blocks``, or the patterns."""
    if not isinstance(train, str):
        return ", ".join(train)
    count = train.removeprefix("last:")
    if count == train:
        return train
    return "head and last block" if count == "1" else f"head and last {count} blocks"
