"""Turns batch specifications into batches, in order, as fast as the threads go: only speed, no decisions.

Everything that decides what a batch holds stands in its :class:`BatchSpec`, so the bits are the same for any number of
workers and any prefetch, and the loader neither knows epochs nor ever restarts: it reads straight across their seams.
Threads suffice, since Pillow and NumPy release the interpreter lock around their work. A picture that cannot be read is
zeros, not valid and named; it is never replaced. Nothing is normalised here: batches are 8-bit, a quarter of the bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stagewright.augment.params import Geometry
from stagewright.data.decode import ArrayImages, Images, crop_resize
from stagewright.errors import DataError
from stagewright.recipe import Interpolation

Pixels = NDArray[np.uint8]
BadRow = tuple[int, str]
Part = Callable[[], list[BadRow]]

# What reading a damaged or missing picture may raise. All else is a bug or an emergency and reaches the consumer,
# MemoryError too: where it is the picture that asks for too much, decode has made an OSError of it.
UNREADABLE = (OSError, ValueError, SyntaxError, DataError, Image.DecompressionBombError)

_PICTURES_A_TASK = 8  # small enough to keep all threads busy on one batch, large enough that handing out costs nothing
_THREAD_NAME = "stagewright-loader"


@dataclass(frozen=True, slots=True, eq=False)
class BatchSpec:
    """What a batch of B pictures holds: all of it decided, none of it read."""

    step: int
    rows: NDArray[np.int64]
    """int64 (B,): rows of the manifest."""
    labels: NDArray[np.int64]
    """int64 (B,)."""
    geometry: Geometry
    image_size: int
    """Side S of the square pictures in pixels."""
    interpolation: Interpolation


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pictures as the network's device wants them."""

    step: int
    images: Tensor
    """uint8 (B, 3, S, S), channels_last in memory."""
    labels: Tensor
    """int64 (B,)."""
    valid: Tensor
    """bool (B,): False where the picture could not be read; its pixels are zeros."""
    bad_rows: tuple[BadRow, ...]
    """(manifest row, reason) of each picture that could not be read, in the order of the batch."""


def load_batches(
    images: Images,
    specs: Iterable[BatchSpec],
    *,
    workers: int,
    prefetch: int = 4,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of ``specs``, in their order, made by ``workers`` threads (0: by the calling thread).

    Specs are drawn in the calling thread, once each, and no more than ``prefetch`` beyond the batch handed out, which
    also bounds the memory; with 0 workers none. Close the generator (``contextlib.closing``) to end the threads; being
    garbage collected or exhausted ends them too. Closing waits for the picture that each thread is at, and no longer.
    ``pin_memory`` allocates page-locked tensors and needs CUDA. An error of the reader that is not in
    ``UNREADABLE`` is raised when its batch is due. ValueError for workers < 0 or prefetch < 1.
    """
    if workers < 0 or prefetch < 1:
        raise ValueError(f"workers {workers} must not be negative, prefetch {prefetch} must be at least 1")
    drafts = (_Draft(images, spec, pin_memory) for spec in specs)
    return _in_threads(drafts, workers, prefetch) if workers else _in_turn(drafts)


def _in_turn(drafts: Iterator[_Draft]) -> Generator[Batch, None, None]:
    yield from map(_finish, drafts)


def _finish(draft: _Draft) -> Batch:
    return draft.finished(part() for part in draft.parts(threading.Event()))


def _in_threads(drafts: Iterator[_Draft], workers: int, prefetch: int) -> Generator[Batch, None, None]:
    closed = threading.Event()
    under_way: deque[tuple[_Draft, list[Future[list[BadRow]]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=_THREAD_NAME)

    def top_up() -> None:
        while len(under_way) < prefetch and (draft := next(drafts, None)) is not None:
            under_way.append((draft, [pool.submit(part) for part in draft.parts(closed)]))

    def take() -> Batch:
        draft, futures = under_way.popleft()
        batch = draft.finished(future.result() for future in futures)
        top_up()
        return batch

    try:
        top_up()
        while under_way:
            yield take()  # without a name here, or a batch would stay in memory after the consumer is done with it
    finally:
        closed.set()
        # A cycle that holds this generator may be collected in one of its own threads, which cannot wait for itself.
        own = threading.current_thread().name.startswith(_THREAD_NAME)
        pool.shutdown(wait=not own, cancel_futures=True)


class _Draft:
    """A batch in the making: its buffers, and the pieces of work that fill them, in any order or at once."""

    def __init__(self, images: Images, spec: BatchSpec, pin_memory: bool) -> None:
        size = spec.image_size
        self.images, self.spec = images, spec
        self.buffer = torch.empty((len(spec.rows), size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)
        self.labels = torch.empty(len(spec.rows), dtype=torch.int64, pin_memory=pin_memory)
        self.valid = torch.ones(len(spec.rows), dtype=torch.bool, pin_memory=pin_memory)
        self.labels.numpy()[:] = spec.labels

    def parts(self, closed: threading.Event) -> list[Part]:
        """The pieces of work; each returns the rows it could not read, and gives up once ``closed`` is set."""
        pixels, valid = self.buffer.numpy(), self.valid.numpy()
        if isinstance(self.images, ArrayImages) and _keeps_size(self.images.array, self.spec):
            return [partial(_gather, self.images.array, self.spec, pixels)]
        chunks = [range(start, len(valid))[:_PICTURES_A_TASK] for start in range(0, len(valid), _PICTURES_A_TASK)]
        return [partial(_read, self.images, self.spec, chunk, pixels, valid, closed) for chunk in chunks]

    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """The batch, once ``bad_rows`` (of all parts, in order) is exhausted."""
        bad = tuple(row for part in bad_rows for row in part)
        return Batch(self.spec.step, self.buffer.permute(0, 3, 1, 2), self.labels, self.valid, bad)


def _read(
    images: Images,
    spec: BatchSpec,
    chunk: range,
    pixels: Pixels,
    valid: NDArray[np.bool_],
    closed: threading.Event,
) -> list[BadRow]:
    """Reads the pictures of ``chunk`` into ``pixels`` (B, S, S, 3), one by one."""
    bad: list[BadRow] = []
    for at in chunk:
        if closed.is_set():
            break
        row = int(spec.rows[at])
        try:
            picture = images.load(row)
            _check_still_fits(picture, spec.geometry.boxes[at])
        except UNREADABLE as error:
            pixels[at], valid[at] = 0, False
            bad.append((row, f"{type(error).__name__}: {error}"))
        else:
            _view(picture, spec, at, pixels[at])
    return bad


def _check_still_fits(picture: Image.Image, box: NDArray[np.float64]) -> None:
    """Boxes are drawn from the manifest's sizes; a file replaced since then may be smaller."""
    if box[2] > picture.width or box[3] > picture.height:
        raise DataError(
            f"the picture is {picture.width} x {picture.height} pixels now and was larger when it was scanned"
        )


def _view(picture: Image.Image, spec: BatchSpec, at: int, out: Pixels) -> None:
    """Cuts, resizes, shifts and flips ``picture`` into ``out`` (S, S, 3)."""
    size = spec.image_size
    left, top, right, bottom = spec.geometry.boxes[at].tolist()
    view = crop_resize(picture, (left, top, right, bottom), (size, size), spec.interpolation)
    x, y = spec.geometry.shifts[at].tolist()
    if x or y:
        view = np.pad(view, ((abs(y),) * 2, (abs(x),) * 2, (0, 0)))[abs(y) + y :, abs(x) + x :][:size, :size]
    out[...] = view[:, ::-1] if spec.geometry.flips[at] else view


def _keeps_size(array: Pixels, spec: BatchSpec) -> bool:
    """Whether every picture of the batch is seen whole and at its own size, so that nothing is resized."""
    height, width = array.shape[1:3]
    return height == width == spec.image_size and bool(np.all(spec.geometry.boxes == (0, 0, width, height)))


def _gather(array: Pixels, spec: BatchSpec, pixels: Pixels) -> list[BadRow]:
    """The same bits as :func:`_read` for pictures that keep their size, all at once: 260,000 pictures of 32 pixels a second
    on one core instead of 18,000."""
    size, shifts, batch = spec.image_size, spec.geometry.shifts, np.arange(len(spec.rows))
    pad = int(np.abs(shifts).max(initial=0))
    if pad:
        padded = np.zeros((len(batch), size + 2 * pad, size + 2 * pad, 3), dtype=np.uint8)
        padded[:, pad : pad + size, pad : pad + size] = array[spec.rows]
        # Rows of pixels lie together, so a window of a row is one copy of 3 S bytes.
        lines = padded.reshape(len(batch), size + 2 * pad, -1)
        windows = np.lib.stride_tricks.sliding_window_view(lines, 3 * size, axis=2)[:, :, ::3]
        top, left = shifts[:, 1, None] + pad + np.arange(size), shifts[:, 0, None] + pad
        pixels.reshape(len(batch), size, 3 * size)[...] = windows[batch[:, None], top, left]
    else:
        pixels[...] = array[spec.rows]
    flipped = np.flatnonzero(spec.geometry.flips)
    whole = pixels.view("V3")[..., 0]  # a pixel as one item of 3 bytes: reversed more than twice as fast as bytes
    whole[flipped] = whole[flipped][:, :, ::-1]
    return []
