"""Reading and writing of whole files; all other modules use these functions.

Two conventions. A failed read does not mean a damaged file: errors that may be temporary (a disk error, a stale mount, no
free file descriptor, missing permission) are retried and then raised as :class:`~stagewright.errors.Unreadable`, which no
caller treats as damage. And a file is written under a temporary name in the same folder, then renamed to its final name,
so that it is complete or absent. If the target is not a regular file (a pipe, a device), the content is written into it;
if it is a link, the file behind the link is written. Neither is replaced.
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
"""Seconds to wait before each new attempt after a failed read."""

MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Error numbers that mean "no such file"; a new attempt would not help."""
_NEVER_RETRIED = MISSING | {errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.ENXIO}
# For image files a missing permission is not retried: with the pauses, 60,000 such files would take days.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Limits in bytes that hold on all common systems."""
_SILENT_SECONDS = 30.0
STDOUT = "-"
"""The file name that means standard output."""

ALL_ERRNOS = frozenset(errno.errorcode)
"""Every error number; passed as ``final``, it means that no read is retried."""

Content = bytes | str | Callable[[BinaryIO], object]


def retry_io(path: str | Path, read: Callable[[str], T], *, final: frozenset[int] = frozenset()) -> T:
    """Returns ``read(path)``, retrying after an OSError or MemoryError: up to four attempts within 3 seconds.

    Not retried are errors that mean "no such file" and those whose error number is in ``final``. After the last attempt it
    raises OSError with the number of attempts and the path.
    """
    for pause in (*PAUSES, None):
        try:
            return read(str(path))
        except MemoryError:
            error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
        except OSError as problem:
            if problem.errno in _NEVER_RETRIED | final:
                raise
            error = problem
        if pause is None:
            reason = f"{error.strerror or error}, {len(PAUSES) + 1} attempts"
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def read_file(path: str | Path, *, final: frozenset[int] = frozenset(), most: int | None = None) -> bytes:
    """Returns the bytes of the regular file ``path``, with retries (:func:`retry_io`). OSError if it cannot be read, is a
    pipe or a device, or has more than ``most`` bytes."""
    return retry_io(path, lambda name: _read(name, most), final=final)


def read_own(path: str | Path) -> bytes:
    """Returns the bytes of a file that stagewright has written. FileNotFoundError if it does not exist; :class:`Unreadable`
    if it exists but cannot be read now, which does not mean that it is damaged."""
    try:
        return read_file(path)
    except OSError as error:
        raise missing_or_unreadable(path, error) from error


def read_parsed(path: str | Path, parse: Callable[[bytes], T]) -> T:
    """Returns ``parse(data)`` for the bytes of the file ``path``, read by :func:`read_own`.

    If ``parse`` raises, the file is read and parsed a second time before the error is passed on, since a disk may return
    wrong bytes without an error. Unreadable if memory runs out.
    """
    for last in (False, True):
        data = read_own(path)
        try:
            return parse(data)
        except MemoryError as error:
            raise unreadable(path, error) from error
        except Exception:  # whichever exception means "damaged" with this parser; it is passed on unchanged
            if last:
                raise
    raise AssertionError("unreachable")


def size_of(path: str | Path) -> int:
    """Returns the size of ``path`` in bytes; FileNotFoundError if it does not exist, Unreadable if the system cannot tell
    now."""
    try:
        return retry_io(path, os.stat).st_size
    except OSError as error:
        raise missing_or_unreadable(path, error) from error


def is_there(path: str | Path) -> bool:
    """Whether ``path`` exists; Unreadable if the system cannot tell now."""
    try:
        retry_io(path, os.stat)
    except OSError as error:
        if error.errno in MISSING | {errno.ENAMETOOLONG}:
            return False
        raise unreadable(path, error) from error
    return True


def missing_or_unreadable(path: str | Path, error: OSError) -> Exception:
    """Returns the exception to raise for ``error``: FileNotFoundError if the file does not exist, else :class:`Unreadable`."""
    if error.errno in MISSING:
        return error if isinstance(error, FileNotFoundError) else FileNotFoundError(*error.args)
    return unreadable(path, error)


def unreadable(path: str | Path, error: BaseException) -> Unreadable:
    """Returns the error for a file that exists but cannot be read now."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unreadable(
        f"{path} cannot be read: {reason}",
        "a disk or mount that answers, and a file that this user may read",
        "nothing was changed; repair the storage or the permissions (mount, chmod), then give the same command again",
    )


def _read(path: str, most: int | None) -> bytes:
    # os.open and os.read need fewer system calls than open().read(), which also seeks and checks for a terminal. Without
    # O_NONBLOCK, opening a pipe that has no writer would wait for ever. Devices are refused, as they may never end.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            kind = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(kind, f"it is {kind_of(status.st_mode)}, not a regular file", path)
        size = status.st_size
        if size == 0:  # empty, or generated by the kernel (/proc), where reading might never end
            return b""
        check_size(size, most, path)
        data = os.read(file, size + 1)
        if len(data) == size:  # one more byte was requested, so this is the whole file
            return data
        parts = [data]
        while parts[-1]:  # the file has grown or shrunk, or the system returns it in pieces
            parts.append(os.read(file, 1 << 20))
            check_size(size := size + len(parts[-1]), most, path)  # stops a file that never ends
        return b"".join(parts)
    finally:
        os.close(file)


def read_user_file(path: str | Path, *, most: int) -> bytes:
    """Returns the bytes of a file that the user has named on the command line, like :func:`read_file`; also of a pipe that the
    shell has opened (``<(...)``, ``... | predict RUN /dev/stdin``), to its end. OSError if nothing arrives for 30 s."""
    number = own_descriptor(str(path))
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
        check_size(size := size + len(parts[-1]), most, str(path))


def check_size(size: int, most: int | None, path: str) -> None:
    """Raises OSError if a file at ``path`` has more than ``most`` bytes."""
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has more than {most / 2**20:,.0f} MiB, the most that is read", path)


def kind_of(mode: int) -> str:
    """Returns the kind of file that ``mode`` (``st_mode``) describes: "a pipe", "a device", ..."""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
    return {**kinds, stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}.get(stat.S_IFMT(mode), "a regular file")


def user_path(text: str | os.PathLike[str]) -> Path:
    """Returns ``text`` as a path in which ``~`` is replaced by the home folder; shells do not do that in ``--out=~/x``.

    An existing file whose name begins with ``~`` is returned as it is. StorageError if there is no such home folder, if the
    text is empty or blank, and for names that no file can have (a NUL byte, more than 255 bytes).
    """
    text = os.fspath(text)
    if not text.strip():
        raise StorageError("an empty path", "the name of a file or folder", "write it out; . is the current folder")
    path = Path(text)
    _check_name(path)
    if not text.startswith("~"):
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
    """Raises StorageError for names that no file can have; ``Path.exists`` would raise ValueError or OSError for some."""
    if "\0" in str(path):
        raise StorageError(f"the path {str(path)!r} contains a NUL byte", "a path without it", "correct the name")
    try:
        size, longest = len(os.fsencode(path)), max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError as error:
        raise StorageError(
            f"the path {str(path)!r}: {error.reason}", f"characters of {error.encoding}", "correct the name"
        ) from None
    if size > _LONGEST_PATH or longest > _LONGEST_NAME:
        raise StorageError(
            f"the path {str(path)[:60]!r}... has {size:,} bytes",
            f"at most {_LONGEST_PATH:,} bytes, and {_LONGEST_NAME} for each name in it",
            "give a shorter path",
        )


def write_for_user(target: str | Path, content: Content) -> None:
    """Writes ``content`` to the target that the user has named: standard output for ``-``, else a file (:func:`user_path`,
    :func:`write_whole`)."""
    if target != STDOUT:
        write_whole(user_path(target), content)
        return
    sys.stdout.flush()
    _put(sys.stdout.buffer, content)
    sys.stdout.buffer.flush()


def write_whole(path: str | Path, content: Content, *, durable: bool = True) -> None:
    """Writes ``content`` (bytes, text as UTF-8, or a function that writes to a binary file) to ``path``.

    A reader of ``path`` sees either the old file or the complete new one, even if the process is killed; with ``durable``
    also after a power failure. If ``path`` is a link, the file behind it is written; a pipe or device is written into.
    StorageError if it cannot be written; then no part of the new file stays.
    """
    path = Path(path)
    try:
        if (number := own_descriptor(str(path))) is not None:
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
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            _write_through(target, content)
            return
        _replace(target, content, durable)
    except OSError as error:
        raise unwritable(path, error) from error


def write_json(path: str | Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes ``content`` as indented JSON by :func:`write_whole`."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=durable)


def make_folder(path: str | Path) -> None:
    """Creates the folder ``path``, whose parent folder must exist; StorageError if that is impossible.

    It does not create parent folders: a run directory that was moved or deleted must not reappear in its old place.
    """
    try:
        os.mkdir(path)
    except FileExistsError as error:
        if not os.path.isdir(path):
            raise unwritable(path, error) from error
    except OSError as error:
        raise unwritable(path, error) from error


def make_folders(path: str | Path) -> None:
    """Creates the folder ``path`` and its parent folders; StorageError if one cannot be created."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise unwritable(error.filename or path, error) from error


def unwritable(path: str | Path, error: OSError) -> StorageError:
    """Returns the error for a file that cannot be written, with what to do."""
    folder = Path(path).parent
    if not folder.is_dir():
        return StorageError(
            f"{path} cannot be written: {error.strerror or error}; the folder {folder} does not exist",
            "a folder that exists and stays where it is",
            "if it was moved or deleted meanwhile, move it back; else create it, or give another path",
        )
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}",
        "a disk with free space, and a folder that this user may write",
        "free some space or correct the permissions, or give another path; nothing saved so far is lost",
    )


def own_descriptor(path: str) -> int | None:
    """Returns the number of this process's file descriptor that ``path`` names (/dev/stdout, /dev/fd/3), or None.

    Such a descriptor may be an unnamed pipe, or a file that other programs write to as well. It must be written through
    the descriptor and not be opened or replaced by name.
    """
    for _ in range(40):  # the largest number of links that Linux follows
        folder, name = os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path)
        if name.isdigit() and folder in (f"/proc/{os.getpid()}/fd", "/dev/fd"):
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _write_through(target: Path, content: Content) -> None:
    # Without O_NONBLOCK, opening a pipe that nobody reads would wait for ever; with it, opening raises an error.
    file = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(file, True)
    with os.fdopen(file, "wb") as out:
        _put(out, content)


def temporary_name(target: Path) -> Path:
    """Returns the name under which ``target`` is written before it is renamed: hidden, in the same folder, with the process
    id."""
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
    """Removes the file ``path`` and ignores errors, so that an error in progress is not hidden by another one."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def sync_directory(path: str | Path) -> None:
    """Waits until the entries of the folder ``path`` (new and renamed files) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, bytes_needed: int) -> None:
    """Raises StorageError unless the disk of ``folder`` has ``bytes_needed`` free bytes; ``folder`` need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < bytes_needed:
        raise StorageError(
            f"only {free / 1e9:.3g} GB are free in {existing}",
            f"at least {bytes_needed / 1e9:.3g} GB, for the checkpoints and files of the run",
            f"free {(bytes_needed - free) / 1e9:.3g} GB, choose another disk with --out, or lower checkpoints.keep",
        )
