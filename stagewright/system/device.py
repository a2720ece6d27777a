"""Finds the torch device of a name, and the name of a device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stagewright.errors import RecipeError, StorageError


def choose_device(asked: str) -> torch.device:
    """Returns the device named ``asked``; for ``auto`` a CUDA device if there is one, else the CPU. RecipeError if this
    machine does not have the device."""
    available = ["cpu"] + [f"cuda:{at}" for at in range(torch.cuda.device_count())]
    if asked == "auto":
        return torch.device("cuda" if len(available) > 1 else "cpu")
    if asked not in available and not (asked == "cuda" and len(available) > 1):
        raise RecipeError(f"--device {asked}", f"auto, {', '.join(available)} on this machine", "choose one of them")
    return torch.device(asked)


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Context manager in which torch computes with ``threads`` threads on the CPU; None: with as many as before."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def require_known_processor() -> None:
    """StorageError if torch cannot learn what the processor can do: its kernels are then several times slower, and the bits of a
    training are others than on the same machine elsewhere."""
    if sys.platform == "linux" and not os.path.exists("/proc/cpuinfo"):
        raise StorageError(
            "/proc/cpuinfo does not exist, so torch does not know this processor: it would compute slowly, and other bits",
            "a system with /proc",
            "mount it (mount -t proc proc /proc), or let the container have it",
        )


def device_name(device: torch.device) -> str:
    """Returns the product name of a CUDA device; for a CPU the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"CPU, {count} {'threads' if count > 1 else 'thread'}"
