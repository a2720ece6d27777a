"""Chooses the number of loader threads."""

from __future__ import annotations

import numpy as np

from stagewright.data.manifest import Manifest
from stagewright.system.machine import cores

_SMALL_PIXELS = 100


def auto_workers(manifest: Manifest) -> int:
    """Returns the number of worker threads: one per core, but at most 8.

    For small images it is 1, because several threads would mostly wait for each other (docs/log.md).
    """
    small = len(manifest) == 0 or float(np.median(manifest.widths)) < _SMALL_PIXELS
    return 1 if small else min(8, cores())
