"""The files of the cache: whole or absent, one maker at a time, within the capacity; a killed maker leaves nothing in the way."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from stagewright.data.remote.block_files import BlockFiles
from stagewright.errors import StorageError

SIZES = np.array([10, 20, 30, 40])


def refuse(present: np.ndarray, needed: int) -> list[int] | None:
    return [] if needed <= 0 else None


def put(files: BlockFiles, block: int, capacity: int = 1000, choose: object = refuse) -> bool:
    with files.making(block, capacity, choose) as store:  # pyright: ignore[reportArgumentType]
        if store is None:
            return False
        store(bytes([block + 1]) * int(SIZES[block]))
    return True


def test_a_block_is_whole_or_absent(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "new" / "blocks", SIZES)
    assert files.map(2) is None and not files.has(2)
    with pytest.raises(KeyError), files.making(2, 1000, refuse):
        raise KeyError
    assert not files.has(2) and files.used_bytes() == 0
    assert put(files, 2) and not put(files, 2)
    content = files.map(2)
    assert content is not None and content.tolist() == [3] * 30
    files.remove(2)
    assert content.tolist() == [3] * 30 and files.map(2) is None


def test_capacity_and_what_is_given_up(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path, SIZES)
    assert put(files, 0, 60) and put(files, 3, 60) and not put(files, 1, 60)
    asked = list[tuple[list[int], int]]()

    def choose(present: np.ndarray, needed: int) -> list[int]:
        asked.append((present.tolist(), needed))
        return [0]

    assert put(files, 1, 60, choose)
    assert asked == [([0, 3], 10)] and files.present().tolist() == [1, 3] and files.used_bytes() == 60


def test_a_second_maker_waits_and_finds_the_block(tmp_path: Path) -> None:
    files, other = BlockFiles(tmp_path, SIZES), BlockFiles(tmp_path, SIZES)
    begun, found = threading.Event(), list[bool]()

    def second() -> None:
        begun.set()
        found.append(put(other, 1))

    with files.making(1, 1000, refuse) as store:
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        thread.join(0.2)
        assert thread.is_alive() and store is not None
        store(bytes(20))
    thread.join(10)
    assert found == [False] and files.present().tolist() == [1]


def test_a_second_maker_takes_over_if_the_first_gives_up(tmp_path: Path) -> None:
    files, other = BlockFiles(tmp_path, SIZES), BlockFiles(tmp_path, SIZES)
    found = list[bool]()
    with files.making(1, 1000, refuse):
        thread = threading.Thread(target=lambda: found.append(put(other, 1)))
        thread.start()
        thread.join(0.2)
    thread.join(10)
    assert found == [True] and files.has(1)


def test_what_a_killed_maker_leaves_is_removed_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    (tmp_path / "2.part").write_bytes(b"half")
    living = os.open(tmp_path / "3.part", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    (tmp_path / "notes.txt").write_text("of a person")
    files = BlockFiles(tmp_path, SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.part", "lock", "notes.txt"]
    assert files.used_bytes() == 40
    os.close(living)
    assert put(files, 2) and put(files, 3)


def test_a_shortened_file_is_not_read(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path, SIZES)
    put(files, 3)
    (tmp_path / "3").write_bytes(b"short")
    assert files.map(3) is None and not files.has(3)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        BlockFiles(tmp_path / "file" / "blocks", SIZES)
