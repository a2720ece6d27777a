"""Tests that a pack is the same data set with smaller images, also after interruption and damage, and readable by other tools."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagewright.augment.geometry import eval_geometry, train_geometry
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.images.decode import crop_resize, decode
from stagewright.data.manifest import Manifest
from stagewright.data.pack import writer
from stagewright.data.pack.build import PackSummary, pack
from stagewright.data.pack.format import INDEX_SCHEMA, PART_SCHEMA, Head, unfinished_folder
from stagewright.data.pack.images import PackImages
from stagewright.data.pack.reader import Pack
from stagewright.data.pack.records import encode, stored_size
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Augment, Data, Evaluation

SIZE = 32
COLUMNS = ("labels", "splits", "widths", "heights")


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Returns an image of colour waves, different for each seed and smooth enough for JPEG."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    random = np.random.default_rng(seed)
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(0.05, 0.4, (3, 3))]
    return Image.fromarray((127.5 + 127 * np.stack(waves, axis=2)).astype(np.uint8))


def odd_files(folder: Path) -> None:
    """Returns one file of each kind that is packed in a different way."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = 6
    exif_upright = Image.Exif()
    exif_upright[274] = 1
    small, large = picture(900, 40, 24), picture(901, 90, 50)
    small.save(folder / "small.jpg", quality=95, subsampling=0, exif=exif_upright)
    small.convert("L").save(folder / "small-grey.jpg")
    small.save(folder / "small-progressive.jpg", progressive=True)
    small.save(folder / "small-turned.jpg", exif=exif)
    small.convert("CMYK").save(folder / "small-cmyk.jpg")
    small.save(folder / "small.png")
    large.save(folder / "turned.jpg", exif=exif, comment=b"a comment that stays behind")
    large.convert("RGBA").save(folder / "alpha.png")
    large.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.arange(60 * 50, dtype=np.uint16).reshape(60, 50) * 20).save(folder / "deep.png")
    Image.new("RGB", (70_000, 3), (9, 8, 7)).save(folder / "strip.png")
    (folder / "cut.jpg").write_bytes((folder / "small.jpg").read_bytes()[:300])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 16 images of different sizes each, and the unusual files."""
    root = tmp_path_factory.mktemp("sources") / "photos"
    for label, name in enumerate("abc"):
        (root / name).mkdir(parents=True)
        for at in range(16):
            made = picture(100 * label + at, 30 + 7 * at, 28 + 5 * ((at * 3) % 11))
            made.save(root / name / f"{at:02d}.jpg", quality=92, subsampling=at % 3)
    odd_files(root / "c" / "odd")
    return root


@pytest.fixture(scope="session")
def jpeg(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG pack of several parts; tests must not change it."""
    return make(photos, tmp_path_factory.mktemp("packs") / "jpeg.pack").folder


@pytest.fixture(scope="session")
def raw(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw pack of several parts; tests must not change it."""
    return make(photos, tmp_path_factory.mktemp("packs") / "raw.pack", encoding="raw").folder


@pytest.fixture
def copied(jpeg: Path, tmp_path: Path) -> Path:
    """A copy of the JPEG pack that tests may damage."""
    return Path(shutil.copytree(jpeg, tmp_path / "copied.pack"))


def make(source: Path | str, out: Path, **changes: Any) -> PackSummary:
    data = Data(**changes.pop("data", {}))
    given = {"size": SIZE, "part_bytes": 60_000 if changes.get("encoding") == "raw" else 12_000, **changes}
    return pack(str(source), out, data, **given)


def load(source: Path | str, seed: int = 0, **settings: Any) -> Dataset:
    return load_dataset(str(source), Data(**settings, split_seed=seed))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(kind: type[DataError] | type[StorageError], *args: Any, **changes: Any) -> DataError | StorageError:
    with pytest.raises(kind) as error:
        make(*args, **changes)
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def not_loaded(source: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as error:
        load(source, **settings)
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def same_data(one: Dataset, two: Dataset) -> None:
    """Asserts that manifests differ only in root, source and variant, and that the same files are excluded."""
    a, b = one.manifest, two.manifest
    assert a.paths.equals(b.paths) and a.hashes.equals(b.hashes) and a.classes == b.classes
    assert a.groups == b.groups
    for name in COLUMNS:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert replace(a, variant="").digest == replace(b, variant="").digest
    assert one.excluded == two.excluded


def test_manifest_without_a_variant_has_the_digest_of_old() -> None:
    made = Manifest(
        root="/pictures",
        source="photos/",
        classes=("cat", "größe", "日本"),
        paths=pa.array(["cat/1.jpg", "größe/2 3.png", "日本/é.webp", "日本/f.webp"]),
        hashes=pa.array([f"{at:032x}" for at in range(4)]),
        labels=np.array([0, 1, 2, 2], np.int32),
        splits=np.array([0, 2, 0, 1], np.int8),
        widths=np.array([10, 20, 30, 40], np.int32),
        heights=np.array([5, 6, 7, 8], np.int32),
        groups=pa.array(["a", None, "", "b"]),
    )
    assert made.digest == "21488e71892f143b9ac37d69ebba4fd7ccec574eab9cee4b7cb57872ace8fbbe"
    digests = {replace(made, variant=variant).digest for variant in ("", "pack of 256 px, raw", "pack of 128 px, raw")}
    assert len(digests) == 3 and made.digest in digests


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_the_manifest_is_that_of_data(kind: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    for seed in (0, 1):
        packed, plain = load(folder, seed), load(photos, seed)
        same_data(packed, plain)
    assert {item.path for item in packed.excluded} == {"c/odd/cut.jpg", "c/odd/empty.png", "c/odd/notes.txt"}
    how = "jpeg q90" if kind == "jpeg" else "raw"
    assert packed.manifest.variant == f"pack of 32 px, {how}" and plain.manifest.variant == ""
    assert packed.manifest.digest != plain.manifest.digest
    assert packed.manifest.root == str(folder) and packed.manifest.source == str(folder)
    size = sum(path.stat().st_size for path in folder.glob("part-*.arrow"))
    note = f"{kind}.pack is a pack of 32 px, {how}: 59 pictures of {photos}, reduced to a short side of 32 px if they "
    assert packed.notes == (plain.notes[0], f"{note}were larger, in {size / 1e6:.1f} MB", *plain.notes[1:])
    assert not_loaded(folder, bad_images="fail").given.startswith("2 pictures cannot be read: c/odd/cut.jpg (")
    packed.manifest.write(tmp_path / "manifest.parquet")
    assert Manifest.read(tmp_path / "manifest.parquet").variant == packed.manifest.variant
    assert Manifest.read(tmp_path / "manifest.parquet").digest == packed.manifest.digest


def test_the_crops_are_those_of_data(photos: Path, raw: Path) -> None:
    packed, plain = load(raw), load(photos)
    rows = packed.manifest.rows("train")
    drawn = [
        train_geometry(
            Augment(), 0, rows, np.zeros(len(rows), np.int64), m.widths[rows], m.heights[rows], 24, Evaluation()
        )
        for m in (packed.manifest, plain.manifest)
    ]
    assert np.array_equal(drawn[0].boxes, drawn[1].boxes) and np.array_equal(drawn[0].flips, drawn[1].flips)
    whole = eval_geometry(Evaluation(), plain.manifest.widths[rows], plain.manifest.heights[rows])
    for boxes in (drawn[0].boxes, whole.boxes):
        stored = packed.images.to_stored(rows, boxes)
        for at, row in enumerate(rows.tolist()):
            if "odd/" in plain.manifest.paths[row].as_py():
                continue
            one = crop_resize(plain.images.load(row), tuple(boxes[at]), (16, 16), "bilinear")
            two = crop_resize(packed.images.load(row), tuple(stored[at]), (16, 16), "bilinear")
            # A crop that is shifted by half a pixel differs by more than 10 on average.
            assert np.abs(one.astype(float) - two).mean() < 4, plain.manifest.paths[row]


def test_raw_is_what_pillow_makes(photos: Path, raw: Path) -> None:
    dataset = load(raw)
    for row, path in enumerate(dataset.manifest.paths.to_pylist()):
        original = decode((photos / path).read_bytes())
        width, height = original.size
        scale = SIZE / min(width, height)
        wanted = original
        if path == "c/odd/strip.png":
            wanted = original.resize((65_500, 3), Image.Resampling.LANCZOS)
        elif scale < 1:
            size = (round(width * scale), round(height * scale))
            wanted = original.resize(size, Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(dataset.images.load(row)), np.asarray(wanted)), path


def test_jpeg_is_what_pillow_makes_or_the_original(photos: Path, jpeg: Path) -> None:
    dataset = load(jpeg)
    assert isinstance(dataset.images, PackImages)
    kept = set()
    for row, path in enumerate(dataset.manifest.paths.to_pylist()):
        data, record = (photos / path).read_bytes(), dataset.images.read(row)
        if record == data:
            kept.add(path)
            continue
        picture = decode(data)
        buffer = io.BytesIO()
        wanted = picture.resize(stored_size(*picture.size, SIZE), Image.Resampling.LANCZOS)
        Image.fromarray(np.asarray(wanted)).save(buffer, "JPEG", quality=90, subsampling="4:2:0")
        assert record == buffer.getvalue(), path
        assert np.array_equal(np.asarray(dataset.images.load(row)), np.asarray(Image.open(buffer)))
    small = {
        path for path in dataset.manifest.paths.to_pylist() if "odd" not in path and min(size_of(photos / path)) <= 32
    }
    assert kept == small | {"c/odd/small.jpg", "c/odd/small-grey.jpg"} and len(small) > 3


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def test_turned_pictures_are_upright_and_small_ones_not_enlarged(jpeg: Path) -> None:
    dataset = load(jpeg)
    at = {path: row for row, path in enumerate(dataset.manifest.paths.to_pylist())}
    assert dataset.images.load(at["c/odd/turned.jpg"]).size == (32, 58)
    assert dataset.images.load(at["c/odd/small-turned.jpg"]).size == (24, 40)
    assert dataset.images.load(at["c/odd/small.png"]).size == (40, 24)
    images = dataset.images
    assert isinstance(images, PackImages) and b"stays behind" not in images.read(at["c/odd/turned.jpg"])
    for row in range(len(images)):
        assert images.load(row).size == (images.widths[row], images.heights[row])
        assert (
            images.widths[row] <= dataset.manifest.widths[row] and images.heights[row] <= dataset.manifest.heights[row]
        )


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_what_a_native_reader_is_given(kind: str, request: pytest.FixtureRequest) -> None:
    dataset = load(request.getfixturevalue(kind))
    images = dataset.images
    assert isinstance(images, PackImages) and images.encoding == kind and len(images.buffers) > 2
    assert (images.which.dtype, images.offsets.dtype, images.lengths.dtype) == (np.int32, np.int64, np.int64)
    assert images.widths.dtype == images.heights.dtype == np.int32
    assert all(not buffer.flags.writeable and buffer.dtype == np.uint8 for buffer in images.buffers)
    rows = np.array([50, 3, 3, 17])
    stored = images.stored(rows)
    assert stored.kind == ("raw" if kind == "raw" else "encoded")
    for at, row in enumerate(rows.tolist()):
        assert bytes(stored.data(at)) == images.read(row)
        if stored.sizes is not None:
            assert tuple(stored.sizes[at]) == images.load(row).size


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_boxes_stay_within_the_stored_picture(jpeg: Path, data: st.DataObject) -> None:
    images = Pack.open(jpeg)
    opened = images.images(images.columns("path")["path"].combine_chunks().take(pa.array([0, 5, 30, 57])))
    row = data.draw(st.integers(0, 3))
    width, height = int(opened.original_widths[row]), int(opened.original_heights[row])
    left, top = data.draw(st.floats(0, width - 1)), data.draw(st.floats(0, height - 1))
    right = data.draw(st.floats(left + 0.5, width))
    bottom = data.draw(st.floats(top + 0.5, height))
    box = np.array([[left, top, right, bottom]])
    ((a, b, c, d),) = opened.to_stored(np.array([row]), box)
    stored_width, stored_height = int(opened.widths[row]), int(opened.heights[row])
    assert 0 <= a < c <= stored_width and 0 <= b < d <= stored_height
    if (stored_width, stored_height) == (width, height):
        assert (a, b, c, d) == (left, top, right, bottom)
    assert c / stored_width == pytest.approx(right / width) and b / stored_height == pytest.approx(top / height)
    edges = opened.to_stored(np.array([row]), np.array([[-1e-4, 0, width, height]]))
    assert edges.tolist() == [[0, 0, stored_width, stored_height]]


def test_edges_of_the_original_are_edges_of_what_is_stored(jpeg: Path) -> None:
    images = Pack.open(jpeg).images(load(jpeg).manifest.paths)
    images.original_widths = images.original_heights = np.arange(257, 900, dtype=np.int32)
    images.widths = images.heights = np.full(len(images.original_widths), 256, np.int32)
    rows = np.arange(len(images.widths))
    whole = np.stack([np.zeros((2, len(rows))), [images.original_widths] * 2]).reshape(4, -1).T.astype(np.float64)
    assert (images.to_stored(rows, whole) == (0, 0, 256, 256)).all()


def test_given_parts(tmp_path: Path) -> None:
    for at, name in enumerate(("train/a", "train/b", "valid/a", "valid/b", "test/a", "test/b")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for seed in range(4):
            picture(10 * at + seed, 60, 50).save(tmp_path / "photos" / name / f"{seed}.png")
    folder = make(tmp_path / "photos", tmp_path / "photos.pack").folder
    same_data(load(folder), load(tmp_path / "photos"))
    assert set(Pack.open(folder).columns("split")["split"].to_pylist()) == {"train", "val", "test"}


def table_of(photos: Path, folder: Path) -> Path:
    """A CSV with sites, a split, a row without a file, and a class column with an unusual name."""
    rows = [["file", "label", "site", "split", "kind"]]
    for at, path in enumerate(sorted(photos.glob("?/*.jpg"))):
        site, part = f"s{at % 9}" if at % 5 else "", "test" if at % 9 == 8 and at % 5 else "train"
        rows.append([str(path.relative_to(photos)), path.parent.name, site, part, "xy"[at % 2]])
    rows.append(["a/gone.jpg", "a", "s1", "train", "x"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def test_tables(photos: Path, tmp_path: Path) -> None:
    table = table_of(photos, tmp_path)
    given: dict[str, Any] = {"images": str(photos)}
    folder = make(table, tmp_path / "table.pack", data=given).folder
    asked: dict[str, Any]
    for asked in ({}, {"group": "none"}, {"split": "none"}, {"group": "site", "split": "none"}):
        packed, plain = load(folder, 3, **asked), load(table, 3, **given, **asked)
        same_data(packed, plain)
        assert (packed.manifest.groups is None) == (asked.get("group") == "none")
        assert {note for note in plain.notes if "labels.csv" not in note} <= set(packed.notes)
    assert packed.excluded[0].path == "a/gone.jpg"
    error = not_loaded(folder, label="kind")
    assert error.given == f"data.label is 'kind', but {folder} was made with the default"
    assert error.remedy == "leave out data.label, or pack the table again with --set data.label=kind"
    assert not_loaded(folder, group="camera").given.startswith("data.group is 'camera'")
    assert not_loaded(folder, split="other").given.startswith("data.split is 'other'")
    kinds = make(table, tmp_path / "kinds.pack", data={**given, "label": "kind"}).folder
    assert load(kinds).manifest.classes == ("x", "y")
    same_data(load(kinds, label="kind"), load(table, **given, label="kind"))


def test_other_tools_read_parts(jpeg: Path, raw: Path) -> None:
    for folder in (jpeg, raw):
        dataset = load(folder)
        rows = []
        for file in sorted(folder.glob("part-*.arrow")):
            with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
                table = reader.read_all()
            table.validate(full=True)
            assert table.schema.equals(PART_SCHEMA)
            rows += table.to_pylist()
        paths = dataset.manifest.paths.to_pylist()
        order = [paths.index(row["path"]) for row in rows]
        assert sorted(order) == list(range(len(paths))) != order
        assert [row["label"] for row in rows] == [dataset.manifest.classes[at] for at in dataset.manifest.labels[order]]
        for at, row in zip(order, rows, strict=True):
            pixels = np.asarray(dataset.images.load(at))
            assert pixels.shape == (row["height"], row["width"], 3)
            if folder == raw:
                assert np.array_equal(np.frombuffer(row["image"], np.uint8).reshape(pixels.shape), pixels)
            else:
                with Image.open(io.BytesIO(row["image"])) as image:
                    assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    head = json.loads((jpeg / "pack.json").read_text())
    assert (head["encoding"], head["size"], head["quality"], head["num_records"]) == ("jpeg", 32, 90, 59)
    assert pq.read_schema(jpeg / "index.parquet").equals(INDEX_SCHEMA)


def test_workers_change_nothing(photos: Path, jpeg: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    said: list[str] = []
    summary = make(
        photos, tmp_path / "again.pack", workers=3, progress=lambda *done: calls.append(done), say=said.append
    )
    assert contents(tmp_path / "again.pack") == contents(jpeg)
    assert (summary.records, summary.excluded, summary.made) == (59, 3, 59) and summary.seconds > 0
    assert summary.bytes == sum(path.stat().st_size for path in jpeg.glob("*.arrow"))
    readable = [photos / path for path in load(photos).manifest.paths.to_pylist()]
    assert summary.original_bytes == sum(path.stat().st_size for path in readable)
    assert calls[-60:] == [(done, 59) for done in range(60)]
    assert said[0] == f"Reading 62 files of {photos}." and said[-1] == "Packing 59 pictures."
    again = make(photos, tmp_path / "again.pack")
    assert again.made == 0 and contents(tmp_path / "again.pack") == contents(jpeg)


class Stop(Exception):
    pass


def stop_at(record: int) -> Any:
    def progress(done: int, total: int) -> None:
        if (done, total) == (record, 59):
            raise Stop

    return progress


@pytest.mark.parametrize("record", [0, 1, 9, 30, 58, 59])
def test_interrupted_and_gone_on(record: int, photos: Path, jpeg: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos.pack"
    with pytest.raises(Stop):
        make(photos, folder, progress=stop_at(record))
    begun = unfinished_folder(folder)
    assert not folder.exists() and not (begun / "pack.json").exists() and not list(begun.glob(".part*"))
    kept = {name for name in contents(begun) if name.endswith("arrow")}
    error = not_loaded(folder)
    rows = sum(part.rows for part in Head.read(begun / "packing.json").parts)
    assert error.given == f"the pack {folder} is not finished: {rows:,} of 59 records are written"
    assert len(kept) >= 2 or record < 20
    summary = make(photos, folder)
    assert contents(folder) == contents(jpeg) and summary.made == 59 - rows and not begun.exists()


_KILLED = """
import os, signal, sys
from stagewright.data.pack import build
from stagewright.recipe.recipe import Data
at = int(sys.argv[3])
def progress(done, total):
    if (done, total) == (at, 59):
        os.kill(os.getpid(), signal.SIGKILL)
build.pack(sys.argv[1], sys.argv[2], Data(), size=32, part_bytes=12_000, progress=progress)
"""


def test_killed_and_gone_on(photos: Path, jpeg: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos.pack"
    begun = unfinished_folder(folder)
    begun.mkdir()
    (begun / ".packing.json.77.tmp").write_text("{")  # left by a process that was killed while it wrote its first file
    for at in (5, 40):
        done = subprocess.run([sys.executable, "-c", _KILLED, str(photos), str(folder), str(at)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(begun.glob(".part*")) and not folder.exists()  # the part that it was writing
    assert make(photos, folder).made < 59
    assert contents(folder) == contents(jpeg)


def record_numbers(images: PackImages) -> dict[int, int]:
    """Returns the number of each row's record: by part, then by place in it."""
    order = np.lexsort((images.offsets, images.which)).tolist()
    return {row: number for number, row in enumerate(order)}


def test_damage_is_named_wherever_it_is(copied: Path) -> None:
    """Damages every 97th byte of a part, and some bytes of the other files, one at a time."""
    dataset = load(copied)
    images = dataset.images
    assert isinstance(images, PackImages)
    spans = {
        (int(images.offsets[row]), int(images.offsets[row] + images.lengths[row])): row
        for row in np.flatnonzero(images.which == 1).tolist()
    }
    numbers = record_numbers(images)
    file = copied / "part-00001.arrow"
    good, seen = file.read_bytes(), set()
    for at in range(0, len(good), 97):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        error = not_loaded(copied)
        row = next((row for (begin, end), row in spans.items() if begin <= at < end), None)
        assert error.given.startswith(f"the pack {copied} is damaged: ") and "part-00001.arrow" in error.given
        assert "only damaged files are written again" in error.remedy
        if row is not None:
            path = dataset.manifest.paths[row].as_py()
            record = numbers[row]
            assert f"record {record} ({path}) in part-00001.arrow changed after the pack was written" in error.given
        seen.add("record" if row is not None else "outside" if "none of its pictures" in error.given else "structure")
    assert seen == {"record", "outside", "structure"}
    file.write_bytes(good)
    load(copied)
    for name in ("index.parquet", "pack.json"):
        good = (copied / name).read_bytes()
        for at in range(0, len(good), len(good) // 20):
            (copied / name).write_bytes(good[:at] + bytes([good[at] ^ 0x01]) + good[at + 1 :])
            assert "is damaged" in (message := not_loaded(copied).given) and name in message
        (copied / name).write_bytes(good)


def test_several_damaged_records(copied: Path) -> None:
    images = load(copied).images
    assert isinstance(images, PackImages)
    rows = np.flatnonzero(images.which == 2)
    first = min(record_numbers(images)[row] for row in rows[:5].tolist())
    file = copied / "part-00002.arrow"
    data = bytearray(file.read_bytes())
    for row in rows[:5]:
        data[images.offsets[row] + 7] ^= 1
    del images
    file.write_bytes(data)
    given = not_loaded(copied).given
    assert f"5 records: {first} (" in given and "and 2 more in part-00002.arrow" in given


def test_missing_short_foreign(copied: Path, photos: Path, jpeg: Path, tmp_path: Path) -> None:
    part = copied / "part-00002.arrow"
    size = part.stat().st_size
    os.truncate(part, size - 1)
    assert not_loaded(copied).given.endswith(f"is damaged: part-00002.arrow has {size - 1:,} bytes instead of {size:,}")
    part.unlink()
    assert not_loaded(copied).given.endswith("part-00002.arrow is missing")
    said: list[str] = []
    summary = make(photos, copied, say=said.append)
    assert contents(copied) == contents(jpeg) and 0 < summary.made < 30
    assert "part-00002.arrow is damaged or missing and will be written again." in said
    (copied / "index.parquet").unlink()
    assert "index.parquet is missing" in not_loaded(copied).given
    assert make(photos, copied).made == 0 and contents(copied) == contents(jpeg)
    (copied / "pack.json").unlink()
    error = not_loaded(copied)
    assert error.given == f"{copied} is named like a pack, but it has no pack.json"
    (copied / "pack.json").write_text('{"name": "of something else"}')
    foreign = f"{copied}/pack.json is damaged or belongs to another program"
    assert not_loaded(copied).given == f"{foreign}: it was not written by stagewright data pack"
    head = json.loads((jpeg / "pack.json").read_text())
    (copied / "pack.json").write_text(json.dumps(head | {"version": 3}))
    assert not_loaded(copied).given == f"{copied}/pack.json has version 3 of the pack format"
    del head["size"], head["sha256"]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
    (copied / "pack.json").write_text(json.dumps(head | {"sha256": digest}))
    assert not_loaded(copied).given == f"{foreign}: size: it is missing"
    assert not_loaded(tmp_path / "no.pack").given == f"there is no pack {tmp_path}/no.pack"


@pytest.mark.parametrize("part_bytes", [3_000, 50_000])
def test_only_the_damaged_part_is_made_anew(part_bytes: int, copied: Path, photos: Path, jpeg: Path) -> None:
    part = copied / "part-00001.arrow"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    before = {path.name: path.stat().st_mtime_ns for path in copied.glob("part-*.arrow")}
    rows = Pack.open(copied).head.parts[1].rows
    assert (
        make(photos, copied, part_bytes=part_bytes).made == rows
    )  # the part keeps its records, whatever part_bytes is
    after = {path.name: path.stat().st_mtime_ns for path in copied.glob("part-*.arrow")}
    assert {name for name in after if after[name] != before[name]} == {"part-00001.arrow"}
    assert contents(copied) == contents(jpeg)


def test_records_are_compared_once(copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    read: list[str] = []

    def noted(file: Path, expected: int) -> bool:
        read.append(file.name)
        return has_crc32(file, expected)

    from stagewright.data.pack import verify

    has_crc32 = verify.has_crc32
    monkeypatch.setattr(verify, "has_crc32", noted)
    calls: list[tuple[int, int]] = []
    manifest = load_dataset(str(copied), Data(), progress=lambda *done: calls.append(done)).manifest
    parts = sorted(path.name for path in copied.glob("part-*.arrow"))
    assert sorted(read) == parts and calls[0] == (0, 59) and calls[-1] == (59, 59)
    load(copied)
    open_images(manifest)
    assert sorted(read) == parts
    os.utime(copied / parts[1])
    load(copied)
    assert sorted(read) == sorted([*parts, parts[1]])
    monkeypatch.setenv("STAGEWRIGHT_CACHE", "/dev/null/cache")
    assert (
        load(copied)
        .notes[-1]
        .startswith("the result of checking the pack could not be saved in /dev/null/cache/packs:")
    )


def test_open_images(copied: Path, photos: Path, jpeg: Path) -> None:
    dataset = load(copied)
    some_rows = np.array([5, 40, 2])
    columns = {name: getattr(dataset.manifest, name)[some_rows] for name in COLUMNS}
    strings = {name: getattr(dataset.manifest, name).take(pa.array(some_rows)) for name in ("paths", "hashes")}
    part = replace(dataset.manifest, **columns, **strings)
    images = open_images(part)
    assert isinstance(images, PackImages) and len(images) == 3
    for at, row in enumerate(some_rows.tolist()):
        assert np.array_equal(np.asarray(images.load(at)), np.asarray(dataset.images.load(row)))
    with pytest.raises(DataError, match=r"does not contain 1 picture of the run: c/gone.jpg"):
        open_images(replace(part, paths=pa.array([*part.paths.to_pylist()[:2], "c/gone.jpg"])))
    with pytest.raises(DataError, match="does not contain 3 pictures of the run"):
        open_images(replace(part, hashes=pa.array(["0" * 32] * 3)))
    make(photos, copied, quality=80, overwrite=True)
    with pytest.raises(DataError, match=r"is a pack of 32 px, jpeg q80, but was a pack of 32 px, jpeg q90 when"):
        open_images(part)
    shutil.rmtree(copied)
    with pytest.raises(DataError, match="there is no pack"):
        open_images(part)


_READ = """
import sys
import numpy as np
from stagewright.data.dataset import load_dataset
from stagewright.recipe.recipe import Data
images = load_dataset(sys.argv[1], Data()).images
print(sum(int(np.asarray(images.load(row)).sum()) for row in range(len(images))))
"""


def test_processes_read_at_once_and_no_file_stays_open(
    jpeg: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    images = load(jpeg).images
    assert len(os.listdir("/proc/self/fd")) == before
    expected = sum(int(np.asarray(images.load(row)).sum()) for row in range(len(images)))
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))  # an empty cache, so that all of them check the records
    command = [sys.executable, "-c", _READ, str(jpeg)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [int(process.communicate()[0]) for process in running] == [expected] * 3


def test_other_arguments_are_refused(copied: Path, photos: Path, jpeg: Path, tmp_path: Path) -> None:
    error = refused(DataError, photos, copied, size=24)
    assert error.given == f"{copied} contains another pack: size 32 instead of 24" and "--overwrite" in error.remedy
    assert "quality 90 instead of 91" in refused(DataError, photos, copied, quality=91).given
    given = refused(DataError, photos, copied, encoding="raw").given
    assert "encoding jpeg instead of raw; quality 90 instead of None" in given
    moved = shutil.copytree(photos, tmp_path / "moved")
    assert make(moved, copied).made == 0  # the same images in another folder
    os.remove(moved / "a" / "03.jpg")
    error = refused(DataError, moved, copied)
    assert error.given == f"{copied} contains another pack: other pictures, classes or columns (62 of {photos})"
    assert contents(copied) == contents(jpeg)
    assert make(moved, copied, size=24, overwrite=True).records == 58
    assert len(load(copied).manifest) == 58 and load(copied).manifest.variant == "pack of 24 px, jpeg q90"


def test_what_cannot_be_packed(photos: Path, jpeg: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        error = refused(DataError, photos, tmp_path / "full", overwrite=overwrite)
        assert error.given == f"{tmp_path}/full contains other files: thesis.txt"
    assert "is inside the folder of the pictures" in refused(DataError, photos, photos / "x.pack").given
    assert "is a file" in refused(DataError, photos, tmp_path / "full" / "thesis.txt").given
    assert refused(DataError, jpeg, tmp_path / "x").given == f"{str(jpeg)!r} is a pack already"
    assert "is loaded into memory" in refused(DataError, "torchvision:CIFAR10", tmp_path / "x").given
    assert refused(DataError, photos, tmp_path / "x", size=4).given == "--size 4"
    assert refused(DataError, photos, tmp_path / "x", encoding="webp").allowed == "jpeg, raw"
    assert refused(DataError, photos, tmp_path / "x", quality=0).given == "--quality 0"
    error = refused(DataError, photos, tmp_path / "x", data={"bad_images": "fail"})
    assert error.given.startswith("2 pictures cannot be read: c/odd/cut.jpg (")
    assert not (tmp_path / "x").exists()


def test_a_file_that_changes_meanwhile(tmp_path: Path, photos: Path) -> None:
    source = shutil.copytree(photos, tmp_path / "photos")

    def progress(done: int, total: int) -> None:
        if (done, total) == (1, 59):
            (source / "c" / "15.jpg").write_bytes((source / "c" / "14.jpg").read_bytes())

    error = refused(DataError, source, tmp_path / "photos.pack", progress=progress)
    assert error.given == "c/15.jpg has changed since it was scanned"


def test_a_full_disk(photos: Path, jpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos.pack"
    written = [0]

    def write(sink: Any, data: Any) -> int:
        written[0] += len(memoryview(data))
        if written[0] > 30_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(sink, data)

    original = writer._Sink.write
    with monkeypatch.context() as patch:
        patch.setattr(writer._Sink, "write", write)
        error = refused(StorageError, photos, folder)
    assert error.given == f"the disk is full: {folder} cannot be written (No space left on device)"
    assert "finished parts are kept" in error.remedy and len(list(unfinished_folder(folder).glob("part-*.arrow"))) == 2
    assert not list(folder.glob(".part*"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 3000))
        error = refused(StorageError, photos, folder)
        assert error.given.startswith("3e-06 GB are free in")
    assert make(photos, folder).made < 50 and contents(folder) == contents(jpeg)


def test_one_packer_at_a_time(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos.pack"

    def progress(done: int, total: int) -> None:
        if (done, total) == (1, 59):
            assert refused(DataError, photos, folder).given == f"another process is packing into {folder}"

    assert make(photos, folder, progress=progress).records == 59


def test_digits(tmp_path: Path) -> None:
    summary = pack("digits", tmp_path / "digits.pack", Data(), size=64, encoding="raw")
    same_data(load(summary.folder), load("digits"))
    assert summary.records == 1797 and len(list(summary.folder.glob("part-*.arrow"))) == 1
    digits, packed = load("digits").images, load(summary.folder).images
    assert all(digits.load(row).tobytes() == packed.load(row).tobytes() for row in range(0, 1797, 50))


def test_encode_keeps_colours_without_chroma_loss_of_plain_jpegs(photos: Path) -> None:
    data = (photos / "c" / "odd" / "small.jpg").read_bytes()
    assert encode(data, 32, "jpeg", 90) is data
    assert encode(data, 32, "raw", None) == decode(data).tobytes()
    with pytest.raises(OSError):
        encode(data[:200], 32, "jpeg", 90)


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(shared_data / "awkward-images.zip") as archive:
        archive.extractall(tmp_path)
    source = tmp_path / "awkward-images"
    make(source, tmp_path / "awkward.pack", size=64, encoding="raw")
    packed, plain = load(tmp_path / "awkward.pack"), load(source)
    same_data(packed, plain)
    for row in range(len(packed.manifest)):
        original = plain.images.load(row)
        wanted = original.resize(stored_size(*original.size, 64), Image.Resampling.LANCZOS)
        assert packed.images.load(row).tobytes() == wanted.tobytes(), packed.manifest.paths[row]


def test_the_earlier_pack_stays_until_the_new_one_is_whole(photos: Path, jpeg: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos.pack"
    make(photos, folder)
    with pytest.raises(Stop):
        make(photos, folder, size=24, overwrite=True, progress=stop_at(40))
    assert contents(folder) == contents(jpeg), "still the earlier one"
    assert make(photos, folder, size=24, overwrite=True).made < 59
    assert Pack.open(folder).head.size == 24 and [path.name for path in tmp_path.iterdir()] == ["photos.pack"]


def test_a_link_leads_to_the_disk_of_the_pack(photos: Path, jpeg: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (link := tmp_path / "photos.pack").symlink_to(tmp_path / "disk" / "x.pack")
    (tmp_path / "disk" / "x.pack").mkdir()
    make(photos, link)
    assert contents(tmp_path / "disk" / "x.pack") == contents(jpeg) and link.is_symlink()
