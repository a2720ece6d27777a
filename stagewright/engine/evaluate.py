"""Evaluation: every picture of a split exactly once, counted on the device, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from stagewright.augment.normalise import normalise
from stagewright.data.batches.batch import Batch
from stagewright.engine.compile import Compiled, filled_up
from stagewright.engine.numerics import Numerics
from stagewright.errors import Interrupted, NotFinite
from stagewright.model.groups import modes_kept


@dataclass(frozen=True, slots=True)
class Predictions:
    """What was answered for each picture, in the order of the split. Unreadable pictures have ``predicted`` -1."""

    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]
    """Of the predicted class."""
    true_probability: NDArray[np.float32]
    """Of the right class."""
    readable: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss is mean cross-entropy without smoothing; accuracies are percent over the readable pictures."""

    loss: float
    top1: float
    top5: float | None
    """None for five classes and fewer, where it says nothing."""
    images: int
    unreadable: int
    predictions: Predictions = field(repr=False)

    def numbers(self) -> dict[str, float | int | None]:
        """The scalars as plain data, for events and files."""
        return {name: getattr(self, name) for name in ("loss", "top1", "top5", "images", "unreadable")}


def evaluate(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    numerics: Numerics,
    *,
    inputs: Callable[[Batch], Tensor] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """How the model answers ``batches``, in eval mode; its training modes are restored.

    :class:`NotFinite` where an answer to a readable picture is not finite, with the manifest rows (places in
    the order given, where a batch has none): it would be no class.
    ``inputs`` gives what ``forward`` takes of a batch; None: its pictures, normalised. ``stop`` is asked before every batch
    and makes it raise :class:`Interrupted`; ``progress`` is told the images done.
    """
    device = next(model.parameters()).device
    columns: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    classes = done = most = 0
    with modes_kept(model):
        model.eval()
        for batch in batches:
            if stop():
                raise Interrupted
            with torch.no_grad(), numerics.autocast(device):
                given = inputs(batch) if inputs else _pictures(batch, numerics, device)
                most = max(most, len(given))
                if isinstance(forward, Compiled):
                    given = filled_up(given, most)
                logits = forward(given)[: len(batch.labels)].float()
            classes = logits.shape[1]
            labels = batch.labels.to(device, non_blocking=True)
            columns.append(_answers(logits, labels, batch.valid.to(device, non_blocking=True)))
            rows.append(batch.rows if len(batch.rows) else np.arange(done, done + len(labels)))
            done += len(labels)
            progress(done)
    return _summed(torch.cat(columns, dim=1).cpu().numpy(), classes, np.concatenate(rows))


def _pictures(batch: Batch, numerics: Numerics, device: torch.device) -> Tensor:
    images = batch.images.to(device, non_blocking=True)
    return normalise(images, numerics.mean, numerics.std, channels_last=numerics.channels_last)


def _answers(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Rows (loss, predicted, its probability, the right one's, label, rank of the label, readable, finite), float64 (8, B).

    Among equal probabilities the lower class index ranks first, so that a constant answer scores as chance does.
    """
    probabilities = softmax(logits.double(), dim=1)
    top = probabilities.max(dim=1)
    true = probabilities.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((probabilities > true) | ((probabilities == true) & earlier)).sum(dim=1)
    loss = cross_entropy(logits.double(), labels, reduction="none")
    columns = (loss, top.indices, top.values, true[:, 0], labels, rank, valid, torch.isfinite(logits).all(dim=1))
    return torch.stack([column.double() for column in columns])


def _summed(answers: NDArray[np.float64], classes: int, rows: NDArray[np.int64]) -> Evaluation:
    loss, predicted, probability, true_probability, labels, rank, readable, finite = answers
    ok = readable.astype(bool)
    count = int(ok.sum())
    spoilt = ok & (finite == 0)
    if spoilt.any():
        raise NotFinite(rows[spoilt].tolist(), count)
    correct = predicted == labels
    return Evaluation(
        loss=float(loss[ok].mean()) if count else float("nan"),
        top1=100.0 * float(correct[ok].mean()) if count else 0.0,
        top5=100.0 * float((rank[ok] < 5).mean()) if count and classes > 5 else None,
        images=count,
        unreadable=len(ok) - count,
        predictions=Predictions(
            predicted=np.where(ok, predicted, -1).astype(np.int64),
            probability=probability.astype(np.float32),
            true_probability=true_probability.astype(np.float32),
            readable=ok,
        ),
    )
