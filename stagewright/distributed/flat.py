"""Gradients of several parameters in one piece of memory, for exchanges between processes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def bucket_positions(parameters: Sequence[nn.Parameter], bucket_bytes: int, first_bytes: int) -> list[list[int]]:
    """Returns the positions of the parameters in each bucket: the last parameters first, because a backward pass gives their
    gradients first; of one dtype and device each; the bucket is closed when it has ``bucket_bytes`` or more, the first one when
    it has ``first_bytes``."""
    limit = first_bytes
    open_buckets: dict[object, tuple[list[int], int]] = {}
    closed: list[list[int]] = []
    for at in reversed(range(len(parameters))):
        kind = (parameters[at].dtype, parameters[at].device)
        positions, size = open_buckets.pop(kind, ([], 0))
        positions.append(at)
        size += parameters[at].numel() * parameters[at].element_size()
        if size >= limit:
            closed.append(positions)
            limit = bucket_bytes
        else:
            open_buckets[kind] = (positions, size)
    closed += [positions for positions, _ in open_buckets.values()]
    # In the order in which the buckets' last gradients are expected.
    return sorted(closed, key=min, reverse=True)


def flat_length(parameters: Sequence[nn.Parameter]) -> int:
    """Returns how many numbers the parameters have together."""
    return sum(parameter.numel() for parameter in parameters)


def flat_views(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Returns each parameter's part of ``flat`` (at least :func:`flat_length`), with the parameter's shape and strides.

    A parameter with gaps in its memory gets contiguous strides.
    """
    views, begin = [], 0
    for parameter in parameters:
        part = flat[begin : begin + parameter.numel()]
        dense = _is_dense(parameter)
        views.append(part.as_strided(parameter.shape, parameter.stride()) if dense else part.view(parameter.shape))
        begin += parameter.numel()
    return views


def _is_dense(tensor: Tensor) -> bool:
    """Whether the numbers of ``tensor`` fill a piece of memory without gaps or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted((st, sz) for st, sz in zip(tensor.stride(), tensor.shape, strict=True) if sz != 1):
        if stride != expected:
            return False
        expected *= size
    return True
