"""Copies batches to the device; on CUDA, the next batch is copied on a separate stream while the current one is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from stagewright.data.batches.batch import Batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Returns ``batch`` with its tensors on ``device``."""
    if batch.labels.device == device or device.type == "cpu":
        return batch
    return replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        valid=batch.valid.to(device, non_blocking=True),
    )


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields ``batches`` on the CUDA ``device``. Each is copied on a separate stream while the batch before it is processed."""
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
    """Makes the current stream wait for the copy of ``batch``, and returns it.

    The memory of its tensors is not reused before the current stream has finished its work on them.
    """
    stream = torch.cuda.current_stream(device)
    stream.wait_event(arrived)
    for tensor in (batch.images, batch.labels, batch.valid):
        tensor.record_stream(stream)
    return batch
