"""Evaluates a model on every image of a split exactly once; losses and predictions are collected on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from stagewright.augment.normalise import normalise
from stagewright.data.batches.batch import Batch
from stagewright.distributed.deal import Deal
from stagewright.engine.compile import Compiled, pad_batch
from stagewright.engine.numerics import Numerics
from stagewright.errors import Interrupted, NotFinite
from stagewright.measures.answers import Answers
from stagewright.model.groups import modes_kept


@dataclass(frozen=True, slots=True)
class Extras:
    """What an evaluation collects besides losses and predicted classes."""

    temperatures: Sequence[float] = ()
    """Temperatures of :attr:`Predictions.tempered_losses`."""
    probabilities: bool = False
    """Whether the probabilities of all classes are kept; 4 bytes each, on the device until the end."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for each image, in the order of the split; every array has shape (N,)."""

    predicted: NDArray[np.int64]
    """Index of the class with the highest probability; -1 for an image that could not be read."""
    probability: NDArray[np.float32]
    """Probability of the predicted class, in [0, 1]."""
    true_probability: NDArray[np.float32]
    """Probability of the labelled class, in [0, 1]."""
    readable: NDArray[np.bool_]
    """Whether the image could be read."""
    labels: NDArray[np.int64]
    """Index of the true class."""
    losses: NDArray[np.float64]
    """Cross-entropy in nats."""
    tempered_losses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """Cross-entropy of the logits divided by each of T temperatures, (T, N); T is 0 where none were asked for."""
    ranks: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Number of classes that are more probable than the labelled one."""
    probabilities: NDArray[np.float32] | None = None
    """Probabilities of all C classes, (N, C); None where they were not asked for."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation: mean cross-entropy without label smoothing, and accuracies in percent, over readable images."""

    loss: float
    top1: float
    top5: float | None
    """None for five classes or fewer, where it would always be 100."""
    images: int
    """Number of readable images."""
    unreadable: int
    """Number of images that could not be read."""
    predictions: Predictions = field(repr=False)
    num_classes: int = 0

    def answers(self, groups: NDArray[np.int64] | None = None, chosen: NDArray[np.bool_] | None = None) -> Answers:
        """Returns the answers to the images that could be read, for :mod:`stagewright.measures`; ``groups`` (N,) are numbers, and
        ``chosen`` (N,) says to which images; None: to all."""
        found = self.predictions
        read = found.readable if chosen is None else found.readable & chosen
        return Answers(
            labels=found.labels[read],
            predicted=found.predicted[read],
            num_classes=self.num_classes,
            losses=found.losses[read],
            confidence=found.probability[read].astype(np.float64),
            probabilities=None if found.probabilities is None else found.probabilities[read],
            groups=None if groups is None else groups[read],
        )

    def numbers(self) -> dict[str, float | int | None]:
        """Returns the scalars as a dict, for events and files."""
        return {name: getattr(self, name) for name in ("loss", "top1", "top5", "images", "unreadable")}

    def of(self, chosen: NDArray[np.bool_]) -> Evaluation:
        """Returns the result over the images ``chosen`` (N,) alone; its predictions are those of all images."""
        answers = self.predictions
        ok = answers.readable & chosen
        count = int(ok.sum())
        return replace(
            self,
            loss=float(answers.losses[ok].mean()) if count else float("nan"),
            top1=100.0 * float((answers.ranks[ok] == 0).mean()) if count else 0.0,
            top5=100.0 * float((answers.ranks[ok] < 5).mean()) if count and self.top5 is not None else None,
            images=count,
            unreadable=int(chosen.sum()) - count,
        )


_NOTHING = Extras()


def evaluate(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    numerics: Numerics,
    *,
    inputs: Callable[[Batch], Tensor] | None = None,
    extras: Extras = _NOTHING,
    deal: Deal | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Evaluates ``model`` in eval mode on ``batches``; afterwards its training modes are as before.

    ``forward`` maps the input of a batch to logits (B, K). ``inputs`` makes that input from a batch; by default it is the
    normalised images. ``extras`` says what is collected besides. With ``deal``, ``batches`` are those of this process, and the
    result is that of all processes, which call this together. ``stop`` is called before every batch; if it returns True,
    :class:`Interrupted` is raised. ``progress`` is called after every batch with the number of images evaluated so far. Raises
    :class:`NotFinite` if logits of a readable image are not finite; it names the manifest rows, or the positions in the given
    order if the batches have no rows.
    """
    device = next(model.parameters()).device
    columns: list[Tensor] = []
    shares: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    classes = done = 0
    largest = 0 if deal is None else deal.most  # a rank may have none of the full batches
    with modes_kept(model):
        model.eval()
        for batch in batches:
            if stop():
                raise Interrupted
            with torch.no_grad(), numerics.autocast(device):
                given = inputs(batch) if inputs else _normalised_images(batch, numerics, device)
                largest = max(largest, len(given))
                if isinstance(forward, Compiled):
                    given = pad_batch(given, largest)
                logits = forward(given)[: len(batch.labels)].float()
            classes = logits.shape[1]
            labels = batch.labels.to(device, non_blocking=True)
            probabilities = softmax(logits.double(), dim=1)
            if extras.probabilities:
                shares.append(probabilities.float())
            results = _image_results(logits, probabilities, labels, batch.valid.to(device, non_blocking=True))
            tempered = [cross_entropy(logits.double() / one, labels, reduction="none") for one in extras.temperatures]
            columns.append(torch.cat([results, *(one[None] for one in tempered)]))
            rows.append(batch.rows if len(batch.rows) else np.arange(done, done + len(labels)))
            done += len(labels)
            progress(done)
    if deal is not None and any(stop() for _ in range(deal.idle)):
        raise Interrupted
    results, named = _joined(columns, 8 + len(extras.temperatures)), np.concatenate([np.empty(0, np.int64), *rows])
    if deal is not None:
        results, named, classes = deal.together(results), deal.together(named), deal.largest(classes)
    found = _summarise(np.ascontiguousarray(results.T), classes, named)
    if not extras.probabilities:
        return found
    probabilities = torch.cat(shares).cpu().numpy() if shares else np.empty((0, classes), np.float32)
    if deal is not None:
        probabilities = deal.together(probabilities)
    return replace(found, predictions=replace(found.predictions, probabilities=probabilities))


def _joined(columns: list[Tensor], height: int) -> NDArray[np.float64]:
    """Returns the results of all batches, float64 (N, height); there may be none."""
    joined = torch.cat(columns, dim=1).cpu().numpy() if columns else np.empty((height, 0))
    return np.ascontiguousarray(joined.T)


def _normalised_images(batch: Batch, numerics: Numerics, device: torch.device) -> Tensor:
    images = batch.images.to(device, non_blocking=True)
    return normalise(images, numerics.mean, numerics.std, channels_last=numerics.channels_last)


def _image_results(logits: Tensor, probabilities: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Returns float64 (8, B), one column per image.

    The rows: loss, predicted class, probability of the predicted class, probability of the label, label, rank of the label
    (from 0), readable, finite. Among equal probabilities the lower class index ranks first, so that constant logits score as
    chance does.
    """
    top = probabilities.max(dim=1)
    true = probabilities.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((probabilities > true) | ((probabilities == true) & earlier)).sum(dim=1)
    loss = cross_entropy(logits.double(), labels, reduction="none")
    columns = (loss, top.indices, top.values, true[:, 0], labels, rank, valid, torch.isfinite(logits).all(dim=1))
    return torch.stack([column.double() for column in columns])


def _summarise(results: NDArray[np.float64], classes: int, rows: NDArray[np.int64]) -> Evaluation:
    """Makes an Evaluation from the results of :func:`_image_results` (8, N) and the tempered losses below them; ``rows`` (N,)
    name images in errors."""
    loss, predicted, probability, true_probability, labels, rank, readable, finite = results[:8]
    ok = readable.astype(bool)
    count = int(ok.sum())
    not_finite = ok & (finite == 0)
    if not_finite.any():
        raise NotFinite(rows[not_finite].tolist(), count)
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
            labels=labels.astype(np.int64),
            losses=loss,
            tempered_losses=results[8:],
            ranks=rank.astype(np.int64),
        ),
        num_classes=classes,
    )
