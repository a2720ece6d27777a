"""Columns of strings as bytes of a digest."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from stagewright.storage import parquet


@pytest.mark.parametrize("values", [[], ["a"], ["ä", None, "", "bc", "日"], [None] * 4, ["ab", "c", "abc"]])
def test_a_column_is_hashed_in_parts_as_in_one(values: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_HASHED_ROWS", 2)
    digest = hashlib.sha256()
    parquet.hash_column(digest, pa.array(values, pa.string()))
    lengths = np.array([-1 if one is None else len(one.encode()) for one in values], "<i4").tobytes()
    assert digest.digest() == hashlib.sha256(lengths + "".join(one or "" for one in values).encode()).digest()


def test_no_column_is_another_one_than_an_empty_one() -> None:
    none, empty = hashlib.sha256(), hashlib.sha256()
    parquet.hash_column(none, None)
    parquet.hash_column(empty, pa.array([], pa.string()))
    assert none.digest() == hashlib.sha256(b"-").digest() != empty.digest()
