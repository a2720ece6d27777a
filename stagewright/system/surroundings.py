"""Errors of the environment (disks, permissions, memory, mounts): separates them from bugs and explains them to the user."""

from __future__ import annotations

import errno
import os
import re
import resource

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


_LARGE_IMAGE = 512
"""Side in pixels above which one image can be what fills the memory."""

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, cuBLAS, cuDNN, the CUDA driver
    "can't allocate memory",  # torch's allocator on a CPU
    "cannot allocate memory",  # the system's words
    "unable to allocate",  # NumPy
    "not enough memory",
    "bad_alloc",  # C++
    "could not create a memory",  # oneDNN
    "out_of_memory",  # CUDA_ERROR_OUT_OF_MEMORY
    "cudaerrormemoryallocation",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED
    "when calling `cublascreate(handle)`",  # cuBLAS finds no memory for its workspace: CUBLAS_STATUS_NOT_INITIALIZED
    "failed to allocate",
)
# oneDNN, whose scratch memory could not be had; "... primitive descriptor" means a shape that it does not support.
_NO_PRIMITIVE = re.compile(r"could not create a primitive(?! descriptor)")
# The dynamic linker, whose "static TLS block" is another lack.
_NO_LIBRARY = re.compile(
    r"failed to map segment|cannot allocate memory(?! in static tls)|cannot create shared object desc"
)
_NO_THREAD = "can't start new thread"


def says_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a lack of memory, in the words of Python, torch, NumPy, oneDNN, C++, CUDA or the system."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    if isinstance(error, ImportError):
        return _NO_LIBRARY.search(text) is not None
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (any(words in text for words in _OUT_OF_MEMORY) or _NO_PRIMITIVE.search(text) is not None)
    )


def memory_advice(device: str, image_size: int) -> tuple[str, str]:
    """Returns what is allowed and what to do where ``device`` has no memory for even one image of ``image_size`` pixels.

    A smaller image is advised only for large ones: one usual image needs little, so the memory is used by something else.
    """
    free = (
        "end other programs on the device (nvidia-smi lists them)"
        if device.startswith("cuda")
        else "end other programs, take fewer --workers, or raise the limit (ulimit -v, that of the container or the job)"
    )
    smaller = "a smaller image_size, " if image_size >= _LARGE_IMAGE else ""
    return (
        "enough free memory for the network and one picture",
        f"{free}; or take {smaller}a smaller network or another device",
    )


_LITTLE = 512 << 20
"""Bytes below which the rest of a limited address space is next to nothing: torch's libraries take more."""


def address_space_is_full() -> bool:
    """Whether this process has a limit of memory (``ulimit -v``) and has nearly reached it. Libraries then fail in any way."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return False
    try:
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return False
    return limit - used < max(_LITTLE, limit // 10)


def as_storage_error(error: Exception) -> StorageError | None:
    """The message for a fault of the surroundings; None where ``error`` is no such fault, and so one of our own."""
    if not isinstance(error, OSError):
        if _NO_THREAD in str(error):
            allowed, remedy = _REMEDIES[errno.EAGAIN]
            return StorageError(
                f"the system refused to start a thread: {error}", allowed, f"{remedy}, or take fewer --workers"
            )
        if not says_out_of_memory(error) and not address_space_is_full():
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
