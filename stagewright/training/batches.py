"""The batches of a run: read by threads, on CUDA on their way to the device while the one before is worked on."""

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
from stagewright.system.signals import StopSignal
from stagewright.training.recorder import Recorder


@dataclass
class Batches:
    """Loads whatever batches are specified, as the execution says."""

    images: Images
    manifest: Manifest
    execution: Execution
    state: TrainState
    recorder: Recorder
    stop: StopSignal
    train_times: LoadTimes = field(default_factory=LoadTimes)
    """Of the training batches, since this process began."""
    resident: Resident | None = field(init=False)

    def __post_init__(self) -> None:
        self.resident = cache_on_device(self.images, self.device) if self.execution.keep_decoded else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.state.device

    @contextmanager
    def load(self, specs: Iterable[BatchSpec], times: LoadTimes | None = None) -> Iterator[Iterator[Batch]]:
        """Batches on the host; on CUDA page-locked and copied ahead. To be used in a ``with``, which ends the threads."""
        pinned = self.device.type == "cuda"
        workers = self.execution.workers
        batches = load_batches(
            self.images,
            specs,
            workers=auto_workers(self.manifest) if workers is None else workers,
            prefetch=self.execution.prefetch,
            pin_memory=pinned,
            times=times,
            on_slow=self._name_slow,
            resident=self.resident,
            stop=lambda: self.stop.requested,
        )
        with closing(batches):
            yield copied_ahead(batches, self.device) if pinned else batches

    def _name_slow(self, rows: NDArray[np.int64], seconds: float) -> None:
        """Says which images the loader has been waiting for."""
        names = [self.manifest.paths[int(row)].as_py() for row in rows[:3]]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        text = f"waiting for {', '.join(names)}{more} for {seconds:.0f} s now: is the storage in order?"
        self.recorder.log.emit(Notice(step=self.state.step, text=text))
