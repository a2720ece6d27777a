"""How many threads read images."""

from __future__ import annotations

import numpy as np

from stagewright.data.manifest import Manifest
from stagewright.system.machine import cores

_SMALL_PIXELS = 100


def auto_workers(manifest: Manifest) -> int:
    """A thread for each core, 8 at most; one where pictures are so small that threads wait for each other (docs/log.md)."""
    small = len(manifest) == 0 or float(np.median(manifest.widths)) < _SMALL_PIXELS
    return 1 if small else min(8, cores())
