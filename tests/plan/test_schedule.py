"""Schedules against torch's own schedulers, and by property."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler, swa_utils

from stagewright.plan.schedule import (
    Anneal,
    Curve,
    Kind,
    constant,
    cosine,
    linear,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    swa,
    with_warmup,
)

PEAK = 0.3
LENGTHS = (1, 2, 3, 4, 7, 10, 33, 100, 391)
ANNEALS: tuple[Anneal, ...] = ("cos", "linear")
KINDS: tuple[Kind, ...] = ("constant", "linear", "cosine", "one_cycle", "piecewise", "swa")


def torch_values(make: Callable[[torch.optim.SGD], Any], n: int, lr: float = PEAK, field: str = "lr") -> list[float]:
    """What torch's scheduler gives to each of ``n`` updates, as multiples of PEAK where ``field`` is the LR."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's schedulers warn of their own deprecated arguments
        scheduler = make(optimizer)
        values = []
        for _ in range(n):
            values.append(float(optimizer.param_groups[0][field]))
            optimizer.step()
            if len(values) < n:
                scheduler.step()
    return [value / PEAK for value in values] if field == "lr" else values


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("final", [0.0, 0.01, 0.5, 1.0])
def test_linear_and_cosine_equal_torch(n: int, final: float) -> None:
    expected = torch_values(lambda o: lr_scheduler.LinearLR(o, 1.0, final, total_iters=n), n)
    assert [linear(i, n, final) for i in range(n)] == pytest.approx(expected, rel=1e-9)
    expected = torch_values(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=final * PEAK), n)
    assert [cosine(i, n, final) for i in range(n)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("warmup", [0, 1, 2, 5, 30, "all"])
@pytest.mark.parametrize("start", [1e-3, 0.25, 1.0])
def test_warmup_then_cosine_equals_torchs_sequence(n: int, warmup: int | str, start: float) -> None:
    steps = n if warmup == "all" else min(int(warmup), n)

    def chain(optimizer: torch.optim.SGD) -> Any:
        rise = lr_scheduler.LinearLR(optimizer, start, 1.0, total_iters=steps)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, n - steps), eta_min=0.1 * PEAK)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[steps])

    curve = Curve("cosine", n, warmup_steps=steps, warmup_start=start, final=0.1)
    assert [curve.at(i) for i in range(n)] == pytest.approx(torch_values(chain, n), rel=1e-9)


SHARES = (0.0, 0.05, 0.25, 0.3, 1 / 3, 0.5, 0.9, 1.0)


# Where pct_start * n == 1 torch divides by zero: see test_a_rise_of_one_step_has_the_peak.
@pytest.mark.parametrize(("n", "pct_start"), [(n, share) for n in LENGTHS for share in SHARES if share * n != 1])
@pytest.mark.parametrize("anneal", ANNEALS)
def test_one_cycle_equals_torch(n: int, pct_start: float, anneal: Anneal) -> None:
    def cycle(optimizer: torch.optim.SGD) -> Any:
        return lr_scheduler.OneCycleLR(
            optimizer,
            PEAK,
            total_steps=n,
            pct_start=pct_start,
            anneal_strategy=anneal,
            div_factor=20.0,
            final_div_factor=500.0,
            base_momentum=0.8,
            max_momentum=0.97,
        )

    curve = Curve("one_cycle", n, div=20.0, final_div=500.0, pct_start=pct_start, anneal=anneal)
    assert [curve.at(i) for i in range(n)] == pytest.approx(torch_values(cycle, n), rel=1e-9)
    momentum = torch_values(cycle, n, field="momentum")
    assert [curve.momentum(i, 0.8, 0.97) for i in range(n)] == pytest.approx(momentum, rel=1e-9)


@pytest.mark.parametrize(("n", "pct_start"), [(1, 1.0), (2, 0.5), (4, 0.25), (10, 0.1)])
def test_a_rise_of_one_step_has_the_peak(n: int, pct_start: float) -> None:
    with pytest.raises(ZeroDivisionError):
        torch_values(lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=n, pct_start=pct_start), n)
    assert one_cycle(0, n, pct_start) == 1.0
    assert one_cycle_momentum(0, n, pct_start, 0.8, 0.9) == 0.8
    if n > 1:
        assert one_cycle(n - 1, n, pct_start) == pytest.approx(1 / 25 / 1e4, rel=1e-9)


def test_one_cycle_defaults_are_torchs() -> None:
    expected = torch_values(lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=50), 50)
    assert [one_cycle(i, 50) for i in range(50)] == pytest.approx(expected, rel=1e-9)
    momentum = torch_values(lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=50), 50, field="momentum")
    assert [one_cycle_momentum(i, 50) for i in range(50)] == pytest.approx(momentum, rel=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
def test_piecewise_steps_equal_multi_step(n: int) -> None:
    at = sorted({n // 3, n // 2, n - 1} - {0})
    milestones = [(step, 0.1 ** (k + 1)) for k, step in enumerate(at)]
    expected = torch_values(lambda o: lr_scheduler.MultiStepLR(o, at, gamma=0.1), n)
    assert [piecewise(i, milestones) for i in range(n)] == pytest.approx(expected, rel=1e-9)


def test_warmup_then_piecewise_equals_torch_with_milestones_from_the_start_of_the_span() -> None:
    def chain(optimizer: torch.optim.SGD) -> Any:
        rise = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=5)
        steps = lr_scheduler.MultiStepLR(optimizer, [10 - 5, 15 - 5], gamma=0.1)
        return lr_scheduler.SequentialLR(optimizer, [rise, steps], milestones=[5])

    curve = Curve("piecewise", 20, warmup_steps=5, warmup_start=0.1, milestones=((10, 0.1), (15, 0.01)))
    assert [curve.at(i) for i in range(20)] == pytest.approx(torch_values(chain, 20), rel=1e-9)


def test_piecewise_lines() -> None:
    milestones = ((2, 0.5), (4, 0.1), (4, 0.3), (6, 0.3))
    values = [piecewise(i, milestones, interpolate=True) for i in range(8)]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3])
    assert piecewise(3, [(0, 0.2), (10, 1.2)], interpolate=True) == pytest.approx(0.5)
    assert piecewise(9, []) == piecewise(9, [], interpolate=True) == 1.0


def test_a_warmup_into_a_milestone_meets_it() -> None:
    curve = Curve("piecewise", 10, warmup_steps=4, milestones=((3, 0.4),))
    assert [curve.at(i) for i in range(5)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("anneal_steps", [0, 1, 2, 5, 50])
@pytest.mark.parametrize("start", [0.01, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("anneal", ANNEALS)
def test_swa_equals_torch(n: int, anneal_steps: int, start: float, anneal: Anneal) -> None:
    expected = torch_values(
        lambda o: swa_utils.SWALR(o, PEAK, anneal_epochs=anneal_steps, anneal_strategy=anneal), n, lr=start * PEAK
    )
    curve = Curve("swa", n, warmup_steps=anneal_steps, start_factor=start, anneal=anneal)
    assert [curve.at(i) for i in range(n)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("i", [-1, 5, 6])
def test_a_step_outside_the_span_raises(kind: Kind, i: int) -> None:
    with pytest.raises(ValueError, match=f"step {i} is outside a span of 5 steps"):
        Curve(kind, 5, warmup_steps=2, milestones=((1, 0.5),)).at(i)


def test_what_cannot_be_meant_raises() -> None:
    for value in (lambda: constant(0, 0), lambda: linear(3, 3), lambda: cosine(-1, 3), lambda: one_cycle(3, 3)):
        with pytest.raises(ValueError, match="outside a span"):
            value()
    with pytest.raises(ValueError, match="warm-up of 6 steps does not fit a span of 5"):
        with_warmup(0, 5, 6, 0.0, constant)
    with pytest.raises(ValueError, match=r"milestones must ascend from 0, not \[5, 3\]"):
        piecewise(0, [(5, 0.1), (3, 0.2)])
    with pytest.raises(ValueError, match="step -1 is before the span"):
        piecewise(-1, [])
    with pytest.raises(ValueError, match="neither may be negative"):
        swa(-1, 3)
    with pytest.raises(ValueError, match="pct_start is a share from 0 to 1"):
        one_cycle(0, 5, 1.5)
    with pytest.raises(ValueError, match="only with one_cycle, not with cosine"):
        Curve("cosine", 5).momentum(0, 0.8, 0.9)


factors = st.floats(0.0, 1.0)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    n = draw(st.integers(1, 300))
    steps = sorted(draw(st.lists(st.integers(0, n + 5), max_size=5)))
    return Curve(
        kind=draw(st.sampled_from(KINDS)),
        num_steps=n,
        warmup_steps=draw(st.integers(0, n)),
        warmup_start=draw(factors),
        final=draw(factors),
        div=draw(st.floats(1.0, 100.0)),
        final_div=draw(st.floats(1.0, 1e6)),
        pct_start=draw(factors),
        anneal=draw(st.sampled_from(ANNEALS)),
        milestones=tuple((step, draw(factors)) for step in steps),
        interpolate=draw(st.booleans()),
        start_factor=draw(factors),
    )


@settings(deadline=None)
@given(curves())
def test_every_curve_stays_between_0_and_the_peak(curve: Curve) -> None:
    assert all(-1e-12 <= curve.at(i) <= 1.0 + 1e-12 for i in range(curve.num_steps))


@settings(deadline=None)
@given(curves())
def test_a_curve_survives_json(curve: Curve) -> None:
    fields = json.loads(json.dumps(asdict(curve)))
    fields["milestones"] = tuple((step, factor) for step, factor in fields["milestones"])
    assert Curve(**fields) == curve


@settings(deadline=None)
@given(curves())
def test_continuous_kinds_never_jump(curve: Curve) -> None:
    """No step changes the factor by more than pi/2 over the shortest stretch of the curve, a half-cosine's slope."""
    n, warmup = curve.num_steps, curve.warmup_steps
    if curve.kind == "piecewise" or n == 1:
        return
    stretches = [n, warmup or n, (n - warmup) or n]
    if curve.kind == "one_cycle":
        stretches = [max(1.0, curve.pct_start * n - 1), max(1.0, n - curve.pct_start * n)]
    steepest = math.pi / 2 / min(stretches) + 1e-9
    if curve.kind == "one_cycle" and curve.pct_start * n < 2:
        return  # the rise lies between two steps and is not seen as one
    values = [curve.at(i) for i in range(n)]
    assert all(abs(b - a) <= steepest for a, b in pairwise(values))


@settings(deadline=None)
@given(st.integers(2, 500), factors)
def test_ends(n: int, final: float) -> None:
    assert linear(0, n, final) == cosine(0, n, final) == 1.0
    assert abs(linear(n - 1, n, final) - final) <= (1 - final) / n + 1e-12
    assert abs(cosine(n - 1, n, final) - final) <= (math.pi / n) ** 2 / 4 + 1e-12
    assert one_cycle(n - 1, n, 0.3, 10.0, 100.0) == pytest.approx(1e-3, rel=1e-9)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 300), factors, factors)
def test_a_warmup_rises_from_its_start_to_the_body(n: int, warmup: int, start: float, final: float) -> None:
    warmup = min(warmup, n)
    values = [with_warmup(i, n, warmup, start, lambda i, n: cosine(i, n, final)) for i in range(n)]
    rise = values[: warmup + 1]
    assert rise == sorted(rise)
    assert values[0] == (start if warmup else 1.0)
    assert values[warmup:] == [cosine(i, n - warmup, final) for i in range(n - warmup)]


def test_ten_values_of_each_kind() -> None:
    """The numbers themselves, so that a changed formula shows as a diff."""
    golden = {
        Curve("linear", 10, warmup_steps=2): [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
        Curve("cosine", 10, final=0.2): [1.0, 0.9804, 0.9236, 0.8351, 0.7236, 0.6, 0.4764, 0.3649, 0.2764, 0.2196],
        Curve("one_cycle", 10, div=10, final_div=10): [
            *(0.1, 0.55, 1.0, 0.951, 0.8136, 0.6151, 0.3949, 0.1964, 0.059, 0.01),
        ],
        Curve("piecewise", 10, milestones=((3, 0.1), (8, 0.01))): [*[1.0] * 3, *[0.1] * 5, *[0.01] * 2],
        Curve("swa", 10, warmup_steps=4, start_factor=2.0): [2.0, 1.8536, 1.5, 1.1464, *[1.0] * 6],
    }
    for curve, values in golden.items():
        assert [round(curve.at(i), 4) for i in range(10)] == values, curve.kind
