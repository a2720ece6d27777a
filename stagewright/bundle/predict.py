"""Predicts the classes of images with a trained model, in order; unreadable images do not stop it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from stagewright.bundle.inputs import expand_inputs
from stagewright.bundle.predictions import Prediction
from stagewright.bundle.preprocessing import Preprocessing, logits_of, upright
from stagewright.data.images.decode import decode
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.stored import MOST_BYTES
from stagewright.errors import DataError
from stagewright.storage.files import read_user_file
from stagewright.system.threads import Pool

Picture = str | Path | Image.Image
View = NDArray[np.uint8]

_READERS = 4


def answer(
    model: nn.Module,
    classes: Sequence[str],
    view: Preprocessing,
    inputs: Picture | Iterable[Picture],
    batch_size: int = 32,
    topk: int = 5,
    max_pixels: int = MOST_PIXELS,
) -> Iterator[Prediction]:
    """Yields one Prediction for each image, lazily and in order, as :meth:`stagewright.bundle.bundle.Bundle.predict`
    describes. DataError if ``batch_size``, ``topk`` or ``max_pixels`` is less than 1."""
    if batch_size < 1 or topk < 1 or max_pixels < 1:
        numbers = f"batch_size {batch_size}, topk {topk}, max_pixels {max_pixels}"
        raise DataError(numbers, "whole numbers, at least 1", "give larger numbers")
    items = _items([inputs] if isinstance(inputs, str | Path | Image.Image) else inputs)
    batches = _batches(view, items, batch_size, max_pixels)
    return _answers(model, classes, view, batches, min(topk, len(classes)))


def _items(inputs: Iterable[Picture]) -> list[tuple[str, Path | Image.Image]]:
    """Returns (name, file or image) of each input; folders and globs are replaced by their files."""
    items: list[tuple[str, Path | Image.Image]] = []
    for item in inputs:
        if isinstance(item, Image.Image):
            items.append((getattr(item, "filename", "") or f"picture {len(items)}", item))
        else:
            items += [(str(path), path) for path in expand_inputs([item])]
    return items


def _answers(
    model: nn.Module,
    classes: Sequence[str],
    view: Preprocessing,
    batches: Iterable[list[tuple[str, View | Exception]]],
    topk: int,
) -> Iterator[Prediction]:
    device = next(model.parameters()).device
    for batch in batches:
        views = [seen for _, seen in batch if not isinstance(seen, Exception)]
        answers: Iterator[tuple[tuple[str, float], ...]] = iter(())
        if views:
            logits = logits_of(model, view.batch(views, device)).double()
            # One logit that is not finite makes the whole output invalid, even if softmax gives 0 for it.
            not_finite = ~torch.isfinite(logits).all(dim=1, keepdim=True)
            probabilities = logits.softmax(dim=1).masked_fill(not_finite, torch.nan).cpu()
            ranked = torch.sort(probabilities, dim=1, descending=True, stable=True)  # ties: the class listed first
            places, shares = ranked.indices[:, :topk].tolist(), ranked.values[:, :topk].tolist()
            answers = iter([_named(classes, *row) for row in zip(places, shares, strict=True)])
        for name, seen in batch:
            if isinstance(seen, Exception):
                yield Prediction(name, (), str(seen) or type(seen).__name__)
            else:
                top = next(answers)
                finite = all(np.isfinite(p) for _, p in top)
                yield Prediction(name, top) if finite else Prediction(name, (), "the network's output is not finite")


def _named(classes: Sequence[str], places: list[int], shares: list[float]) -> tuple[tuple[str, float], ...]:
    return tuple((classes[at], share) for at, share in zip(places, shares, strict=True))


def _batches(
    view: Preprocessing, items: Sequence[tuple[str, Path | Image.Image]], batch_size: int, max_pixels: int
) -> Iterator[list[tuple[str, View | Exception]]]:
    """Yields the views of ``items`` in batches; while the model processes one batch, the next one is loaded."""

    def finished(ahead: list[tuple[str, Future[View | Exception]]]) -> list[tuple[str, View | Exception]]:
        return [(name, future.result()) for name, future in ahead]

    with Pool(min(_READERS, os.cpu_count() or 1), "predict") as readers:
        ahead: list[tuple[str, Future[View | Exception]]] = []
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            following = [(name, readers.submit(_view, view, item, max_pixels)) for name, item in batch]
            if ahead:
                yield finished(ahead)
            ahead = following
        if ahead:
            yield finished(ahead)


def _view(view: Preprocessing, item: Path | Image.Image, max_pixels: int) -> View | Exception:
    try:
        if isinstance(item, Image.Image):
            return view.view(upright(item))
        return view.view(decode(read_user_file(item, most=MOST_BYTES), max_pixels))
    except (OSError, ValueError) as error:
        return error
