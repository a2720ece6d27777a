"""Near duplicates in splits: what `data.near: together` costs, which copies it keeps together, and which it misses.

    python benchmarks/near.py --breeds breeds/ --sets imagenette/train cifar10/test --out benchmarks/results/near-cpu.json

*Copies*: of 300 images of each set, spread evenly, one copy of each kind is written beside the set; found is the share of copies
in the group of their original, also by way of another copy. *Split*: images and copies are split with and without `near:
together`; leaks are copies in val or test whose original is in train. *Cost*: seconds for 1,000 images, in turns, without and
with it; results of the scan are kept from before, as in a second run. *Chains*: slow pans over photographs, 40 frames each, as
one class each. *Consecutive*: pairs of successive numbers in the breeds, and how many are identical or near duplicates.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from stagewright.data.dataset import load_dataset
from stagewright.data.inspect.inspect import inspect
from stagewright.data.inspect.similar import group_similar
from stagewright.data.manifest import Manifest
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.local import list_source
from stagewright.recipe.recipe import Data
from stagewright.rundir.environment import environment

ROUNDS, SAMPLE, FRAMES = 5, 300, 40


def cropped(image: Image.Image, share: float) -> Image.Image:
    """``share`` of width and height cut off on every side."""
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((max(8, round(factor * image.width)), max(8, round(factor * image.height))))


def padded(image: Image.Image) -> Image.Image:
    """A frame of black, a twentieth of each side."""
    made = Image.new("RGB", (round(1.1 * image.width), round(1.1 * image.height)))
    made.paste(image, (round(0.05 * image.width), round(0.05 * image.height)))
    return made


# A change, and the quality of the JPEG in which the copy is saved.
COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "JPEG quality 50": (lambda image: image, 50),
    "JPEG quality 20": (lambda image: image, 20),
    "half size": (lambda image: scaled(image, 0.5), 90),
    "double size": (lambda image: scaled(image, 2), 90),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
    "15 % brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), 90),
    "half the saturation": (lambda image: ImageEnhance.Color(image).enhance(0.5), 90),
    "1 % cropped on each side": (lambda image: cropped(image, 0.01), 90),
    "2 % cropped on each side": (lambda image: cropped(image, 0.02), 90),
    "5 % cropped on each side": (lambda image: cropped(image, 0.05), 90),
    "10 % cropped on each side": (lambda image: cropped(image, 0.10), 90),
    "rotated by 3 degrees": (lambda image: image.rotate(3, Image.Resampling.BICUBIC), 90),
    "5 % black frame": (padded, 90),
    "grey": (lambda image: image.convert("L"), 90),
}


def with_copies(source: Path, folder: Path) -> Path:
    """A folder with links to the images of ``source`` and copies of a sample, ``name--kind.jpg``."""
    listing = list_source(str(source), Data())
    rows = set(np.linspace(0, len(listing.paths) - 1, min(SAMPLE, len(listing.paths))).astype(int).tolist())
    for row, (path, label) in enumerate(zip(listing.paths.to_pylist(), listing.labels.to_pylist(), strict=True)):
        home = folder / label
        home.mkdir(parents=True, exist_ok=True)
        name = path.replace("/", "_")
        (home / name).symlink_to((source / path).resolve())
        if row in rows:
            image = Image.open(source / path).convert("RGB")
            for at, (change, quality) in enumerate(COPIES.values()):
                change(image).save(home / f"{Path(name).stem}--{at}.jpg", quality=quality)
    return folder


def originals(paths: list[str]) -> dict[int, tuple[int, str]]:
    """Row of each copy: the row of its original, and the kind."""
    rows = {str(Path(path).with_suffix("")): row for row, path in enumerate(paths) if "--" not in path}
    found = {}
    for row, path in enumerate(paths):
        stem, mark, kind = str(Path(path).with_suffix("")).partition("--")
        if mark:
            found[row] = rows[stem], list(COPIES)[int(kind)]
    return found


def grouped(listing: Listing) -> Listing:
    return group_similar(listing, workers=2, progress=None, max_pixels=10**8)[0]


def copies_found(listing: Listing) -> dict[str, float]:
    assert listing.groups is not None
    groups = listing.groups.to_pylist()
    hits: dict[str, list[bool]] = {kind: [] for kind in COPIES}
    for row, (original, kind) in originals(listing.paths.to_pylist()).items():
        hits[kind].append(groups[row] is not None and groups[row] == groups[original])
    return {kind: round(100 * statistics.fmean(found), 1) for kind, found in hits.items()}


def leaks(manifest: Manifest) -> dict[str, object]:
    """Number of copies, and of those in val or test whose original is in train."""
    pairs = originals(manifest.paths.to_pylist())
    found = [kind for row, (one, kind) in pairs.items() if manifest.splits[row] and not manifest.splits[one]]
    return {"copies": len(pairs), "leaks": len(found), "shares": shares(manifest)}


def shares(manifest: Manifest) -> list[float]:
    return [round(len(manifest.rows(part)) / len(manifest), 4) for part in ("train", "val", "test")]


def seconds(source: Path) -> dict[str, float]:
    """Seconds for 1,000 images to load the data set, without and with near duplicates together; medians of rounds in turns."""
    times: dict[str, list[float]] = {"ignore": [], "together": []}
    for at in range(-1, ROUNDS):
        for near, own in times.items():
            began = time.perf_counter()
            count = len(load_dataset(str(source), Data.model_validate({"near": near})).manifest)
            if at >= 0:
                own.append(1000 * (time.perf_counter() - began) / count)
    return {near: round(statistics.median(own), 3) for near, own in times.items()}


def pans(photographs: list[Path], folder: Path) -> dict[str, object]:
    """Slow pans over half of the width, one class each."""
    for at, file in enumerate(photographs):
        image = Image.open(file).convert("RGB")
        (folder / f"pan{at}").mkdir(parents=True)
        half = image.width // 2
        for frame in range(FRAMES):
            x = (image.width - half) * frame // (FRAMES - 1)
            image.crop((x, 0, x + half, image.height)).resize((160, 160)).save(folder / f"pan{at}" / f"{frame:03d}.jpg")
    found = inspect(str(folder), Data(near="together"))
    across = [x for x in inspect(str(folder), Data()).findings if x.kind == "near"]
    listing = found.evidence.listing
    assert listing.groups is not None
    sizes = {name: listing.groups.to_pylist().count(name) for name in set(listing.groups.to_pylist()) - {None}}
    pairs, parts = found.evidence.pairs, found.evidence.parts
    largest = max(sum(listing.labels[item.row].as_py() == name for item in across[0].items if item.set == number)
                  for number in range(across[0].sets) for name in set(listing.labels.to_pylist())) if across else 0  # fmt: skip
    return {
        "classes": len(photographs),
        "frames": FRAMES,
        "largest_set_before_cutting": largest,
        "largest_group": max(sizes.values()),
        "near_pairs": len(pairs.first),
        "near_pairs_in_two_parts": int((parts[pairs.first] != parts[pairs.second]).sum()),
        "parts": np.bincount(parts[parts >= 0], minlength=3).tolist(),
        "note": next(note for note in listing.notes if "chain" in note),
    }


def consecutive(source: Path) -> dict[str, object]:
    """Pairs of images of one class with successive numbers, and those of them in one group."""
    listing = grouped(list_source(str(source), Data()))
    groups = [None] * len(listing.paths) if listing.groups is None else listing.groups.to_pylist()
    numbers = {}
    for row, (path, label) in enumerate(zip(listing.paths.to_pylist(), listing.labels.to_pylist(), strict=True)):
        if match := re.search(r"(\d+)\.\w+$", path):
            numbers[label, int(match[1])] = row
    pairs = [(row, numbers[label, at + 1]) for (label, at), row in numbers.items() if (label, at + 1) in numbers]
    joined = [pair for pair in pairs if groups[pair[0]] is not None and groups[pair[0]] == groups[pair[1]]]
    content = [file.read_bytes() for file in (source / path for path in listing.paths.to_pylist())]
    identical = sum(content[one] == content[two] for one, two in pairs)
    return {"pairs": len(pairs), "identical": identical, "near": len(joined)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--breeds", type=Path, required=True)
    parser.add_argument("--sets", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = environment("", ["near.py"], "cpu", "cpu")
    result: dict[str, object] = {
        "environment": {key: about[key] for key in about if key not in ("cwd", "data")},
        "sets": {},
    }
    for source in (options.breeds, *options.sets):
        with tempfile.TemporaryDirectory() as scratch:
            own = grouped(list_source(str(source), Data()))
            members = [] if own.groups is None else [name for name in own.groups.to_pylist() if name is not None]
            folder = with_copies(source, Path(scratch, "copies"))
            splits = {
                near: leaks(load_dataset(str(folder), Data.model_validate({"near": near})).manifest)
                for near in ("ignore", "together")
            }
            found: dict[str, object] = {
                "images": len(own.paths),
                "in_groups": len(members),
                "largest_group": max(map(members.count, set(members)), default=0),
                "seconds_per_1000": seconds(source),
                "percent_found": copies_found(grouped(list_source(str(folder), Data()))),
                "split": splits,
            }
        result["sets"][source.parent.name + "/" + source.name] = found  # type: ignore[index]
        print(source, json.dumps(found, indent=1), flush=True)
    wide = [path for path in sorted(options.breeds.rglob("*.jpg")) if Image.open(path).width >= 400][:6]
    with tempfile.TemporaryDirectory() as scratch:
        result["chains"] = pans(wide, Path(scratch))
    result["consecutive"] = consecutive(options.breeds)
    print(json.dumps({name: result[name] for name in ("chains", "consecutive")}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
