"""Intervals: that they contain the true value as often as they say (the long form is benchmarks/coverage.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from stagewright.measures.intervals import mean_estimate, share_estimate, student, wilson

COVERAGE = Path(__file__).parents[2] / "benchmarks/coverage.py"


@pytest.mark.parametrize("case", ["400 images", "60 groups"])
def test_coverage(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 tables, with a standard error of 1.5 points."""
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", COVERAGE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    found = module.coverage(module.CASES[case], tables=200, larger=60)
    assert len(found) > 15
    assert {name: share for name, share in found.items() if not 0.9 <= share <= 0.995} == {}


def test_a_share_with_the_variance_of_images_has_wilsons_interval() -> None:
    found = share_estimate(0.8, 0.8 * 0.2 / 50, 1.0, 1e9)
    assert found[1:] == pytest.approx(wilson(40, 50), abs=1e-4)


def test_where_nothing_varies_the_size_counts() -> None:
    assert share_estimate(1.0, 0.0, 50.0, 1e9)[1:] == pytest.approx(wilson(50, 50), abs=1e-4)
    assert share_estimate(0.7, 0.01, 50.0, 0.5)[1:] == (0.0, 1.0)


def test_few_degrees_of_freedom_widen() -> None:
    assert student(3.9) == pytest.approx(3.1824, abs=1e-4) and student(1e6) == pytest.approx(1.96, abs=1e-4)
    few, many = mean_estimate(0.5, 0.01, 3.0), mean_estimate(0.5, 0.01, 300.0)
    assert few.low is not None and many.low is not None and few.low < many.low < 0.5
    assert mean_estimate(0.5, 0.01, 0.0)[1:] == (None, None)
