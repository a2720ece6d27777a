"""Tests of predictions by several processes: each image is answered once, also if one process is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import typed
from object_server import ObjectServer
from picture_folders import write_noise
from uploaded import upload_folder

from stagewright.api.claimed_prediction import predict_claimed
from stagewright.api.load_bundle import load_bundle
from stagewright.data.dataset import load_for_evaluation
from stagewright.data.pack.build import pack
from stagewright.errors import StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.claims import Claims
from stagewright.storage.objects import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 90 pictures on the disk."""
    root = tmp_path_factory.mktemp("claimed") / "photos"
    write_noise(root, "ab", 45, lambda at: (20 + at % 7, 24))
    return pack(str(root), root.parent / "photos.pack", Data(), size=20, part_bytes=20_000).folder


def blocks(out: str) -> dict[str, pa.Table]:
    store = open_store(out)
    names = [one["path"] for page in obstore.list(store) for one in page if one["path"].endswith(".parquet")]
    return {name: pq.read_table(io.BytesIO(bytes(obstore.get(store, name).bytes()))) for name in sorted(names)}


def answered(out: str) -> list[dict[str, Any]]:
    return sorted((row for table in blocks(out).values() for row in table.to_pylist()), key=lambda row: row["path"])


def test_the_answers_are_those_of_predict(small_run: Path, folder: Path, bucket: str) -> None:
    url, out = upload_folder(folder, f"{bucket}/photos.pack"), f"{bucket}/answers"
    done = predict_claimed(small_run, url, out, top=2, block_rows=25)
    assert (done.blocks, done.images, done.own_blocks, done.own_images, done.failed) == (4, 90, 4, 90, 0)
    rows = answered(out)
    dataset = load_for_evaluation(str(folder), Data())
    images = [dataset.images.load(row) for row in range(90)]
    expected = list(load_bundle(small_run).predict(images, 32, 2))
    for row, path, one in zip(rows, dataset.manifest.paths.to_pylist(), expected, strict=True):
        assert (row["path"], row["answer"], row["error"]) == (path, one.answer, None)
        found = [(row[f"class_{at}"], row[f"probability_{at}"]) for at in (1, 2)]
        assert [name for name, _ in found] == [name for name, _ in one.classes]
        assert np.allclose([p for _, p in found], [p for _, p in one.classes], atol=1e-5)
    again = predict_claimed(small_run, url, out, top=2, block_rows=25)
    assert (again.own_blocks, again.images) == (0, 90)
    with pytest.raises(StorageError, match=r"has predictions of something else: top, block_rows differ"):
        predict_claimed(small_run, url, out, top=1, block_rows=20)


_WORK = """
import sys, time
from stagewright.api import claimed_prediction as made
run, data, out, slow = sys.argv[1:]
answer = made._Work.answer
def slowly(work, claim, rows):
    print(claim.name, flush=True)
    time.sleep(float(slow))
    answer(work, claim, rows)
made._Work.answer = slowly
done = made.predict_claimed(run, data, out, block_rows=10, lease_seconds=3, top=2)
print("done", done.own_blocks, done.own_images, flush=True)
"""


@pytest.mark.long
def test_one_of_three_is_killed(small_run: Path, folder: Path, bucket: str) -> None:
    url, out = upload_folder(folder, f"{bucket}/photos.pack"), f"{bucket}/answers"
    command = [sys.executable, "-c", _WORK, str(small_run), url, out]
    victim = subprocess.Popen([*command, "100"], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    with victim.stdout:
        name = victim.stdout.readline().strip()
        others = [subprocess.Popen([*command, "0.2"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            said = [other.communicate(timeout=120)[0].splitlines() for other in others]
        finally:
            for one in (victim, *others):
                one.kill()
                one.wait()
    paths = [row["path"] for row in answered(out)]
    assert len(paths) == 90 == len(set(paths)) and len(blocks(out)) == 9
    assert name in {line for lines in said for line in lines}, "what the killed one had claimed was taken over"
    counts = [int(lines[-1].split()[2]) for lines in said]
    assert sum(counts) == 90


def test_claims(bucket: str, object_server: ObjectServer) -> None:
    one, other = Claims(f"{bucket}/x", 4.0), Claims(f"{bucket}/x", 4.0)
    claim = one.take("a")
    assert claim is not None and other.take("a") is None and one.take("b") is not None
    time.sleep(2.5)
    assert one.renew(claim)
    time.sleep(2.4)  # the store's times are whole seconds
    assert other.take("a") is None, "it was renewed"
    time.sleep(3)
    taken = other.take("a")
    assert taken is not None and one.take("a") is None
    claim.renewed -= 4
    assert not one.renew(claim), "another process has it"
    assert one.create("a.parquet", b"1") and not other.create("a.parquet", b"2")
    other.release(taken)
    assert one.take("a") is not None
    with object_server.fault("lost", method="PUT", path="claims/c", times=1):
        assert one.take("c") is not None, "the answer was lost, the claim is there"
    assert other.take("c") is None
    with (
        object_server.fault("unconditional", method="PUT"),
        pytest.raises(StorageError, match="ignores the conditions"),
    ):
        Claims(f"{bucket}/y", 1.0)


def test_the_command(
    small_run: Path, folder: Path, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{bucket}/answers"
    words = ["predict", small_run, folder, "--claim", "--out", out, "--block-rows", 50, "-k", 1]
    code, printed, _ = typed(capsys, monkeypatch, *words)
    assert code == 0 and f"{out}: all 90 pictures are answered, in 2 blocks; 90 in 2 of them by this process" in printed
    code, printed, _ = typed(capsys, monkeypatch, *words, "--json")
    assert code == 0 and json.loads(printed)["own_blocks"] == 0
    for wrong, why in (
        ([folder, "--out", out], "--out"),
        ([folder, "--claim"], "--claim without --out"),
        ([folder, folder, "--claim", "--out", out], "--claim with DATA several times"),
        ([folder, "--claim", "--out", out, "--csv", "x.csv"], "--claim with --csv"),
        ([folder, "--claim", "--out", "answers/"], "--claim with --out answers/"),
    ):
        code, _, said = typed(capsys, monkeypatch, "predict", small_run, *wrong)
        assert code == 2 and why in said
