"""Memory in use now, and the peak since the last reset. All values are in GiB.

On CUDA this is the memory that torch has allocated on the device. On a CPU it is this process's resident memory as Linux
reports it. That is only approximate: it includes the libraries, and freed memory that is kept for reuse. On other systems
than Linux it is 0.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from stagewright.system.surroundings import says_out_of_memory

Points = dict[str, dict[str, float]]
"""Results of :func:`memory_in_use`, keyed by the moment of the measurement, e.g. ``before the model``."""

_GIB = 2**30
_STATUS = Path("/proc/self/status")


def num_bytes(tensors: object) -> int:
    """Returns the total size in bytes of the tensors nested in ``tensors`` (dicts, lists, tuples). A checkpoint of them is
    only some kilobytes larger."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    if isinstance(tensors, dict):
        return sum(map(num_bytes, tensors.values()))
    return sum(map(num_bytes, tensors)) if isinstance(tensors, list | tuple) else 0


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Returns ``{"allocated_gb", "reserved_gb", "peak_gb"}`` for a CUDA device, or ``{"resident_gb", "peak_gb"}`` of this
    process for a CPU."""
    if device.type == "cuda":
        now, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        read = {"allocated_gb": now, "reserved_gb": reserved, "peak_gb": torch.cuda.max_memory_allocated(device)}
        return {name: round(value / _GIB, 3) for name, value in read.items()}
    return {"resident_gb": round(_resident("VmRSS"), 3), "peak_gb": round(_resident("VmHWM"), 3)}


def peak_gb(device: torch.device) -> float:
    """Returns the highest memory use since :func:`reset_peak`, or since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return _resident("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Resets the peak, so that :func:`peak_gb` returns the highest use from now on (on a CPU only if Linux permits it)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the highest resident size, and nothing else


def _resident(name: str) -> float:
    """Returns VmRSS (current) or VmHWM (highest) resident memory of this process in GiB; 0 if Linux does not report it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0.0
    kilobytes = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "0")
    return int(kilobytes) * 1024 / _GIB


def memory_gb(device: torch.device) -> float:
    """Returns the memory in use: the peak allocated on a CUDA device, or this process's resident memory on a CPU."""
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
