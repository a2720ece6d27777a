"""TrainState: everything that a checkpoint must store. All else is a function of (recipe, seed, step).

:data:`REMEMBERED` lists the keys, and a test compares it with the content. Whoever adds a key must explain why its value is not
a function of the step.
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
    """Validation results of the weights after ``step`` updates."""

    step: int
    weights: str
    """``raw``, ``ema`` or ``swa``."""
    top1: float
    """Accuracy in percent."""
    value: float | None = None
    """That of ``eval.metric`` where it is another; None where it is top-1."""

    @property
    def metric(self) -> float:
        """The value of ``eval.metric``."""
        return self.top1 if self.value is None else self.value


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """State of early stopping."""

    best: float | None = None
    """Best value of the metric so far; None before the first evaluation."""
    stale: int = 0
    """Number of evaluations in a row that have not improved on it."""


@dataclass
class TrainState:
    """Everything that determines the further course of a run, and the seconds spent so far."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    """The model, or :class:`stagewright.engine.compile.Compiled` around it."""
    optimizer: Optimizer
    scaler: GradScaler
    """Scales fp16 losses; disabled in other precisions."""
    average: WeightAverage = field(default_factory=WeightAverage)
    step: int = 0
    """Number of finished updates."""
    evaluated_step: int = 0
    """Step of the last finished evaluation. If a run was stopped while evaluating, this evaluation is pending when it resumes."""
    best: Score | None = None
    """The best score of all evaluations."""
    latest: Score | None = None
    """The score of the last evaluation, of the raw or the averaged weights, whichever is better."""
    early_stopping: EarlyStopping = EarlyStopping()
    guard: GuardState = field(default_factory=GuardState)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Wall-clock seconds by phase, over all restarts."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def content(self) -> dict[str, Any]:
        """Returns what a checkpoint stores: nested dicts and lists of tensors, numbers and strings, not copied."""
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
        """Restores the state exactly from the result of :meth:`content`."""
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
        """Returns a copy of :meth:`content` on ``device``, for :meth:`rewind`."""
        return _copied(self.content(), device)

    def rewind(self, content: dict[str, Any]) -> None:
        """Restores a snapshot, which is not changed. The seconds spent and the guard's remedies stay the present ones."""
        seconds, guard = self.seconds, self.guard
        self.restore(_copied(content, self.device))
        self.seconds, self.guard = seconds, guard.rewound(self.guard)


def _copied(value: Any, device: torch.device) -> Any:
    """Returns nested containers with every tensor copied to ``device``; 0-d tensors are copied on their own device.

    Optimizers store step counters as 0-d tensors on the CPU, where they must stay.
    """
    if isinstance(value, Tensor):
        return value.detach().clone() if value.ndim == 0 else value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {name: _copied(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(one, device) for one in value)
    return value
