"""Decoded images in memory that processes share: the same bits, each image decoded once, and never one that has changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import stagewright as sw
from stagewright.api.resume_check import differences
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import load_dataset
from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.memory_cache import CachedImages, SharedImages, cache_for_plan
from stagewright.data.manifest import Manifest
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.storage import shared_file
from stagewright.training.session import Session

SMALL = ("model.options={width: 4}", "image_size=24", "batch_size=16", "epochs=2ep", "data.val=0.2", "data.test=0.2")
ALONE = sw.Execution(device="cpu", workers=2, pages=False, quiet=True)
SHARED = replace(ALONE, shared_pictures=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shared"


def prepared(pictures: Path) -> tuple[Plan, Manifest, Images]:
    recipe = recipes.override(recipes.load("quick"), SMALL)
    dataset = load_dataset(str(pictures), recipe.data)
    return resolve(recipe, dataset.manifest.info()), dataset.manifest, dataset.images


def shared(plan: Plan, manifest: Manifest, images: Images) -> SharedImages:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    found = cache_for_plan(plan, manifest, images, not_shared=refuse)
    assert isinstance(found, SharedImages)
    return found


def pixels(images: Images, row: int) -> np.ndarray:
    return np.asarray(images.load(row))


def test_the_same_bits_with_any_number_of_threads(picture_folder: Path) -> None:
    plan, manifest, images = prepared(picture_folder)
    one, two, alone = (
        shared(plan, manifest, images),
        shared(plan, manifest, images),
        cache_for_plan(plan, manifest, images),
    )
    wanted = list(load_batches(alone, train_specs(plan, manifest, 0), workers=0))
    for found in (one, two):
        for batch, expected in zip(load_batches(found, train_specs(plan, manifest, 0), workers=3), wanted, strict=True):
            assert bool((batch.images == expected.images).all()) and not batch.bad_rows
    assert isinstance(alone, CachedImages)
    for row in manifest.rows("train").tolist():
        assert np.array_equal(pixels(one, row), pixels(alone, row)) and np.array_equal(
            pixels(images, row), pixels(one, row)
        )


def test_each_image_is_decoded_once(picture_folder: Path, tmp_path: Path) -> None:
    """What one has decoded another takes although the files are gone, also where its labels and parts are others."""
    pictures = shutil.copytree(picture_folder, tmp_path / "pictures")
    plan, manifest, images = prepared(pictures)
    one = shared(plan, manifest, images)
    half = np.arange(0, len(manifest), 2)
    assert one.ensure(half) == {}
    shutil.rmtree(pictures)
    other = replace(manifest, labels=manifest.labels[::-1].copy(), splits=np.zeros(len(manifest), np.int8))
    two = shared(plan, other, images)
    failures = two.ensure(np.arange(len(manifest)))
    assert sorted(failures) == np.arange(1, len(manifest), 2).tolist()
    assert all("No such file" in str(error) for error in failures.values())
    assert np.array_equal(pixels(two, 4), pixels(one, 4))


def test_other_images_are_not_shared(picture_folder: Path, tmp_path: Path, folder: Path) -> None:
    pictures = shutil.copytree(picture_folder, tmp_path / "pictures")
    one = shared(*prepared(pictures))
    one.ensure(np.arange(len(one)))
    [file, *_] = sorted(pictures.rglob("*.png"))
    file.write_bytes(file.read_bytes() + b"\0")
    two = shared(*prepared(pictures))
    assert not two.shared.done.any() and len([path for path in folder.iterdir() if path.name != ".lock"]) == 2


def test_a_changed_image_is_not_served(picture_folder: Path, tmp_path: Path) -> None:
    """Of the same size, so that only its content tells. Without sharing, the run alone would see it."""
    pictures = shutil.copytree(picture_folder, tmp_path / "pictures")
    plan, manifest, images = prepared(pictures)
    one, two = shared(plan, manifest, images), shared(plan, manifest, images)
    path = pictures / manifest.paths[3].as_py()
    picture = images.load(3)
    picture.putpixel((0, 0), (1, 2, 3))
    original = path.read_bytes()
    picture.save(path)
    failures = one.ensure(np.arange(6))
    assert list(failures) == [3] and "changed since it was scanned" in str(failures[3])
    path.write_bytes(original)
    assert two.ensure(np.arange(6)) == {} and pixels(two, 3)[0, 0].tolist() != [1, 2, 3]


def test_where_it_cannot_be_shared_each_has_its_own(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "_file_system", lambda _: "nfs4")
    said: list[str] = []
    found = cache_for_plan(*prepared(picture_folder), not_shared=said.append)
    assert type(found) is CachedImages and len(said) == 1
    assert "nfs4" in said[0] and "keeps its own decoded pictures. To share them, set STAGEWRIGHT_CACHE to a" in said[0]


def test_large_sets_are_left_alone(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is that of the cache of one process."""
    monkeypatch.setattr("stagewright.data.images.memory_cache.MOST_BYTES", 1000)
    plan, manifest, images = prepared(picture_folder)
    assert isinstance(images, FileImages) and cache_for_plan(plan, manifest, images, not_shared=print) is images


def test_a_training_has_the_same_bits(picture_folder: Path, tmp_path: Path, folder: Path) -> None:
    def silent(text: str) -> None: ...

    runs = [
        sw.train(picture_folder, "quick", overrides=SMALL, out=tmp_path / name, execution=how, say=silent).path
        for name, how in (("alone", ALONE), ("shared", SHARED))
    ]
    assert differences(RunDir(runs[0]), RunDir(runs[1])) == []
    used: list[SharedImages] = []

    def arm(session: Session) -> None:
        assert isinstance(session.images, SharedImages) and session.images.shared.shares
        used.append(session.images)

    fork = sw.resume(runs[1], overrides=["epochs=1ep"], execution=SHARED, say=silent, arm=arm)
    assert fork.finished and len(used) == 1 and not used[0].shared.shares, "it ends with the run, not with the object"
    assert [path.name for path in folder.iterdir()] == [".lock"], "nothing stays behind"


FILL = """
import sys, numpy as np
from stagewright.data.manifest import Manifest
from stagewright.data.images.decode import FileImages
from stagewright.data.images.memory_cache import SharedImages
manifest = Manifest.read(sys.argv[1])
images = SharedImages(FileImages(manifest.root, manifest.paths), manifest)
for start in range(0, len(images), 8):
    print(start, flush=True)
    assert images.ensure(np.arange(start, min(start + 8, len(images)))) == {}
sys.stdin.read()
"""


def test_nobody_waits_for_a_process_that_has_stopped(picture_folder: Path, tmp_path: Path) -> None:
    """It has claimed an image and does not decode it."""
    plan, manifest, images = prepared(picture_folder)
    manifest.write(tmp_path / "m.parquet")
    stopped = FILL.partition("for start")[0] + "held = images.shared.claim(2); held.__enter__(); print(2, flush=True)\n"
    command = [sys.executable, "-c", stopped + "sys.stdin.read()", str(tmp_path / "m.parquet")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "2\n"
    mine = shared(plan, manifest, images)
    assert mine.ensure(np.arange(6)) == {} and mine.shared.done[:6].all()
    assert np.array_equal(pixels(mine, 2), pixels(images, 2))
    process.communicate()


def test_killed_while_filling(picture_folder: Path, tmp_path: Path) -> None:
    """Three processes fill the same memory in the same order; two are killed on the way."""
    plan, manifest, images = prepared(picture_folder)
    manifest.write(tmp_path / "m.parquet")
    mine = shared(plan, manifest, images)
    command = [sys.executable, "-c", FILL, str(tmp_path / "m.parquet")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) for _ in range(3)]
    for process, at in zip(processes, (16, 32, 56), strict=True):
        assert process.stdout is not None
        while int(process.stdout.readline()) < at:
            pass
        if at < 56:
            process.kill()
    processes[-1].communicate()
    for process in processes[:2]:
        process.communicate()
    assert processes[-1].returncode == 0 and mine.shared.done.all()
    shown = Manifest.read(tmp_path / "m.parquet")
    files = FileImages(shown.root, pa.array(shown.paths))
    assert all(np.array_equal(pixels(mine, row), pixels(files, row)) for row in range(len(shown)))
