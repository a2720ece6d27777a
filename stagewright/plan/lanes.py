"""Divides the images of an update into lanes.

A lane has its own images, batch-norm statistics, dropout key and mixing partners, and gives one gradient; the gradients of all
lanes are added in a fixed tree (:mod:`stagewright.distributed.tree`). Devices only share out the lanes, so their number does not
change the result.
"""

from __future__ import annotations

from itertools import accumulate


def asked_spread(spread: int, processes: int | None) -> int:
    """Returns the number of devices that lanes are planned for: the recipe's ``spread``, or if it has none (1) the number of
    ``processes`` that the run begins with; None: one."""
    return spread if spread > 1 else processes or 1


def num_lanes(batch_size: int, spread: int, micro_batch_size: int) -> int:
    """Returns the number of lanes of an update of ``batch_size`` images: at least ``spread``, and enough that none has more than
    ``micro_batch_size`` images."""
    return max(spread, -(-batch_size // micro_batch_size))


def lane_sizes(batch_size: int, lanes: int) -> list[int]:
    """Returns the number of images of each lane, in order: they differ by one at most, and the first lanes have the larger ones.

    ``lanes`` is 1 to ``batch_size``.
    """
    each, more = divmod(batch_size, lanes)
    return [each + 1] * more + [each] * (lanes - more)


def lane_starts(batch_size: int, lanes: int) -> list[int]:
    """Returns where each lane begins within the batch, and the end of the last one: lane k has the images [starts[k],
    starts[k + 1])."""
    return [0, *accumulate(lane_sizes(batch_size, lanes))]
