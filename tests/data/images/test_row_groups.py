"""Tests of row groups of Parquet files: where they lie, what is in them, and which are remembered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagewright.data.images import row_groups
from stagewright.data.images.places import Places
from stagewright.data.images.remote import RemoteFiles, check_cells
from stagewright.data.images.row_groups import Cells, GroupMemory, RowGroups
from stagewright.errors import DataError

VALUES = [bytes([at % 251]) * (at % 7 * 300) for at in range(40)]


def parquet(file: Path, kind: str, **options: Any) -> bytes:
    """Writes VALUES in row groups of 9 rows, beside columns before and after; returns the file."""
    cells: Any = [None if at == 5 else value for at, value in enumerate(VALUES)]
    if kind == "struct":
        cells = [None if value is None else {"bytes": value, "path": "x"} for value in cells]
        column = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    else:
        column = pa.array(cells, pa.large_binary() if kind == "large" else pa.binary())
    table = pa.table({"before": list(range(40)), "image": column, "after": ["x" * 500] * 40})
    pq.write_table(table, file, row_group_size=9, **options)
    return file.read_bytes()


def located(data: bytes, kind: str, rows: np.ndarray) -> RowGroups:
    footer = data[-(int.from_bytes(data[-8:-4], "little") + 8) :]
    leaf = "image.bytes" if kind == "struct" else "image"
    return RowGroups.locate(leaf, [footer] * 2, [len(data)] * 2, np.arange(len(rows), dtype=np.int32) % 2, rows)


@pytest.mark.parametrize("kind", ["struct", "plain", "large"])
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "none", "use_dictionary": False}, {"compression": "zstd", "data_page_size": 200}],
    ids=["usual", "plain", "pages"],
)
def test_every_row_is_found_in_its_row_group(kind: str, options: Any, tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", kind, **options)
    rows = np.random.default_rng(0).permutation(40).astype(np.int64)
    groups = located(data, kind, rows)
    assert len(groups) == 10 and groups.file.tolist() == [0] * 5 + [1] * 5
    for at, row in enumerate(rows.tolist()):
        (span,) = groups.spans(int(groups.of[at]))
        assert span.file == at % 2
        cells = groups.decode(int(groups.of[at]), [data[span.offset :][: span.length]])
        assert len(cells) == (4 if row >= 36 else 9)
        assert bytes(cells.row(int(groups.row[at]))) == (b"" if row == 5 else VALUES[row])
    with pytest.raises(ValueError, match="outside of its file"):
        located(data, kind, np.array([3, 40]))


def test_neighbours_are_one_piece() -> None:
    cells = Cells.of(pa.chunked_array([pa.array([b"ab", b"", None, b"cde", b"f", b"gh"]).slice(1)]))
    assert len(cells) == 5
    assert [bytes(one) for one in cells.rows(np.array([0, 1, 2, 4]))] == [b"cde", b"gh"]
    assert [bytes(one) for one in cells.rows(np.array([2, 3]))] == [b"cdef"]
    assert cells.have(np.array([2, 4]), np.array([3, 2])) and not cells.have(np.array([2]), np.array([4]))
    assert not cells.have(np.array([5]), np.array([0]))
    joined = Cells.of(pa.chunked_array([[b"a", b"bc"], [b"d"]]))
    assert [bytes(joined.row(at)) for at in range(3)] == [b"a", b"bc", b"d"]


def test_a_large_row_group_takes_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = parquet(tmp_path / "a.parquet", "struct", compression="none", use_dictionary=False)
    groups = located(data, "struct", np.arange(40))
    whole = groups.spans(0)[0]
    monkeypatch.setattr(row_groups, "_REQUEST_BYTES", 1000)
    spans = groups.spans(0)
    assert len(spans) == groups.num_requests[0] == -(-whole.length // 1000) > 5
    assert sum(span.length for span in spans) == groups.lengths[0] == whole.length
    cells = groups.decode(0, [data[span.offset :][: span.length] for span in spans])
    assert bytes(cells.row(4)) == VALUES[4]


def test_damage_is_an_error_of_reading(tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", "struct", compression="none", use_dictionary=False, write_page_checksum=True)
    groups = located(data, "struct", np.arange(40))
    (span,) = groups.spans(1)
    content = bytearray(data[span.offset :][: span.length])
    content[len(content) // 2] ^= 255
    with pytest.raises(OSError, match="row group 1 is damaged"):
        groups.decode(1, [bytes(content)])
    with pytest.raises(OSError, match="row group 1 is damaged"):
        groups.decode(1, [bytes(content)[:-20]])


def test_rows_of_other_lengths_are_those_of_another_file(tmp_path: Path) -> None:
    """Where a store has no ETags, only this tells."""
    data = parquet(tmp_path / "a.parquet", "struct", compression="none", use_dictionary=False)
    rows = np.arange(40)
    groups, lengths = located(data, "struct", rows), np.array([len(value) for value in VALUES], np.int64)
    places = Places(("a", "b"), (40_000, 40_000), (rows % 2).astype(np.int32), rows * 0, lengths)
    files = RemoteFiles("s3://x", places, ("", ""), groups)
    (span,) = groups.spans(0)
    cells, own = groups.decode(0, [data[span.offset :][: span.length]]), np.array([0, 2, 4])
    check_cells(files, groups, cells, own)
    lengths[4] += 1
    with pytest.raises(DataError, match="a of s3://x has changed"):
        check_cells(files, groups, cells, own)


def test_the_last_ones_are_remembered_and_each_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "_REMEMBERED_BYTES", 250)
    read = Counter[int]()

    def slowly(group: int) -> Cells:
        read[group] += 1
        time.sleep(0.05)
        if group == 9:
            raise OSError("away")
        return Cells(memoryview(bytes([group]) * 100), np.array([0, 100]))

    memory = GroupMemory(slowly)
    threads = [threading.Thread(target=memory.get, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {1: 1} and memory.known(1) is not None and memory.known(2) is None
    for group in (2, 1, 3):
        assert memory.get(group).row(0)[0] == group
    assert read == {1: 1, 2: 1, 3: 1} and memory.known(2) is None and memory.known(1) is not None
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            memory.get(9)
    assert read[9] == 2
    monkeypatch.setattr(row_groups, "_REMEMBERED_BYTES", 10)
    memory.get(4)
    assert [memory.known(group) is not None for group in (1, 3, 4)] == [False, True, True]
