"""Devices by name."""

from __future__ import annotations

import torch

from stagewright.errors import RecipeError


def choose_device(asked: str) -> torch.device:
    """The device named, or for ``auto`` CUDA where there is some; RecipeError for a device that is not there."""
    available = ["cpu"] + [f"cuda:{at}" for at in range(torch.cuda.device_count())]
    if asked == "auto":
        return torch.device("cuda" if len(available) > 1 else "cpu")
    if asked not in available and not (asked == "cuda" and len(available) > 1):
        raise RecipeError(f"--device {asked}", f"auto, {', '.join(available)} on this machine", "choose one of them")
    return torch.device(asked)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it; for a CPU the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
