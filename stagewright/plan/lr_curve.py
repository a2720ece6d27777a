"""The curve of a learning-rate range test (Smith, arXiv:1506.01186, section 3.3), and what learning rate it suggests.

Pure and without torch; :mod:`stagewright.preflight.range_test` makes the curve. The convention: learning rates rise
exponentially, one update each, so slopes are per update and distances are in log LR. Suggestions are read from the
smoothed loss after the first tenth of the sweep, in which smoothing has too little to go by.
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

from stagewright.errors import RangeTestError, nearest

Method = Literal["valley", "steepest", "minimum"]
METHODS: tuple[Method, ...] = get_args(Method)

WINDOW = 0.1
"""Share of the sweep that the smoothed loss looks back on. fastai's weight of 0.98 for the past makes that half of a sweep of
100 updates, four decades of learning rates."""
STOP_FACTOR = 4.0
"""The sweep ends where the smoothed loss exceeds its best by this factor, as fastai's does."""
MEANING = {
    "valley": "two thirds into the descent",
    "steepest": "where the loss falls fastest",
    "minimum": "a tenth of where it is lowest",
}
"""What each suggestion is, in words."""

NAME = "lr-find"
"""Of the figure, and of the files and their folder in a run's directory: ``lr-find/lr-find.csv``, ``.json`` and ``.png``."""

_ENTERED, _LEFT, _INTO = 0.1, 0.9, 2 / 3
"""The descent is where the loss does from a tenth to nine tenths of its fall."""
_LEAST_FALL, _LEAST_SIGNAL = 0.01, 6.0
"""A fall of less than this share of the loss, or of fewer standard errors of the smoothed loss, is none. 1 of 1,000 curves of
pure noise reaches 6; the least of 13 real ones (a vision transformer that hardly learned) had 6.7."""

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RangeTest:
    """What a sweep saw: for each counted update its learning rate and the loss before it, float64 (N,)."""

    lrs: Series
    losses: Series
    """As the training sees it, label smoothing, mixing and class weights included; the last one may be not finite."""
    planned: int
    """Updates of the whole sweep; fewer are there where it ended early."""
    skipped: int = 0
    """Updates that fp16's scaler left out; they are not counted and not among the others."""

    @property
    def smoothed(self) -> Series:
        """:func:`smooth` of the losses, same length."""
        return smooth(self.losses, self.planned)

    @property
    def ended_early(self) -> bool:
        """Whether the loss blew up before the highest learning rate."""
        return len(self.lrs) < self.planned

    @property
    def first(self) -> int:
        """The update from which on the smoothed loss is taken seriously."""
        return self.planned // 10

    @classmethod
    def from_table(cls, table: Mapping[str, Series], planned: int) -> RangeTest:
        """The test of the columns lr and loss that :meth:`csv` wrote."""
        return cls(table["lr"], table["loss"], planned)

    def csv(self) -> bytes:
        """A CSV file with the columns step (from 1), lr, loss, smoothed."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("step", "lr", "loss", "smoothed"))
        rows = zip(self.lrs.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)
        writer.writerows((step, *row) for step, row in enumerate(rows, start=1))
        return out.getvalue().encode()


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Learning rates by method, one of them chosen. ``notes`` are sentences on how far they can be trusted."""

    lrs: dict[Method, float]
    chosen: Method
    notes: tuple[str, ...] = ()

    @property
    def lr(self) -> float:
        return self.lrs[self.chosen]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Suggestions:
        """The suggestions that :meth:`to_dict` gave."""
        lrs: dict[Method, float] = {check_method(name): float(lr) for name, lr in content["suggestions"].items()}
        return cls(lrs, check_method(content["chosen"]), tuple(content["notes"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"lr": self.lr, "chosen": self.chosen, "suggestions": dict(self.lrs), "notes": list(self.notes)}


def check_method(name: str) -> Method:
    """``name``, if it is one of :data:`METHODS`; RangeTestError for another."""
    for method in METHODS:
        if method == name:
            return method
    raise RangeTestError(f"--suggest {name}", ", ".join(METHODS) + nearest(name, METHODS), "choose one of them")


def lr_text(lr: float) -> str:
    """``lr`` as people write it, to 3 digits: 0.0302, 9.11e-5."""
    return f"{lr:.3g}".replace("e-0", "e-")


def lr_grid(lr_min: float, lr_max: float, steps: int) -> Series:
    """``steps`` learning rates from ``lr_min`` to ``lr_max``, each the same factor above the one before: float64 (steps,).

    RangeTestError for a range that is none, or fewer than 20 steps.
    """
    if not 0 < lr_min < lr_max < float("inf"):
        raise RangeTestError(
            f"a sweep from LR {lr_min:g} to {lr_max:g}", "0 < lr_min < lr_max", "for example 1e-7 to 10, the defaults"
        )
    if steps < 20:
        raise RangeTestError(f"a sweep of {steps} steps", "20 or more", "100, the default, is 12 for each factor of 10")
    return np.geomspace(lr_min, lr_max, steps)


def weight_of_past(planned: int) -> float:
    """The factor on what came before in the smoothed loss of a sweep of ``planned`` updates: 0.9 for 100."""
    return 1.0 - 1.0 / (WINDOW * planned)


def smooth(losses: Series, planned: int) -> Series:
    """Exponentially weighted mean of each loss and those before it, corrected for its start (Adam's bias correction,
    arXiv:1412.6980, section 3); same length. Not finite from the first loss on that is not."""
    past = weight_of_past(planned)
    smoothed = np.empty(len(losses))
    running = 0.0
    for at, loss in enumerate(losses.tolist()):
        running = past * running + (1 - past) * loss
        smoothed[at] = running / (1 - past ** (at + 1))
    return smoothed


def blown_up(smoothed: Series, planned: int) -> bool:
    """Whether the sweep ends here: the last smoothed loss is not finite, or far above the best of those that count."""
    if not np.isfinite(smoothed[-1]):
        return True
    counted = smoothed[planned // 10 :]
    return len(counted) > 1 and bool(smoothed[-1] > STOP_FACTOR * counted.min())


def suggest(test: RangeTest, choose: str = "valley") -> Suggestions:
    """What ``test`` suggests, each inside the range that was swept, rounded to 3 digits; ``choose`` is one of
    :data:`METHODS`.

    ``valley`` follows fastai's in spirit, a point two thirds into the longest descent, but not in its count of decreasing
    losses, which takes the slightest drift for a descent (docs/lr-find.md has figures). RangeTestError where the loss
    never falls by more than noise, and for an unknown method.
    """
    method = check_method(choose)
    finite = int(np.isfinite(test.losses).sum())  # only the last can be otherwise
    lrs, smoothed = test.lrs[test.first : finite], test.smoothed[test.first : finite]
    if len(smoothed) < 3:
        raise _rising(test)
    lowest = int(np.argmin(smoothed))
    top = float(np.median(smoothed[: min(max(3, lowest // 3), lowest + 1)]))
    fall = top - float(smoothed[lowest])
    error = _standard_error(test.losses[test.first : finite], weight_of_past(test.planned))
    _check_fall(test, fall, top, error, float(smoothed[-1]))
    # Before the minimum alone: what comes after it belongs to the divergence, whose wobbling may be steeper than all.
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
    """Two thirds (in log LR) of the way from where a tenth of the fall is done for good to where nine tenths are."""
    entered = int(np.flatnonzero(smoothed >= top - _ENTERED * fall)[-1])
    left = entered + int(np.flatnonzero(smoothed[entered:] <= top - _LEFT * fall)[0])
    return float(np.exp((1 - _INTO) * np.log(lrs[entered]) + _INTO * np.log(lrs[left])))


def _standard_error(losses: Series, past: float) -> float:
    """Of the smoothed loss, from the differences of neighbouring losses, which a trend hardly touches."""
    sigma = 1.4826 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)
    return sigma * math.sqrt((1 - past) / (1 + past))


def _check_fall(test: RangeTest, fall: float, top: float, error: float, last: float) -> None:
    if fall > _LEAST_FALL * abs(top) and fall > _LEAST_SIGNAL * error:
        return
    if test.ended_early or last - top > max(_LEAST_FALL * abs(top), _LEAST_SIGNAL * error):
        raise _rising(test)
    raise RangeTestError(
        f"the loss stays at {top:.3g} from LR {lr_text(float(test.lrs[0]))} to {lr_text(float(test.lrs[-1]))}: it falls by "
        f"{max(fall, 0):.2g}, and its noise alone is good for {_LEAST_SIGNAL * error:.2g}",
        f"a loss that falls by {100 * _LEAST_FALL:.0f} % and by more than its noise",
        "sweep further up (--lr-max), take more --steps or a larger batch, check that labels fit their pictures, "
        "or give a number: --lr 0.01",
    )


def _rising(test: RangeTest) -> RangeTestError:
    low, high = lr_text(float(test.lrs[0])), lr_text(float(test.lrs[-1]))
    given = f"the loss never falls by more than its noise between LR {low} and {high}, where it "
    return RangeTestError(
        given + ("has blown up" if test.ended_early else "has risen"),
        "a loss that falls before it rises",
        "take more --steps or a larger batch, or begin the sweep lower (--lr-min); weights that have learned this already "
        "need a small number of your own, e.g. --lr 1e-5",
    )


def _notes(test: RangeTest, lowest: int, count: int) -> tuple[str, ...]:
    notes: list[str] = []
    if not test.ended_early and lowest >= count - 3:
        notes.append(
            f"the loss was still falling at LR {lr_text(float(test.lrs[-1]))}, where the sweep ended: raise --lr-max"
        )
    if test.skipped:
        notes.append(f"fp16 left out {test.skipped} updates, which were not counted")
    return tuple(notes)
