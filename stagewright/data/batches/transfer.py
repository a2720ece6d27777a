"""Batches on their way to the device: moved whole, on CUDA ahead of their use on a stream of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from stagewright.data.batches.batch import Batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    if batch.labels.device == device or device.type == "cpu":
        return batch
    return replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        valid=batch.valid.to(device, non_blocking=True),
    )


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """``batches`` on the CUDA ``device``, each copied on a stream of its own while the one before is worked on."""
    copies = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        arrived = torch.cuda.Event()
        with torch.cuda.stream(copies):
            moved = on_device(batch, device)
            arrived.record(copies)
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = moved, arrived
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(batch: Batch, arrived: torch.cuda.Event, device: torch.device) -> Batch:
    """``batch``, safe to use on the device's current stream, which keeps its memory until it is done with it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(arrived)
    for tensor in (batch.images, batch.labels, batch.valid):
        tensor.record_stream(stream)
    return batch
