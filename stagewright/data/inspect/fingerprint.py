"""Fingerprints of image files (format, size and a 16 x 16 thumbnail) and the search for near duplicates.

A file counts as readable exactly if :func:`stagewright.data.images.decode.measure` can read it. The thumbnail is the
upright image, resized to 16 x 16 RGB; a JPEG is decoded at a reduced size (about 1/8 of a photo's) for it.

Two images are near duplicates if their thumbnails, each normalized to mean 0 and standard deviation 1, fulfil all of
these conditions:

- The 14 lowest frequencies of the grey image (DCT-II) have a root mean square difference of at most 0.25.
- The pixels differ by at most 0.2 on average, and nowhere by more than 0.45 + 6 times the average difference. So two
  images that differ by one small object are not near duplicates.
- The grey images, after the mean of each row and each column is subtracted, have a correlation of at least 0.85. So two
  images with the same background (sea and sky, for example) but different objects are not near duplicates.

Images without colour (digits, scans, night images of a fixed camera) carry less information; for them the limits are
0.1 for the average difference and 0.98 for the correlation.

The search finds all pairs within these limits: the frequencies are put into a k-d tree, and its pairs are compared pixel by
pixel. The alternative, a 64-bit hash of the signs of the same DCT with Hamming radius 8, missed a quarter of CIFAR-10's.

Measured recall (share of copies found) of 750 photos (full-size photos, and Imagenette at 224 pixels) and of 500 images
of CIFAR-10: JPEG quality 20: 100 % and 94 %; JPEG quality 50: 100 % and 99 %; PNG: 100 % and 100 %; half the size: 100 %
and 85 %; mirrored: 100 % and 100 %; 15 levels darker: 100 % and 99.8 %; 10 % brighter: 99.6 % and 100 %; 2 % cropped on
each side: 85 % and 63 %.

Measured precision: no false pairs among 250 photos of 250 kinds and 4,000 images of Imagenette. CIFAR-10 gave 668 pairs;
about 200 of them were checked by eye and were copies, crops by one pixel, or the same car from the same angle. Without
the condition on the correlation, about one pair in eight was none of these. 1,797 handwritten digits of 8 x 8 pixels gave
1 pair; with the limits for colour images it would be 2,560.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from stagewright.data.images import decode
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.sources.scan import DIGEST_BYTES, Scan

SIDE = 16
"""Width and height of a thumbnail in pixels."""

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_BITS = {"1": 1, "I": 32, "F": 32}
_SEVERAL_FRAMES = frozenset({"GIF", "WEBP", "PNG", "TIFF", "AVIF"})
_NEUTRAL = 4
"""Levels (0 to 255) by which the channels of a grey image can differ after it was saved as a colour JPEG."""
_BLANK = 4.0
"""Standard deviation in grey levels below which a thumbnail is blank: a comparison would only compare its noise."""

_DOWN, _ACROSS = np.array([(down, total - down) for total in range(1, 5) for down in range(total + 1)]).T
_MIRROR = np.where(_ACROSS % 2, -1, 1).astype(np.float32)
"""The lowest frequencies, vertical and horizontal, beginning with (0, 1); and the sign that mirroring gives to each."""

_RADIUS, _MEAN, _LOCAL, _LOCAL_SLOPE, _CORRELATION = 0.25, 0.2, 0.45, 6.0, 0.85
_GREY_MEAN, _GREY_CORRELATION = 0.1, 0.98
_MOST_PAIRS, _SAMPLE = 20_000_000, 4096
_MOST_EQUAL = 30
_CHUNK = 4096


@dataclass(frozen=True)
class Fingerprint:
    """Properties of one image file, and a thumbnail for comparison."""

    format: str = ""
    """Pillow's name of the file format: JPEG, PNG, ...; empty if Pillow cannot identify it."""
    mode: str = ""
    """Pillow's name of the pixel format in the file: L, RGB, P, CMYK, I;16, ..."""
    bits: int = 8
    """Bits per channel in the file."""
    width: int = 0
    height: int = 0
    """Size in pixels with the EXIF orientation applied; 0 if the file cannot be read."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright."""
    grey: bool = False
    """Whether the pixel format has no colour."""
    alpha: bool = False
    frames: bool = False
    """Whether the file has several frames: an animation, or pages."""
    reason: str = ""
    """Why the file cannot be read; empty if it can."""
    thumb: Pixels | None = None
    """The thumbnail, (16, 16, 3) uint8; None if the file cannot be read."""


def fingerprint(data: bytes, max_pixels: int = MOST_PIXELS) -> Fingerprint:
    """Returns the fingerprint of an image file with the content ``data``.

    Never raises: ``reason`` is not empty exactly if :func:`stagewright.data.images.decode.measure` cannot read the file.
    """
    form = mode = ""
    bits = 8
    try:
        image = decode.open_image(data, max_pixels)
        form, mode, bits = image.format or "", image.mode, _bits(image)
        width, height = image.size
        if form in ("JPEG", "MPO"):
            drafted = image.draft("RGB", (2 * SIDE, 2 * SIDE))
            image.load()
            orientation = decode.orientation_of(image)
            small = thumbnail(image.convert("RGB"), drafted[1] if drafted else None)
            small = small.transpose(decode.UPRIGHT[orientation]) if orientation > 1 else small
            size = (height, width) if orientation >= 5 else (width, height)
        else:
            upright = decode.upright_rgb(image)
            orientation, size, small = decode.orientation_of(image), upright.size, thumbnail(upright)
    except Exception as error:
        return Fingerprint(form, mode, bits, reason=str(decode.read_error(error, max_pixels)))
    thumb = np.asarray(small)
    grey = mode in _GREY_MODES or mode.startswith("I;16")
    alpha = mode in _ALPHA_MODES or "transparency" in image.info
    return Fingerprint(form, mode, bits, *size, orientation, grey, alpha, _several(image), "", thumb)


@dataclass(eq=False)
class Fingerprints:
    """Fingerprints of N files, as one array for each field of :class:`Fingerprint`."""

    digests: Pixels
    """(N, 16): blake2b-128 of the file's bytes; zeros if the file could not be opened."""
    sizes: Rows
    """(N,): file size in bytes; -1 if the file could not be opened."""
    formats: NDArray[np.object_]
    modes: NDArray[np.object_]
    bits: NDArray[np.int32]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    orientations: NDArray[np.int32]
    stored_grey: NDArray[np.bool_]
    alpha: NDArray[np.bool_]
    frames: NDArray[np.bool_]
    thumbs: Pixels
    """(N, 16, 16, 3) uint8; zeros for unreadable files."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a file cannot be read, by row."""
    not_images: set[int] = field(default_factory=set)
    """The unreadable rows that are no image files at all, neither by content nor by file name."""

    @classmethod
    def empty(cls, count: int) -> Fingerprints:
        """Returns the arrays for ``count`` files before any file has been read."""
        number, flag, text = np.zeros(count, np.int32), np.zeros(count, bool), np.full(count, "", object)
        return cls(
            digests=np.zeros((count, DIGEST_BYTES), np.uint8),
            sizes=np.full(count, -1, np.int64),
            formats=text,
            modes=text.copy(),
            bits=number,
            widths=number.copy(),
            heights=number.copy(),
            orientations=number + 1,
            stored_grey=flag,
            alpha=flag.copy(),
            frames=flag.copy(),
            thumbs=np.zeros((count, SIDE, SIDE, 3), np.uint8),
        )

    def put(self, row: int, found: Fingerprint) -> None:
        """Stores the fingerprint ``found`` of the file ``row``, except its digest and its size."""
        self.formats[row], self.modes[row], self.bits[row] = found.format, found.mode, found.bits
        self.widths[row], self.heights[row], self.orientations[row] = found.width, found.height, found.orientation
        self.stored_grey[row], self.alpha[row], self.frames[row] = found.grey, found.alpha, found.frames
        if found.reason:
            self.reasons[row] = found.reason
        if found.thumb is not None:
            self.thumbs[row] = found.thumb

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,): whether each file is an image that can be read."""
        return self.widths > 0

    @cached_property
    def grey(self) -> NDArray[np.bool_]:
        """(N,): whether each image has no visible colour, in whatever pixel format it is stored.

        Cached: valid only if all files have been read before.
        """
        return self.readable & (self.stored_grey | _neutral(self.thumbs))

    def scan(self) -> Scan:
        """Returns the same result as :func:`stagewright.data.sources.scan.scan` of these files."""
        return Scan(self.digests, self.widths, self.heights, dict(self.reasons), set(self.not_images))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of near duplicates, as rows; each pair once, with ``first < second``."""

    first: Rows
    second: Rows
    mirrored: NDArray[np.bool_]
    """(M,): whether one image is a near duplicate only of the other's mirror image (left to right)."""
    complete: bool = True
    """False if there were so many pairs that the search was limited to the closest ones."""


def blank(thumbs: Pixels) -> NDArray[np.bool_]:
    """Returns (N,): whether each thumbnail shows nothing but a single tone."""
    grey = _grey(thumbs)
    return grey.reshape(len(grey), SIDE * SIDE).std(axis=1) < _BLANK


def near_pairs(thumbs: Pixels) -> Pairs:
    """Returns all pairs of near duplicates among ``thumbs`` (N, 16, 16, 3) uint8, mirrored ones too, without blank ones.

    If more than 30 thumbnails are exactly equal, each of them is paired only with the first.

    The 60,000 images of CIFAR-10 take 20 s on one core, 4,000 photos take half a second.
    """
    rows = np.flatnonzero(~blank(thumbs))
    hubs, equal = _equal_thumbs(thumbs[rows])
    hubs, equal = rows[hubs], rows[equal]
    pixels = thumbs[hubs]
    pairs, mirrored, complete = _close_pairs(_features(_grey(pixels)))
    near = _pixels_agree(pixels, pairs, mirrored)
    first, second = np.sort(np.concatenate([equal, hubs[pairs[near]]]), axis=1).T
    mirrored = np.concatenate([np.zeros(len(equal), bool), mirrored[near]])
    order = np.lexsort((mirrored, second, first))  # of a pair found both ways, the one that is not mirrored comes first
    first, second, mirrored = first[order], second[order], mirrored[order]
    new = np.ones(len(first), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Pairs(first[new], second[new], mirrored[new], complete)


def joined(units: Rows, one: Rows, two: Rows) -> list[Rows]:
    """Returns the rows of each connected component of a graph of units, ordered by the component's first row.

    ``units`` (N,) is the unit of each row, from 0; ``one`` and ``two`` (M,) are the units that each edge connects. Units
    without an edge are in no component.
    """
    if not len(one):
        return []
    number = int(units.max()) + 1
    _, found = connected_components(coo_array((np.ones(len(one), bool), (one, two)), shape=(number, number)), False)
    named = np.zeros(number, bool)
    named[one] = named[two] = True
    rows = np.flatnonzero(named[units])
    order = np.argsort(found[units[rows]], kind="stable")
    cuts = np.flatnonzero(np.diff(found[units[rows]][order])) + 1
    return sorted(np.split(rows[order], cuts), key=lambda rows: int(rows[0]))


def differ(units: Rows, values: NDArray[np.signedinteger], one: Rows, two: Rows) -> NDArray[np.bool_]:
    """Returns (M,): whether the rows of units ``one[i]`` and ``two[i]`` together have more than one value.

    ``units`` (N,) is the unit of each row and ``values`` (N,) its value; negative values are ignored. ``one`` and ``two``
    (M,) may be the same units.
    """
    number = int(units.max(initial=-1)) + 1
    low, high = np.full(number, np.iinfo(np.int64).max), np.full(number, -1)
    known = values >= 0
    np.minimum.at(low, units[known], values[known].astype(np.int64))
    np.maximum.at(high, units[known], values[known].astype(np.int64))
    return np.minimum(low[one], low[two]) < np.maximum(high[one], high[two])


def _bits(image: Image.Image) -> int:
    """Returns the bits per channel in the file.

    Pillow reads 16-bit colour as 8 bits, but the raw mode of the image's tile states how the file stores it.
    """
    tile = getattr(image, "tile", None)
    raw = str(tile[0][3]) if tile else ""
    return 16 if "16" in image.mode or ";16" in raw else _BITS.get(image.mode, 8)


def _several(image: Image.Image) -> bool:
    if image.format not in _SEVERAL_FRAMES:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # frames after the first are damaged
        return True


def thumbnail(image: Image.Image, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Returns the thumbnail of the part ``box`` of an RGB ``image``, or of all of it."""
    # The last block of a JPEG that is decoded at a reduced size can extend beyond the image: `box` excludes that part.
    # Bilinear, since Pillow's box filter rounds to whole pixels, which changes edges by 0.06 standard deviations.
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box, reducing_gap=4.0)


def _neutral(thumbs: Pixels) -> NDArray[np.bool_]:
    """Returns (N,): whether each thumbnail shows no colour."""
    spread = thumbs.max(axis=3).astype(np.int16) - thumbs.min(axis=3)
    return (spread <= _NEUTRAL).mean(axis=(1, 2)) >= 0.98


def _grey(thumbs: Pixels) -> NDArray[np.float32]:
    return thumbs @ np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601


def _features(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns (N, 14): the lowest DCT-II coefficients of ``grey`` (N, 16, 16), normalized to standard deviation 1.

    The Euclidean distance of two rows is the root mean square difference of the two images, low-pass filtered.
    """
    place, frequency = np.arange(SIDE), np.arange(6)[:, None]
    cosines = np.cos(np.pi * (2 * place + 1) * frequency / (2 * SIDE)) * np.where(frequency == 0, 1, 2**0.5)
    cosines = (cosines / SIDE).astype(np.float32)
    spectrum = np.matmul(np.matmul(cosines, grey), cosines.T)
    deviation = grey.reshape(len(grey), SIDE * SIDE).std(axis=1)
    return spectrum[:, _DOWN, _ACROSS] / np.maximum(deviation, _BLANK)[:, None]


def _equal_thumbs(thumbs: Pixels) -> tuple[Rows, Rows]:
    """Returns the rows to compare, and (M, 2) pairs of equal thumbnails, if more than 30 are equal.

    Each pair is the first of the equal thumbnails and one of the others; the others need not be compared.
    """
    if not len(thumbs):
        return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    flat = np.ascontiguousarray(thumbs).reshape(len(thumbs), -1)
    _, first, group, count = np.unique(
        flat.view(f"V{flat.shape[1]}").ravel(), return_index=True, return_inverse=True, return_counts=True
    )
    rows = np.arange(len(thumbs))
    hub = first[group]
    spoke = (count[group] > _MOST_EQUAL) & (hub != rows)
    return rows[~spoke], np.stack([hub[spoke], rows[spoke]], axis=1)


def _close_pairs(features: NDArray[np.float32]) -> tuple[Rows, NDArray[np.bool_], bool]:
    """Returns (M, 2) pairs of rows within the radius, (M,) whether one of the two is mirrored, and whether all were found.

    Mirroring changes the sign of every odd horizontal frequency. So each image enters the tree in the orientation in which
    the first of these frequencies is positive, and in both orientations if its absolute value is at most half the radius.
    This misses no pair.
    """
    as_is = np.flatnonzero(features[:, 0] >= -_RADIUS / 2)
    flipped = np.flatnonzero(features[:, 0] <= _RADIUS / 2)
    points = np.concatenate([features[as_is], features[flipped] * _MIRROR])
    if not len(points):
        return np.zeros((0, 2), np.int64), np.zeros(0, bool), True
    rows = np.concatenate([as_is, flipped])
    tree, radius = KDTree(points), _RADIUS
    sample = KDTree(points[:: max(1, len(points) // _SAMPLE)])
    while (
        tree.n > _SAMPLE
        and sample.count_neighbors(sample, radius) - sample.n > 2 * _MOST_PAIRS * (sample.n / tree.n) ** 2
    ):
        radius /= 2
    found = tree.query_pairs(radius, output_type="ndarray")
    pairs, mirrored = rows[found], (found >= len(as_is)).sum(axis=1) == 1
    other = pairs[:, 0] != pairs[:, 1]
    return pairs[other], mirrored[other], radius == _RADIUS


def _pixels_agree(pixels: Pixels, pairs: Rows, mirrored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns (M,): whether the pixels of each pair are within the limits; ``mirrored`` (M,): mirror the second first."""
    agree = np.zeros(len(pairs), bool)
    for at in range(0, len(pairs), _CHUNK):
        part = slice(at, at + _CHUNK)
        one, two = pixels[pairs[part, 0]], pixels[pairs[part, 1]]
        two = np.where(mirrored[part, None, None, None], two[:, :, ::-1], two)
        apart = np.abs(normalised(one) - normalised(two))
        mean = apart.mean(axis=(1, 2))
        grey = _neutral(one) & _neutral(two)
        near = (mean <= np.where(grey, _GREY_MEAN, _MEAN)) & (apart.max(axis=(1, 2)) <= _LOCAL + _LOCAL_SLOPE * mean)
        lowest = np.where(grey, _GREY_CORRELATION, _CORRELATION)
        agree[part] = near & (_correlation(_grey(one), _grey(two)) >= lowest)
    return agree


def normalised(thumbs: Pixels) -> NDArray[np.float32]:
    """Returns (N, 256, 3): each channel with mean 0, the whole image with standard deviation 1."""
    flat = thumbs.reshape(len(thumbs), SIDE * SIDE, 3).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(flat.std(axis=(1, 2), keepdims=True), _BLANK)


def _correlation(one: NDArray[np.float32], two: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns (N,): correlation of grey images after the means of rows and columns are subtracted, -1 to 1.

    It is 0 if nothing remains after the subtraction.
    """
    one, two = (
        grey
        - grey.mean(axis=1, keepdims=True)
        - grey.mean(axis=2, keepdims=True)
        + grey.mean(axis=(1, 2), keepdims=True)
        for grey in (one, two)
    )
    size = np.sqrt((one**2).sum(axis=(1, 2)) * (two**2).sum(axis=(1, 2)))
    return (one * two).sum(axis=(1, 2)) / np.maximum(size, 1e-3)
