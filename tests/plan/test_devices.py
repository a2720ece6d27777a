"""The forecast for several devices: what an exchange sends is what the code sends, and a step follows from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stagewright.distributed import exchange
from stagewright.distributed.exchange import OrderedSum, PairSum
from stagewright.distributed.reduce import LaneGradients
from stagewright.distributed.tree import host_shares, share, subtrees
from stagewright.distributed.two_levels import TwoLevelSum
from stagewright.distributed.world import World
from stagewright.errors import RecipeError
from stagewright.plan.cost import Costs, GradientCost, StageCost, forecast
from stagewright.plan.devices import (
    ONE,
    Devices,
    Links,
    device_forecast,
    parse_devices,
    parse_rate,
    step_on,
    traffic,
)
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

INFO = DatasetInfo(num_train=1024, num_val=100, num_test=50, classes=("a", "b"), digest="d")
GRADIENTS = GradientCost(
    lane_seconds=0.05,
    update_seconds=0.43,
    arrivals=((0.02, 10 << 20), (0.03, 20 << 20), (0.05, 10 << 20)),
    statistics_bytes=40_000,
    copy_seconds=0.002,
    send_seconds=0.0,
    noise_seconds=0.0,
)
COST = StageCost(
    step_seconds=0.45,
    load_seconds=0.04,
    compute_seconds=0.43,
    entry_seconds=2.0,
    eval_fixed_seconds=1.0,
    eval_image_seconds=0.01,
    recalibrate_seconds=3.0,
    save_seconds=0.25,
    train_gb=1.25,
    eval_gb=0.5,
    shared_entry_seconds=1.5,
    gradients=GRADIENTS,
)
COSTS = Costs(
    stages=(COST,),
    startup_seconds=4.0,
    setup_seconds=1.0,
    first_image_seconds=0.0,
    checkpoint_bytes=8_527_451,
    finish_seconds=0.5,
    page_seconds=1.5,
    page_drag_seconds=0.0,
    probe_seconds=9.0,
    device="NVIDIA H200",
)
FAST = Links(1e15, 1e15)


def plan_of(lanes: int = 8, **fields: Any) -> Plan:
    return resolve(recipes.from_dict({"batch_size": 128, "spread": lanes, "epochs": "4ep", **fields}), INFO)


def sent_bytes(layout: Devices, lanes: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """What ``rank`` sends to other hosts, and to others of its host, in the exchange that the code chooses for such ranks."""
    sent = [0, 0]

    def isend(tensor: Tensor, to: int, tag: int) -> SimpleNamespace:
        near = to // layout.per_host == rank // layout.per_host
        sent[near] += tensor.numel() * tensor.element_size()
        return SimpleNamespace(wait=lambda: None)

    stub = SimpleNamespace(isend=isend, irecv=lambda *_, **__: SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(exchange, "dist", stub)
    members = tuple(SimpleNamespace(host=str(at // layout.per_host)) for at in range(layout.count))
    meeting = cast(Any, SimpleNamespace(members=members))
    places = (rank % layout.per_host, layout.per_host)
    world = World(rank, layout.count, *places, torch.device("cpu"), rendezvous=meeting)
    parameters = [nn.Parameter(torch.zeros(3 * 5 * 7 * 64 * 9))]
    gradients = LaneGradients(parameters, lanes, world, bucket_bytes=1 << 40)
    (bucket,) = gradients._buckets
    one = bucket.exchange
    assert isinstance(one, OrderedSum | PairSum | TwoLevelSum)
    own: Sequence[range] = subtrees(lanes, share(lanes, rank, layout.count))
    one.start([[torch.zeros_like(parameters[0], requires_grad=False)] for _ in own])
    for _ in range(one.advances):
        one.advance()
    size = parameters[0].numel() * 4
    return sent[0] / size, sent[1] / size


@pytest.mark.parametrize("layout", parse_devices("2,3,4,5,8,2x1,3x1,4x1,2x2,2x4,4x2,3x2"), ids=str)
@pytest.mark.parametrize("lanes", [8, 12])
def test_what_is_sent_is_what_the_exchange_sends(layout: Devices, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [sent_bytes(layout, lanes, rank, monkeypatch) for rank in range(layout.count)]
    hosts = [found[at : at + layout.per_host] for at in range(0, layout.count, layout.per_host)]
    between, within = traffic(lanes, layout, ordered=True)
    assert between == pytest.approx(max(sum(far for far, _ in host) for host in hosts), rel=1e-6)
    assert within == pytest.approx(max(near for _, near in found), rel=1e-6)


def test_all_reduce_sends_twice_the_gradients_but_for_a_share() -> None:
    assert traffic(8, Devices(1, 4), ordered=False) == (0.0, 1.5)
    assert traffic(8, Devices(4, 2), ordered=False) == (1.5, 1.0)
    assert traffic(8, ONE, ordered=False) == traffic(8, ONE, ordered=True) == (0.0, 0.0)


def test_hosts_whose_lanes_are_a_subtree() -> None:
    assert host_shares(8, 4, 2) == [range(4), range(4, 8)]
    assert host_shares(12, 4, 2) is None and host_shares(8, 4, 4) is None and host_shares(8, 4, 1) is None


def test_one_device_takes_what_was_measured() -> None:
    plan = plan_of()
    step = step_on(plan.stages[0], COST, ONE, FAST, ordered=False)
    assert (step.seconds, step.efficiency, step.bound, step.wire_seconds) == (0.45, 1.0, "compute", 0.0)
    assert device_forecast(plan, COSTS, ONE, FAST).expected == forecast(plan, COSTS)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_with_a_fast_wire_the_device_with_the_most_lanes_counts(count: int) -> None:
    """0.43 s are 8 lanes of 0.05 s and 0.03 s that each device needs; loading drags by half of its time."""
    step = step_on(plan_of().stages[0], COST, Devices(1, count), FAST, ordered=False)
    most = -(-8 // count)
    load, small = 0.04 * 1, 3 * (1 + (count > 2) + (count > 4)) * 1e-4
    own = 0.03 + most * 0.05 + 0.002
    assert step.compute_seconds == pytest.approx(own) and step.load_seconds == pytest.approx(load)
    assert step.seconds == pytest.approx(small + max(own, load - small) + 0.5 * min(own, load - small), rel=1e-6)
    assert step.efficiency == pytest.approx(0.45 / step.seconds / count)
    assert step.bound == "compute"


def test_devices_wait_for_the_slowest_and_processors_send() -> None:
    """The largest of two normal numbers lies 0.56 deviations above the mean, of 128 2.6; sending costs what is not hidden."""
    stage = plan_of().stages[0]
    quiet = [step_on(stage, COST, Devices(1, count), FAST, ordered=False).seconds for count in (2, 8)]
    noisy = replace(COST, gradients=replace(GRADIENTS, noise_seconds=0.1))
    slower = [step_on(stage, noisy, Devices(1, count), FAST, ordered=False).seconds for count in (2, 8)]
    assert slower[0] - quiet[0] == pytest.approx(0.56 * 0.1 * 0.5**0.5, rel=0.1)
    assert slower[1] - quiet[1] == pytest.approx(1.42 * 0.1 * 0.125**0.5, rel=0.1)
    sending = replace(COST, gradients=replace(GRADIENTS, send_seconds=0.01))
    two = Devices(2, 1)
    free, paid = (step_on(stage, cost, two, Links(1e9, 1e9), ordered=True) for cost in (COST, sending))
    assert 0 < paid.compute_seconds - free.compute_seconds < 0.01
    slow = [step_on(stage, cost, two, Links(1e6, 1e6), ordered=True).compute_seconds for cost in (COST, sending)]
    assert slow[1] - slow[0] == pytest.approx(0.0, abs=1e-5)  # all of it while the wire is waited for


def test_a_lane_is_a_share_of_the_update_it_was_measured_with() -> None:
    """The machine was half as fast when the lanes were measured as when the update was; 7 % of it are no lanes."""
    slow = replace(COST, gradients=replace(GRADIENTS, lane_seconds=0.1, update_seconds=0.86))
    plan, two = plan_of().stages[0], Devices(1, 2)
    found, same = (step_on(plan, cost, two, FAST, ordered=False).compute_seconds for cost in (slow, COST))
    assert found == pytest.approx(same) == pytest.approx(0.03 + 4 * 0.05 + 0.002)


def test_small_exchanges_cost_more_where_processors_compute() -> None:
    on_cpu = replace(COST, load_seconds=0.0, gradients=replace(GRADIENTS, send_seconds=1e-9))
    plan, beside = plan_of().stages[0], replace(COST, load_seconds=0.0)
    one, other = (step_on(plan, cost, Devices(1, 4), FAST, ordered=False).seconds for cost in (on_cpu, beside))
    assert one - other == pytest.approx(2 * 3 * 1e-3, rel=1e-3)


def test_loading_is_that_of_a_host() -> None:
    slow = replace(COST, load_seconds=0.8, step_seconds=0.8)
    one = step_on(plan_of().stages[0], slow, Devices(1, 4), FAST, ordered=False)
    several = step_on(plan_of().stages[0], slow, Devices(4, 1), FAST, ordered=False)
    assert (one.bound, several.bound) == ("input", "input")
    assert one.load_seconds == pytest.approx(0.8) and several.load_seconds == pytest.approx(0.2)


def test_a_slow_wire_bounds_the_step_and_hides_loading() -> None:
    """40 MiB at 0.1 Gbit/s with heads of packets: each host sends them all once, so that the wire is busy for 3.5 s."""
    step = step_on(plan_of().stages[0], COST, Devices(2, 1), Links(1e8, 1e15), ordered=True)
    wire = (40 << 20) * 8 * 1.05 / 1e8
    assert step.bound == "wire" and step.wire_seconds == pytest.approx(wire + 4 * 40_000 * 8 * 1.05 / 1e8)
    # The first bucket is there after 0.02 s of a lane of 0.05 s, and loading is hidden behind the wire.
    assert step.seconds == pytest.approx(wire + 0.02 - 0.05 + step.wire_seconds - wire + 6e-4 + step.compute_seconds)


def test_a_faster_wire_is_never_slower() -> None:
    for layout in parse_devices("2,4,8,2x1,2x2,4x2"):
        times = [
            step_on(plan_of().stages[0], COST, layout, Links(rate, rate), ordered=ordered).seconds
            for ordered in (True, False)
            for rate in (1e7, 1e8, 1e9, 1e10, 1e11)
        ]
        assert times[:5] == sorted(times[:5], reverse=True) and times[5:] == sorted(times[5:], reverse=True)


def test_more_devices_than_lanes_is_a_problem_of_that_row() -> None:
    plan = plan_of(stages=[{"name": "warm", "epochs": "1ep"}, {"name": "last", "epochs": "1ep", "batch_size": 256}])
    found = device_forecast(plan, replace(COSTS, stages=(COST, COST)), Devices(2, 8), FAST, price=2.0)
    assert found.problem == "stage 'warm' has 8 lanes" and found.stages == () and found.expected is None
    assert found.to_dict()["devices"] == "2x8"


def test_hours_and_dollars_are_those_of_all_devices() -> None:
    plan = plan_of()
    found = device_forecast(plan, COSTS, Devices(1, 3), FAST, price=36.0)
    assert found.expected is not None and found.uneven == ("main",)
    assert found.dollars == pytest.approx(found.expected.total_seconds / 3600 * 3 * 36.0)
    # The finish is the work of one process, evaluations and features are shared out.
    alone = forecast(plan, COSTS)
    assert found.expected.finish_seconds == alone.finish_seconds
    assert found.expected.setup_seconds == pytest.approx(alone.setup_seconds - 1.5 * 2 / 3)
    assert found.expected.eval_seconds == pytest.approx(alone.eval_seconds - len(plan.eval_steps) * (1.0 + 3.0) * 2 / 3)


def test_a_fit_is_not_shared_out() -> None:
    fitted = {"name": "fit", "train": "head", "fit": "optimum"}
    plan = plan_of(stages=[fitted, {"name": "all", "epochs": "1ep"}], augment={"crop": "none"})
    fit = replace(COST, gradients=None)
    found = device_forecast(plan, replace(COSTS, stages=(fit, COST)), Devices(1, 4), FAST)
    assert found.stages[0].seconds == COST.step_seconds and found.stages[0].efficiency == 0.25


def test_a_probe_without_parts() -> None:
    with pytest.raises(
        RecipeError, match=r"stage 'main': the probe has not measured the parts[\s\S]*--probe-seconds 60"
    ):
        device_forecast(plan_of(), replace(COSTS, stages=(replace(COST, gradients=None),)), Devices(1, 2), FAST)


def test_devices_and_rates_as_written() -> None:
    assert [str(one) for one in parse_devices("1, 2,16x8,2x1")] == ["1", "2", "16x8", "2x1"]
    assert parse_devices("16x8")[0].count == 128
    assert [parse_rate("--wire", text) for text in ("10G", "100M", "2.5Gbit/s", "1Tbit", "64k")] == [
        1e10,
        1e8,
        2.5e9,
        1e12,
        64e3,
    ]


@pytest.mark.parametrize("text", ["", "0", "1,,2", "2x", "x8", "2x0", "-1", "1.5", "99999", "256x512", "eight", "２"])
def test_devices_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="--devices") as error:
        parse_devices(text)
    assert "HOSTSxDEVICES" in str(error.value)


@pytest.mark.parametrize("text", ["", "10", "10 G", "fast", "0G", "-1G", "1e3G", "10GB", "99999999T", "nanG"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="bits a second with k, M, G or T"):
        parse_rate("--wire", text)
