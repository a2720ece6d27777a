from __future__ import annotations

import _thread
import errno
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from stagewright.augment.geometry import Geometry, eval_geometry, train_geometry
from stagewright.data.batches import loader
from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.images import stored
from stagewright.data.images.crop import UNREADABLE
from stagewright.data.images.decode import ArrayImages, FileImages, Images, crop_resize
from stagewright.data.images.stored import Stored
from stagewright.data.load_times import LoadTimes
from stagewright.errors import DataError
from stagewright.recipe.recipe import Augment, Evaluation
from stagewright.storage import files as storage_files

COUNT = 30
EVALUATION = Evaluation()
PAD = Augment(crop="pad")


class OneByOne:
    """Images that are read one by one from an array; ``before`` is called with each row before it is read."""

    def __init__(self, array: np.ndarray, before: Callable[[int], object] = lambda row: None) -> None:
        self.array, self.before = array, before

    def __len__(self) -> int:
        return len(self.array)

    def load(self, row: int) -> Image.Image:
        self.before(row)
        return Image.fromarray(self.array[row])

    def stored(self, rows: np.ndarray) -> Stored:
        found = ArrayImages(self.array).stored(rows)
        for at, row in enumerate(rows.tolist()):
            try:
                self.before(row)
            except UNREADABLE as error:
                found.failures[at] = error
                assert found.sizes is not None
                found.sizes[at] = 0
        return found

    def to_stored(self, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return boxes


def pictures(count: int = COUNT, width: int = 16, height: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def spec(
    step: int, batch_size: int, image_size: int, *, augment: Augment = PAD, width: int = 16, height: int = 16
) -> BatchSpec:
    rows = (np.arange(batch_size) + step * batch_size) % COUNT
    sizes = np.full(batch_size, width), np.full(batch_size, height)
    passes = np.full(batch_size, step)
    geometry = train_geometry(augment, 0, rows, passes, sizes[0], sizes[1], image_size, EVALUATION)
    return BatchSpec(step, rows, rows % 5, geometry, image_size, "bilinear")


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stagewright-loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert loader_threads() == []


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    """JPEG and PNG files of many sizes. Row 7 is truncated, row 11 is missing, row 12 is smaller than its crops."""
    names = []
    for row in range(COUNT):
        names.append(f"{row:02}.{'jpg' if row % 2 else 'png'}")
        noise = Image.fromarray(pictures(1, 20 + row, 15)[0]).resize((80 + row, 60 + 2 * row))
        noise.save(tmp_path / names[row])
    whole = (tmp_path / names[7]).read_bytes()
    (tmp_path / names[7]).write_bytes(whole[: len(whole) // 2])
    (tmp_path / names[11]).unlink()
    Image.new("RGB", (3, 3)).save(tmp_path / names[12])
    return FileImages(str(tmp_path), pa.array(names))


def file_specs(*, stages: tuple[tuple[int, int], ...] = ((9, 24), (20, 32))) -> Iterator[BatchSpec]:
    step = 0
    for batch_size, image_size in stages:
        for _ in range(4):
            yield spec(step, batch_size, image_size, augment=Augment(), width=80, height=60)
            step += 1


def same(one: Batch, other: Batch) -> bool:
    return (
        one.step == other.step
        and one.bad_rows == other.bad_rows
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "valid"))
    )


def test_workers_and_prefetch_do_not_change_a_bit(files: FileImages) -> None:
    expected = list(load_batches(files, file_specs(), workers=0))
    assert [batch.step for batch in expected] == list(range(8))
    assert len({row for batch in expected for row, _ in batch.bad_rows}) == 3
    for workers in (1, 2, 3, 8):
        for prefetch in (1, 2, 9):
            batches = list(load_batches(files, file_specs(), workers=workers, prefetch=prefetch))
            assert len(batches) == 8 and all(map(same, batches, expected))


def seen(picture: Image.Image, spec: BatchSpec, at: int) -> np.ndarray:
    """Computes the crop of one image pixel by pixel, from the definition."""
    size, (right, down) = spec.image_size, spec.geometry.shifts[at]
    left, top, *corner = spec.geometry.boxes[at].tolist()
    full = crop_resize(picture, (left, top, corner[0], corner[1]), (size, size), "bilinear")
    view = np.zeros((size, size, 3), dtype=np.uint8)
    for y in range(size):
        for x in range(size):
            if 0 <= y + down < size and 0 <= x + right < size:
                view[y, x] = full[y + down, x + right]
    return (
        np.asarray(Image.fromarray(view).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        if spec.geometry.flips[at]
        else view
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crop", ["pad", "random_resized", "none"])
@pytest.mark.parametrize("image_size", [16, 12])
def test_a_batch_holds_the_views_of_its_pictures(workers: int, crop: str, image_size: int) -> None:
    for images in (ArrayImages(pictures()), OneByOne(pictures())):
        wanted = spec(2, 11, image_size, augment=Augment.model_validate({"crop": crop}))
        (batch,) = load_batches(images, [wanted], workers=workers)
        assert batch.images.shape == (11, 3, image_size, image_size) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for at, row in enumerate(wanted.rows):
            expected = seen(Image.fromarray(images.array[row]), wanted, at)
            pixels = batch.images[at].permute(1, 2, 0).numpy()
            resized = image_size != 16 or crop != "pad"
            assert np.abs(pixels.astype(int) - expected).max() <= (2 if resized else 0)
        assert batch.labels.tolist() == (wanted.rows % 5).tolist() and batch.labels.dtype == torch.int64
        assert batch.valid.tolist() == [True] * 11 and batch.bad_rows == ()


def test_the_way_by_whole_batches_gives_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    for bound in (0, 1, 4, 15, 16, 20):
        rows = rng.integers(0, COUNT, 40)
        shifts = rng.integers(-bound, bound + 1, (40, 2))
        geometry = Geometry(np.tile([0.0, 0.0, 16.0, 16.0], (40, 1)), shifts, rng.random(40) < 0.5)
        wanted = BatchSpec(0, rows, rows, geometry, 16, "bicubic")
        (at_once,) = load_batches(ArrayImages(pictures()), [wanted], workers=0)
        (one_by_one,) = load_batches(OneByOne(pictures()), [wanted], workers=0)
        assert same(at_once, one_by_one)


def test_the_way_by_whole_batches_is_taken_where_nothing_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ArrayImages, rows: np.ndarray) -> Stored:
        raise AssertionError("cropped one by one")

    monkeypatch.setattr(ArrayImages, "stored", refuse)
    whole = Evaluation(crop=1.0)
    evaluated = eval_geometry(whole, np.full(8, 16), np.full(8, 16))
    for wanted in (spec(0, 8, 16), BatchSpec(0, np.arange(8), np.arange(8), evaluated, 16, "bilinear")):
        list(load_batches(ArrayImages(pictures()), [wanted], workers=0))
    for other in (spec(0, 8, 12), spec(0, 8, 16, augment=Augment(crop="none"))):
        with pytest.raises(AssertionError, match="one by one"):
            list(load_batches(ArrayImages(pictures()), [other], workers=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_read_are_masked_and_named(files: FileImages, workers: int) -> None:
    (batch,) = load_batches(files, [spec(0, 15, 32, augment=Augment(), width=80, height=60)], workers=workers)
    assert torch.nonzero(~batch.valid).flatten().tolist() == [7, 11, 12]
    assert not batch.images[~batch.valid].any()
    assert all(picture.any() for picture in batch.images[batch.valid])
    (cut, missing, shrunk) = batch.bad_rows
    assert (cut[0], missing[0], shrunk[0]) == (7, 11, 12)
    assert "truncated" in cut[1] and "FileNotFoundError" in missing[1]
    assert "the picture is now 3 x 3 pixels, but it was larger when it was scanned" in shrunk[1]


@pytest.mark.parametrize(
    "kind", [OSError, UnidentifiedImageError, ValueError, SyntaxError, DataError, Image.DecompressionBombError]
)
def test_every_kind_of_damage_is_survived(kind: type[Exception]) -> None:
    def fail(row: int) -> None:
        if row == 4:
            raise kind("broken inside")

    (batch,) = load_batches(OneByOne(pictures(), fail), [spec(0, 8, 16)], workers=1)
    assert batch.valid.tolist() == [row != 4 for row in range(8)]
    assert batch.bad_rows[0][0] == 4 and batch.bad_rows[0][1].startswith(kind.__name__)


class Emergency(BaseException):
    pass


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("kind", [KeyError, MemoryError, Emergency])
def test_bugs_reach_the_consumer_when_their_batch_is_due(workers: int, kind: type[BaseException]) -> None:
    def fail(row: int) -> None:
        if row == 20:
            raise kind("a bug")

    batches = load_batches(OneByOne(pictures(), fail), [spec(step, 8, 16) for step in range(4)], workers=workers)
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(kind, match="a bug"):
        next(batches)
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        next(batches)


def test_a_slow_picture_does_not_change_the_order() -> None:
    def dawdle(row: int) -> None:
        if row in (0, 9):
            time.sleep(0.1)

    specs = [spec(step, 4, 16) for step in range(6)]
    slow = list(load_batches(OneByOne(pictures(), dawdle), specs, workers=4, prefetch=6))
    assert all(map(same, slow, load_batches(ArrayImages(pictures()), specs, workers=0)))


class Counted:
    """An endless iterator of specifications that counts how many were taken, and in which threads."""

    def __init__(self, batch_size: int = 4) -> None:
        self.drawn, self.batch_size = 0, batch_size
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[BatchSpec]:
        while True:
            self.drawn += 1
            self.threads.add(threading.get_ident())
            yield spec(self.drawn - 1, self.batch_size, 16)


@pytest.mark.parametrize(("workers", "prefetch", "ahead"), [(0, 4, 0), (1, 1, 1), (2, 4, 4), (8, 3, 3)])
def test_no_more_than_prefetch_batches_are_under_way(workers: int, prefetch: int, ahead: int) -> None:
    specs = Counted()
    with closing(load_batches(OneByOne(pictures()), specs, workers=workers, prefetch=prefetch)) as batches:
        assert specs.drawn == 0
        for step in range(10):
            assert next(batches).step == step
            assert specs.drawn == step + 1 + ahead
    assert specs.threads == {threading.get_ident()}


def test_work_goes_on_while_the_consumer_is_busy() -> None:
    loaded: list[int] = []
    with closing(load_batches(OneByOne(pictures(), loaded.append), Counted(), workers=2, prefetch=3)) as batches:
        next(batches)
        deadline = time.monotonic() + 5
        while len(loaded) < 16 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(loaded) == 16  # the current batch and three prefetched ones, four images each


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_let_go_once_the_consumer_is_done_with_it(workers: int) -> None:
    with closing(load_batches(OneByOne(pictures()), Counted(), workers=workers)) as batches:
        batch = next(batches)
        assert batch.images._base is not None
        buffer = weakref.ref(batch.images._base)
        del batch
        deadline = time.monotonic() + 5  # a thread may still be returning from the batch's last task
        while buffer() is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert buffer() is None


def test_closing_early_ends_the_threads_without_reading_on() -> None:
    loaded: list[int] = []

    def dawdle(row: int) -> None:
        loaded.append(row)
        time.sleep(0.02)

    batches = load_batches(OneByOne(pictures(), dawdle), Counted(16), workers=3, prefetch=8)
    next(batches)
    assert len(loader_threads()) == 3
    before, began = len(loaded), time.monotonic()
    batches.close()
    assert loader_threads() == []
    assert time.monotonic() - began < 2 and len(loaded) <= before + 3 * 8  # the current task of each thread


def test_being_forgotten_or_exhausted_ends_the_threads() -> None:
    batches = load_batches(OneByOne(pictures()), Counted(), workers=2)
    next(batches)
    del batches
    assert loader_threads() == []
    exhausted = load_batches(OneByOne(pictures()), [spec(0, 4, 16)], workers=2)
    assert len(list(exhausted)) == 1 and loader_threads() == []
    assert list(load_batches(OneByOne(pictures()), [], workers=2)) == []


def test_a_loader_may_be_collected_by_its_own_thread() -> None:
    collect, collected = threading.Event(), threading.Event()

    def collector(row: int) -> None:
        if row == 8:
            collect.wait(5)
            gc.collect()
            collected.set()

    batches: list[object] = [load_batches(OneByOne(pictures(), collector), Counted(), workers=1, prefetch=2)]
    next(batches[0])  # type: ignore[call-overload]
    batches.append(batches)
    gc.disable()
    try:
        del batches
        collect.set()
        assert collected.wait(5)
    finally:
        gc.enable()
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_the_interpreters_switch_interval_is_given_back() -> None:
    before = sys.getswitchinterval()
    with closing(load_batches(OneByOne(pictures()), Counted(), workers=2)) as batches:
        next(batches)
        assert sys.getswitchinterval() == pytest.approx(1e-4, rel=0.05)
        assert len(list(load_batches(OneByOne(pictures()), [spec(0, 4, 16)], workers=1))) == 1
        assert sys.getswitchinterval() == pytest.approx(1e-4, rel=0.05)
    assert sys.getswitchinterval() == before


def test_its_threads_bring_no_team_of_torch_along() -> None:
    own, seen = torch.get_num_threads(), set()
    images = OneByOne(pictures(), lambda row: seen.add(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        assert len(list(load_batches(images, [spec(0, 20, 16)], workers=2))) == 1
        assert seen == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(own)


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(bytes(range(200)) * 20_000)
    stat = os.stat_result((0o100644, 0, 0, 0, 0, 0, 1000, 0, 0, 0))  # the size before the file grew
    monkeypatch.setattr(storage_files.os, "fstat", lambda _: stat)
    assert stored.read_file(str(file)) == file.read_bytes()


def test_a_read_that_takes_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SLOW_SECONDS", 0.05)

    def hang(row: int) -> None:
        if row == 13:
            time.sleep(0.5)

    told: list[tuple[list[int], float]] = []
    batches = load_batches(
        OneByOne(pictures(), hang),
        [spec(step, 20, 16) for step in range(2)],
        workers=2,
        on_slow=lambda rows, seconds: told.append((rows.tolist(), seconds)),
    )
    assert len(list(batches)) == 2
    assert 1 <= len(told) <= 4 and all(rows == list(range(8, 16)) for rows, _ in told)
    assert told[0][1] >= 0.05 and [seconds for _, seconds in told] == sorted(seconds for _, seconds in told)


def test_reads_that_fail_are_tried_again_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"picture")
    failures, read, pauses = [5], storage_files._read, []

    def flaky(path: str, most: int | None = None) -> bytes:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, "Input/output error", path)
        return read(path, most)

    monkeypatch.setattr(storage_files, "_read", flaky)
    monkeypatch.setattr(storage_files.time, "sleep", pauses.append)
    with pytest.raises(OSError, match=r"Input/output error, 4 attempts: '.*a\.jpg'"):
        stored.read_file(str(file))
    assert failures == [1] and pauses == [0.1, 0.5, 2.0]
    assert stored.read_file(str(file)) == b"picture" and len(pauses) == 4
    with pytest.raises(FileNotFoundError):
        stored.read_file(str(tmp_path / "b.jpg"))
    assert len(pauses) == 4


def test_where_the_time_goes_is_told(files: FileImages) -> None:
    for workers in (0, 2):
        times = LoadTimes()
        count = sum(len(batch.labels) for batch in load_batches(files, file_specs(), workers=workers, times=times))
        assert (times.images, times.workers) == (count, workers)
        assert times.read_seconds > 0 and times.decode_seconds > 0 and times.wait_seconds > 0
        told = times.to_dict(train_seconds=times.wait_seconds * 2)
        assert told["images"] == count and "training waited for pictures 50.0 % of its time" in told["verdict"]
        assert "stagewright data pack" in told["verdict"]
        assert "kept up" in times.verdict(times.wait_seconds * 100)
    assert LoadTimes().verdict(1.0) == "no pictures were loaded"


def test_ctrl_c_while_waiting_ends_the_threads() -> None:
    def interrupt(row: int) -> None:
        if row == 5:
            _thread.interrupt_main()
            time.sleep(0.05)

    batches = load_batches(OneByOne(pictures(), interrupt), Counted(), workers=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            pass
    # If the signal arrives while a thread starts, the pool does not know this thread yet, and it ends a moment later.
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert loader_threads() == []


def test_an_error_in_the_specs_ends_the_threads() -> None:
    def specs() -> Iterator[BatchSpec]:
        yield spec(0, 4, 16)
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        list(load_batches(OneByOne(pictures()), specs(), workers=2))
    assert loader_threads() == []


def test_a_program_may_end_with_a_loader_open() -> None:
    program = """
import itertools
import numpy as np
from stagewright.augment.geometry import eval_geometry
from stagewright.data.images.decode import ArrayImages
from stagewright.data.batches.loader import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.recipe.recipe import Evaluation
rows = np.arange(64)
geometry = eval_geometry(Evaluation(), np.full(64, 32), np.full(64, 32))
specs = (BatchSpec(step, rows, rows, geometry, 32, "bilinear") for step in itertools.count())
batches = load_batches(ArrayImages(np.zeros((64, 32, 32, 3), np.uint8)), specs, workers=2)
print(next(batches).step)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_page_locked_batches_hold_the_same_bits(workers: int) -> None:
    specs = [spec(step, 20, 16) for step in range(4)]
    pinned = load_batches(OneByOne(pictures()), specs, workers=workers, pin_memory=True)
    for batch, expected in zip(pinned, load_batches(OneByOne(pictures()), specs, workers=0), strict=True):
        assert batch.images.is_pinned() and batch.labels.is_pinned() and batch.valid.is_pinned()
        assert same(batch, expected)


@pytest.mark.parametrize(("workers", "prefetch"), [(-1, 4), (2, 0)])
def test_impossible_numbers_are_refused_at_once(workers: int, prefetch: int) -> None:
    images: Images = OneByOne(pictures())
    with pytest.raises(ValueError, match=rf"workers is {workers}, prefetch is {prefetch}; workers must be at least 0"):
        load_batches(images, [], workers=workers, prefetch=prefetch)
