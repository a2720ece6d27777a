"""A person's own module, as recipes of the tests name it: networks, losses and optimizers, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Net(nn.Module):
    """Batch norm, dropout, two blocks; the head is defined first, so that its name alone tells."""

    def __init__(self, num_classes: int, width: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.head = nn.Linear(2 * width, num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.project = nn.Linear(2 * width, 2 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        features = self.deep(self.stem(images)).mean(dim=(2, 3))
        return self.head(self.dropout(self.project(features)))


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (arXiv:1708.02002) with gamma 2."""
    logs = logits.log_softmax(dim=1)
    return -(targets * (1 - logs.exp()) ** 2 * logs).sum(dim=1)


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of soft targets."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


class SignMomentum(Optimizer):
    """Lion's update (arXiv:2302.06675) without its second decay."""

    def __init__(self, groups: Iterable[Any], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                mean = state.setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * mean.sign())


def lion(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """As the recipe wants it."""
    return SignMomentum(groups, lr, momentum)


def split(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """Two groups of each, matrices apart from the rest."""
    parts = [
        {**group, "params": chosen}
        for group in groups
        for chosen in (
            [p for p in group["params"] if p.ndim == 2],
            [p for p in group["params"] if p.ndim != 2],
        )
        if chosen
    ]
    return torch.optim.SGD(parts, lr=lr, momentum=momentum)


def speckle(images: Tensor, keys: Any) -> Tensor:
    """An augmentation that changes nothing."""
    return images


# What cannot be used, and why, is in the name.


class OwnWeights(nn.Module):
    """A network of one linear layer, with a fault by name."""

    def __init__(self, num_classes: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.fc = nn.Linear(3, num_classes + (fault == "one class more"))

    def forward(self, images: Tensor) -> Any:
        if self.fault == "view":
            images.view(len(images), -1)
        if self.fault == "raises":
            raise ValueError("no such thing")
        logits = self.fc(images.mean(dim=(2, 3)))
        if self.fault == "tuple in training" and self.training:
            return logits, logits
        return {
            "whole numbers": lambda: logits.long(),
            "not finite": lambda: logits / 0,
            "detached": lambda: logits.detach(),
        }.get(self.fault, lambda: logits)()


class CountingNet(Net):
    """Counts its training steps in a buffer, which would depend on who has which lane."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return super().forward(images)


def gives_text(num_classes: int) -> Any:
    return "network"


def gives_no_parameters(num_classes: int) -> nn.Module:
    return nn.Flatten()


def gives_up(num_classes: int) -> nn.Module:
    raise RuntimeError("no weights today")


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return plain(logits, targets).mean()


def takes_labels(logits: Tensor) -> Tensor:
    return logits.sum(dim=1)


def fails_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, targets]


def not_finite_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits - 100).exp().log10().sqrt().sum(dim=1)


def detached_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return plain(logits.detach(), targets)


def batch_loss(logits: Tensor, targets: Tensor) -> Tensor:
    losses = plain(logits, targets)
    return losses / losses.detach().sum()


def gives_no_optimizer(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Any:
    return "optimizer"


def one_group(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(groups[:1] if len(groups[0]["params"]) != 2 else groups, lr=lr)


def joined(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD([p for group in groups for p in group["params"]], lr=lr)


class Deaf(torch.optim.SGD):
    """Takes its learning rate from the constructor."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=self.defaults["lr"])


def deaf(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return Deaf(groups, lr=lr)


class NeedsClosure(torch.optim.SGD):
    """As SAM does."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        closure()


def needs_closure(groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return NeedsClosure(groups, lr=lr)
