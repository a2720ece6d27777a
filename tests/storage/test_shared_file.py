"""Files of records that processes share: what one writes the others read, whoever is killed, and nothing of it stays behind."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from stagewright.errors import StorageError
from stagewright.storage import shared_file
from stagewright.storage.shared_file import SharedFile

RECORD = 5000
COUNT = 6


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))
    return tmp_path / "shared"


def opened(key: str = "a") -> SharedFile:
    return SharedFile.open(key, COUNT, COUNT * RECORD)


def content(record: int) -> np.ndarray:
    return np.full(RECORD, record + 1, np.uint8)


def put(file: SharedFile, record: int) -> None:
    file.write(record, record * RECORD, content(record))


def holds(file: SharedFile, *records: int) -> bool:
    data = file.data.reshape(COUNT, RECORD)
    return set(np.flatnonzero(file.done)) == set(records) and all((data[at] == at + 1).all() for at in records)


def files(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.iterdir()} - {".lock"}


def child(code: str) -> subprocess.Popen[str]:
    """A process that has opened the file as ``file``, has run ``code``, and waits."""
    text = (
        "import sys, os, numpy as np\nfrom stagewright.storage.shared_file import SharedFile\n"
        f"file = SharedFile.open('a', {COUNT}, {COUNT * RECORD})\n{code}\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.returncode


def test_what_one_writes_the_others_read_and_the_last_removes_it(folder: Path) -> None:
    one, two = opened(), opened()
    put(one, 0)
    put(two, 5)
    assert holds(one, 0, 5) and holds(two, 0, 5)
    one.close()
    put(one, 1)
    assert holds(one, 0, 1, 5) and holds(two, 0, 5), "after its end, it writes for itself"
    put(two, 2)
    assert holds(one, 0, 1, 5) and holds(two, 0, 2, 5)
    assert files(folder) == {"a"}
    two.close()
    assert files(folder) == set() and holds(two, 0, 2, 5)
    assert holds(opened()), "a new one begins empty"


def test_it_ends_with_its_object(folder: Path) -> None:
    file = opened()
    put(file, 0)
    assert files(folder) == {"a"}
    del file
    assert files(folder) == set()


def test_another_process_reads_writes_and_keeps_it(folder: Path) -> None:
    process = child(f"file.write(0, 0, np.full({RECORD}, 1, np.uint8))")
    file = opened()
    assert holds(file, 0)
    put(file, 3)
    file.close()
    assert files(folder) == {"a"}
    again = opened()
    assert holds(again, 0, 3)
    again.close()
    assert ended(process) == 0 and files(folder) == set()


def test_a_killed_process_leaves_what_is_whole(folder: Path) -> None:
    process = child(
        f"file.write(0, 0, np.full({RECORD}, 1, np.uint8))\n"
        f"os.pwrite(file._descriptor, b'x' * {RECORD // 2}, 4096 + {RECORD})"  # killed while it writes record 1
    )
    process.kill()
    assert ended(process) == -signal.SIGKILL and files(folder) == {"a"}
    file = opened()
    assert holds(file, 0)
    put(file, 1)
    assert holds(file, 0, 1)


def test_what_nobody_uses_is_removed_and_what_is_used_is_not(folder: Path) -> None:
    left = child("")
    left.kill()
    ended(left)
    used = opened("b")
    put(used, 0)
    assert files(folder) == {"b"}, "what a killed process has left is gone"
    other = opened("c")
    assert files(folder) == {"b", "c"} and holds(opened("b"), 0)
    other.close()
    used.close()


def test_one_that_was_not_allocated_to_its_end_is_completed(folder: Path) -> None:
    process = child("os.ftruncate(file._descriptor, 4096)")
    process.kill()
    ended(process)
    file = opened()
    put(file, 5)
    assert holds(file, 5)
    [path] = [path for path in folder.iterdir() if path.name != ".lock"]
    assert path.stat().st_blocks * 512 >= COUNT * RECORD, "the room is taken, not only promised"


def test_a_forked_child_that_ends_takes_nothing_away(folder: Path) -> None:
    code = """
import os
put = lambda record: file.write(record, record * 5000, np.full(5000, record + 1, np.uint8))
put(0)
if (one := os.fork()) == 0:
    put(1)
    sys.exit()  # with all that Python does at the end
os.waitpid(one, 0)
"""
    process = child(code)
    file = opened()
    assert holds(file, 0, 1), "the parent still held it"
    process.kill()
    ended(process)
    file.close()
    assert files(folder) == set()


def test_a_full_disk_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, other = opened(), opened()
    put(file, 0)
    write, full = os.pwrite, [3000]

    def filling(descriptor: int, data: bytes, offset: int) -> int:
        if not full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = min(len(data), full[0])
        full[0] -= count
        return write(descriptor, bytes(data)[:count], offset)

    monkeypatch.setattr(os, "pwrite", filling)
    with caplog.at_level(logging.WARNING):
        put(file, 1)
        put(file, 2)
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text
    monkeypatch.undo()
    assert holds(file, 0, 1, 2) and holds(other, 0)
    assert not other.data[2 * RECORD : 3 * RECORD].any(), "what it writes now, it writes for itself"
    put(other, 3)
    assert holds(other, 0, 3) and holds(file, 0, 1, 2)


def test_alone_it_no_longer_trusts_the_marks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a mark may still be shared where that of the record is not any more."""
    count, far = 10_000, 9_999
    file, other = (SharedFile.open("b", count, count) for _ in range(2))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    file.write(0, 0, np.full(1, 7, np.uint8))
    monkeypatch.undo()
    other.write(far, 1, np.full(1, 8, np.uint8))
    assert other.done[far] and other.data[1] == 8
    assert file.done[0] and file.data[0] == 7 and (not file.done[far] or file.data[1] == 8)


def test_without_room_it_is_refused_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"1e-06 GB are free there[\s\S]*STAGEWRIGHT_CACHE"):
        opened()
    monkeypatch.undo()
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(folder.parent))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        opened()
    assert files(folder) == set()


def test_only_on_file_systems_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert shared_file._file_system(Path("/proc")) == "proc"
    assert shared_file._file_system(tmp_path.resolve()) in shared_file._LOCAL
    monkeypatch.setattr(shared_file, "_file_system", lambda _: "nfs4")
    with pytest.raises(StorageError, match="its file system is nfs4, which other machines may use too"):
        opened()


def test_a_record_is_claimed_by_one_process(folder: Path) -> None:
    process = child("claimed = file.claim(2); claimed.__enter__()")
    file = opened()
    with file.claim(2) as mine, file.claim(3) as other:
        assert (mine, other) == (False, True)
    process.kill()
    ended(process)
    with file.claim(2) as mine:
        assert mine, "a killed process claims nothing"
