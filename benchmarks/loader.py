"""Input pipelines: images/s delivered as batches, stagewright beside torchvision, timm and, where installed, DALI and FFCV.

Every way runs over the same photographs, in the same rounds, with the same number of workers; rounds alternate and
medians count. The base of the ratios is torchvision's ImageFolder and DataLoader as its references use them (Pillow,
RandomResizedCrop, flip, ToTensor, Normalize: float tensors); ``torchvision uint8`` is the same without the last two, and
what a loader that hands out 8-bit batches must be held against. stagewright runs whole: plan, order, keyed crops,
labels, threads. ``python`` is stagewright without its native decoder.

    python benchmarks/loader.py [--photos DIR] [--cases raw224,raw128,...] [--rounds 5] [--images 1000] [--workers 2]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchvision
from torchvision import transforms as _transforms

from stagewright.augment.normalise import normalise
from stagewright.data.batches.batch import Batch
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import load_dataset
from stagewright.data.images import native
from stagewright.data.images.decode import ArrayImages, Images
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.rundir.environment import environment

transforms: Any = _transforms  # its parts are not declared where type checkers look
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64
WARM_UP = 6
CASES = ("raw224", "raw128", "jpeg224", "jpeg128", "pixels224", "pixels128", "memory")

Way = Callable[[], Iterator[int]]
"""Opens a pipeline and yields the number of pictures of each batch, without end."""


def stagewright_way(images: Images, manifest: Manifest, size: int, workers: int, **changes: Any) -> Way:
    """The loader as a run has it."""

    def batches() -> Iterator[int]:
        plain = {"model": {"name": "resnet18"}, "image_size": size, "batch_size": BATCH, "epochs": "1000000st"}
        plan = resolve(recipes.from_dict(plain | changes), manifest.info())
        for batch in load_batches(images, train_specs(plan, manifest, 0), workers=workers, prefetch=4):
            yield len(batch.labels)

    return batches


def without_native(way: Way) -> Way:
    """The same with Pillow and torch alone."""

    def batches() -> Iterator[int]:
        os.environ["STAGEWRIGHT_NATIVE"] = "0"
        native._module.cache_clear()
        try:
            yield from way()
        finally:
            del os.environ["STAGEWRIGHT_NATIVE"]
            native._module.cache_clear()

    return batches


def torchvision_way(folder: Path, size: int, workers: int, *, floats: bool) -> Way:
    """ImageFolder and DataLoader, as in torchvision's references."""
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]
    steps = [transforms.RandomResizedCrop(size, scale=(0.25, 1.0)), transforms.RandomHorizontalFlip(), *last]
    dataset = torchvision.datasets.ImageFolder(str(folder), transforms.Compose(steps))

    def batches() -> Iterator[int]:
        loader = torch.utils.data.DataLoader(
            dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
        )
        while True:
            for pictures, _ in loader:
                yield len(pictures)

    return batches


def timm_way(folder: Path, size: int, workers: int) -> Way:
    """timm's loader with its fast collate (8-bit batches), as train.py has it but for the prefetcher, which needs CUDA."""
    from timm.data import create_dataset, create_transform  # pyright: ignore[reportPrivateImportUsage]
    from timm.data.loader import fast_collate

    dataset: Any = create_dataset("", str(folder))
    dataset.transform = create_transform(size, is_training=True, use_prefetcher=True, scale=(0.25, 1.0), hflip=0.5)

    def batches() -> Iterator[int]:
        loader = torch.utils.data.DataLoader(
            dataset,
            BATCH,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=True,
            collate_fn=fast_collate,
        )
        while True:
            for pictures, _ in loader:
                yield len(pictures)

    return batches


def dali_way(folder: Path, size: int, workers: int) -> Way:
    """NVIDIA DALI on the CPU: readers.file, image_random_crop, antialiased resize, flip."""
    from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, name="files")
        pictures = fn.decoders.image_random_crop(
            files, device="cpu", random_area=[0.25, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        pictures = fn.resize(pictures, resize_x=size, resize_y=size, antialias=True, interp_type=types.INTERP_LINEAR)
        return fn.flip(pictures, horizontal=fn.random.coin_flip()), labels

    def batches() -> Iterator[int]:
        made = pipeline()
        made.build()
        while True:
            pictures, _ = made.run()
            yield len(pictures)

    return batches


def small_ways(workers: int) -> dict[str, Way]:
    """60,000 pictures of 32 x 32 pixels in memory, padded, cropped and flipped, in batches of 512."""
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (60_000, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, len(array)).astype(np.int32)
    names = pa.array([f"train/{at:06d}" for at in range(len(array))])
    sides, splits = np.full(len(array), 32, np.int32), np.where(np.arange(len(array)) < 64, 1, 0).astype(np.int8)
    classes = tuple(f"class{at}" for at in range(10))
    manifest = Manifest("", "memory", classes, names, names, labels, splits, sides, sides)
    plain = {"model": {"name": "cifar_resnet18"}, "image_size": 32, "batch_size": 512, "epochs": "1000000st"}
    plan = resolve(recipes.from_dict(plain | {"augment": {"crop": "pad"}}), manifest.info())

    def own() -> Iterator[Batch]:
        yield from load_batches(ArrayImages(array), train_specs(plan, manifest, 0), workers=1)

    def as_bytes() -> Iterator[int]:
        for batch in own():
            yield len(batch.labels)

    def as_floats() -> Iterator[int]:
        for batch in own():
            yield len(normalise(batch.images, MEAN, STD))

    class InMemory(torchvision.datasets.VisionDataset):
        """As torchvision.datasets.CIFAR10 hands its pictures out."""

        def __len__(self) -> int:
            return len(array)

        def __getitem__(self, index: int) -> Any:
            assert self.transform is not None
            return self.transform(transforms.functional.to_pil_image(array[index])), int(labels[index])

    def default(last: list[Any]) -> Way:
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *last]
        dataset = InMemory("", transform=transforms.Compose(steps))

        def batches() -> Iterator[int]:
            loader = torch.utils.data.DataLoader(
                dataset, 512, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
            )
            while True:
                for pictures, _ in loader:
                    yield len(pictures)

        return batches

    return {
        "torchvision": default([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
        "torchvision uint8": default([transforms.PILToTensor()]),
        "stagewright": as_bytes,
        "stagewright float": as_floats,
    }


def measured(way: Way, images: int) -> float:
    """Images per second, after some batches that warm up."""
    batches = way()
    try:
        for _ in range(WARM_UP):
            next(batches)
        done, began = 0, time.perf_counter()
        while done < images:
            done += next(batches)
        return done / (time.perf_counter() - began)
    finally:
        batches.close()  # type: ignore[attr-defined]
        gc.collect()


@contextmanager
def photographs(given: Path | None) -> Iterator[Path]:
    """A folder of class folders with 1,000 photographs: what was given, or those beside the checkout four times over."""
    if given is not None:
        yield given
        return
    archive = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos-250.zip"
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive) as members:
            names = [name for name in members.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
            for at, name in enumerate(names):
                for copy in range(4):
                    target = Path(folder, "photos", f"class{at % 10}", f"{at:03d}-{copy}.jpg")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(members.read(name))
        yield Path(folder, "photos")


def ways_of(case: str, folder: Path, packs: dict[str, Path], workers: int) -> dict[str, Way]:
    """Everything that is measured against each other in a case, the base first."""
    if case == "memory":
        return small_ways(workers)
    kind, size = case.rstrip("0123456789"), int(case.lstrip("abcdefghijklmnopqrstuvwxyz"))
    ways = {
        "torchvision": torchvision_way(folder, size, workers, floats=True),
        "torchvision uint8": torchvision_way(folder, size, workers, floats=False),
    }
    source = {"raw": folder, "jpeg": packs["jpeg"], "pixels": packs["raw"]}[kind]
    dataset = load_dataset(str(source), Data(val=0.01, test=0))
    own = stagewright_way(dataset.images, dataset.manifest, size, workers)
    ways["stagewright"] = own
    ways["stagewright python"] = without_native(own)
    if kind == "raw":
        ways["stagewright exact"] = stagewright_way(dataset.images, dataset.manifest, size, workers, decode="exact")
        ways["timm uint8"] = timm_way(folder, size, workers)
        if importlib.util.find_spec("nvidia.dali"):
            ways["DALI"] = dali_way(folder, size, workers)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with photographs(options.photos) as folder, tempfile.TemporaryDirectory() as packed:
        packs = {encoding: Path(packed, f"{encoding}.pack") for encoding in ("jpeg", "raw")}
        for encoding, path in packs.items():
            pack(str(folder), path, Data(), size=256, encoding=encoding)  # type: ignore[arg-type]
        for case in options.cases.split(","):
            ways = ways_of(case, folder, packs, options.workers)
            images = 20 * options.images if case == "memory" else options.images
            rounds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    slow = case == "memory" and name.startswith("torchvision")
                    rounds[name].append(measured(way, images // 4 if slow else images))
            results[case] = {name: {"median": statistics.median(each), "rounds": each} for name, each in rounds.items()}
            print(table(case, results[case]), flush=True)
    if options.out:
        command = f"python benchmarks/loader.py --rounds {options.rounds} --workers {options.workers}"
        found = environment("photos-250", command.split(), "cpu", "")
        del found["cwd"]  # a path of this machine
        content = {"environment": found, "results": results}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


def table(case: str, ways: dict[str, Any]) -> str:
    base, as_bytes = ways["torchvision"]["median"], ways["torchvision uint8"]["median"]
    lines = [f"{case:<20} {'images/s':>10} {'x default':>10} {'x uint8':>8}   range"]
    for name, found in ways.items():
        low, high = min(found["rounds"]), max(found["rounds"])
        value = found["median"]
        lines.append(
            f"{name:<20} {value:10,.0f} {value / base:10.2f} {value / as_bytes:8.2f}   {low:,.0f} to {high:,.0f}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
