"""Pictures that changed, moved or are gone since the manifest was written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.data.sources import verify
from stagewright.data.sources.verify import moved, verify_images
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


@pytest.fixture
def data(picture_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(picture_folder, tmp_path / "data"))


@pytest.fixture
def manifest(data: Path, tmp_path: Path) -> Manifest:
    made = load_dataset(str(data), Data()).manifest
    made.write(tmp_path / "manifest.parquet")
    return Manifest.read(tmp_path / "manifest.parquet")


def noise(path: Path, seed: int = 0) -> None:
    with Image.open(path) as image:
        shape = (image.height, image.width, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)).save(path)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths: list[str] = []
    read = verify.read_file
    monkeypatch.setattr(verify, "read_file", lambda path: paths.append(path) or read(path))
    return paths


def test_unchanged_files_cost_a_look_and_touched_ones_a_hash(
    manifest: Manifest, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = hashed(monkeypatch)
    verify_images(manifest)
    assert len(read) == 1, "1 in 1,000"
    read.clear()
    os.utime(data / "down" / "03.png")
    verify_images(manifest)
    assert str(data / "down" / "03.png") in read and len(read) <= 2
    read.clear()
    told: list[tuple[int, int]] = []
    verify_images(manifest, everything=True, progress=lambda done, total: told.append((done, total)))
    assert len(read) == 60 and told[-1] == (60, 60)


@pytest.mark.parametrize("keep_time", [False, True])
def test_other_pictures_are_refused_with_classes_and_counts(manifest: Manifest, data: Path, keep_time: bool) -> None:
    """Also where somebody has set the old times again: they cannot set the time at which that was done (attack H2)."""
    for path in sorted((data / "down").iterdir()):
        status = path.stat()
        noise(path)
        if keep_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(
        DataError, match=r"of 60, 20 pictures \(down 20\), e.g. down/00\.png[\s\S]* changed[\s\S]*--data"
    ):
        verify_images(manifest)
    verify_images(manifest, manifest.rows("train")[manifest.labels[manifest.rows("train")] != 1])


def test_two_classes_whose_folders_were_exchanged(manifest: Manifest, data: Path) -> None:
    """Situation 056."""
    os.rename(data / "across", data / "x")
    os.rename(data / "down", data / "across")
    os.rename(data / "x", data / "down")
    with pytest.raises(DataError, match=r"changed"):
        verify_images(manifest)


def test_what_is_gone_and_what_is_not_mounted(manifest: Manifest, data: Path) -> None:
    (data / "down" / "03.png").unlink()
    with pytest.raises(DataError, match=r"1 picture \(down 1\), e.g. down/03\.png, cannot be read"):
        verify_images(manifest)
    shutil.rmtree(data)
    with pytest.raises(DataError, match=r"data does not exist any more"):
        verify_images(manifest)
    data.mkdir()
    with pytest.raises(DataError, match=r"data exists but is empty: is its disk mounted\?"):
        verify_images(manifest)


def test_pictures_that_moved(manifest: Manifest, data: Path, tmp_path: Path) -> None:
    os.rename(data, tmp_path / "elsewhere")
    here = moved(manifest, tmp_path / "elsewhere")
    assert here.digest == manifest.digest
    verify_images(here)
    noise(tmp_path / "elsewhere" / "down" / "03.png")
    with pytest.raises(DataError, match=r"1 picture \(down 1\)"):
        verify_images(here)
    with pytest.raises(DataError, match="there is no such folder"):
        moved(manifest, tmp_path / "nowhere")


def test_manifests_of_before_know_no_times(manifest: Manifest, data: Path, tmp_path: Path) -> None:
    old = replace(manifest, stamps=None)
    old.write(tmp_path / "old.parquet")
    read = Manifest.read(tmp_path / "old.parquet")
    assert read.stamps is None and read.digest == manifest.digest
    verify_images(read)
    for path in data.rglob("*.png"):
        noise(path)
    with pytest.raises(DataError, match="changed"):
        verify_images(read)


def test_a_repaired_file_is_seen_though_size_and_time_are_equal(data: Path) -> None:
    """wget, rsync -t and object stores set the time that the file should have (situation 050)."""
    victim = data / "down" / "03.png"
    good, status = victim.read_bytes(), victim.stat()
    victim.write_bytes(good[:40] + bytes(len(good) - 40))
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(load_dataset(str(data), Data()).excluded) == 1
    victim.write_bytes(good)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load_dataset(str(data), Data()).excluded == ()
