"""Directories of trained and tested runs, as far as a comparison reads them, with the answers that a test wants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stagewright.data.manifest import Manifest

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def manifest_of(
    tests: int = 60,
    *,
    classes: Sequence[str] = CLASSES,
    groups: int = 0,
    prefix: str = "",
    relabelled: Sequence[int] = (),
    contents: Sequence[str] | None = None,
    val_from_test: int = 0,
) -> Manifest:
    """Returns a manifest with 30 pictures for training, 20 for validation (the first ``val_from_test`` with the content of test
    pictures) and ``tests`` for the test."""
    names = [f"{part}-{at}" for part, count in (("train", 30), ("val", 20), ("test", tests)) for at in range(count)]
    content = list(contents) if contents is not None else list(names)
    for at in range(val_from_test):
        content[30 + at] = f"test-{at}"
    labels = np.arange(len(names)) % len(classes)
    for at in relabelled:
        labels[50 + at] = (labels[50 + at] + 1) % len(classes)
    return Manifest(
        root="/pictures",
        source="pictures/",
        classes=tuple(classes),
        paths=pa.array([f"{prefix}{name}.png" for name in names]),
        hashes=pa.array([hashlib.blake2b(one.encode(), digest_size=16).hexdigest() for one in content]),
        labels=labels.astype(np.int32),
        splits=np.repeat([0, 1, 2], [30, 20, tests]).astype(np.int8),
        widths=np.full(len(names), 8, np.int32),
        heights=np.full(len(names), 8, np.int32),
        groups=pa.array([f"site {at % groups}" for at in range(len(names))]) if groups else None,
    )


def write_run(
    root: Path,
    seed: int,
    right: NDArray[np.bool_] | None,
    *,
    manifest: Manifest | None = None,
    unreadable: Sequence[int] = (),
    recipe: dict[str, Any] | None = None,
    status: str = "finished",
    steps: int = 100,
    env: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
    error: str | None = None,
) -> Path:
    """Writes a run whose test answers are ``right`` (T,), or that has none, and returns its directory."""
    manifest = manifest or manifest_of(60 if right is None else len(right))
    root.mkdir(parents=True)
    (root / "evaluations").mkdir()
    manifest.write(root / "manifest.parquet")
    info = manifest.info()
    own = {"model": {"name": "tiny"}, "lr": {"peak": 0.1}, "eval": {"crop": 0.875, "fit": "crop"}, **(recipe or {})}
    plan = {
        "recipe": {**own, "seed": seed},
        "dataset": {"num_train": 30, "num_val": 20, "num_test": info.num_test, "classes": list(manifest.classes)},
        "total_steps": steps,
        "stages": [{"first_step": 0, "num_steps": steps, "image_size": 32, "batch_size": 3, "num_images": 30}],
    }
    (root / "plan.json").write_text(json.dumps(plan))
    (root / "env.json").write_text(json.dumps({"torch": "2.15.0", "device_name": "CPU", **(env or {})}))
    finished = (
        {"step": steps, "chosen": {"step": steps, "weights": "raw"}} if status == "finished" else {"step": steps // 2}
    )
    summary = {
        "status": status,
        "name": root.name,
        "parameters": 1234,
        "train_seconds": 60.0,
        "precision": "fp32",
        **finished,
    }
    (root / "summary.json").write_text(json.dumps({**summary, "error": error}))
    (root / "events.jsonl").write_text("")
    if weights is not None:
        (root / "weights.json").write_text(json.dumps(weights))
    _answers(root, manifest, "val", np.arange(20) % 4 > 0)
    if right is not None:
        _answers(root, manifest, "test", right, unreadable)
    return root


def _answers(
    root: Path, manifest: Manifest, split: str, right: NDArray[np.bool_], unreadable: Sequence[int] = ()
) -> None:
    rows = manifest.rows(split)
    labels = manifest.labels[rows].astype(np.int64)
    readable = np.ones(len(rows), np.bool_)
    readable[list(unreadable)] = False
    predicted = np.where(right, labels, (labels + 1) % len(manifest.classes))
    names = manifest.group_names(rows)
    table = pa.table(
        {
            "path": manifest.paths.take(pa.array(rows)),
            "label": pa.array(labels, pa.int32()),
            "predicted": pa.array(np.where(readable, predicted, -1), pa.int32()),
            "readable": readable,
            "group": pa.array(names if names is not None else [None] * len(rows), pa.string()),
            "rank": pa.array(np.where(right, 1, 2 + np.arange(len(rows)) % 5), pa.int32(), mask=~readable),
        }
    )
    pq.write_table(table, root / "evaluations" / f"{split}.parquet")


def some_right(share: float, seed: int, pictures: int = 60) -> NDArray[np.bool_]:
    """Returns answers of which ``share`` are right, on the same pictures for most seeds."""
    random = np.random.default_rng(seed)
    difficulty = (np.arange(pictures) * 0.6180339887) % 1.0
    return difficulty + 0.15 * random.standard_normal(pictures) < share
