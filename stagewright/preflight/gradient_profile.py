"""Measures the parts of an update: how long a lane takes, and when its gradients are there."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from stagewright.engine.lanes import batch_norm_statistics
from stagewright.plan.cost import GradientCost

_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 12, 2.0
_MOST_SENT = 32 << 20
_CHUNK = 32 << 10


class _Moment(Protocol):
    """A point in time of a device."""

    def since(self, earlier: _Moment) -> float:
        """Returns the seconds that have passed since ``earlier``; waits until both are over."""
        ...


class _Clock:
    """That of this process, for a CPU."""

    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def since(self, earlier: _Moment) -> float:
        assert isinstance(earlier, _Clock)
        return self.seconds - earlier.seconds


class _Mark:
    """A mark in the work that a CUDA device carries out later."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def since(self, earlier: _Moment) -> float:
        assert isinstance(earlier, _Mark)
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


def gradient_profile(
    update: Callable[[], object], model: nn.Module, lanes: int, device: torch.device
) -> GradientCost | None:
    """Returns the parts of ``update``, one of ``lanes`` lanes, all of which this process carries out: medians of 3 to 12.

    None if gradients are not seen to arrive, as where they are part of a captured graph.
    """
    parameters = [one for one in model.parameters() if one.requires_grad]
    now = _Mark if device.type == "cuda" else _Clock
    lane_seconds, whole, times = list[float](), list[float](), list[dict[int, float]]()
    with _arrivals(parameters, now) as seen:
        while len(whole) < _ROUNDS or (len(whole) < _MOST_ROUNDS and sum(whole) < _SECONDS):
            seen.clear()
            began = now()
            update()
            whole.append(now().since(began))
            if not seen:
                return None
            lane = seen[-1][1].since(began) / lanes
            lane_seconds.append(lane)
            last = seen[-(len(seen) // lanes) :]
            times.append({at: max(0.0, moment.since(began) - (lanes - 1) * lane) for at, moment in last})
    known = [at for at in times[0] if all(at in one for one in times)]
    arrivals = sorted(
        (statistics.median(one[at] for one in times), parameters[at].numel() * parameters[at].element_size())
        for at in known
    )
    return GradientCost(
        lane_seconds=statistics.median(lane_seconds),
        update_seconds=statistics.median(whole),
        arrivals=tuple(arrivals),
        statistics_bytes=batch_norm_statistics(model) * torch.float32.itemsize,
        copy_seconds=_copy_seconds([parameters[at] for at in known], now),
        send_seconds=_send_seconds(sum(size for _, size in arrivals)) if device.type == "cpu" else 0.0,
        noise_seconds=statistics.stdev(whole),
    )


@contextmanager
def _arrivals(parameters: Sequence[nn.Parameter], now: Callable[[], _Moment]) -> Iterator[list[tuple[int, _Moment]]]:
    """Context manager of a list to which each gradient adds (position of its parameter, when it was there)."""
    seen: list[tuple[int, _Moment]] = []

    def hook(at: int) -> Callable[[Tensor], None]:
        return lambda _: seen.append((at, now()))

    hooks = [one.register_post_accumulate_grad_hook(hook(at)) for at, one in enumerate(parameters)]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()


def _copy_seconds(parameters: Sequence[nn.Parameter], now: Callable[[], _Moment]) -> float:
    """Returns the seconds to copy tensors like ``parameters`` once and to add them to others once: the least of three."""
    left = [torch.zeros_like(one, requires_grad=False) for one in parameters]
    right = [torch.zeros_like(one, requires_grad=False) for one in parameters]
    found = []
    for _ in range(_ROUNDS):
        began = now()
        torch._foreach_copy_(left, right)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(left, right)  # pyright: ignore[reportPrivateImportUsage]
        found.append(now().since(began))
    return min(found)


def _send_seconds(size: int) -> float:
    """Returns the seconds of a processor to send ``size`` bytes by TCP and to receive as many, on this host."""
    data, sent = memoryview(bytes(_CHUNK)), min(max(size, _CHUNK), _MOST_SENT)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as left:
        right, _ = server.accept()
        with right:
            began = time.perf_counter()
            for _ in range(-(-sent // _CHUNK)):
                left.sendall(data)
                right.recv_into(bytearray(_CHUNK), _CHUNK, socket.MSG_WAITALL)
            return (time.perf_counter() - began) * size / sent
