"""The command ``doctor``: reports what stagewright finds on this machine, and what could be faster."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagewright.data.images import crop, native
from stagewright.data.images.stored import Stored
from stagewright.errors import StorageError
from stagewright.rundir.environment import environment
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import make_folders
from stagewright.text import number_text

_SIZE = 224
_PHOTO = (500, 375)
_CACHE_BYTES = 10**9


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    good: bool
    """False if something could be improved."""
    text: str
    fails: bool = False
    """Whether a run will fail here."""

    @property
    def verdict(self) -> str:
        """``ok``, ``slow``: a run works, and something could be improved, or ``will fail``."""
        return "ok" if self.good else "will fail" if self.fails else "slow"


def run_checks(*, seconds: float = 0.5) -> list[Check]:
    """Checks versions, devices, the decoder and the cache; measures each decoder for ``seconds``."""
    import torch

    from stagewright.engine.numerics import auto_precision
    from stagewright.system.device import choose_device, device_name

    device = choose_device("auto")
    found = environment("", [], str(device), device_name(device))
    versions = ", ".join(f"{name} {found[name]}" for name in ("stagewright", "torch", "torchvision", "timm", "pillow"))
    memory = f", {found['ram_gb']:g} GB" if found["ram_gb"] else ""
    on_gpu = device.type == "cuda"
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    checks = [
        Check("versions", True, f"{versions}, Python {found['python']}"),
        Check("machine", True, f"{found['cpu']}, {found['cores']} cores{memory}"),
        Check(
            "device",
            on_gpu,
            f"{device_name(device)}, {auto_precision(device)}"
            + ("" if on_gpu else f": torch finds no CUDA device (it was {built})"),
        ),
        cache_check(cache_folder()),
    ]
    return [*checks, decoder(seconds)]


def cache_check(folder: Path) -> Check:
    """Returns whether the cache can be written to ``folder`` and has 1 GB to grow; the folder is created if it is missing."""
    remedy = "set STAGEWRIGHT_CACHE to a folder that can be written; without a cache every run reads all pictures again"
    try:
        make_folders(folder)
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (StorageError, OSError) as error:
        reason = error.given if isinstance(error, StorageError) else f"{folder}: {error.strerror or error}"
        return Check("cache", False, f"{reason}. To improve this: {remedy}")
    room = f"{folder}, {free / 1e9:,.1f} GB free"
    if free < _CACHE_BYTES:
        return Check(
            "cache", False, f"{room}. To improve this: free some space, or set STAGEWRIGHT_CACHE to another disk"
        )
    return Check("cache", True, room)


def decoder(seconds: float) -> Check:
    """Returns which decoder is active, its speed on one thread, and that of the other decoder."""
    slow = _speed(seconds, with_native=False)
    if not native.available():
        remedy = (
            "unset STAGEWRIGHT_NATIVE"
            if native.switched_off()
            else "install a C compiler, Python's headers and libjpeg's (Debian: gcc python3-dev libjpeg-dev), then install "
            "stagewright again"
        )
        return Check(
            "decoder",
            False,
            f"{native.describe()}. {number_text(slow)} crops/s on one thread. To improve this: {remedy}; the native decoder "
            "is two to three times as fast",
        )
    fast = _speed(seconds, with_native=True)
    times = f"{fast / slow:.1f} times Pillow's {number_text(slow)}"
    return Check("decoder", True, f"{native.describe()}. {number_text(fast)} crops/s on one thread, {times}")


def _speed(seconds: float, *, with_native: bool) -> float:
    """Returns the number of crops to 224 px per second, of a synthetic photograph of 500 x 375."""
    data = _photograph()
    count = 8
    lengths = np.full(count, len(data), np.int64)
    stored = Stored("encoded", [data], np.zeros(count, np.int32), np.zeros(count, np.int64), lengths)
    boxes = np.tile(np.array([60.0, 30.0, 380.0, 340.0]), (count, 1))
    flips = np.arange(count) % 2 == 0
    out = np.empty((count, _SIZE, _SIZE, 3), np.uint8)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        if with_native:
            native.crop(stored, boxes, flips, _SIZE, "bilinear", False, out)
        else:
            for at in range(count):
                crop.view(stored, at, boxes[at], bool(flips[at]), "bilinear", False, out[at], without_native=True)
        done += count
    return done / elapsed


def _photograph() -> bytes:
    random = np.random.default_rng(0)
    width, height = _PHOTO
    small = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize(_PHOTO, Image.Resampling.BICUBIC), np.float64)
    noisy = (large + random.normal(0, 9, large.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def to_dicts(checks: list[Check]) -> list[dict[str, Any]]:
    """Returns the checks as plain data for JSON."""
    return [{"name": check.name, "good": check.good, "verdict": check.verdict, "text": check.text} for check in checks]
