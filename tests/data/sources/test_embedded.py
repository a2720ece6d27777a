"""Tests that Parquet files with images inside, as Hugging Face writes them, are data like any other, in every command."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagewright.bundle.inputs import expand_inputs
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.inspect.inspect import inspect
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.sources.verify import moved, verify_images
from stagewright.data.splits.write import split
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data

NAMES = ["cat", "dog"]


def picture(seed: int, form: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def features(**kinds: dict[str, Any]) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}


CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}
KINDS = features(image={"_type": "Image"}, label=CLASS_LABEL)


def write(
    path: Path, seeds: range, *, image: str = "image", label: str = "label", meta: dict[bytes, bytes] | None = KINDS
) -> Path:
    """Writes alternately PNG and JPEG, cats and dogs, as ``struct<bytes, path>``, in several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        {"bytes": picture(seed, ("PNG", "JPEG")[seed % 2]), "path": f"any/{seed}.png" if seed % 2 == 0 else None}
        for seed in seeds
    ]
    table = pa.table({image: cells, label: pa.array([seed % 3 % 2 for seed in seeds], pa.int64())})
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=5)
    return path


def read(source: Path, **settings: Any) -> Dataset:
    return load_dataset(str(source), Data(**settings))


def test_a_file_of_hugging_face_is_read_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "train-00000-of-00001.parquet", range(24))
    found = read(file)
    manifest = found.manifest
    assert manifest.classes == ("cat", "dog")
    assert manifest.paths.to_pylist() == [
        f"train-00000-of-00001/{row:06d}{('.png', '.jpg')[row % 2]}" for row in range(24)
    ]
    assert manifest.labels.tolist() == [row % 3 % 2 for row in range(24)]
    for row in (0, 7, 23):
        expected = Image.open(io.BytesIO(picture(row, ("PNG", "JPEG")[row % 2])))
        assert np.array_equal(np.asarray(found.images.load(row)), np.asarray(expected))
    assert any("unpacked to" in note for note in found.notes)
    assert len(expand_inputs([file]).paths) == 24
    assert not inspect(str(file), Data()).evidence.fingerprints.reasons
    assert pack(str(file), tmp_path / "some.pack", Data(), size=8).records == 24
    split(str(file), Data(), out=tmp_path / "split.csv")
    assert read(tmp_path / "split.csv").manifest.hashes.equals(manifest.hashes)


def test_shards_in_a_folder_are_one_data_set_with_parts_by_their_names(tmp_path: Path) -> None:
    for shard in (0, 1):
        write(tmp_path / "hub" / "data" / f"train-0000{shard}-of-00002.parquet", range(20 * shard, 20 * shard + 20))
    write(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", range(40, 50))
    (tmp_path / "hub" / "README.md").write_text("a card")
    for place in (tmp_path / "hub", tmp_path / "hub" / "data"):
        manifest = read(place).manifest
        assert [len(manifest.rows(name)) for name in ("train", "val", "test")] == [40, 10, 0]
        assert {manifest.paths[int(row)].as_py().split("-")[0] for row in manifest.rows("val")} == {"validation"}
    assert len(expand_inputs([tmp_path / "hub"]).paths) == 50
    assert len(read(tmp_path / "hub", split="none").manifest.rows("val")) not in (0, 10)
    write(tmp_path / "hub" / "data" / "other.parquet", range(3), label="kind")
    with pytest.raises(DataError, match="different columns"):
        read(tmp_path / "hub")


def test_cells_without_a_picture_or_class_are_left_out_with_their_reason(tmp_path: Path) -> None:
    cells = [picture(seed, "PNG") for seed in range(12)]
    labels: list[int | None] = [seed % 2 for seed in range(12)]
    cells[3], cells[4], cells[5] = None, b"", b"\x89PNG\r\n\x1a\nbroken"  # type: ignore[call-overload]
    labels[6], labels[7] = -1, None
    table = pa.table({"image": pa.array(cells, pa.binary()), "label": pa.array(labels, pa.int8())})
    pq.write_table(table.replace_schema_metadata(features(label=CLASS_LABEL)), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert len(found.manifest) == 7
    reasons = {one.path: one.reason for one in found.excluded}
    assert reasons["row 4"] == "no path in column 'image'"
    assert reasons["a/000004.jpg"] == "the file is empty"
    assert "a/000005.png" in reasons
    assert reasons["a/000006.png"] == reasons["a/000007.png"] == "no class in column 'label'"


@pytest.mark.parametrize(
    ("image", "label", "meta"),
    [
        ("img", "fine", features(fine=CLASS_LABEL)),
        ("jpg", "cls", features(jpg={"_type": "Image"}, cls=CLASS_LABEL)),
        ("jpg", "label", None),
        ("image", "label", {b"huggingface": b"[[[["}),
        ("image", "label", {b"huggingface": b'{"info": {"features": {"label": {"names": 3}, "image": 7}}}'}),
    ],
)
def test_columns_are_known_by_their_features_or_names(image: str, label: str, meta: Any, tmp_path: Path) -> None:
    manifest = read(write(tmp_path / "a.parquet", range(12), image=image, label=label, meta=meta)).manifest
    assert len(manifest) == 12
    assert manifest.classes == (("cat", "dog") if meta and b"ClassLabel" in meta[b"huggingface"] else ("0", "1"))


def test_two_columns_of_images_are_not_guessed(tmp_path: Path) -> None:
    table = pa.table({name: [picture(seed, "PNG") for seed in range(8)] for name in ("left", "right")})
    pq.write_table(table.append_column("label", pa.array(["a", "b"] * 4)), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="images in several columns: 'left', 'right'"):
        read(tmp_path / "a.parquet")
    assert len(read(tmp_path / "a.parquet", path="right").manifest) == 8


def test_paths_stored_as_binary_or_as_structs_without_bytes_stay_paths(tmp_path: Path) -> None:
    for at in range(8):
        (tmp_path / f"{at}.png").write_bytes(picture(at, "PNG"))
    names = [f"{at}.png" for at in range(8)]
    kinds = (
        pa.array([name.encode() for name in names], pa.binary()),
        pa.array(
            [{"bytes": None, "path": name} for name in names], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        ),
    )
    for column in kinds:
        pq.write_table(pa.table({"image": column, "label": ["a", "b"] * 4}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet").manifest.paths.to_pylist() == names


def test_unpacked_pictures_come_back_when_the_cache_was_emptied(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", range(12))
    manifest = read(file).manifest
    shutil.rmtree(manifest.root)
    verify_images(manifest, everything=True)
    assert open_images(manifest).load(3).size == (12, 12)
    (tmp_path / "there").mkdir()
    file.rename(tmp_path / "there" / "a.parquet")
    shutil.rmtree(manifest.root)
    with pytest.raises(DataError, match="does not exist"):
        open_images(manifest)
    again = moved(manifest, tmp_path / "there" / "a.parquet")
    verify_images(again, everything=True)
    assert open_images(again).load(3).size == (12, 12)


def test_other_pictures_in_the_file_are_noticed(tmp_path: Path) -> None:
    manifest: Manifest = read(write(tmp_path / "a.parquet", range(12))).manifest
    write(tmp_path / "a.parquet", range(1, 13))
    verify_images(manifest, everything=True)  # the pictures that the run began with are still there
    shutil.rmtree(manifest.root)
    with pytest.raises(DataError, match="have changed since the run began"):
        verify_images(manifest)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", range(12)).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), tmp_path / "hole.parquet", write_page_checksum=True)
    data = (tmp_path / "hole.parquet").read_bytes()
    (tmp_path / "hole.parquet").write_bytes(data[:60] + bytes(200) + data[260:])
    for name in ("cut", "hole"):
        with pytest.raises(DataError, match="cannot be read as a table"):
            read(tmp_path / f"{name}.parquet")


def test_settings_for_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains its pictures"):
        read(write(tmp_path / "a.parquet", range(12)), images=".")
