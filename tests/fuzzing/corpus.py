"""Real files to change: a tiny run, its model, a pack, tables and caches, all written by the package itself."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import stagewright as sw
from stagewright.data.dataset import load_dataset
from stagewright.data.pack.build import pack
from stagewright.data.splits.write import split
from stagewright.plan import lr_curve
from stagewright.plan.execution import Execution
from stagewright.preflight.lr_find import RunArtifacts, range_test_files
from stagewright.recipe.recipe import Data
from stagewright.storage.cache import cache_folder

_CLASSES = ("cat", "犬", "wolf [1]")
_SETTINGS = (
    "name=small",
    "epochs=8st",
    "image_size=8",
    "batch_size=8",
    "model.name=cifar_resnet18",
    "model.options={width: 4}",
    "data.val=0.25",
    "data.test=0.25",
    "eval.every=4st",
    "checkpoints.every=4st",
    "average={kind: ema, half_life: 5st}",
    "stages=[{name: first, epochs: 0.5, train: head}, {name: second, epochs: 0.5, mix: {mixup: 0.2}}]",
)


@dataclass(frozen=True)
class Corpus:
    """Where the real files are."""

    root: Path
    pictures: Path
    """Class folders."""
    table: Path
    """A CSV of the pictures in the folder ``root``, with split and group."""
    parquet: Path
    run: Path
    """A finished run with the files of a range test, a head stage and averages."""
    pack: Path
    scan_cache: Path
    """The cached results of the scan of ``pictures``."""
    pack_cache: Path
    """The record of the parts of ``pack`` that were found intact."""


def build(root: Path) -> Corpus:
    """Writes all files below ``root``; takes a few seconds. STAGEWRIGHT_CACHE must name an empty folder."""
    pictures = root / "pictures"
    _write_pictures(pictures)
    (pictures / _CLASSES[0] / "broken.png").write_bytes(b"not a picture")
    table, parquet = root / "table.csv", root / "table.parquet"
    _write_table(table, pictures)
    execution = Execution(device="cpu", workers=0, pages=False, quiet=True)
    run = root / "run"
    sw.train(table, "quick", overrides=_SETTINGS, out=run, execution=execution, say=lambda text: None)
    _write_range_test(run)
    split(str(table), Data(), out=parquet, workers=1)
    folder = root / "small.pack"
    pack(str(pictures), folder, Data(), size=8, workers=1)
    caches = _new_files(cache_folder("scans"))
    load_dataset(str(pictures), Data(), workers=1)
    scanned = _new_files(cache_folder("scans")) - caches or caches
    load_dataset(str(folder), Data(), workers=1)
    return Corpus(root, pictures, table, parquet, run, folder, max(scanned), max(_new_files(cache_folder("packs"))))


def _write_range_test(run: Path) -> None:
    lrs = lr_curve.lr_grid(1e-6, 1.0, 40)
    test = lr_curve.RangeTest(
        lrs, 2.3 - np.clip(np.log10(lrs) + 4, 0, 3) / 3 + np.clip(lrs - 0.3, 0, 1) * 3, planned=40
    )
    files = range_test_files(test, lr_curve.suggest(test), "40 updates of 8 pictures at 8 px")
    RunArtifacts(files={f"{lr_curve.NAME}/{name}": data for name, data in files.items()}).write(run)


def _new_files(folder: Path) -> set[Path]:
    return set(folder.glob("*.*")) if folder.is_dir() else set()


def _write_pictures(folder: Path) -> None:
    random = np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    for label, name in enumerate(_CLASSES):
        (folder / name).mkdir(parents=True)
        for at in range(16):
            pixels = random.normal(60 + 60 * label, 20, (12, 10, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{at:02d}.{'png' if at % 2 else 'jpg'}")


def _write_table(table: Path, pictures: Path) -> None:
    rows = [  # the damaged one too: the run lists it in excluded.csv
        (file.relative_to(table.parent).as_posix(), file.parent.name, f"site {len(file.stem) + ord(file.stem[-1]) % 7}")
        for file in sorted(pictures.rglob("*.*"))
    ]
    with table.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows([("path", "label", "site"), *rows])
