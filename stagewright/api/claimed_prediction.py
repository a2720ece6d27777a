"""Predictions by any number of processes that share an object store and nothing else: ``predict RUN DATA --out URL --claim``.

The images are divided into blocks of neighbours. A process claims a block, answers it, writes it as one Parquet file, once, and
goes on with the next; a block whose process is gone is taken over when its lease has ended. Every process ends when all blocks
are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stagewright import rng
from stagewright.api.load_bundle import load_bundle
from stagewright.api.seen import refuse_closed_hashes
from stagewright.bundle.bundle import Bundle
from stagewright.bundle.predictions import Prediction
from stagewright.data.dataset import Dataset, load_for_evaluation
from stagewright.data.images.placed import PlacedImages
from stagewright.data.images.rows import load_rows
from stagewright.data.pack.images import PackRows
from stagewright.data.sources.scan import Progress
from stagewright.errors import StorageError
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import is_closed
from stagewright.storage.claims import Claim, Claims
from stagewright.storage.files import read_file
from stagewright.storage.json_text import parse_object
from stagewright.storage.object_files import read_object
from stagewright.storage.objects import is_remote
from stagewright.system.machine import cores
from stagewright.system.signals import keeps
from stagewright.system.threads import Pool
from stagewright.text import counted

if TYPE_CHECKING:
    import torch

HEAD = "prediction.json"
"""What is predicted, with which model: all processes at one place must agree on it."""
BLOCK_ROWS = 4096
LEASE_SECONDS = 600.0
_POLL_SECONDS = 15.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class _ClaimedSummary:
    """What this process has done, and what is there."""

    url: str
    blocks: int
    """Number of blocks in all, every one of which has been answered."""
    images: int
    """Number of images in all."""
    own_blocks: int
    own_images: int
    """Answered by this process."""
    failed: int
    """Of these: images that could not be read."""


def predict_claimed(
    run: str | os.PathLike[str],
    data: str,
    out: str,
    *,
    device: str | torch.device = "cpu",
    top: int = 5,
    batch_size: int = 32,
    block_rows: int = BLOCK_ROWS,
    lease_seconds: float = LEASE_SECONDS,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    say: Say = lambda text: None,
) -> _ClaimedSummary:
    """Answers blocks of the images of ``data`` until all are answered; other processes may do the same at the same time.

    Writes ``block-00000.parquet`` and so on below ``out``, a URL: the columns of :func:`schema`, one row for each image. ``top``
    is the number of classes for an image. StorageError if ``out`` has predictions of other images, of another model or with other
    arguments, or if the store cannot be written or ignores conditions.
    """
    if not is_remote(out):
        raise StorageError(
            f"--claim with --out {out}",
            "the URL of an object store, s3://BUCKET/PREFIX",
            "give one, or leave out --claim",
        )
    bundle = load_bundle(run, device=device)
    dataset = load_for_evaluation(data, recipes.data_settings(overrides), workers=cores())
    manifest, own = dataset.manifest, RunDir(bundle.folder.parent)
    if own.manifest.is_file() and is_closed(own):
        refuse_closed_hashes(own, manifest.hashes, "what is to be predicted")
    top = min(top, len(bundle.classes))
    claims = Claims(out.rstrip("/"), lease_seconds)
    _check_head(claims, _head(bundle, dataset, top, block_rows))
    blocks = _blocks(dataset, block_rows)
    say(f"{counted(len(manifest), 'picture')} in {counted(len(blocks), 'block')}; writing to {claims.url}")
    work = _Work(claims, bundle, dataset, top, batch_size)
    with keeps(
        lambda: f"kept: {counted(work.blocks, 'block')} of this process, in {claims.url}; the rest is free for others"
    ):
        _carry_out(work, blocks, progress)
    return _ClaimedSummary(claims.url, len(blocks), len(manifest), work.blocks, work.images, work.failed)


def schema(top: int) -> pa.Schema:
    """Returns the columns of a block: path, answer (null for an image without one), class_1, probability_1, ..., error."""
    ranked = [(f"{what}_{at}", kind) for at in range(1, top + 1) for what, kind in _RANKED]
    return pa.schema([("path", pa.string()), ("answer", pa.string()), *ranked, ("error", pa.string())])


_RANKED = (("class", pa.string()), ("probability", pa.float64()))


def _carry_out(work: _Work, blocks: list[NDArray[np.int64]], progress: Progress | None) -> None:
    """Answers blocks until all are there. Each process begins elsewhere, so that few want the same block."""
    names = [f"block-{number:05d}.parquet" for number in range(len(blocks))]
    order = rng.permutation(
        int.from_bytes(hashlib.blake2b(work.claims.owner.encode(), digest_size=8).digest()), len(names)
    )
    while True:
        done = work.claims.done()
        if progress is not None:
            progress(sum(len(block) for name, block in zip(names, blocks, strict=True) if name in done), work.total)
        left = [number for number in order.tolist() if names[number] not in done]
        if not left:
            return
        taken = next((claim for number in left if (claim := work.claims.take(names[number])) is not None), None)
        if taken is None:
            time.sleep(min(_POLL_SECONDS, work.claims.lease / 4))
            continue
        work.answer(taken, blocks[names.index(taken.name)])


class _Work:
    """What this process answers with, and how much it has answered."""

    def __init__(self, claims: Claims, bundle: Bundle, dataset: Dataset, top: int, batch_size: int) -> None:
        self.claims, self.bundle, self.dataset = claims, bundle, dataset
        self.top, self.batch_size, self.total = top, batch_size, len(dataset.manifest)
        self.blocks = self.images = self.failed = 0

    def answer(self, claim: Claim, rows: NDArray[np.int64]) -> None:
        """Answers a block and writes it, unless another process has taken it over meanwhile."""
        predictions: list[Prediction] = []
        try:
            for batch in self._predictions(rows):
                predictions += batch
                if not self.claims.renew(claim):
                    return
            written = self.claims.create(claim.name, _as_parquet(predictions, self.top))
        except BaseException:
            self.claims.release(claim)
            raise
        if written:
            self.blocks, self.images = self.blocks + 1, self.images + len(rows)
            self.failed += sum(not one.classes for one in predictions)

    def _predictions(self, rows: NDArray[np.int64]) -> Iterator[list[Prediction]]:
        """Yields the answers batch by batch; while the model works on one, the next is read."""
        images, paths = self.dataset.images, self.dataset.manifest.paths
        chunks = [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]
        with Pool(1, "read") as pool:
            ahead = pool.submit(lambda: load_rows(images, chunks[0]))
            for number, chunk in enumerate(chunks):
                found = ahead.result()
                if number + 1 < len(chunks):
                    ahead = pool.submit(lambda chunk=chunks[number + 1]: load_rows(images, chunk))
                readable = [one for one in found if not isinstance(one, Exception)]
                answers = iter(self.bundle.predict(readable, self.batch_size, self.top) if readable else ())
                names = paths.take(pa.array(chunk)).to_pylist()
                yield [_named(name, one, answers) for name, one in zip(names, found, strict=True)]


def _named(name: str, found: object, answers: Iterator[Prediction]) -> Prediction:
    if isinstance(found, Exception):
        return Prediction(name, (), str(found) or type(found).__name__)
    one = next(answers)
    return Prediction(name, one.classes, one.error, one.decided)


def _blocks(dataset: Dataset, block_rows: int) -> list[NDArray[np.int64]]:
    """Returns the rows of each block: images that lie side by side where they are stored."""
    images, rows = dataset.images, np.arange(len(dataset.manifest))
    if isinstance(images, PackRows | PlacedImages):
        rows = np.lexsort((images.places.offsets, images.places.which))
    return [rows[at : at + block_rows].astype(np.int64) for at in range(0, len(rows), block_rows)]


def _as_parquet(predictions: Sequence[Prediction], top: int) -> bytes:
    columns = schema(top)
    rows = []
    for one in predictions:
        row: dict[str, object] = {"path": one.path, "answer": one.answer, "error": one.error}
        for at, (name, probability) in enumerate(one.classes[:top], 1):
            row |= {f"class_{at}": name, f"probability_{at}": probability}
        rows.append(row)
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, columns), target, compression="zstd")
    return target.getvalue()


def _head(bundle: Bundle, dataset: Dataset, top: int, block_rows: int) -> dict[str, object]:
    model = hashlib.sha256(read_file(Path(bundle.folder, "model.json"))).hexdigest()
    return {
        "model": model,
        "data": hashlib.sha256("\n".join(dataset.manifest.paths.to_pylist()).encode()).hexdigest(),
        "content": hashlib.sha256("".join(dataset.manifest.hashes.to_pylist()).encode()).hexdigest(),
        "images": len(dataset.manifest),
        "variant": dataset.manifest.variant,
        "top": top,
        "block_rows": block_rows,
    }


def _check_head(claims: Claims, head: dict[str, object]) -> None:
    """Writes what is predicted. StorageError if something else is predicted there."""
    if claims.create(HEAD, json.dumps(head, indent=1).encode()):
        return
    try:
        there = parse_object(read_object(claims.store, claims.url, HEAD))
    except ValueError:
        there = {}
    if different := [name for name, value in head.items() if there.get(name) != value]:
        raise StorageError(
            f"{claims.url} has predictions of something else: {', '.join(different)} differ ({HEAD})",
            "the same images, model, --top and --block-rows in all processes",
            "give another --out",
        )
