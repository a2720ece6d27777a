"""Memory: what is in use now, and the highest use since it was last asked to begin anew.

On CUDA that is what torch has allocated on the device. On a CPU it is this process's resident memory as Linux counts it:
best effort, since it holds the libraries too and does not shrink where freed memory is kept for the next use; elsewhere
than on Linux it is 0. All in GiB.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from stagewright.system.surroundings import says_out_of_memory

Points = dict[str, dict[str, float]]
"""What :func:`memory_in_use` gave, by the moment at which it was asked, e.g. ``before the model``."""

_GIB = 2**30
_STATUS = Path("/proc/self/status")


def num_bytes(tensors: object) -> int:
    """Bytes of the tensors nested in ``tensors``: the size of their checkpoint but for some kilobytes."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    if isinstance(tensors, dict):
        return sum(map(num_bytes, tensors.values()))
    return sum(map(num_bytes, tensors)) if isinstance(tensors, list | tuple) else 0


def memory_in_use(device: torch.device) -> dict[str, float]:
    """``{"allocated_gb", "reserved_gb", "peak_gb"}`` of a CUDA device, ``{"resident_gb", "peak_gb"}`` of this process."""
    if device.type == "cuda":
        now, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        read = {"allocated_gb": now, "reserved_gb": reserved, "peak_gb": torch.cuda.max_memory_allocated(device)}
        return {name: round(value / _GIB, 3) for name, value in read.items()}
    return {"resident_gb": round(_resident("VmRSS"), 3), "peak_gb": round(_resident("VmHWM"), 3)}


def peak_gb(device: torch.device) -> float:
    """Highest use since :func:`begin_peak`, or since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return _resident("VmHWM")


def begin_peak(device: torch.device) -> None:
    """From now on :func:`peak_gb` says the highest use after this moment (on a CPU, where Linux allows to)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the highest resident size, and nothing else


def _resident(name: str) -> float:
    """VmRSS (now) or VmHWM (highest) of this process."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0.0
    kilobytes = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "0")
    return int(kilobytes) * 1024 / _GIB


def memory_gb(device: torch.device) -> float:
    """GiB in use: the peak allocated on a CUDA device, this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 2**30


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(error)
