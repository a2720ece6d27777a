from __future__ import annotations

import numpy as np
import pytest
import torch

from stagewright.system.memory import out_of_memory
from stagewright.system.surroundings import as_storage_error, says_out_of_memory


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
    ],
)
def test_every_spelling_is_a_lack_of_memory(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    message = as_storage_error(RuntimeError(text))
    assert message is not None and "enough memory" in message.allowed and "image_size" not in message.remedy


def test_what_torch_and_numpy_raise_themselves() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**52)
    assert out_of_memory(error.value)
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(2**52)
    assert says_out_of_memory(numpy_error.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), OSError("x")])
def test_other_errors_are_none(error: Exception) -> None:
    assert not out_of_memory(error)
