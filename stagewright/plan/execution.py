"""Execution settings: where and how a plan runs. They do not affect the result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagewright.errors import RecipeError
from stagewright.storage.objects import GET_PRICE, is_remote

MOST_WORKERS = 1024
"""Threads above this number wait for each other; systems commonly refuse some tens of thousands."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Where and how a plan runs. These settings may change between a stop and a resume; they do not affect the model, but for
    the rounding of sums (``device``, ``threads``)."""

    device: str = "auto"
    workers: int | None = None
    """Number of threads that read and decode images. 0: the training thread does it between steps. None: chosen from the
    number of cores and the size of the images."""
    prefetch: int = 4
    """Number of batches that are loaded in advance."""
    keep_decoded: bool = True
    """Whether a data set that is small enough is cached in memory after decoding
    (:mod:`stagewright.data.images.memory_cache`)."""
    shared_pictures: bool = False
    """Whether that cache is shared with the other processes of this machine that train on the same images, which then lie in
    memory once and are decoded once (:mod:`stagewright.data.images.shared_pictures`)."""
    cache_gb: float | None = None
    """Size of the cache on disk for images in an object store, in GB (10^9 bytes); None: a quarter of the free disk."""
    get_price: float = GET_PRICE
    """Dollars for a thousand requests to an object store; only for what is said about costs."""
    cache_features: bool = True
    """Whether the outputs of frozen blocks are stored, in memory or on disk, instead of computed for each batch anew."""
    threads: int | None = None
    """Number of threads with which torch computes on a CPU, 1 to 1,024; None: torch's own choice (cores, or OMP_NUM_THREADS).
    Sums depend on it: after a change, a resumed run may differ in its last bits from one that was not stopped."""
    processes: int = 1
    """Number of processes that carry out the run together, of which this is one; started by ``--nproc``, torchrun or srun."""
    compress: bool = False
    """Whether several processes send gradients to each other in bfloat16: half the bytes, other bits."""
    save_minutes: float = 10.0
    """Largest time between two checkpoints in minutes, in addition to those of the plan."""
    probe_seconds: float = 10.0
    """Approximate seconds for measuring this machine if a budget is given; at most a tenth of the budget."""
    pages: bool = True
    """Whether plots and report.html are updated during the run."""
    track: tuple[str, ...] = ()
    """Trackers that the run is sent to by processes beside it: ``tensorboard``, ``wandb``, ``mlflow``."""
    hold_test: bool | str = False
    """Whether the run leaves its test part closed, from its beginning on and for good: a resume, a finish and a fork keep it
    closed without being told. A sentence, of at most 500 characters, says who alone opens it, such as "the study cats opens it
    in its confirmation"; see :func:`stagewright.api.open_test.open_test`."""
    mirror: str | None = None
    """URL of an object store, such as ``s3://bucket/prefix``, to which the run's directory is copied while it trains
    (:mod:`stagewright.mirror`). None: the one that the run had before; ``none``: none."""
    mirror_unfenced: bool = False
    """Whether the mirror may be in a store without conditional writes, where two processes could overwrite each other."""
    mirror_wait: float = 600.0
    """Largest number of seconds that the end of the run waits for the mirror."""
    allow_http: bool = False
    """Whether the store may be reached without encryption."""
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("save_minutes", "probe_seconds"):
            if not 0.0 < (value := getattr(self, name)) < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise RecipeError(f"{flag} {value:g}", "a number above 0", f"write for example {flag} 10")
        if self.cache_gb is not None and not 0.0 < self.cache_gb < math.inf:
            raise RecipeError(f"--cache-gb {self.cache_gb:g}", "GB, above 0", "write for example --cache-gb 100")
        if not 0.0 <= self.get_price < math.inf:
            raise RecipeError(f"--get-price {self.get_price:g}", "dollars for 1,000 requests", "leave it out")
        if isinstance(self.hold_test, str) and not 0 < len(self.hold_test.strip()) <= len(self.hold_test) <= 500:
            raise RecipeError(
                f"hold_test of {len(self.hold_test):,} characters",
                "True, False, or a sentence of 1 to 500",
                "shorten it",
            )
        if self.mirror not in (None, "none") and not is_remote(self.mirror):
            raise RecipeError(
                f"--mirror {self.mirror}",
                "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///FOLDER, or none",
                "write the URL out; a folder of this machine begins with file:///",
            )
        if not 0.0 <= self.mirror_wait < math.inf:
            raise RecipeError(f"--mirror-wait {self.mirror_wait:g}", "seconds, 0 or more", "write for example 10m")
        if self.threads is not None and not 1 <= self.threads <= MOST_WORKERS:
            raise RecipeError(
                f"--threads {self.threads}", f"1 to {MOST_WORKERS:,}", "leave it out for the number that torch chooses"
            )
        if self.prefetch < 1 or not 0 <= (self.workers or 0) <= MOST_WORKERS:
            raise RecipeError(
                f"workers {self.workers}, prefetch {self.prefetch}",
                f"workers 0 to {MOST_WORKERS:,}, prefetch 1 or more",
                "leave them out for the usual numbers",
            )
