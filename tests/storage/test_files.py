"""The one door for whole files: what stands at a path, reads that fail for a moment, writes that fail for good."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from stagewright.errors import StorageError, Unreadable
from stagewright.storage import files
from stagewright.storage.files import (
    FORBIDDEN,
    make_folder,
    read_file,
    read_own,
    retry_io,
    user_path,
    write_for_user,
    write_json,
    write_whole,
)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_read_that_fails_is_tried_again_and_then_says_that_it_is_no_damage(pauses: list[float], code: int) -> None:
    failures = [3]

    def read(path: str) -> bytes:
        if failures[0]:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), path)
        return b"content"

    assert retry_io("x", read) == b"content" and pauses == [0.1, 0.5, 2.0]
    failures[0] = 4
    with pytest.raises(OSError, match="4 attempts"):
        retry_io("x", read)
    failures[0], before = 1, len(pauses)
    if code in FORBIDDEN:
        with pytest.raises(PermissionError):
            retry_io("x", read, final=FORBIDDEN)
        assert len(pauses) == before


def test_memory_that_does_not_suffice_is_a_failing_read(pauses: list[float]) -> None:
    def read(path: str) -> bytes:
        raise MemoryError

    with pytest.raises(OSError, match="Cannot allocate memory, 4 attempts"):
        retry_io("x", read)


def test_missing_and_unreadable_are_two_things(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "none.json")
    assert pauses == []
    (tmp_path / "a.json").write_text("{}")
    assert read_own(tmp_path / "a.json") == b"{}"

    def fail(path: str, most: int | None = None) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr(files, "_read", fail)
    with pytest.raises(
        Unreadable, match=r"a\.json cannot be read: Stale file handle, 4 attempts[\s\S]*nothing was changed"
    ):
        read_own(tmp_path / "a.json")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    """A pipe without a writer would wait for ever, a device might have no end (attack H3, a42)."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(path)
    if Path("/proc/version").exists():
        assert read_file("/proc/version") == b"", "made up by the kernel: its size is 0"


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    (tmp_path / "dangling.csv").symlink_to("made.csv")
    write_whole(tmp_path / "link.csv", "new")
    write_whole(tmp_path / "dangling.csv", "new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "new"
    assert (tmp_path / "dangling.csv").is_symlink() and (tmp_path / "made.csv").read_text() == "new"


def test_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    """As root, /dev/stdout was replaced by a file once (attack H3)."""
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="No such device or address"):
        write_whole(pipe, "nobody reads")
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    for _ in range(200):
        try:
            write_whole(pipe, "a,b\n")
            break
        except StorageError:  # it is not opened for reading yet
            threading.Event().wait(0.01)
    reader.join(5)
    assert got == ["a,b\n"] and stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(StorageError, match="No space left"):
        write_whole("/dev/full", b"x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    write_whole("/dev/null", b"x")
    with pytest.raises(StorageError, match="it is a folder"):
        write_whole(tmp_path, b"x")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(file: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(StorageError, match=r"a\.json cannot be written: Input/output error"):
        write_whole(path, fail)
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"] and "1" in path.read_text()
    with pytest.raises(StorageError, match=r"the folder .* does not exist"):
        write_whole(tmp_path / "gone" / "a.json", b"")
    with pytest.raises(StorageError, match=r"the folder .* does not exist"):
        make_folder(tmp_path / "gone" / "sub")
    assert not (tmp_path / "gone").exists(), "a run directory that was moved must not come back"


def test_home_and_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs/x") == tmp_path / "runs" / "x" and user_path("a/~b") == Path("a/~b")
    write_for_user("~/out.csv", b"a\n")
    assert (tmp_path / "out.csv").read_bytes() == b"a\n"
    write_for_user("-", b"b\n")
    assert capfdbinary.readouterr().out == b"b\n"
    with pytest.raises(StorageError, match="nobody-at-all"):
        user_path("~nobody-at-all/x")
