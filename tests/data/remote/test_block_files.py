"""The files of the cache: whole or absent, one maker at a time, within the capacity; a killed maker leaves nothing in the way."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from stagewright.data.remote.block_files import BlockFiles, Choose, caches_beside
from stagewright.data.remote.capacity import make_room
from stagewright.errors import StorageError

SIZES = np.array([10, 20, 30, 40])


def refuse(present: np.ndarray, needed: int) -> list[int] | None:
    return [] if needed <= 0 else None


def put(files: BlockFiles, block: int, capacity: int = 1000, choose: Choose = refuse) -> bool:
    """Stores a block in two pieces; returns whether it was not there and there was room."""
    with files.making(block) as store:
        if store is None:
            return False
        content = memoryview(bytes([block + 1]) * int(SIZES[block]))
        return store([content[:3], content[3:]], capacity, choose) is not None


def test_a_block_is_whole_or_absent(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "new" / "blocks", SIZES)
    assert files.map(2) is None and not files.has(2)
    with pytest.raises(KeyError), files.making(2):
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "lock", "used"]
    assert files.has_room(10, 70, refuse) and not files.has_room(11, 70, refuse)


def test_what_another_process_has_changed_is_seen(tmp_path: Path) -> None:
    files, other = BlockFiles(tmp_path, SIZES), BlockFiles(tmp_path, SIZES)
    assert put(files, 0) and put(other, 1) and put(files, 3)
    for one in (files, other):
        assert one.present().tolist() == [0, 1, 3] and one.used_bytes() == 70
    other.remove(0)
    assert files.present().tolist() == [1, 3] and not put(files, 2, 70 + 10)
    assert put(files, 0, 70) and other.used_bytes() == 70


def test_a_second_maker_waits_and_finds_the_block(tmp_path: Path) -> None:
    files, other = BlockFiles(tmp_path, SIZES), BlockFiles(tmp_path, SIZES)
    begun, found = threading.Event(), list[bool]()

    def second() -> None:
        begun.set()
        found.append(put(other, 1))

    with files.making(1) as store:
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        thread.join(0.2)
        assert thread.is_alive() and store is not None
        store([memoryview(bytes(20))], 1000, refuse)
    thread.join(10)
    assert found == [False] and files.present().tolist() == [1]


def test_a_second_maker_takes_over_if_the_first_gives_up(tmp_path: Path) -> None:
    files, other = BlockFiles(tmp_path, SIZES), BlockFiles(tmp_path, SIZES)
    found = list[bool]()
    with files.making(1):
        thread = threading.Thread(target=lambda: found.append(put(other, 1)))
        thread.start()
        thread.join(0.2)
    thread.join(10)
    assert found == [True] and files.has(1)


def test_what_a_killed_maker_leaves_is_removed_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    (tmp_path / "2.part").write_bytes(b"half")
    (tmp_path / "1.old").write_bytes(b"not deleted yet")
    living = os.open(tmp_path / "3.part", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    (tmp_path / "notes.txt").write_text("of a person")
    files = BlockFiles(tmp_path, SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.part", "lock", "notes.txt", "used"]
    assert files.used_bytes() == 0
    (tmp_path / "1.part").write_bytes(b"of one that was killed while others use the cache")
    assert put(files, 1) and (tmp_path / "1").read_bytes() == bytes([2]) * 20
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


def test_caches_of_other_packs_are_given_up_oldest_first_unless_they_are_in_use(tmp_path: Path) -> None:
    def use(name: str, at: int) -> None:
        files = BlockFiles(tmp_path / name, SIZES)
        assert put(files, 3) and put(files, 0)
        os.utime(tmp_path / name / "used", (at, at))

    for at, name in enumerate(["old", "used", "new"]):
        use(name, at)
    in_use = BlockFiles(tmp_path / "used", SIZES)
    os.utime(tmp_path / "used" / "used", (1, 1))
    (tmp_path / "killed.gone").mkdir()
    own = BlockFiles(tmp_path / "own", SIZES)
    assert [one.folder.name for one in caches_beside(own.folder)][:3] == ["old", "used", "new"]
    make_room(own, 400)
    assert (
        len(caches_beside(own.folder)) == 4
    )  # all blocks are 100 bytes; 100 and three times 50 and the counts of changes
    make_room(own, 270)
    assert {one.folder.name for one in caches_beside(own.folder)} == {"used", "new", "killed.gone"}
    make_room(own, 100)
    assert [one.folder.name for one in caches_beside(own.folder)] == ["used"]
    assert in_use.present().tolist() == [0, 3]
