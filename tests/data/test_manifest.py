"""Manifest: it reads back as written, damage is detected, and the digest covers everything that training depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagewright.data.manifest import Manifest
from stagewright.errors import DataError, StorageError
from stagewright.storage.parquet import write_table


def manifest(**changes: Any) -> Manifest:
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
    return replace(made, **changes)


@pytest.mark.parametrize("groups", [pa.array(["a", None, "", "b"]), None])
def test_write_and_read(tmp_path: Path, groups: pa.StringArray | None) -> None:
    # A folder named like a column of a partitioned Parquet data set must not be read as a column.
    file = tmp_path / "lr=0.1" / "manifest.parquet"
    file.parent.mkdir()
    made = manifest(groups=groups)
    made.write(file)
    made.write(file)
    read = Manifest.read(file)
    assert (read.root, read.source, read.classes, len(read)) == ("/pictures", "photos/", made.classes, 4)
    assert read.paths.equals(made.paths) and read.hashes.equals(made.hashes)
    for column in ("labels", "splits", "widths", "heights"):
        old, new = getattr(made, column), getattr(read, column)
        assert old.dtype == new.dtype and old.tolist() == new.tolist()
    assert read.groups == groups
    assert read.digest == made.digest
    assert [path.name for path in file.parent.iterdir()] == ["manifest.parquet"]


def test_rows_and_info() -> None:
    made = manifest()
    assert made.rows("train").tolist() == [0, 2] and made.rows("train").dtype == np.int64
    assert made.rows("val").tolist() == [3]
    assert made.rows("test").tolist() == [1]
    info = made.info()
    assert (info.num_train, info.num_val, info.num_test) == (2, 1, 1)
    assert (info.classes, info.digest) == (made.classes, made.digest)


def test_digest_holds_what_matters_and_nothing_else() -> None:
    made = manifest()
    assert len(made.digest) == 64
    assert manifest(root="/elsewhere", source="other", widths=made.heights).digest == made.digest
    changes: list[dict[str, Any]] = [
        {"classes": ("cat", "dog", "日本")},
        {"paths": pa.array(["cat/1.jpg", "größe/2", " 3.png日本/é.webp", "日本/f.webp"])},
        {"hashes": pa.array([f"{at:032x}" for at in (0, 1, 2, 4)])},
        {"labels": np.array([0, 1, 2, 1], np.int32)},
        {"splits": np.array([0, 2, 1, 1], np.int8)},
        {"groups": pa.array(["a", "", None, "b"])},
        {"groups": None},
    ]
    digests = {manifest(**change).digest for change in changes}
    assert len(digests | {made.digest}) == len(changes) + 1


def test_slices_have_the_digest_of_their_rows() -> None:
    made = manifest()
    part = manifest(
        **{
            name: getattr(made, name)[1:]
            for name in ("paths", "hashes", "labels", "splits", "widths", "heights", "groups")
        }
    )
    again = manifest(
        paths=pa.array(made.paths.to_pylist()[1:]),
        hashes=pa.array(made.hashes.to_pylist()[1:]),
        groups=pa.array([None, "", "b"]),
        **{name: getattr(made, name)[1:].copy() for name in ("labels", "splits", "widths", "heights")},
    )
    assert part.digest == again.digest != made.digest


def test_damage_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    manifest().write(file)
    good = file.read_bytes()
    for at in range(0, len(good), 41):
        file.write_bytes(good[:at])
        with pytest.raises(DataError, match="is damaged"):
            Manifest.read(file)
    table = pq.ParquetFile(pa.BufferReader(good)).read()
    labels = table.set_column(table.column_names.index("label"), "label", pa.array([0, 1, 2, 0], pa.int32()))
    write_table(labels, file)
    with pytest.raises(DataError, match="do not match the digest that is stored in it") as error:
        Manifest.read(file)
    assert error.value.allowed == "the file as the run wrote it"
    assert error.value.remedy == "restore it from a copy, or start a new run on the same data"
    splits = table.set_column(table.column_names.index("split"), "split", pa.array(["train", "val", "tset", "val"]))
    write_table(splits, file)
    with pytest.raises(DataError, match="split outside of 0 to 2"):
        Manifest.read(file)
    write_table(pa.table({"path": ["a"]}), file)
    with pytest.raises(DataError, match="is damaged"):
        Manifest.read(file)
    with pytest.raises(DataError, match=r"there is no manifest .*nowhere"):
        Manifest.read(tmp_path / "nowhere")


def test_a_closed_test_part_is_in_no_split_and_in_no_file(tmp_path: Path) -> None:
    known = manifest(splits=np.array([0, 2, 1, 2], np.int8))
    closed = known.closed()
    assert [closed.rows(split).tolist() for split in ("train", "val", "test")] == [[0], [2], []]
    assert (known.num_closed, closed.num_closed, closed.closed().num_closed) == (0, 2, 2) and len(closed) == 4
    assert closed.taken(np.array([1, 2])).num_closed == 1
    for use in (lambda: closed.digest, closed.info, lambda: closed.write(tmp_path / "manifest.parquet")):
        with pytest.raises(ValueError, match="a closed test part describes no data set"):
            use()
    assert not list(tmp_path.iterdir()) and known.closed().rows("test").size == 0 and known.digest


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "manifest.parquet"
    manifest().write(file)
    good = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StorageError, match="No space left"):
        manifest(root="/new").write(file)
    assert file.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        manifest(labels=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="label outside of 0 to 2"):
        manifest(labels=np.array([0, 1, 2, 3], np.int32))
    with pytest.raises(ValueError, match="split outside of 0 to 2"):
        manifest(splits=np.array([0, 1, -1, 0], np.int8))


def test_blocks_are_written_and_part_of_the_digest(tmp_path: Path) -> None:
    without, made = manifest(), manifest(blocks=np.array([0, 2, 1, 0], np.int32))
    made.write(tmp_path / "manifest.parquet")
    read = Manifest.read(tmp_path / "manifest.parquet")
    assert read.blocks is not None and read.blocks.tolist() == [0, 2, 1, 0]
    other = manifest(blocks=np.array([0, 2, 1, 1], np.int32))
    assert len({without.digest, made.digest, other.digest}) == 3
    taken = made.taken(np.array([3, 1])).blocks
    assert taken is not None and taken.tolist() == [0, 2]
    with pytest.raises(ValueError, match="a block below 0"):
        manifest(blocks=np.array([0, -1, 0, 0], np.int32))
