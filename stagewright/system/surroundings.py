"""Errors of the environment (disks, permissions, memory, mounts): separates them from bugs and explains them to the user."""

from __future__ import annotations

import errno
import os

from stagewright.errors import StorageError

_REMEDIES: dict[int, tuple[str, str]] = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        ("a disk with free space, within the quota and the file size limit", "free some space"),
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        (
            "a file or folder that this user may read and write",
            "correct the permissions or the mount (chmod, chown, mount)",
        ),
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), ("enough open files", "allow more (ulimit -n), or end other programs")
    ),
    errno.ENOMEM: ("enough memory", "end other programs, take a smaller batch or fewer --workers, or a larger machine"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR), ("files that stay where they are", "move it back, or check the path")
    ),
    **dict.fromkeys(
        (
            *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EBUSY),
            *(errno.EREMOTEIO, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOLCK, errno.ESHUTDOWN),
        ),
        ("a disk or mount that answers", "repair the storage or the connection (dmesg, mount)"),
    ),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), ("a path that the file system accepts", "give another path")),
    errno.EAGAIN: ("enough processes and threads", "allow more (ulimit -u), or end other programs"),
}


_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, cuBLAS, cuDNN, the CUDA driver
    "can't allocate memory",  # torch's allocator on a CPU
    "cannot allocate memory",  # the system's words
    "unable to allocate",  # NumPy
    "not enough memory",
    "bad_alloc",  # C++
    "could not create a primitive",  # oneDNN, whose scratch memory could not be had
    "could not create a memory",  # oneDNN
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "failed to allocate",
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a lack of memory, in the words of Python, torch, NumPy, oneDNN, C++ or CUDA."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )


def as_storage_error(error: OSError | MemoryError | RuntimeError) -> StorageError | None:
    """The message for a fault of the surroundings; None where ``error`` is no such fault, and so one of our own."""
    if not isinstance(error, OSError):
        if not says_out_of_memory(error):
            return None
        number, reason, place = errno.ENOMEM, os.strerror(errno.ENOMEM), None
    else:
        number, reason = error.errno, error.strerror
        place = next((path for path in (error.filename2, error.filename) if isinstance(path, str | bytes)), None)
    # "No such file" without a file name is not an error of the environment.
    if number not in _REMEDIES or (place is None and number in (errno.ENOENT, errno.ENOTDIR)):
        return None
    allowed, remedy = _REMEDIES[number]
    where = "the system refused an operation" if place is None else os.fsdecode(place)
    return StorageError(f"{where}: {reason}", allowed, f"{remedy}, then give the command again; what was saved is safe")
