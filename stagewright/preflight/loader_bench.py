"""Bench: how fast a data set can be read on this machine, where the time goes, and what would help, in words.

Every figure is measured on the user's own pictures, with the loader that trains. Ways that are compared alternate, three
rounds each, so that a machine that is busy for a while does not favour one of them; medians count.
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
Way = Callable[[float], float]
"""Measures for so many seconds; images a second."""

_ROUNDS = 3
_ENOUGH = 1.1
"""A loader that is this much faster than the training step does not hold it up."""


@dataclass(frozen=True)
class Rate:
    """One way of reading, and how fast it was."""

    what: str
    image_size: int
    threads: int
    prefetch: int
    images_per_second: float
    disk_bytes: int | None = None
    """Of a picture, on average."""


@dataclass
class Benchmark:
    """What was measured."""

    source: str
    pictures: int
    decoder: str
    device: str
    rates: list[Rate] = field(default_factory=list)
    split: dict[str, float] = field(default_factory=dict)
    """Microseconds a picture of one thread: read, decode, and copy to the device where that is another."""
    model: str | None = None
    step_images_per_second: float | None = None
    """What the model's training step takes, pictures being there already."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, for a program."""
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
        }

    def best(self, what: str) -> Rate | None:
        """The fastest setting of ``what`` at the first image size."""
        size = self.rates[0].image_size
        found = [rate for rate in self.rates if rate.what == what and rate.image_size == size]
        return max(found, key=lambda rate: rate.images_per_second, default=None)

    def verdict(self) -> str:
        """What the figures come to."""
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
        faster = [rate for rate in packs if rate.images_per_second > _ENOUGH * speed]
        needed = self.step_images_per_second
        if needed is None:
            parts += [_pack_sentence(rate) for rate in faster]
        else:
            parts.append(f"the training step of {self.model} takes {number_text(needed)}")
            if speed >= _ENOUGH * needed:
                parts.append("reading pictures does not hold it up")
            else:
                parts.append("reading pictures holds it up")
                parts += [_pack_sentence(rate) for rate in faster] or ["more cores would help"]
        return "; ".join(parts) + "."


def _pack_sentence(rate: Rate) -> str:
    return f"a {rate.what} would give {number_text(rate.images_per_second)}"


def bench(
    source: str,
    settings: Data,
    *,
    image_sizes: Sequence[int] = (224,),
    threads: Sequence[int] | None = None,
    model: str | None = None,
    batch_size: int = 64,
    seconds: float = 2.0,
    sample: int = 500,
    packs: bool = True,
    peers: bool = True,
    device: str = "auto",
    say: Say = lambda text: None,
) -> Benchmark:
    """Measures reading ``sample`` pictures of ``source`` by several settings, ``seconds`` each.

    ``threads`` are the counts to try (powers of two up to the cores if absent), ``model`` one whose training step is
    measured too. What is written (packs of the sample, links to its files) lies in the system's temporary folder and is
    removed. DataError as from load_dataset, and where there are fewer than 8 pictures.
    """
    chosen = choose_device(device)
    dataset = load_dataset(source, settings, 0, workers=cores())
    images, manifest = _sample(dataset.images, dataset.manifest, sample)
    sizes = dataset.manifest.widths, dataset.manifest.heights
    kept = isinstance(cache_if_small(dataset.images, *sizes, min(image_sizes), exact=False), CachedImages)
    if len(manifest) < 8:
        raise DataError(f"{source} has {len(manifest)} pictures", "at least 8, to measure anything", "give more")
    found = Benchmark(source, len(manifest), native.describe(), device_name(chosen))
    counts = list(threads or _thread_counts(cores()))
    first = image_sizes[0]
    with tempfile.TemporaryDirectory(prefix="stagewright-bench-") as folder:
        say(f"Reading {len(manifest):,} pictures with {', '.join(map(str, counts))} threads.")
        ways = {(count, 4): _own_way(images, manifest, first, batch_size, count, 4) for count in counts}
        rates = _alternating(ways, seconds)
        best = max(rates, key=lambda key: rates[key])[0]
        ways = {(best, depth): _own_way(images, manifest, first, batch_size, best, depth) for depth in (1, 2, 8)}
        rates |= _alternating(ways, seconds)
        each = _disk_bytes(images)
        found.rates += [
            Rate("stagewright", first, count, depth, rate, each) for (count, depth), rate in sorted(rates.items())
        ]
        found.split = _time_split(images, manifest, first, batch_size, seconds, chosen)
        others = _others(images, manifest, Path(folder), max(image_sizes), packs, peers, say)
        for size in image_sizes:
            say(f"Comparing at {size} pixels.")
            compared = {name: make(size, batch_size, best) for name, (make, _) in others.items()}
            if kept:
                held = CachedImages(images, manifest.widths, manifest.heights)
                held.ensure(np.arange(len(held)))
                compared["in memory"] = _own_way(held, manifest, size, batch_size, best, 4)
            if size != first:
                compared["stagewright"] = _own_way(images, manifest, size, batch_size, best, 4)
            room = {name: bytes_each for name, (_, bytes_each) in others.items()} | {"stagewright": each}
            for name, rate in _alternating(compared, seconds).items():
                found.rates.append(Rate(name, size, best, 4, rate, room.get(name)))
    if model is not None:
        say(f"Training {model} on pictures that are there already.")
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
    """``count`` pictures spread over the classes, all of them to train on."""
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
    return _Some(images, rows) if not isinstance(images, FileImages) else FileImages(images.root, taken.paths), taken


class _Some:
    """Some pictures of a source, by their place in ``rows``."""

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


def _own_way(
    images: Images, manifest: Manifest, size: int, batch_size: int, threads: int, prefetch: int
) -> Callable[[float], float]:
    """The loader as a training has it: order, keyed random-resized-crops and flips, labels."""
    plan = _plan(manifest, size, batch_size)

    def measure(seconds: float) -> float:
        specs = train_specs(plan, manifest, 0)
        with closing(load_batches(images, specs, workers=threads, prefetch=prefetch)) as batches:
            return _rate((len(batch.labels) for batch in batches), seconds, warm_up=prefetch + 1)

    return measure


def _torchvision_way(folder: Path, size: int, batch_size: int, workers: int) -> Callable[[float], float]:
    """ImageFolder and DataLoader with Pillow, RandomResizedCrop, flip, ToTensor and Normalize, as its references have it."""
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
                for pictures, _ in loader:
                    yield len(pictures)

        return _rate(counts(), seconds, warm_up=2 * workers + 1)

    return measure


def _rate(counts: Iterator[int], seconds: float, *, warm_up: int) -> float:
    for _ in range(warm_up):
        next(counts)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        done += next(counts)
    return done / elapsed


def _alternating(ways: Mapping[Any, Way], seconds: float) -> dict[Any, float]:
    """The median of three rounds of each way."""
    rounds: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            rounds[name].append(way(seconds / _ROUNDS))
    return {name: statistics.median(rates) for name, rates in rounds.items()}


def _others(
    images: Images, manifest: Manifest, folder: Path, largest: int, packs: bool, peers: bool, say: Say
) -> dict[str, tuple[Callable[[int, int, int], Way], int | None]]:
    """Other ways to read the same pictures: how to make each for (image size, batch size, threads), and bytes a picture."""
    ways: dict[str, tuple[Callable[[int, int, int], Way], int | None]] = {}
    if not isinstance(images, FileImages) or not (packs or peers):
        return ways
    linked = folder / "pictures"
    _link(images, manifest, linked)
    if peers:
        ways["torchvision"] = (lambda *settings: _torchvision_way(linked, *settings), _disk_bytes(images))
    size = max(256, round(1.15 * largest))
    for encoding in ("jpeg", "raw") if packs else ():
        say(f"Packing them to {size} px as {encoding}.")
        made = pack(str(linked), folder / f"{encoding}.pack", Data(), size=size, encoding=encoding, workers=cores())  # type: ignore[arg-type]
        packed = load_dataset(str(made.folder), Data(val=0.0, test=0.0), 0, workers=cores())

        def way(size: int, batch_size: int, threads: int, packed: Any = packed) -> Way:
            return _own_way(packed.images, packed.manifest, size, batch_size, threads, 4)

        ways[f"{encoding} pack"] = (way, made.bytes // max(made.records, 1))
    return ways


def _link(images: FileImages, manifest: Manifest, folder: Path) -> None:
    """Links to the files in class folders, which is what torchvision reads."""
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
    """Microseconds a picture of a single thread, by what they are spent on."""
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
