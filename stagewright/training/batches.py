"""Loads the batches of a run with threads; on CUDA, the next batch is copied to the device during the present update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.transfer import copied_ahead
from stagewright.data.batches.workers import auto_workers
from stagewright.data.images.decode import Images
from stagewright.data.images.device_cache import Resident, cache_on_device
from stagewright.data.load_times import LoadTimes
from stagewright.data.manifest import Manifest
from stagewright.engine.state import TrainState
from stagewright.plan.execution import Execution
from stagewright.rundir.event_kinds import Notice
from stagewright.training.ranks import Ranks
from stagewright.training.recorder import Recorder


@dataclass
class Batches:
    """Loads batches with the workers and caches set in ``execution``."""

    images: Images
    manifest: Manifest
    execution: Execution
    state: TrainState
    recorder: Recorder
    ranks: Ranks
    train_times: LoadTimes = field(default_factory=LoadTimes)
    """Loading times of the training batches in this process."""
    resident: Resident | None = field(init=False)

    def __post_init__(self) -> None:
        self.resident = cache_on_device(self.images, self.device) if self.execution.keep_decoded else None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.state.device

    @contextmanager
    def load(self, specs: Iterable[BatchSpec], times: LoadTimes | None = None) -> Iterator[Iterator[Batch]]:
        """Context that yields the batches of ``specs`` and ends the loader's threads on exit.

        Batches are in host memory; on CUDA they are loaded into pinned memory and copied to the device ahead of time.
        """
        pinned = self.device.type == "cuda"
        workers = self.execution.workers
        batches = load_batches(
            self.images,
            specs,
            workers=auto_workers(self.manifest) if workers is None else workers,
            prefetch=self.execution.prefetch,
            pin_memory=pinned,
            times=times,
            on_slow=self._report_slow_images,
            resident=self.resident,
            stop=self.ranks.stops_loading,
        )
        with closing(batches):
            yield copied_ahead(batches, self.device) if pinned else batches

    def _report_slow_images(self, rows: NDArray[np.int64], seconds: float) -> None:
        """Logs the images that the loader has been waiting for."""
        names = [self.manifest.paths[int(row)].as_py() for row in rows[:3]]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        text = f"waiting for {', '.join(names)}{more} for {seconds:.0f} s now: is the storage in order?"
        self.recorder.log.emit(Notice(step=self.state.step, text=text))
