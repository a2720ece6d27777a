"""Runs measurements before a training without side effects: random states and torch's settings are restored afterwards."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def preserve_global_state() -> Iterator[None]:
    """Context manager that restores global state at its end: the random states of torch (CPU and CUDA), NumPy and Python, and
    the settings that :func:`stagewright.engine.numerics.prepare_torch` changes. It also frees torch's cached CUDA memory."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    matmul = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_WORKSPACE)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_float32_matmul_precision(matmul)
        cudnn.benchmark, cudnn.deterministic = flags
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()
