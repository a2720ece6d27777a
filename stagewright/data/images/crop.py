"""Crops images to the square inputs of a batch, and writes them directly into the memory of the batch.

The native decoder crops as many images as it can in one call. Pillow and torch crop the remaining ones one by one, or all
images if there is no native decoder. Both use the same boxes, and their results differ only by rounding: compared with
full decoding and Pillow's antialiased resize, both have a median PSNR of 56 dB over 250 photographs at 224 pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from stagewright.augment.geometry import Geometry, jpeg_scale
from stagewright.data.images import native
from stagewright.data.images.decode import (
    ArrayImages,
    FileImages,
    Images,
    crop_resize,
    decode_for,
    decode_plain,
    whole_pixels,
)
from stagewright.data.images.memory_cache import CachedImages
from stagewright.data.images.stored import Stored
from stagewright.data.load_times import LoadTimes
from stagewright.errors import DataError
from stagewright.recipe.recipe import Interpolation

Pixels = NDArray[np.uint8]
BadPlace = tuple[int, str]

# The errors that reading a damaged or missing image can raise. Every other error is passed on to the caller, since it is a
# bug or a problem of the machine. This includes MemoryError: decode() turns it into an OSError if the image is the cause.
UNREADABLE = (OSError, ValueError, SyntaxError, DataError, Image.DecompressionBombError)

IN_MEMORY = (ArrayImages, CachedImages)

_LARGE = 1 << 25
"""Pixels above which an exact resize is left to Pillow, which gives the same bits: for NumPy, the image would be copied twice."""


def crop_into(
    images: Images,
    rows: NDArray[np.int64],
    geometry: Geometry,
    interpolation: Interpolation,
    exact: bool,
    out: Pixels,
    times: LoadTimes | None = None,
) -> list[BadPlace]:
    """Crops, resizes, shifts and flips the images ``rows``, int64 (N,), as ``geometry`` describes, and writes them to ``out``.

    ``out`` is uint8 (N, S, S, 3) and contiguous. If ``exact`` is False, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size
    if that is large enough for its crop. Returns a list of (index into ``rows``, reason), in this order, of the images that
    could not be read; their pixels in ``out`` are zeros. The seconds for reading and decoding are added to ``times``.
    """
    boxes, shifts, flips = geometry.boxes, geometry.shifts, geometry.flips
    began, times = time.perf_counter(), times or LoadTimes()
    if isinstance(images, IN_MEMORY) and images.array is not None and keeps_size(images.array, boxes, out.shape[1]):
        failures = images.ensure(rows)
        read = time.perf_counter()
        gather(images.array, rows, shifts, flips, out)
        out[list(failures)] = 0
        times.loaded(len(rows), read - began, time.perf_counter() - read)
        return [(at, in_words(error)) for at, error in failures.items()]
    edges = images.to_stored(rows, boxes)
    if isinstance(images, FileImages) and native.available():
        paths = [images.path(row) for row in rows.tolist()]
        codes, read_seconds = native.crop_files(paths, edges, flips, out.shape[1], interpolation, exact, out)
        left = np.flatnonzero(codes != native.DONE)
        # Read these images again, now with repeated attempts if the storage fails.
        bad = _views(images.stored(rows[left]), range(len(left)), left, edges, flips, interpolation, exact, out)
    else:
        stored = images.stored(rows)
        read_seconds = time.perf_counter() - began
        todo = np.ones(len(rows), np.bool_)
        if native.available():
            todo = native.crop(stored, edges, flips, out.shape[1], interpolation, exact, out) != native.DONE
        left = np.flatnonzero(todo)
        bad = _views(stored, left, left, edges, flips, interpolation, exact, out)
    for at in np.flatnonzero(shifts.any(axis=1)).tolist():
        x, y = shifts[at].tolist()
        _shift(out[at], -x if flips[at] else x, y)
    times.loaded(len(rows), read_seconds, time.perf_counter() - began - read_seconds)
    return bad


def _views(
    stored: Stored,
    numbers: Iterable[int],
    places: NDArray[np.intp],
    edges: NDArray[np.float64],
    flips: NDArray[np.bool_],
    interpolation: Interpolation,
    exact: bool,
    out: Pixels,
) -> list[BadPlace]:
    """Writes the images at the indices ``places`` of ``out`` with :func:`view`, one by one.

    ``numbers`` are the indices of the same images in ``stored``. Returns (index into ``out``, reason) of each image that
    cannot be read; its pixels are zeros.
    """
    bad: list[BadPlace] = []
    for number, at in zip(numbers, places.tolist(), strict=True):
        try:
            view(stored, int(number), edges[at], bool(flips[at]), interpolation, exact, out[at])
        except UNREADABLE as error:
            out[at] = 0
            bad.append((at, in_words(error)))
    return bad


def in_words(error: BaseException) -> str:
    """Returns the type and the message of ``error``, which explain on one line why an image could not be read."""
    return f"{type(error).__name__}: {error}"


def keeps_size(array: Pixels, boxes: NDArray[np.float64], size: int) -> bool:
    """Returns True if every box covers its whole image and the images have side ``size`` already: nothing is resized."""
    height, width = array.shape[1:3]
    return height == width == size and bool(np.all(boxes == (0, 0, width, height)))


def gather(
    array: Pixels, rows: NDArray[np.int64], shifts: NDArray[np.int64], flips: NDArray[np.bool_], out: Pixels
) -> None:
    """Copies the images ``rows`` of ``array``, shifted and flipped but not resized, to ``out``, all in one call.

    The NumPy version copies 260,000 images of 32 x 32 pixels per second on one core.
    """
    if native.available() and array.flags.c_contiguous:
        native.gather(array, rows, shifts, flips, out)
        return
    size, count = out.shape[1], len(rows)
    pad = int(np.abs(shifts).max(initial=0))
    if pad:
        padded = np.zeros((count, size + 2 * pad, size + 2 * pad, 3), dtype=np.uint8)
        padded[:, pad : pad + size, pad : pad + size] = array[rows]
        # The pixels of a line are contiguous in memory, so a window of S pixels is one copy of 3 S bytes.
        lines = padded.reshape(count, size + 2 * pad, -1)
        windows = np.lib.stride_tricks.sliding_window_view(lines, 3 * size, axis=2)[:, :, ::3]
        top, left = shifts[:, 1, None] + pad + np.arange(size), shifts[:, 0, None] + pad
        out.reshape(count, size, 3 * size)[...] = windows[np.arange(count)[:, None], top, left]
    else:
        np.take(array, rows, axis=0, out=out)
    flipped = np.flatnonzero(flips)
    whole = _as_pixels(out)
    whole[flipped] = whole[flipped][:, :, ::-1]


def view(
    stored: Stored,
    at: int,
    box: NDArray[np.float64],
    flip: bool,
    interpolation: Interpolation,
    exact: bool,
    out: Pixels,
    *,
    without_native: bool = False,
) -> None:
    """Decodes image ``at`` of ``stored`` with Pillow or simplejpeg, and crops, resizes and flips it into ``out`` (S, S, 3).

    The native library resizes if it is available, unless ``without_native``. Raises one of :data:`UNREADABLE` if the image
    cannot be read.
    """
    if at in stored.failures:
        raise stored.failures[at]
    left, top, right, bottom = box.tolist()
    size, native_resize = len(out), native.available() and not without_native
    scale = 1 if exact else int(jpeg_scale(box[2] - box[0], box[3] - box[1], size))
    if stored.sizes is not None:
        width, height = stored.sizes[at].tolist()
        picture, scale = Image.frombytes("RGB", (width, height), stored.data(at)), 1
    else:
        if not (exact or native_resize) and _plain_view(stored.data(at), box, scale, interpolation, flip, out):
            return
        picture, scale, (width, height) = decode_for(stored.data(at), scale, stored.max_pixels)
    _check_fits(width, height, right, bottom)
    scaled = (left / scale, top / scale, right / scale, bottom / scale)
    if native_resize and not (exact and width * height > _LARGE):
        pixels = Stored.of_array(np.asarray(picture))
        native.crop(pixels, np.array([scaled]), np.array([flip]), size, interpolation, exact, out[None])
    else:
        seen = _resized(picture, scaled, size, interpolation, exact)
        _put(seen, flip, out)


def _check_fits(width: int, height: int, right: float, bottom: float) -> None:
    """Raises OSError if the image is smaller than its crop box.

    Boxes are drawn from the image sizes in the manifest. The file may have been replaced by a smaller image since then.
    """
    if right > width or bottom > height:
        raise OSError(f"the picture is now {width} x {height} pixels, but it was larger when it was scanned")


def _plain_view(
    data: bytes | memoryview,
    box: NDArray[np.float64],
    scale: int,
    interpolation: Interpolation,
    flip: bool,
    out: Pixels,
) -> bool:
    """Fills ``out`` and returns True if ``data`` is a plain JPEG and ``box`` has integer edges at 1 / ``scale`` of the size.

    Otherwise returns False and leaves ``out`` unchanged.
    """
    scaled = [edge / scale for edge in box.tolist()]
    if not all(edge.is_integer() for edge in scaled):
        return False
    decoded = decode_plain(data, scale)
    if decoded is None:
        return False
    pixels, (width, height) = decoded
    _check_fits(width, height, box[2], box[3])
    left, top, right, bottom = map(int, scaled)
    _put(_torch_resized(pixels[top:bottom, left:right], len(out), interpolation), flip, out)
    return True


def _put(seen: Pixels, flip: bool, out: Pixels) -> None:
    if flip:
        _as_pixels(out)[...] = _as_pixels(np.ascontiguousarray(seen))[:, ::-1]
    else:
        out[...] = seen


def _as_pixels(array: Pixels) -> NDArray[np.void]:
    """Returns a view of ``array`` (..., 3) whose items are pixels of 3 bytes: flipping it is more than twice as fast."""
    return array.view("V3")[..., 0]


def _resized(
    picture: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: Interpolation, exact: bool
) -> Pixels:
    """Returns the part ``box`` of ``picture``, resized to (size, size, 3).

    If the box has integer edges, torch resizes, because its antialiased resize is two to three times as fast as Pillow's.
    Otherwise, and if ``exact``, Pillow resizes.
    """
    if exact or not all(edge.is_integer() for edge in box):
        return crop_resize(picture, box, (size, size), interpolation, exact=exact)
    return _torch_resized(np.array(picture.crop(whole_pixels(box, picture.size))), size, interpolation)


def _torch_resized(part: Pixels, size: int, interpolation: Interpolation) -> Pixels:
    """Returns ``part`` (H, W, 3), resized to (size, size, 3) with antialiasing."""
    if part.shape == (size, size, 3):
        return part
    tensor = torch.from_numpy(part).permute(2, 0, 1)[None]
    resized: Any = interpolate(tensor, (size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _shift(view: Pixels, x: int, y: int) -> None:
    """Moves the crop window over ``view`` (S, S, 3) by ``x`` pixels right and ``y`` down, in place.

    Pixels from outside the image are black.
    """
    size = len(view)
    padded = np.pad(view, ((abs(y),) * 2, (abs(x),) * 2, (0, 0)))
    view[...] = padded[abs(y) + y :, abs(x) + x :][:size, :size]
