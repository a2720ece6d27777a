"""Keyed randomness: every draw is a pure function of a key, and a key is a hash of integers.

This is the only source of randomness in stagewright. A key is a 64-bit integer, computed from integers (seed, stream,
step, ...) with the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA
2014). The draws are the SplitMix64 stream that starts at the key. All functions are vectorised: the integers may be arrays,
which are broadcast. A hash is needed: with a sum (``seed + epoch``), seed 1 in epoch 0 would draw the same as seed 0 in
epoch 1.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]


class Stream(IntEnum):
    """What a key is used for. The numbers never change, so that a new stream does not change the draws of the others."""

    INIT = 1  # (seed): initial weights
    SPLIT = 2  # (seed): which images are for validation and for test
    SUBSET = 3  # (seed): which images a data fraction uses
    ORDER = 4  # (seed, pass): order of the samples of a pass
    AUGMENT = 5  # (seed, pass, sample): crop, flip
    MIX = 6  # (seed, step): mixup and cutmix
    MODEL = 7  # (seed, step, rank): dropout, drop-path
    RECALIBRATE = 8  # (seed): order and crops for the re-estimation of batch-norm statistics
    FAULT = 9  # (seed): moments at which a resume check kills the training
    SAMPLE = 10  # (seed, class, cycle): order of a class's images, if classes are sampled
    BLOCKS = 11  # (seed, pass): order of the blocks of a pass and of the images in a window, if the order is blocked
    PACK = 12  # (digest of the source): order of the records of a pack


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_START = np.uint64(0x5743A1D2E60B8F97)


def _mix(x: Keys) -> Keys:
    """SplitMix64's finaliser, a bijection of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(*words: ArrayLike) -> Keys:
    """Returns one uint64 key for each element of the broadcast ``words`` (integers, modulo 2**64). Their order matters.

    TypeError for words that are not integers.
    """
    with np.errstate(over="ignore"):
        state = np.asarray(_START)
        for word in words:
            value = np.asarray(word)
            if value.dtype.kind not in "iub":
                raise TypeError(f"keys are made of integers, not of {value.dtype}")
            state = _mix((state * _GOLDEN) ^ _mix(value.astype(np.uint64) + _GOLDEN))
    return state


def key(*words: int) -> int:
    """Returns the key of scalar ``words`` as a Python integer in [0, 2**64)."""
    return int(keys(*words))


def torch_seed(*words: int) -> int:
    """Returns the key of ``words`` in [0, 2**63), the range of seeds that every torch generator accepts."""
    return key(*words) >> 1


def uniform(at: ArrayLike, count: int) -> NDArray[np.float64]:
    """Returns ``count`` numbers in [0, 1) for each key of ``at``: float64, shape ``at.shape + (count,)``, 53 random bits
    each."""
    with np.errstate(over="ignore"):
        counter = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        bits = _mix(np.asarray(at, dtype=np.uint64)[..., None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(at: int, n: int) -> NDArray[np.int64]:
    """Returns a permutation of ``range(n)``, int64 (n,), for the key ``at``: it sorts one 64-bit hash per element. The sort
    is stable, so equal hashes have a defined order."""
    return np.argsort(keys(at, np.arange(n, dtype=np.int64)), kind="stable").astype(np.int64)
