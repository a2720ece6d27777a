"""Tests of reading ahead: many at once, never too many, and each error for its own row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from stagewright.data.images import read_ahead as module
from stagewright.data.images.read_ahead import read_ahead
from stagewright.system.threads import Pool


class _Store:
    """Counts what is read and has not been taken."""

    def __init__(self, wait: Callable[[int], float] = lambda row: 0.0) -> None:
        self.lock, self.wait = threading.Lock(), wait
        self.waiting, self.most_waiting, self.reads = 0, 0, list[int]()

    def read(self, row: int) -> bytes:
        with self.lock:
            self.reads.append(row)
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        time.sleep(self.wait(row))
        if row == 13:
            raise OSError("thirteen")
        return b"%d" % row

    def taken(self) -> None:
        with self.lock:
            self.waiting -= 1


def test_many_at_once_and_in_order() -> None:
    store = _Store(lambda row: 0.05)
    rows = np.random.default_rng(0).permutation(200)[:64]
    rows = rows[rows != 13]
    with read_ahead(store.read, rows, np.full(len(rows), 10)) as take:
        first = take(int(rows[0]))
        at_first = len(store.reads)
        found = [first, *(take(row) for row in rows[1:].tolist())]
    assert found == [b"%d" % row for row in rows.tolist()] and sorted(store.reads) == sorted(rows.tolist())
    assert at_first > 16, "the next ones are read while the first is awaited"


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_allowed(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD_BYTES", 100)
    store = _Store()
    lengths = np.array([10, 40, 300, 90, 5, 5, 60, 30] * 4)
    rows = np.arange(100, 100 + len(lengths))

    def work(row: int) -> bytes:
        data = take(row)
        time.sleep(0.005)
        store.taken()
        return data

    with read_ahead(store.read, rows, lengths) as take, Pool(workers, "test") as pool:
        tasks = [pool.submit(work, row) for row in rows.tolist()]
        assert [task.result(30) for task in tasks] == [b"%d" % row for row in rows.tolist()]
    assert sorted(store.reads) == rows.tolist() and store.most_waiting <= 6 + 2 * workers


def test_a_row_that_is_not_begun_is_read_by_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD", 2)
    store = _Store()
    with read_ahead(store.read, np.arange(6), np.full(6, 1)) as take:
        assert [take(row) for row in (5, 0, 4, 1, 2, 3)] == [b"5", b"0", b"4", b"1", b"2", b"3"]
    assert sorted(store.reads) == list(range(6)), "none twice"


def test_an_error_is_that_of_its_row() -> None:
    with read_ahead(_Store().read, np.array([12, 13, 14]), np.ones(3, np.int64)) as take:
        assert take(12) == b"12"
        with pytest.raises(OSError, match="thirteen"):
            take(13)
        assert take(14) == b"14"


def test_nothing_to_read() -> None:
    with read_ahead(_Store().read, np.array([], np.int64), np.array([], np.int64)):
        pass
