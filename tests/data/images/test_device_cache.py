from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagewright.augment.geometry import Geometry
from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.images.decode import ArrayImages, FileImages
from stagewright.data.images.device_cache import Resident, cache_on_device
from stagewright.data.images.memory_cache import CachedImages

CPU = torch.device("cpu")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def spec(rows: list[int], side: int, shifts: np.ndarray, flips: np.ndarray, image_size: int | None = None) -> BatchSpec:
    boxes = np.tile(np.array([0.0, 0.0, side, side]), (len(rows), 1))
    chosen = np.array(rows, np.int64)
    return BatchSpec(3, chosen, chosen % 5, Geometry(boxes, shifts, flips), image_size or side, "bilinear")


def plain(batch: Batch) -> tuple[list[int], list[int], list[bool], tuple[tuple[int, str], ...], int]:
    images = batch.images.cpu()
    return images.flatten().tolist(), batch.labels.tolist(), batch.valid.tolist(), batch.bad_rows, batch.step


@given(data=st.data(), side=st.integers(4, 12), count=st.integers(1, 9))
def test_views_have_the_bits_of_the_host(data: st.DataObject, side: int, count: int) -> None:
    array = pictures(7, side)
    rows = data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shifts, flips = random.integers(-side - 1, side + 2, (count, 2)), random.random(count) < 0.5
    one = spec(rows, side, shifts, flips)
    images = ArrayImages(array)
    [expected] = load_batches(images, [one], workers=0)
    [batch] = load_batches(images, [one], workers=0, resident=Resident(images, CPU))
    assert plain(batch) == plain(expected)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", ["cpu", ON_CUDA])
@pytest.mark.parametrize("workers", [0, 2])
def test_files_come_to_the_device_as_they_are_used(tmp_path: Path, workers: int, device: str) -> None:
    array = pictures(6, 8)
    for row, picture in enumerate(array):
        Image.fromarray(picture).save(tmp_path / f"{row}.png")
    (tmp_path / "4.png").write_bytes(b"damaged")
    files = FileImages(str(tmp_path), pa.array([f"{row}.png" for row in range(6)]))
    sides = np.full(6, 8, np.int32)
    resident = Resident(CachedImages(files, sides, sides), torch.device(device))
    still, straight = np.zeros((3, 2), np.int64), np.zeros(3, np.bool_)
    specs = [spec(rows, 8, still, straight) for rows in ([0, 4, 2], [2, 2, 0], [4, 5, 0])]
    batches = list(load_batches(resident.images, specs, workers=workers, resident=resident))
    expected = list(load_batches(files, specs, workers=0))
    assert [plain(batch) for batch in batches] == [plain(batch) for batch in expected]
    assert [batch.images.device.type for batch in batches] == [device] * 3
    assert resident.copied_rows.tolist() == [True, False, True, False, False, True]


def test_the_threads_decode_what_is_new_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    images, threads = ArrayImages(pictures(6, 8)), []
    monkeypatch.setattr(images, "ensure", lambda rows: threads.append((threading.get_ident(), rows.tolist())) or {})
    still, straight = np.zeros((2, 2), np.int64), np.zeros(2, np.bool_)
    specs = [spec(rows, 8, still, straight) for rows in ([0, 4], [4, 0], [4, 5])]
    list(load_batches(images, specs, workers=1, prefetch=1, resident=Resident(images, CPU)))
    assert [rows for _, rows in threads] == [[0, 4], [4, 5]]
    assert threading.get_ident() not in {thread for thread, _ in threads}


def test_what_must_be_resized_takes_the_other_way() -> None:
    images = ArrayImages(pictures(4, 8))
    one = spec([1, 3], 8, np.zeros((2, 2), np.int64), np.zeros(2, np.bool_), image_size=6)
    [expected] = load_batches(images, [one], workers=0)
    [batch] = load_batches(images, [one], workers=0, resident=Resident(images, CPU))
    assert plain(batch) == plain(expected) and batch.images.shape == (2, 3, 6, 6)


def test_only_cuda_devices_are_given_a_copy() -> None:
    assert cache_on_device(ArrayImages(pictures(4, 8)), CPU) is None


@pytest.mark.gpu
@NEEDS_CUDA
def test_sets_that_do_not_fit_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    images, device = ArrayImages(pictures(4, 8)), torch.device("cuda")
    assert isinstance(cache_on_device(images, device), Resident)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * images.array.nbytes - 4, 0))
    assert cache_on_device(images, device) is None
    assert cache_on_device(FileImages("", pa.array(["a.png"])), device) is None
