"""Execution: where and how a plan happens to run, which changes nothing that comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagewright.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Execution:
    """Where and how a plan happens to run: free to change between a stop and a resume, without effect on the result."""

    device: str = "auto"
    workers: int | None = None
    """Threads that read and decode; 0 does it between the steps; None goes by the cores and the pictures' size."""
    prefetch: int = 4
    """Batches read ahead."""
    keep_decoded: bool = True
    """Whether a set that is small enough stays decoded in memory after its first use
    (:mod:`stagewright.data.images.memory_cache`)."""
    save_minutes: float = 10.0
    """Beside the plan's saves, one at least this often."""
    probe_seconds: float = 10.0
    """About how long this machine is measured, where a budget is given; at most a tenth of that."""
    pages: bool = True
    """Whether plots and report.html are rewritten while the run lives."""
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("save_minutes", "probe_seconds"):
            if not 0.0 < (value := getattr(self, name)) < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise RecipeError(f"{flag} {value:g}", "a number above 0", f"write for example {flag} 10")
        if self.prefetch < 1 or (self.workers is not None and self.workers < 0):
            raise RecipeError(
                f"workers {self.workers}, prefetch {self.prefetch}",
                "workers 0 or more, prefetch 1 or more",
                "correct it",
            )
