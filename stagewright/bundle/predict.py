"""Predicts the classes of images with a trained model, in order; unreadable images do not stop it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from stagewright.bundle.inputs import Inputs, expand_inputs
from stagewright.bundle.predictions import Prediction
from stagewright.bundle.preprocessing import Preprocessing, logits_of, upright
from stagewright.data.images.decode import decode
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.stored import MOST_BYTES
from stagewright.errors import DataError
from stagewright.measures.operating import NO_ANSWER, OperatingPoint
from stagewright.storage.files import read_user_file
from stagewright.system.threads import Pool, Task

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Picture = str | os.PathLike[str] | Image.Image | Pixels | torch.Tensor | bytes | bytearray | memoryview | IO[bytes]
"""What :meth:`stagewright.bundle.bundle.Bundle.predict` accepts as one image."""
View = NDArray[np.uint8]
_Item = tuple[str, Path | bytes | Image.Image]
"""The name of an image, and its file, the bytes of its file, or itself."""

_READERS = 4
_ALLOWED = (
    "a path, folder or glob, a Pillow image, a uint8 array (height, width, 3) in the order RGB or (height, width) in grey, a "
    "uint8 tensor (3, height, width), the bytes of an image file, a binary file; or a list of these"
)


_ALWAYS = OperatingPoint()


def answer(
    model: nn.Module,
    classes: Sequence[str],
    view: Preprocessing,
    inputs: Picture | Iterable[Picture] | Inputs,
    batch_size: int = 32,
    topk: int = 5,
    max_pixels: int = MOST_PIXELS,
    operating: OperatingPoint = _ALWAYS,
) -> Iterator[Prediction]:
    """Yields one Prediction for each image, lazily and in order, as :meth:`stagewright.bundle.bundle.Bundle.predict`
    describes. DataError if ``batch_size``, ``topk`` or ``max_pixels`` is less than 1, and for an input that is no image."""
    if batch_size < 1 or topk < 1 or max_pixels < 1:
        numbers = f"batch_size {batch_size}, topk {topk}, max_pixels {max_pixels}"
        raise DataError(numbers, "whole numbers, at least 1", "give larger numbers")
    batches = _batches(view, _items(inputs), batch_size, max_pixels)
    return _answers(model, classes, view, batches, min(topk, len(classes)), operating)


def _items(inputs: Picture | Iterable[Picture] | Inputs) -> list[_Item]:
    """Returns name and content of each input; folders and globs are replaced by their files."""
    if isinstance(inputs, Inputs):
        return [(str(path), path) for path in inputs.paths]
    if _is_one(inputs):
        inputs = [inputs]  # type: ignore[list-item]
    elif not isinstance(inputs, Iterable):
        raise _no_image(type(inputs).__name__)
    items: list[_Item] = []
    for item in inputs:  # type: ignore[union-attr]
        if isinstance(item, str | os.PathLike):
            named = item if isinstance(item, str) else Path(item)
            items += [(str(path), path) for path in expand_inputs([named]).paths]
            continue
        name = getattr(item, "filename", "") if isinstance(item, Image.Image) else getattr(item, "name", "")
        items.append((name if isinstance(name, str) and name else f"picture {len(items)}", _content(item)))
    return items


def _is_one(given: object) -> bool:
    """Whether ``given`` is one image and not several: files and arrays can be iterated over too. An array of paths is several."""
    if isinstance(given, np.ndarray):
        return given.dtype.kind not in "OUS"
    one = (str, os.PathLike, Image.Image, torch.Tensor, bytes, bytearray, memoryview)
    return isinstance(given, one) or hasattr(given, "read")


def _content(item: object) -> bytes | Image.Image:
    """Returns an input that is no path as an image, or as the bytes of its file; DataError if it is neither."""
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, np.ndarray):
        return _from_array(item)
    if isinstance(item, torch.Tensor):
        return _from_tensor(item)
    read = getattr(item, "read", None)
    if read is None:
        raise _no_image(type(item).__name__)
    data = read(MOST_BYTES + 1)
    if not isinstance(data, bytes):
        raise _no_image("a text file", 'open it with the mode "rb"')
    return data


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    given = f"an array of {array.dtype} with the shape {array.shape}"
    if array.dtype != np.uint8:
        scale = "; values from 0 to 1 become uint8 by (255 * array).round()" if array.dtype.kind == "f" else ""
        raise _no_image(given, f"convert it to uint8, 0 to 255{scale}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 4:
        raise _no_image(given, "give the images one by one: predict(list(array))")
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        raise _no_image(given, "put the channels last: array.transpose(1, 2, 0)")
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise _no_image(given, "give one image; of four channels, only the colours: array[:, :, :3]")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    given = f"a tensor of {str(tensor.dtype).removeprefix('torch.')} with the shape {tuple(tensor.shape)}"
    if tensor.dtype != torch.uint8:
        raise _no_image(given, "give the pixels as uint8, 0 to 255, not scaled and not normalised")
    if tensor.ndim == 4:
        raise _no_image(given, "give the images one by one: predict(list(tensor))")
    if not tensor.numel() or tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise _no_image(given, "give one image with the channels first: tensor.permute(2, 0, 1)")
    return _from_array(tensor.permute(1, 2, 0).cpu().numpy())


def _no_image(given: str, remedy: str = "give one of these") -> DataError:
    return DataError(f"{given} is not an image to predict", _ALLOWED, remedy)


def _answers(
    model: nn.Module,
    classes: Sequence[str],
    view: Preprocessing,
    batches: Iterable[list[tuple[str, View | Exception]]],
    topk: int,
    operating: OperatingPoint,
) -> Iterator[Prediction]:
    device = next(model.parameters()).device
    for batch in batches:
        views = [seen for _, seen in batch if not isinstance(seen, Exception)]
        answers: Iterator[tuple[tuple[tuple[str, float], ...], int, float]] = iter(())
        if views:
            logits = logits_of(model, view.batch(views, device)).double()
            # One logit that is not finite makes the whole output invalid, even if softmax gives 0 for it.
            not_finite = ~torch.isfinite(logits).all(dim=1, keepdim=True)
            probabilities = logits.softmax(dim=1).masked_fill(not_finite, torch.nan).cpu()
            ranked = torch.sort(probabilities, dim=1, descending=True, stable=True)  # ties: the class listed first
            places, shares = ranked.indices[:, :topk].tolist(), ranked.values[:, :topk].tolist()
            answered = operating.decide(probabilities.detach().float().numpy(), classes).tolist()
            named = [_named(classes, *row) for row in zip(places, shares, strict=True)]
            own = [row[at] for row, at in zip(probabilities.tolist(), answered, strict=True)]
            answers = iter(list(zip(named, answered, own, strict=True)))
        for name, seen in batch:
            if isinstance(seen, Exception):
                yield Prediction(name, (), getattr(seen, "strerror", None) or str(seen) or type(seen).__name__)
            else:
                top, at, share = next(answers)
                if not all(np.isfinite(p) for _, p in top):
                    yield Prediction(name, (), "the network's output is not finite")
                elif operating:
                    yield Prediction(name, top, decided=None if at == NO_ANSWER else (classes[at], share))
                else:
                    yield Prediction(name, top)


def _named(classes: Sequence[str], places: list[int], shares: list[float]) -> tuple[tuple[str, float], ...]:
    return tuple((classes[at], share) for at, share in zip(places, shares, strict=True))


def _batches(
    view: Preprocessing, items: Sequence[_Item], batch_size: int, max_pixels: int
) -> Iterator[list[tuple[str, View | Exception]]]:
    """Yields the views of ``items`` in batches; while the model processes one batch, the next one is loaded."""

    def finished(ahead: list[tuple[str, Task[View | Exception]]]) -> list[tuple[str, View | Exception]]:
        return [(name, future.result()) for name, future in ahead]

    with Pool(min(_READERS, os.cpu_count() or 1), "predict") as readers:
        ahead: list[tuple[str, Task[View | Exception]]] = []
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            following = [(name, readers.submit(_view, view, item, max_pixels)) for name, item in batch]
            if ahead:
                yield finished(ahead)
            ahead = following
        if ahead:
            yield finished(ahead)


def _view(view: Preprocessing, item: Path | bytes | Image.Image, max_pixels: int) -> View | Exception:
    try:
        if isinstance(item, Image.Image):
            return view.view(upright(item))
        data = item if isinstance(item, bytes) else read_user_file(item, most=MOST_BYTES)
        return view.view(decode(data, max_pixels))
    except (OSError, ValueError) as error:
        return error
