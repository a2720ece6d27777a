"""A run directory on a mounted bucket is refused: what such mounts cannot do is tried before anything is written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stagewright.errors import StorageError
from stagewright.rundir.claim import claimed
from stagewright.storage import mounted
from stagewright.storage.mounted import refuse_mounted_bucket


def cannot(number: int) -> Callable[..., Any]:
    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_disk_is_fine_and_keeps_nothing(tmp_path: Path) -> None:
    refuse_mounted_bucket(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        (("os.replace",), "renaming"),
        (("os.rename",), "renaming"),
        (("os.truncate",), "appending"),
        (("os.link", "fcntl.flock"), "links, locks"),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_what_is_missing_is_named(
    lacking: tuple[str, ...], named: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in lacking:
        monkeypatch.setattr(name, cannot(number))
    with (
        pytest.raises(StorageError, match=rf"without {named}.*mounted bucket[\s\S]*--mirror s3://"),
        claimed(tmp_path / "run"),
    ):
        raise AssertionError("it was created")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("missing", ["os.link", "fcntl.flock"])
def test_disks_that_lack_links_or_locks_alone_stay_allowed(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As exFAT does links, and some network disks locks."""
    monkeypatch.setattr(missing, cannot(errno.EPERM))
    refuse_mounted_bucket(tmp_path)
    monkeypatch.setattr(mounted, "_is_fuse", lambda folder: True)
    if missing == "os.link":
        with pytest.raises(StorageError, match="without links"):
            refuse_mounted_bucket(tmp_path)


def test_a_full_disk_is_not_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", cannot(errno.ENOSPC))
    with pytest.raises(StorageError, match="cannot be created or written: No space left"), claimed(tmp_path / "run"):
        raise AssertionError("it was created")


@contextmanager
def bucket_mount(folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent.parent / "bucket_mount.py"), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        if process.stdout.readline().strip() != "mounted":
            process.wait(10)
            pytest.skip(f"no FUSE mount can be made here: {process.stderr.read().strip()}")
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)
            time.sleep(0)


@pytest.mark.long
def test_a_real_mount_that_behaves_as_one_of_a_bucket(tmp_path: Path) -> None:
    """FUSE without rename, links and appending, as mountpoint-s3 is."""
    place = tmp_path / "bucket"
    place.mkdir()
    with bucket_mount(place):
        (place / "object").write_bytes(b"1")
        assert (place / "object").read_bytes() == b"1"
        with pytest.raises(StorageError, match=r"without renaming[\s\S]*--mirror s3://"), claimed(place / "run"):
            raise AssertionError("it was created")
