"""The curve of a learning-rate range test (Smith, arXiv:1506.01186, section 3.3) and the learning rates that it suggests.

The functions are pure and do not use torch; :mod:`stagewright.preflight.range_test` measures the curve. The convention: the
learning rate rises exponentially with every update, so slopes are per update and distances are in log LR. Suggestions are
computed from the smoothed loss after the first tenth of the sweep, which has too few values for smoothing.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stagewright.errors import RangeTestError
from stagewright.text import nearest

Method = Literal["valley", "steepest", "minimum"]
METHODS: tuple[Method, ...] = get_args(Method)

WINDOW = 0.1
"""Time constant of the smoothing, as a share of the sweep. fastai's weight of 0.98 for earlier losses corresponds to half of a
sweep of 100 updates, which is four decades of learning rates."""
STOP_FACTOR = 4.0
"""The sweep ends where the smoothed loss exceeds its best by this factor, as fastai's does."""
MEANING = {
    "valley": "two thirds into the descent",
    "steepest": "where the loss falls fastest",
    "minimum": "a tenth of where it is lowest",
}
"""A description of each suggestion for the user."""

NAME = "lr-find"
"""Name of the figure, and of the folder and files in a run's directory: ``lr-find/lr-find.csv``, ``.json`` and ``.png``."""

_ENTERED, _LEFT, _INTO = 0.1, 0.9, 2 / 3
"""The descent begins after a tenth of the loss's fall and ends after nine tenths; ``valley`` is two thirds of the way."""
_LEAST_FALL, _LEAST_SIGNAL = 0.01, 6.0
"""Smallest fall of the loss that counts: as a share of the loss, and in standard errors of the smoothed loss. 1 of 1,000 curves
of pure noise reaches 6; the smallest of 13 real ones (a vision transformer that hardly learned) had 6.7."""

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RangeTest:
    """The result of a sweep: for each counted update its learning rate and the loss before it, float64 (N,)."""

    lrs: Series
    losses: Series
    """The training loss, including label smoothing, mixing and class weights; the last value may be infinity or NaN."""
    planned: int
    """Number of updates of the whole sweep; ``lrs`` is shorter if the sweep ended early."""
    skipped: int = 0
    """Number of updates that fp16's gradient scaler skipped; they are not included in ``lrs`` and ``losses``."""

    @property
    def smoothed(self) -> Series:
        """The losses smoothed by :func:`smooth`, same length."""
        return smooth(self.losses, self.planned)

    @property
    def ended_early(self) -> bool:
        """Whether the loss diverged before the highest learning rate."""
        return len(self.lrs) < self.planned

    @property
    def first(self) -> int:
        """Index of the first update whose smoothed loss is used for suggestions."""
        return self.planned // 10

    @classmethod
    def from_table(cls, table: Mapping[str, Series], planned: int) -> RangeTest:
        """Returns the test from the columns lr and loss that :meth:`csv` has written."""
        return cls(table["lr"], table["loss"], planned)

    def csv(self) -> bytes:
        """Returns a CSV file with the columns step (from 1), lr, loss, smoothed."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("step", "lr", "loss", "smoothed"))
        rows = zip(self.lrs.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)
        writer.writerows((step, *row) for step, row in enumerate(rows, start=1))
        return out.getvalue().encode()


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Suggested learning rates by method, and the chosen method. ``notes`` are sentences about their reliability."""

    lrs: dict[Method, float]
    chosen: Method
    notes: tuple[str, ...] = ()

    @property
    def lr(self) -> float:
        return self.lrs[self.chosen]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Suggestions:
        """Returns the suggestions from the result of :meth:`to_dict`."""
        lrs: dict[Method, float] = {check_method(name): float(lr) for name, lr in content["suggestions"].items()}
        return cls(lrs, check_method(content["chosen"]), tuple(content["notes"]))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {"lr": self.lr, "chosen": self.chosen, "suggestions": dict(self.lrs), "notes": list(self.notes)}


def check_method(name: str) -> Method:
    """Returns ``name`` if it is one of :data:`METHODS`, else raises RangeTestError."""
    for method in METHODS:
        if method == name:
            return method
    raise RangeTestError(f"--suggest {name}", ", ".join(METHODS) + nearest(name, METHODS), "choose one of them")


def lr_text(lr: float) -> str:
    """Returns ``lr`` with 3 digits: 0.0302, 9.11e-5."""
    return f"{lr:.3g}".replace("e-0", "e-")


def lr_grid(lr_min: float, lr_max: float, steps: int) -> Series:
    """Returns ``steps`` learning rates from ``lr_min`` to ``lr_max`` with a constant ratio: float64 (steps,).

    RangeTestError for an empty range, or for fewer than 20 steps.
    """
    if not 0 < lr_min < lr_max < float("inf"):
        raise RangeTestError(
            f"a sweep from LR {lr_min:g} to {lr_max:g}", "0 < lr_min < lr_max", "for example 1e-7 to 10, the defaults"
        )
    if steps < 20:
        raise RangeTestError(f"a sweep of {steps} steps", "20 or more", "100, the default, is 12 for each factor of 10")
    return np.geomspace(lr_min, lr_max, steps)


def weight_of_past(planned: int) -> float:
    """Returns the smoothing factor, the weight of earlier losses, for a sweep of ``planned`` updates: 0.9 for 100."""
    return 1.0 - 1.0 / (WINDOW * planned)


def smooth(losses: Series, planned: int) -> Series:
    """Returns the exponential moving average of the losses, with bias correction as in Adam (arXiv:1412.6980, section 3); same
    length. From the first infinity or NaN on, all values are infinity or NaN."""
    past = weight_of_past(planned)
    smoothed = np.empty(len(losses))
    running = 0.0
    for at, loss in enumerate(losses.tolist()):
        running = past * running + (1 - past) * loss
        smoothed[at] = running / (1 - past ** (at + 1))
    return smoothed


def blown_up(smoothed: Series, planned: int) -> bool:
    """Whether the sweep must end: the last smoothed loss is not finite, or more than :data:`STOP_FACTOR` times the lowest."""
    if not np.isfinite(smoothed[-1]):
        return True
    counted = smoothed[planned // 10 :]
    return len(counted) > 1 and bool(smoothed[-1] > STOP_FACTOR * counted.min())


def suggest(test: RangeTest, choose: str = "valley") -> Suggestions:
    """Returns the suggested learning rates of ``test``, inside the range of the sweep and rounded to 3 digits; ``choose``, one
    of :data:`METHODS`, is the chosen one.

    ``valley`` is like fastai's a point two thirds into the longest descent. It does not find the descent by counting
    decreasing losses as fastai does, since that takes even a very small drift for a descent (docs/notes/measured.md has numbers).
    RangeTestError if the loss never falls by more than its noise, and for an unknown method.
    """
    method = check_method(choose)
    finite = int(np.isfinite(test.losses).sum())  # only the last loss can be infinity or NaN
    lrs, smoothed = test.lrs[test.first : finite], test.smoothed[test.first : finite]
    if len(smoothed) < 3:
        raise _rising(test)
    lowest = int(np.argmin(smoothed))
    top = float(np.median(smoothed[: min(max(3, lowest // 3), lowest + 1)]))
    fall = top - float(smoothed[lowest])
    error = _standard_error(test.losses[test.first : finite], weight_of_past(test.planned))
    _check_fall(test, fall, top, error, float(smoothed[-1]))
    # Only up to the minimum: after it the loss diverges, and its oscillations may be steeper than the descent.
    slopes = np.gradient(smoothed)[: lowest + 1]
    found: dict[Method, float] = {
        "valley": _descent(lrs, smoothed[: lowest + 1], top, fall),
        "steepest": float(lrs[int(np.argmin(slopes))]),
        "minimum": float(lrs[lowest]) / 10,
    }
    low, high = float(test.lrs[0]), float(test.lrs[-1])
    rounded: dict[Method, float] = {name: min(max(float(f"{lr:.3g}"), low), high) for name, lr in found.items()}
    return Suggestions(rounded, method, _notes(test, lowest, len(smoothed)))


def _descent(lrs: Series, smoothed: Series, top: float, fall: float) -> float:
    """Returns the point two thirds (in log LR) of the way from the last update with less than a tenth of the fall to the first
    one with nine tenths."""
    entered = int(np.flatnonzero(smoothed >= top - _ENTERED * fall)[-1])
    left = entered + int(np.flatnonzero(smoothed[entered:] <= top - _LEFT * fall)[0])
    return float(np.exp((1 - _INTO) * np.log(lrs[entered]) + _INTO * np.log(lrs[left])))


def _standard_error(losses: Series, past: float) -> float:
    """Returns the standard error of the smoothed loss, estimated from differences of neighbouring losses, on which a trend has
    little effect."""
    sigma = 1.4826 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)
    return sigma * math.sqrt((1 - past) / (1 + past))


def _check_fall(test: RangeTest, fall: float, top: float, error: float, last: float) -> None:
    if fall > _LEAST_FALL * abs(top) and fall > _LEAST_SIGNAL * error:
        return
    if test.ended_early or last - top > max(_LEAST_FALL * abs(top), _LEAST_SIGNAL * error):
        raise _rising(test)
    raise RangeTestError(
        f"the loss stays at {top:.3g} from LR {lr_text(float(test.lrs[0]))} to {lr_text(float(test.lrs[-1]))}: it falls by "
        f"{max(fall, 0):.2g}, and its noise alone may cause a fall of {_LEAST_SIGNAL * error:.2g}",
        f"a loss that falls by {100 * _LEAST_FALL:.0f} % and by more than its noise",
        "sweep to a higher LR (--lr-max), take more --steps or a larger batch, check that the labels are correct, "
        "or give a number: --lr 0.01",
    )


def _rising(test: RangeTest) -> RangeTestError:
    low, high = lr_text(float(test.lrs[0])), lr_text(float(test.lrs[-1]))
    given = f"the loss never falls by more than its noise between LR {low} and {high}, where it "
    return RangeTestError(
        given + ("has diverged" if test.ended_early else "has risen"),
        "a loss that falls before it rises",
        "take more --steps or a larger batch, or begin the sweep at a lower LR (--lr-min); for weights that are trained on "
        "these data already, give a small number, e.g. --lr 1e-5",
    )


def _notes(test: RangeTest, lowest: int, count: int) -> tuple[str, ...]:
    notes: list[str] = []
    if not test.ended_early and lowest >= count - 3:
        notes.append(
            f"the loss was still falling at LR {lr_text(float(test.lrs[-1]))}, where the sweep ended: raise --lr-max"
        )
    if test.skipped:
        notes.append(f"fp16 skipped {test.skipped} updates, which were not counted")
    return tuple(notes)
