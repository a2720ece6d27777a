"""Keyed randomness: every draw is a pure function of a key, and keys are mixed by a hash, never added.

The only source of randomness in stagewright. A key is a 64-bit integer made from words (seed, stream, step, ...) with
the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014); draws
are the SplitMix64 stream that starts at the key. Everything is vectorised: words may be arrays and broadcast.
Adding instead (``seed + epoch``) would make seed 1, epoch 0 share its data with seed 0, epoch 1.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]


class Stream(IntEnum):
    """What a key is for. Numbers are fixed for ever, so that a new stream never disturbs an old one."""

    INIT = 1  # (seed): initial weights
    SPLIT = 2  # (seed): which pictures validate and test
    SUBSET = 3  # (seed): which pictures a data fraction keeps
    ORDER = 4  # (seed, pass): order of the samples of a pass
    AUGMENT = 5  # (seed, pass, sample): crop, flip
    MIX = 6  # (seed, step): mixup and cutmix
    MODEL = 7  # (seed, step, rank): dropout, drop-path
    RECALIBRATE = 8  # (seed): order and crops of batch-norm re-estimation
    FAULT = 9  # (seed): moments at which a resume check kills
    SAMPLE = 10  # (seed, class, cycle): order in which a class's pictures are seen, where classes are sampled


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_START = np.uint64(0x5743A1D2E60B8F97)


def _mix(x: Keys) -> Keys:
    """SplitMix64's finaliser, a bijection of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(*words: ArrayLike) -> Keys:
    """One uint64 key for each element of the broadcast ``words`` (integers, taken modulo 2**64), order mattering."""
    with np.errstate(over="ignore"):
        state = np.asarray(_START)
        for word in words:
            value = np.asarray(word)
            if value.dtype.kind not in "iub":
                raise TypeError(f"keys are made of integers, not of {value.dtype}")
            state = _mix((state * _GOLDEN) ^ _mix(value.astype(np.uint64) + _GOLDEN))
    return state


def key(*words: int) -> int:
    """The key of scalar ``words``, as a Python integer in [0, 2**64)."""
    return int(keys(*words))


def torch_seed(*words: int) -> int:
    """The key of ``words`` in [0, 2**63), the range that every torch generator takes."""
    return key(*words) >> 1


def uniform(at: ArrayLike, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) for each key: shape ``keys.shape + (count,)``, 53 random bits each."""
    with np.errstate(over="ignore"):
        counter = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        bits = _mix(np.asarray(at, dtype=np.uint64)[..., None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(at: int, n: int) -> NDArray[np.int64]:
    """A permutation of ``range(n)`` by sorting one 64-bit hash per element (stable, so that a tie is no surprise)."""
    return np.argsort(keys(at, np.arange(n, dtype=np.int64)), kind="stable").astype(np.int64)
