"""The command ``data bench``: measures how fast a data set is loaded on this machine, and reports what would help.

Speeds are measured on the user's images with a training's loader. Alternatives run in turns, three rounds each, so that a
temporary load does not favour one of them; the medians are reported.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stagewright.data.account import Account
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.order import subset
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import load_dataset
from stagewright.data.images import native
from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.memory_cache import CachedImages, cache_if_small
from stagewright.data.load_times import LoadTimes
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.sources.scan import Progress
from stagewright.errors import DataError
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.preflight.step_rate import step_rate
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.system.device import choose_device, device_name
from stagewright.system.machine import cores
from stagewright.text import number_text

Say = Callable[[str], None]
Measurement = Callable[[float], float]
"""Measures one way of loading for the given number of seconds; returns images per second."""

_ROUNDS = 3
_FASTER = 1.1  # a loader that is this many times as fast as the training step does not slow it down


@dataclass(frozen=True)
class Rate:
    """One way of loading, with its settings and measured speed."""

    what: str
    image_size: int
    threads: int
    prefetch: int
    images_per_second: float
    disk_bytes: int | None = None
    """Average size of an image file."""


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and for how long."""

    image_sizes: Sequence[int] = (224,)
    """Sides in pixels; thread counts and prefetch are compared at the first one."""
    threads: Sequence[int] | None = None
    """Numbers of threads to compare; None: powers of two up to the number of cores."""
    batch_size: int = 64
    seconds: float = 2.0
    """Length of each measurement."""
    sample: int = 500
    """Number of images to measure with."""
    packs: bool = True
    peers: bool = True
    """Whether packed copies of the sample, and torchvision's ImageFolder with torch's DataLoader, are measured too."""


@dataclass
class Benchmark:
    """The results of the measurements."""

    source: str
    pictures: int
    decoder: str
    device: str
    account: Account = field(default_factory=lambda: Account(0))
    """How many images were read, what was left out and what could not be read."""
    rates: list[Rate] = field(default_factory=list)
    split: dict[str, float] = field(default_factory=dict)
    """Microseconds per image of one thread for reading, decoding and, if the device is not the CPU, copying to it."""
    model: str | None = None
    step_images_per_second: float | None = None
    """Speed of the model's training step with images that are already loaded."""

    def to_dict(self) -> dict[str, Any]:
        """Returns all results as plain data for JSON."""
        return {
            "source": self.source,
            "pictures": self.pictures,
            "decoder": self.decoder,
            "device": self.device,
            "rates": [vars(rate) for rate in self.rates],
            "microseconds_a_picture": self.split,
            "model": self.model,
            "step_images_per_second": self.step_images_per_second,
            "verdict": self.verdict(),
            "account": self.account.to_dict(),
        }

    def best(self, what: str) -> Rate | None:
        """Returns the fastest result of the way ``what`` at the first image size, or None if it was not measured."""
        size = self.rates[0].image_size
        found = [rate for rate in self.rates if rate.what == what and rate.image_size == size]
        return max(found, key=lambda rate: rate.images_per_second, default=None)

    def verdict(self) -> str:
        """Returns a sentence that summarises the results."""
        own = self.best("stagewright")
        assert own is not None
        speed = own.images_per_second
        threads = "1 thread gives" if own.threads == 1 else f"{own.threads} threads give"
        parts = [f"{threads} {number_text(speed)} images/s"]
        if (peer := self.best("torchvision")) is not None:
            parts[0] += f", {speed / peer.images_per_second:.1f} times torchvision's ImageFolder and DataLoader"
        if (memory := self.best("in memory")) is not None:
            speed = memory.images_per_second
            parts.append(f"after the first epoch, when all of them are in memory, {number_text(speed)}")
        packs = [rate for what in ("jpeg pack", "raw pack") if (rate := self.best(what)) is not None]
        faster = [rate for rate in packs if rate.images_per_second > _FASTER * speed]
        needed = self.step_images_per_second
        if needed is None:
            parts += [_pack_sentence(rate) for rate in faster]
        else:
            parts.append(f"the training step of {self.model} takes {number_text(needed)}")
            if speed >= _FASTER * needed:
                parts.append("reading pictures does not slow it down")
            else:
                parts.append("reading pictures slows it down")
                parts += [_pack_sentence(rate) for rate in faster] or ["more cores would help"]
        return "; ".join(parts) + "."


def _pack_sentence(rate: Rate) -> str:
    return f"a {rate.what} would give {number_text(rate.images_per_second)}"


_DEFAULT = BenchSettings()


def bench(
    source: str,
    data: Data,
    settings: BenchSettings = _DEFAULT,
    *,
    model: str | None = None,
    device: str = "auto",
    progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
) -> Benchmark:
    """Measures the speed of loading images of ``source``, which is read as ``data`` describes.

    If ``model`` is given, the speed of its training step on ``device`` is measured too. ``progress(done, total)`` counts the
    images that are looked at and then, from 0 again, the measurements; ``say`` is called with messages. Temporary files are
    removed. DataError as from load_dataset, and if there are fewer than 8 images.
    """
    chosen = choose_device(device)
    dataset = load_dataset(source, data, workers=cores(), progress=progress)
    images, manifest = _sample(dataset.images, dataset.manifest, settings.sample)
    image_sizes, batch_size, seconds = settings.image_sizes, settings.batch_size, settings.seconds
    whole = dataset.manifest
    cached = cache_if_small(dataset.images, whole.widths, whole.heights, min(image_sizes), exact=False)
    if len(manifest) < 8:
        raise DataError(f"{source} has {len(manifest)} pictures", "at least 8 for a measurement", "give more pictures")
    found = Benchmark(source, len(manifest), native.describe(), device_name(chosen), dataset.account)
    counts, first = list(settings.threads or _thread_counts(cores())), image_sizes[0]
    measured = _Measurements(progress, _num_ways(images, settings, len(counts), isinstance(cached, CachedImages)))
    with tempfile.TemporaryDirectory(prefix="stagewright-bench-") as folder:
        say(f"Reading {len(manifest):,} pictures with {', '.join(map(str, counts))} threads.")
        ways = {(count, 4): _own_loader(images, manifest, first, batch_size, count, 4) for count in counts}
        rates = measured.alternating(ways, seconds)
        best = max(rates, key=lambda key: rates[key])[0]
        ways = {(best, depth): _own_loader(images, manifest, first, batch_size, best, depth) for depth in (1, 2, 8)}
        rates |= measured.alternating(ways, seconds)
        each = _disk_bytes(images)
        for (count, depth), rate in sorted(rates.items()):
            found.rates.append(Rate("stagewright", first, count, depth, rate, each))
        found.split = _time_split(images, manifest, first, batch_size, seconds, chosen)
        others = _alternatives(images, manifest, Path(folder), settings, say)
        for size in image_sizes:
            say(f"Comparing at {size} pixels.")
            compared = {name: make(size, batch_size, best) for name, (make, _) in others.items()}
            if isinstance(cached, CachedImages):
                held = CachedImages(images, manifest.widths, manifest.heights)
                held.ensure(np.arange(len(held)))
                compared["in memory"] = _own_loader(held, manifest, size, batch_size, best, 4)
            if size != first:
                compared["stagewright"] = _own_loader(images, manifest, size, batch_size, best, 4)
            disk = {name: bytes_each for name, (_, bytes_each) in others.items()} | {"stagewright": each}
            for name, rate in measured.alternating(compared, seconds).items():
                found.rates.append(Rate(name, size, best, 4, rate, disk.get(name)))
    if model is not None:
        say(f"Training {model} on pictures that are already loaded.")
        found.model = model
        found.step_images_per_second = step_rate(model, len(manifest.classes), first, batch_size, chosen, seconds)
    return found


def _thread_counts(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _sample(images: Images, manifest: Manifest, count: int) -> tuple[Images, Manifest]:
    """Returns about ``count`` images, spread over the classes, with a manifest in which all are training images."""
    rows = subset(0, manifest.labels, min(1.0, count / len(manifest)))
    at = pa.array(rows)
    taken = Manifest(
        root=manifest.root,
        source=manifest.source,
        classes=manifest.classes,
        paths=manifest.paths.take(at),
        hashes=manifest.hashes.take(at),
        labels=manifest.labels[rows],
        splits=np.zeros(len(rows), np.int8),
        widths=manifest.widths[rows],
        heights=manifest.heights[rows],
    )
    chosen = (
        FileImages(images.root, taken.paths, images.max_pixels)
        if isinstance(images, FileImages)
        else _Selection(images, rows)
    )
    return chosen, taken


class _Selection:
    """The images ``rows`` of another source, numbered from 0."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int) -> Any:
        return self.images.load(int(self.rows[row]))

    def stored(self, rows: np.ndarray) -> Any:
        return self.images.stored(self.rows[rows])

    def to_stored(self, rows: np.ndarray, boxes: np.ndarray) -> Any:
        return self.images.to_stored(self.rows[rows], boxes)


def _plan(manifest: Manifest, image_size: int, batch_size: int) -> Plan:
    plain = {"model": {"name": "resnet18"}, "image_size": image_size, "batch_size": batch_size, "epochs": "1000000st"}
    return resolve(recipes.from_dict(plain), manifest.info())


def _own_loader(
    images: Images, manifest: Manifest, size: int, batch_size: int, threads: int, prefetch: int
) -> Callable[[float], float]:
    """Returns a measurement of stagewright's loader as in a training: shuffled, with random-resized-crops and flips."""
    plan = _plan(manifest, size, batch_size)

    def measure(seconds: float) -> float:
        specs = train_specs(plan, manifest, 0)
        with closing(load_batches(images, specs, workers=threads, prefetch=prefetch)) as batches:
            return _rate((len(batch.labels) for batch in batches), seconds, warm_up=prefetch + 1)

    return measure


def _torchvision_loader(folder: Path, size: int, batch_size: int, workers: int) -> Callable[[float], float]:
    """Returns a measurement of torchvision's ImageFolder and torch's DataLoader with Pillow, RandomResizedCrop, flip, ToTensor
    and Normalize, as in torchvision's reference scripts."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(size, scale=(0.25, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    dataset = ImageFolder(str(folder), transforms.Compose(steps))

    def measure(seconds: float) -> float:
        loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=True)

        def counts() -> Iterator[int]:
            while True:
                for images, _ in loader:
                    yield len(images)

        return _rate(counts(), seconds, warm_up=2 * workers + 1)

    return measure


def _rate(counts: Iterator[int], seconds: float, *, warm_up: int) -> float:
    for _ in range(warm_up):
        next(counts)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        done += next(counts)
    return done / elapsed


def _num_ways(images: Images, settings: BenchSettings, thread_counts: int, in_memory: bool) -> int:
    """Returns the number of ways that are measured: thread counts and three depths, then all alternatives at each size."""
    alternatives = (settings.peers + 2 * settings.packs) * isinstance(images, FileImages) + in_memory
    sizes = settings.image_sizes
    return thread_counts + 3 + len(sizes) * alternatives + sum(size != sizes[0] for size in sizes)


class _Measurements:
    """Measures ways in turns, and counts the measurements."""

    def __init__(self, progress: Progress, num_ways: int) -> None:
        self.progress, self.done, self.total = progress, 0, _ROUNDS * num_ways
        progress(0, self.total)

    def alternating(self, ways: Mapping[Any, Measurement], seconds: float) -> dict[Any, float]:
        """Measures all ways in turns, three rounds each, and returns the median of each."""
        rounds: dict[Any, list[float]] = {name: [] for name in ways}
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                rounds[name].append(way(seconds / _ROUNDS))
                self.done += 1
                self.progress(self.done, self.total)
        return {name: statistics.median(rates) for name, rates in rounds.items()}


def _alternatives(
    images: Images, manifest: Manifest, folder: Path, settings: BenchSettings, say: Say
) -> dict[str, tuple[Callable[[int, int, int], Measurement], int | None]]:
    """Returns other loaders by name: a function from (image size, batch size, threads) to a measurement, and bytes per image."""
    ways: dict[str, tuple[Callable[[int, int, int], Measurement], int | None]] = {}
    if not isinstance(images, FileImages) or not (settings.packs or settings.peers):
        return ways
    linked = folder / "pictures"
    _link(images, manifest, linked)
    if settings.peers:
        ways["torchvision"] = (lambda *settings: _torchvision_loader(linked, *settings), _disk_bytes(images))
    size = max(256, round(1.15 * max(settings.image_sizes)))
    for encoding in ("jpeg", "raw") if settings.packs else ():
        say(f"Packing them to {size} px as {encoding}.")
        made = pack(str(linked), folder / f"{encoding}.pack", Data(), size=size, encoding=encoding, workers=cores())  # type: ignore[arg-type]
        packed = load_dataset(str(made.folder), Data(val=0.0, test=0.0), workers=cores())

        def way(size: int, batch_size: int, threads: int, packed: Any = packed) -> Measurement:
            return _own_loader(packed.images, packed.manifest, size, batch_size, threads, 4)

        ways[f"{encoding} pack"] = (way, made.bytes // max(made.records, 1))
    return ways


def _link(images: FileImages, manifest: Manifest, folder: Path) -> None:
    """Creates links to the files in class folders, the layout that torchvision reads."""
    for row in range(len(manifest)):
        path = images.path(row)
        place = folder / f"class{manifest.labels[row]:05d}" / f"{row:06d}{os.path.splitext(path)[1]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.abspath(path))


def _disk_bytes(images: Images) -> int | None:
    if not isinstance(images, FileImages):
        return None
    return sum(os.path.getsize(images.path(row)) for row in range(len(images))) // max(len(images), 1)


def _time_split(
    images: Images, manifest: Manifest, size: int, batch_size: int, seconds: float, device: torch.device
) -> dict[str, float]:
    """Returns the microseconds per image of a single thread for each part of the work."""
    times, plan = LoadTimes(), _plan(manifest, size, batch_size)
    with closing(load_batches(images, train_specs(plan, manifest, 0), workers=0, times=times)) as batches:
        began, copied, copies = time.perf_counter(), 0.0, 0
        while time.perf_counter() - began < seconds:
            batch = next(batches)
            if device.type != "cpu":
                start = time.perf_counter()
                batch.images.to(device)
                torch.cuda.synchronize(device)
                copied, copies = copied + time.perf_counter() - start, copies + len(batch.labels)
    split = {"reading": 1e6 * times.read_seconds / times.images, "decoding": 1e6 * times.decode_seconds / times.images}
    return split | ({"copying": 1e6 * copied / copies} if copies else {})
