from __future__ import annotations

import errno
import resource

import numpy as np
import pytest
import torch

from stagewright.system.memory import out_of_memory
from stagewright.system.surroundings import as_storage_error, memory_advice, says_out_of_memory


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "could not create a primitive",
        "could not create a memory object",
        "std::bad_alloc",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "unable to mmap 1024 bytes from file: Cannot allocate memory (12)",
        "Failed to allocate memory for requested buffer",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA error: out of memory (cudaErrorMemoryAllocation)",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 1 GB)",
    ],
)
def test_every_spelling_is_a_lack_of_memory(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    message = as_storage_error(RuntimeError(text))
    assert message is not None and "enough memory" in message.allowed and "image_size" not in message.remedy


@pytest.mark.parametrize(
    "text",
    [
        "libtorch_cpu.so: failed to map segment from shared object",
        "/x/libz.so: cannot allocate memory",
        "libx.so: cannot create shared object descriptor: Cannot allocate memory",
    ],
)
def test_a_library_that_does_not_fit_is_a_lack_of_memory(text: str) -> None:
    message = as_storage_error(ImportError(text))
    assert message is not None and "enough memory" in message.allowed
    for other in ("No module named 'x'", "libx.so: cannot allocate memory in static TLS block"):
        assert as_storage_error(ImportError(other)) is None


def test_what_torch_and_numpy_raise_themselves() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**52)
    assert out_of_memory(error.value)
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(2**52)
    assert says_out_of_memory(numpy_error.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("can't start new thread"),
        ValueError("out of memory"),
        OSError("x"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_other_errors_are_none(error: Exception) -> None:
    assert not out_of_memory(error)


def test_the_system_says_it_too() -> None:
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_no_more_threads() -> None:
    message = as_storage_error(RuntimeError("can't start new thread"))
    assert message is not None and "threads" in message.allowed and "--workers" in message.remedy


def test_a_smaller_image_is_advised_for_large_ones_only() -> None:
    for device in ("cpu", "cuda:0"):
        assert "image_size" not in memory_advice(device, 192)[1]
        assert "image_size" in memory_advice(device, 1024)[1]
    assert "nvidia-smi" in memory_advice("cuda:0", 192)[1] and "ulimit -v" in memory_advice("cpu", 192)[1]


def test_an_address_space_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(spare: int) -> None:
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + spare, used + spare))

    strange = SystemError("error return without exception set")
    assert as_storage_error(strange) is None, "without a limit it is a bug of ours"
    limited(1 << 50)
    assert as_storage_error(strange) is None
    limited(100 << 20)
    message = as_storage_error(strange)
    assert message is not None and "Cannot allocate memory" in message.given
