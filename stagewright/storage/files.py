"""The one door for whole files: read with patience, written whole or not at all, with a look at what stands at the path.

Two conventions. A read that fails is not a file that is damaged: what a moment may change (a disk error, a stale mount, no
descriptor left, no right to read) is tried again and then raised as :class:`~stagewright.errors.Unreadable`, which nobody
takes for damage. And what is written goes to a temporary name beside its target and takes its place by one rename; what
stands there and is no regular file (a pipe, a device) is written through, a link is followed, and neither is replaced.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from stagewright.errors import StorageError, Unreadable

T = TypeVar("T")

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further attempt at a read that failed."""

MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
"""There is no such file: another attempt does not change that."""
_HOPELESS = MISSING | {errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.ENXIO}
# A picture that this user may not read is named at once: 60,000 of them would take days with pauses.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes, on all usual systems."""
_SILENT_SECONDS = 30.0
STDOUT = "-"
"""Stands for the standard output where a file is written."""

EVERY = frozenset(errno.errorcode)
"""Every errno: nothing is tried again."""

Content = bytes | str | Callable[[BinaryIO], object]


def patiently(path: str | Path, read: Callable[[str], T], *, final: frozenset[int] = frozenset()) -> T:
    """What ``read(path)`` returns. An OSError or MemoryError is tried again, four times in all within 3 seconds, unless it
    says that there is no such file or is in ``final`` (errno); then OSError with the number of attempts and the path."""
    for pause in (*PAUSES, None):
        try:
            return read(str(path))
        except MemoryError:
            error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
        except OSError as problem:
            if problem.errno in _HOPELESS | final:
                raise
            error = problem
        if pause is None:
            reason = f"{error.strerror or error}, {len(PAUSES) + 1} attempts"
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def read_file(path: str | Path, *, final: frozenset[int] = frozenset(), most: int | None = None) -> bytes:
    """The bytes of the regular file ``path``, read with patience (:func:`patiently`); OSError, also for a pipe or device,
    and for a file of more than ``most`` bytes."""
    return patiently(path, lambda name: _read(name, most), final=final)


def read_own(path: str | Path) -> bytes:
    """The bytes of a file that stagewright wrote. FileNotFoundError where there is none; :class:`Unreadable` where it is
    there and cannot be read now, which says nothing about its content."""
    try:
        return read_file(path)
    except OSError as error:
        raise missing_or_unreadable(path, error) from error


def read_parsed(path: str | Path, parse: Callable[[bytes], T]) -> T:
    """What ``parse`` makes of the bytes of a file, read as :func:`read_own` does. A file that it refuses is read a second time
    before its error passes: a read that goes wrong without saying so is no damage. Unreadable where memory runs out."""
    for last in (False, True):
        data = read_own(path)
        try:
            return parse(data)
        except MemoryError as error:
            raise unreadable(path, error) from error
        except Exception:  # whatever stands for "damaged" with this parser, which passes unchanged
            if last:
                raise
    raise AssertionError("unreachable")


def size_of(path: str | Path) -> int:
    """Bytes of the file ``path``; FileNotFoundError where there is none, Unreadable where that cannot be found out."""
    try:
        return patiently(path, os.stat).st_size
    except OSError as error:
        raise missing_or_unreadable(path, error) from error


def is_there(path: str | Path) -> bool:
    """Whether something stands at ``path``; Unreadable where that cannot be found out."""
    try:
        patiently(path, os.stat)
    except OSError as error:
        if error.errno in MISSING | {errno.ENAMETOOLONG}:
            return False
        raise unreadable(path, error) from error
    return True


def missing_or_unreadable(path: str | Path, error: OSError) -> Exception:
    """What to raise for ``error``: a FileNotFoundError as it is, else :class:`Unreadable`."""
    if error.errno in MISSING:
        return error if isinstance(error, FileNotFoundError) else FileNotFoundError(*error.args)
    return unreadable(path, error)


def unreadable(path: str | Path, error: BaseException) -> Unreadable:
    """The error of a file that is there and cannot be read now."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unreadable(
        f"{path} cannot be read: {reason}",
        "a disk or mount that answers, and a file that this user may read",
        "nothing was changed; mend the storage or the permissions (mount, chmod), then type the same command again",
    )


def _read(path: str, most: int | None) -> bytes:
    # Few system calls: open().read() also seeks and asks whether it is a terminal. A pipe without a writer would wait for
    # ever when opened, and a device may have no end.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            kind = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(kind, f"it is {kind_of(status.st_mode)}, not a regular file", path)
        size = status.st_size
        if size == 0:  # empty, or made up by the kernel (/proc), where reading might never end
            return b""
        _check_size(size, most, path)
        data = os.read(file, size + 1)
        if len(data) == size:  # all of it, and one more byte was asked for
            return data
        parts = [data]
        while parts[-1]:  # it has grown or shrunk, or the system hands it out in pieces
            parts.append(os.read(file, 1 << 20))
            _check_size(size := size + len(parts[-1]), most, path)  # one that grows for ever ends here
        return b"".join(parts)
    finally:
        os.close(file)


def read_given(path: str | Path, *, most: int) -> bytes:
    """As :func:`read_file`, for files that a person names one by one: a pipe that the shell has opened for this process
    (``<(...)``, ``... | predict RUN /dev/stdin``) is read to its end, as long as it is not silent for long."""
    number = _own_descriptor(str(path))
    if number is None or not stat.S_ISFIFO(os.fstat(number).st_mode):
        return read_file(path, final=FORBIDDEN, most=most)
    parts: list[bytes] = []
    size = 0
    while True:
        if not select.select([number], [], [], _SILENT_SECONDS)[0]:
            raise OSError(errno.ETIMEDOUT, f"nothing came through the pipe for {_SILENT_SECONDS:g} s", str(path))
        parts.append(os.read(number, 1 << 20))
        if not parts[-1]:
            return b"".join(parts)
        _check_size(size := size + len(parts[-1]), most, str(path))


def _check_size(size: int, most: int | None, path: str) -> None:
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has more than {most / 2**20:,.0f} MiB, the most that is read", path)


def kind_of(mode: int) -> str:
    """What ``mode`` of a file says it is: "a pipe", "a device", ..."""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
    return {**kinds, stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}.get(stat.S_IFMT(mode), "a regular file")


def user_path(text: str | Path) -> Path:
    """``text`` as a path, with ``~`` for the home folder, which shells leave as it is in ``--out=~/x``.

    A file that is there and is called ``~name`` is itself. StorageError where there is no such home, for an empty text,
    and for what no file can be called (a NUL, more than 255 bytes).
    """
    if not str(text):
        raise StorageError("an empty path", "the name of a file or folder", "write it out; . is the current folder")
    path = Path(text)
    _check_name(path)
    if not str(text).startswith("~"):
        return path
    try:
        return path.expanduser()
    except RuntimeError as error:
        if os.path.lexists(path):
            return path
        raise StorageError(
            f"{text}: {error}",
            "a path without ~, or a user with a home",
            f"write the path out; ./{text} is in this folder",
        ) from None


def _check_name(path: Path) -> None:
    """StorageError for what no file can be called; Python's own checks whether a file is there raise for some of that."""
    if "\0" in str(path):
        raise StorageError(f"the path {str(path)!r} holds a NUL", "a path without one", "mend the name")
    try:
        size, longest = len(os.fsencode(path)), max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError as error:
        raise StorageError(
            f"the path {str(path)!r}: {error.reason}", f"characters that {error.encoding} has", "mend the name"
        ) from None
    if size > _LONGEST_PATH or longest > _LONGEST_NAME:
        raise StorageError(
            f"the path {str(path)[:60]!r}... has {size:,} bytes",
            f"{_LONGEST_PATH:,} bytes, and {_LONGEST_NAME} for each name in it",
            "give a shorter one",
        )


def write_for_user(target: str | Path, content: Content) -> None:
    """Writes ``content`` to what a person named: ``-`` is the standard output, anything else a file
    (:func:`user_path`, :func:`write_whole`)."""
    if target != STDOUT:
        write_whole(user_path(target), content)
        return
    sys.stdout.flush()
    _put(sys.stdout.buffer, content)
    sys.stdout.buffer.flush()


def write_whole(path: str | Path, content: Content, *, durable: bool = True) -> None:
    """Writes ``content`` (bytes, text as UTF-8, or a function that writes to a binary file) to ``path``.

    Whoever reads ``path`` sees the old file or the whole new one, also after a kill; with ``durable`` also after a power
    cut. A link is followed; a pipe or a device is written through. StorageError where it cannot be written, and nothing is
    left of it then.
    """
    path = Path(path)
    try:
        if (number := _own_descriptor(str(path))) is not None:
            sys.stdout.flush()
            with os.fdopen(os.dup(number), "wb") as out:
                _put(out, content)
            return
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a folder stands there", str(path))
        if not stat.S_ISREG(mode):
            _write_through(target, content)
            return
        _replace(target, content, durable)
    except OSError as error:
        raise unwritable(path, error) from error


def write_json(path: str | Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes ``content`` as readable JSON, as :func:`write_whole` does."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=durable)


def make_folder(path: str | Path) -> None:
    """Makes the folder ``path`` in one that is there; StorageError where it cannot be made.

    Without the folders above it: a run directory that was moved or deleted must not come back in its old place.
    """
    try:
        os.mkdir(path)
    except FileExistsError as error:
        if not os.path.isdir(path):
            raise unwritable(path, error) from error
    except OSError as error:
        raise unwritable(path, error) from error


def make_folders(path: str | Path) -> None:
    """Makes the folder ``path`` and those above it; StorageError where one cannot be made."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise unwritable(error.filename or path, error) from error


def unwritable(path: str | Path, error: OSError) -> StorageError:
    """The error of a file that cannot be written, with what to do about it."""
    folder = Path(path).parent
    if not folder.is_dir():
        return StorageError(
            f"{path} cannot be written: {error.strerror or error}; the folder {folder} is not there",
            "a folder that exists and stays where it is",
            "if it was moved or deleted meanwhile, put it back; else make it, or give another place",
        )
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}",
        "a disk with room, at a place that this user may write",
        "make room or mend the permissions, or give another place; nothing saved so far is lost",
    )


def _own_descriptor(path: str) -> int | None:
    """The number of this process's open file that ``path`` is a name of (/dev/stdout, /dev/fd/3), or None.

    What such a name leads to may be a pipe without a name, or a file that others write to as well: it is written where it
    stands, and opened by no other name.
    """
    for _ in range(40):  # links that the system follows at most
        folder, name = os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path)
        if name.isdigit() and folder in (f"/proc/{os.getpid()}/fd", "/dev/fd"):
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _write_through(target: Path, content: Content) -> None:
    # Without O_NONBLOCK, opening a pipe that nobody reads would wait for ever; with it, it is an error with a name.
    file = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(file, True)
    with os.fdopen(file, "wb") as out:
        _put(out, content)


def temporary_name(target: Path) -> Path:
    """Where ``target`` is written before it takes its place: a hidden name of this process's own beside it."""
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _replace(target: Path, content: Content, durable: bool) -> None:
    temporary = temporary_name(target)
    try:
        with temporary.open("wb") as out:
            _put(out, content)
            out.flush()
            if durable:
                os.fsync(out.fileno())
        os.replace(temporary, target)
    except BaseException:
        remove_quietly(temporary)
        raise
    if durable:
        sync_directory(target.parent)


def _put(out: BinaryIO, content: Content) -> None:
    if callable(content):
        content(cast(BinaryIO, out))
    else:
        out.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def remove_quietly(path: Path) -> None:
    """Removes the file ``path`` as far as that works: what is under way matters more."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def sync_directory(path: str | Path) -> None:
    """Brings the entries of the folder ``path`` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, bytes_needed: int) -> None:
    """Raises StorageError unless the disk of ``folder``, which need not exist yet, has ``bytes_needed`` bytes free."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < bytes_needed:
        raise StorageError(
            f"{free / 1e9:.3g} GB are free in {there}",
            f"{bytes_needed / 1e9:.3g} GB, for the checkpoints and files of the run",
            f"free {(bytes_needed - free) / 1e9:.3g} GB, choose another disk with --out, or lower checkpoints.keep",
        )
