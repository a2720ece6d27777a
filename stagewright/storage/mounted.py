"""Tries whether a folder lies on a real file system, or on a bucket that only looks like one (mountpoint-s3, gcsfuse, rclone,
s3fs)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from stagewright.errors import StorageError

PROBE = ".stagewright-probe-"
"""What the name of the folder begins with in which it is tried, and which is removed again."""
_CANNOT = frozenset(
    {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.EIO, errno.EXDEV, errno.EMLINK}
)
"""Error numbers by which a file system says that it cannot do such a thing; a full disk or a missing right is none of them."""


def refuse_mounted_bucket(folder: Path) -> None:
    """Raises StorageError if files in ``folder`` cannot be renamed or appended to, or cannot be linked while locks are missing
    too or the mount is by FUSE. OSError if nothing can be written there at all."""
    try:
        probe = Path(tempfile.mkdtemp(prefix=PROBE, dir=folder))
    except OSError as error:
        if error.errno in _CANNOT:
            raise _refused(folder, ["folders"]) from error
        raise
    try:
        lacks = [what for what, attempt in _ATTEMPTS.items() if not _works(attempt, probe)]
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        with contextlib.suppress(OSError):
            probe.rmdir()
    if {"renaming", "appending"} & {*lacks} or ("links" in lacks and ("locks" in lacks or _is_fuse(folder))):
        raise _refused(folder, lacks)


def _refused(folder: Path, lacks: list[str]) -> StorageError:
    return StorageError(
        f"{folder} is on a file system without {', '.join(lacks)}, such as a mounted bucket: a run there could not be resumed "
        "after a kill",
        "a local disk, or a network disk with renaming and locks",
        "give another --out, and --mirror s3://BUCKET/PREFIX (gs://, az://), which copies the run to the bucket while it trains",
    )


def _works(attempt: Callable[[Path], object], probe: Path) -> bool:
    try:
        attempt(probe)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _rename(probe: Path) -> None:
    (probe / "a").write_bytes(b"a")
    (probe / "b").write_bytes(b"b")
    os.replace(probe / "a", probe / "b")
    (probe / "c").mkdir()
    (probe / "c" / "x").write_bytes(b"x")
    os.rename(probe / "c", probe / "d")
    if (probe / "b").read_bytes() != b"a" or not (probe / "d" / "x").is_file():
        raise OSError(errno.EIO, "it is not where it was renamed to")


def _append(probe: Path) -> None:
    (probe / "log").write_bytes(b"1\n")
    for line in (b"2\n", b"3\n"):
        with open(probe / "log", "ab") as file:
            file.write(line)
    os.truncate(probe / "log", 4)
    if (probe / "log").read_bytes() != b"1\n2\n":
        raise OSError(errno.EIO, "what was appended is not there")


def _link(probe: Path) -> None:
    (probe / "linked").write_bytes(b"1")
    os.link(probe / "linked", probe / "link")


def _lock(probe: Path) -> None:
    with open(probe / "locked", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_ATTEMPTS: dict[str, Callable[[Path], object]] = {
    "renaming": _rename,
    "appending": _append,
    "links": _link,
    "locks": _lock,
}


def _is_fuse(folder: Path) -> bool:
    """Returns whether the mount of ``folder`` is by FUSE, as those of buckets are; False where the system does not tell."""
    try:
        device = os.stat(folder).st_dev
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[2:3] == [number] and " - " in line]
    return any(kind.startswith("fuse") for kind in kinds)
