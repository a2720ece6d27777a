"""TrainState: the whole list of what a run must remember. All else is a function of (recipe, seed, step).

:data:`REMEMBERED` names it and a test pins it. To add to it, say why the new thing is no function of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from stagewright.engine.guard_state import GuardState
from stagewright.model.average import WeightAverage

REMEMBERED = (
    "step",
    "model",
    "optimizer",
    "average",
    "scaler",
    "best",
    "latest",
    "evaluated_step",
    "early_stopping",
    "guard",
    "seconds",
)

PHASES = ("setup", "train", "eval", "checkpoint")


@dataclass(frozen=True, slots=True)
class Score:
    """How good a set of weights was: ``top1`` of validation in percent after ``step`` updates."""

    step: int
    weights: str
    """``raw``, ``ema`` or ``swa``."""
    top1: float


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """What early stopping has seen: the ``best`` value of its metric, and for how many evaluations in a row it stood."""

    best: float | None = None
    stale: int = 0


@dataclass
class TrainState:
    """Everything that decides how a run goes on, and the seconds it took so far."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    """The model, or its compiled form."""
    optimizer: Optimizer
    scaler: GradScaler
    """Scales fp16 losses; disabled in other precisions."""
    average: WeightAverage = field(default_factory=WeightAverage)
    step: int = 0
    """Finished updates."""
    evaluated_step: int = 0
    """Step of the last finished evaluation. A run that was stopped while evaluating owes one when it comes back."""
    best: Score | None = None
    """Best of all evaluations."""
    latest: Score | None = None
    """Better of raw and averaged weights at the last evaluation."""
    early_stopping: EarlyStopping = EarlyStopping()
    guard: GuardState = field(default_factory=GuardState)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Wall-clock seconds by phase, over all restarts."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def content(self) -> dict[str, Any]:
        """What a checkpoint stores: nested plain containers of tensors, numbers and text."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state(),
            "scaler": self.scaler.state_dict(),
            "best": asdict(self.best) if self.best else None,
            "latest": asdict(self.latest) if self.latest else None,
            "evaluated_step": self.evaluated_step,
            "early_stopping": asdict(self.early_stopping),
            "guard": self.guard.to_dict(),
            "seconds": dict(self.seconds),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up what :meth:`content` gave, exactly."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.average.load(content["average"], self.device)
        self.scaler.load_state_dict(content["scaler"])
        self.best = Score(**content["best"]) if content["best"] else None
        self.latest = Score(**content["latest"]) if content["latest"] else None
        self.step = content["step"]
        self.evaluated_step = content["evaluated_step"]
        self.early_stopping = EarlyStopping(**content["early_stopping"])
        self.guard = GuardState.from_dict(content["guard"])
        self.seconds = dict(content["seconds"])

    def snapshot(self, device: torch.device) -> dict[str, Any]:
        """What :meth:`content` gives, copied to ``device``: a state to go back to while this one goes on."""
        return _copied(self.content(), device)

    def rewind(self, content: dict[str, Any]) -> None:
        """Goes back to a snapshot, which stays as it is; the seconds spent and the guard's remedies stay too."""
        seconds, guard = self.seconds, self.guard
        self.restore(_copied(content, self.device))
        self.seconds, self.guard = seconds, guard.rewound(self.guard)


def _copied(value: Any, device: torch.device) -> Any:
    """Nested containers with every tensor copied to ``device``; scalars of an optimizer on the CPU stay there."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.ndim == 0 else value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {name: _copied(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(one, device) for one in value)
    return value
