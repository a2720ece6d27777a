"""The loss axis shows the range in which curves are read, whatever the first step said."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from stagewright.plan.lr_curve import RangeTest
from stagewright.report import theme
from stagewright.report.lr_plot import _limit  # pyright: ignore[reportPrivateUsage]
from stagewright.report.plots import limit_loss

FALL = np.linspace(2.4, 0.6, 50)


def limits(shown: np.ndarray, num_classes: int = 10) -> tuple[float, float, str, list[str]]:
    """Returns (bottom, top, scale, notes) of the axis."""
    axes = theme.place(Figure(figsize=(5, 3)), left=0.5, right=0.1, top=0.3, bottom=0.5)
    limit_loss(axes, shown, num_classes)
    return *axes.get_ylim(), axes.get_yscale(), [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("spikes", [[933.0], [933.0, 120.0, 36.9]])
@pytest.mark.parametrize("rest", [FALL, FALL[[0, -1]]], ids=["many points", "two points"])
def test_a_first_step_that_explodes_does_not_set_the_scale(spikes: list[float], rest: np.ndarray) -> None:
    few = [spikes[0]] if len(rest) < 10 else spikes
    low, high, scale, notes = limits(np.concatenate([few, rest]))
    assert low < 0.6 and 2.4 < high < 6.0 and scale == "linear"
    assert notes == ["up to 933, cut off"]


def test_a_loss_that_begins_with_a_guess_is_shown_whole() -> None:
    for classes in (2, 10, 1000):
        curve = np.log(classes) * np.exp(-np.linspace(0, 4, 60))
        low, high, _, notes = limits(curve, classes)
        assert low < curve.min() and high > curve.max() and notes == []


def test_a_loss_that_falls_to_a_hundredth_has_a_logarithmic_axis() -> None:
    curve = np.geomspace(2.3, 0.002, 100)
    low, high, scale, _ = limits(curve)
    assert scale == "log" and 0 < low < 0.002 and 2.3 < high < 3.0


def test_the_range_test_does_not_start_at_its_first_step() -> None:
    losses = np.concatenate([[933.0], FALL, [5.0, 50.0]])
    lrs = np.geomspace(1e-6, 1.0, len(losses))
    axes = theme.place(Figure(figsize=(5, 3)), left=0.5, right=0.1, top=0.3, bottom=0.5)
    _limit(axes, RangeTest(lrs=lrs, losses=losses, planned=len(lrs)))
    low, high = axes.get_ylim()
    assert low < 0.6 and 2.0 < high < 5.0
