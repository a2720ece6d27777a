"""The forecast for several devices: how long an update takes on each of them, from what was measured on one.

The model, its assumptions and where they end are in docs/scale.md. All functions are pure and do not use torch. Times are
wall-clock seconds, rates bits a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

from stagewright.distributed.buckets import BUCKET_BYTES, first_bucket_bytes
from stagewright.distributed.tree import host_shares, share, subtrees
from stagewright.errors import RecipeError
from stagewright.plan.cost import Costs, Forecast, GradientCost, StageCost, forecast
from stagewright.plan.plan import Plan, StagePlan
from stagewright.text import counted

MOST_DEVICES = 65_536
_HEADERS = 1.05
"""Bytes on the wire for each byte of gradients: heads of packets and frames."""
_ROUND_TRIPS = 3
"""Small exchanges of an update, one after the other: who stops, which images could not be read, sums and statistics of lanes."""
_ROUND_TRIP_SECONDS = {"between": 2e-4, "within": 1e-4}
_WAKE_SECONDS = 1e-3
"""More for each of them on a CPU: a process that computes or waits must be woken there. Measured: 0.4 to 2.6 ms."""
_RATE = re.compile(r"(\d+(?:\.\d+)?)([kMGT])(?:bit(?:/s)?)?", re.ASCII)
_LAYOUT = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Devices:
    """Devices of a run: ``hosts`` machines with ``per_host`` each."""

    hosts: int
    per_host: int

    @property
    def count(self) -> int:
        return self.hosts * self.per_host

    def __str__(self) -> str:
        """``8`` on one host, ``2x4`` on several."""
        return str(self.per_host) if self.hosts == 1 else f"{self.hosts}x{self.per_host}"


ONE = Devices(1, 1)


@dataclass(frozen=True)
class Links:
    """Rates in bits a second, in each direction at the same time."""

    between: float
    """Of a host to the others, shared by its devices."""
    within: float
    """Of a device to the others of its host."""


Bound = Literal["compute", "input", "wire"]


@dataclass(frozen=True)
class _StepForecast:
    """One update of a stage on several devices."""

    seconds: float
    compute_seconds: float
    """Of the device with the most lanes, exchanges without the wire included."""
    load_seconds: float
    """To load what one host needs."""
    wire_seconds: float
    """That the wire is busy with gradients and statistics, most of it during the backward pass."""
    efficiency: float
    """Updates a second over those of one device, divided by the number of devices."""

    @property
    def bound(self) -> Bound:
        """Which of the three takes longest."""
        parts: dict[Bound, float] = {
            "compute": self.compute_seconds,
            "input": self.load_seconds,
            "wire": self.wire_seconds,
        }
        return max(parts, key=lambda name: parts[name])


def parse_devices(text: str) -> list[Devices]:
    """Returns the devices of ``1,2,8,16x8``: on one host, or HOSTSxDEVICES. RecipeError for anything else."""
    found: list[Devices] = []
    for part in text.split(","):
        match = _LAYOUT.fullmatch(part.strip())
        hosts, per_host = (int(match[1]), int(match[2])) if match and match[2] else (1, int(match[1]) if match else 0)
        if not 0 < hosts * per_host <= MOST_DEVICES:
            raise RecipeError(
                f"--devices {text}",
                f"numbers of devices on one host, or HOSTSxDEVICES, up to {MOST_DEVICES:,} in all, e.g. 1,2,4,8,16x8",
                f"correct {part.strip()!r}" if part.strip() else "write a number between the commas",
            )
        found.append(Devices(hosts, per_host))
    return found


def parse_rate(option: str, text: str) -> float:
    """Returns the bits a second of ``10G``, ``100M`` or ``2.5Gbit/s``, given for ``option``; RecipeError for anything else."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * 10 ** (3 * ("kMGT".index(match[2]) + 1)) if match else 0.0
    if not 1e3 <= rate <= 1e15:
        raise RecipeError(
            f"{option} {text}",
            "bits a second with k, M, G or T, e.g. 10G or 100M",
            "give the rate of the network between the hosts",
        )
    return rate


def step_on(stage: StagePlan, cost: StageCost, devices: Devices, links: Links, *, ordered: bool) -> _StepForecast:
    """Returns an update of ``stage`` on ``devices``. ``ordered``: gradients are added in the order of the tree, else by
    all-reduce.

    ValueError for more devices than lanes, and RecipeError for a probe without the parts of an update.
    """
    alone = cost.step_seconds
    if stage.fit == "optimum":  # the whole fit is repeated by each process
        return _StepForecast(alone, alone, 0.0, 0.0, 1 / devices.count)
    load, compute = cost.load_seconds, cost.compute_seconds
    if devices.count == 1:
        whole = alone if compute is None else compute
        return _StepForecast(alone, whole, load or 0.0, 0.0, 1.0)
    gradients = cost.gradients
    if gradients is None or load is None or compute is None:
        raise RecipeError(
            f"stage {stage.name!r}: the probe has not measured the parts of an update",
            "a probe that has loading, lanes and gradients of each stage",
            "measure again for longer: stagewright plan ... --probe --probe-seconds 60 --json > probe.json",
        )
    compute = min(compute, alone)  # measured one after the other, so noise may have it otherwise
    # As a share of an update that was measured together with the lanes: a machine is not as fast at all times.
    lane = compute * min(gradients.lane_seconds / max(gradients.update_seconds, 1e-12), 1 / stage.lanes)
    parts = [len(share(stage.lanes, rank, devices.count)) for rank in range(devices.count)]
    most, groups = max(parts), range(0, devices.count, devices.per_host)
    on_host = max(sum(parts[at : at + devices.per_host]) for at in groups)
    # What computing and loading cost each other on one device: nothing if each has processors of its own.
    drag = _bounded((alone - max(load, compute)) / max(min(load, compute), 1e-9))
    host_load = load * on_host / stage.lanes
    between, within = traffic(stage.lanes, devices, ordered=ordered)
    wire, exposed = _exchange(stage.lanes - most, gradients, devices, links, (between, within))
    # A processor that computes sends too, but for what it sends while it waits for the wire.
    sending = gradients.send_seconds * (between / devices.per_host + within) * max(0.0, 1 - exposed / max(wire, 1e-12))
    own = compute - (stage.lanes - most) * lane + gradients.copy_seconds + sending
    own += _slowest(devices.count) * gradients.noise_seconds * math.sqrt(most / stage.lanes)
    visible = max(0.0, host_load - exposed)  # images are loaded while a device waits for the wire
    seconds = exposed + max(visible, own) + drag * min(visible, own)
    return _StepForecast(seconds, own, host_load, wire, alone / seconds / devices.count)


def _slowest(count: int) -> float:
    """Returns how many standard deviations the largest of ``count`` normal numbers lies above their mean, about (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _exchange(
    others: int, gradients: GradientCost, devices: Devices, links: Links, sent: tuple[float, float]
) -> tuple[float, float]:
    """Returns the seconds that the wire is busy in an update, and those of them that are over after the backward pass.
    ``others``: lanes of the other devices; ``sent`` as :func:`traffic`."""
    each = 8 * _HEADERS * (sent[0] / links.between + sent[1] / links.within)
    several_hosts = devices.hosts > 1
    free = busy = 0.0
    for ready, size in _buckets(gradients.arrivals, several_hosts):
        free = max(ready, free) + size * each
        busy += size * each
    statistics = gradients.statistics_bytes * others * 8 * _HEADERS
    statistics /= links.between if several_hosts else links.within
    trip = _ROUND_TRIP_SECONDS["between" if several_hosts else "within"]
    trip += _WAKE_SECONDS if gradients.send_seconds else 0.0
    small = statistics + _ROUND_TRIPS * math.ceil(math.log2(devices.count)) * trip
    return busy + statistics, max(0.0, free - gradients.lane_seconds) + small


def _buckets(arrivals: Sequence[tuple[float, int]], several_hosts: bool) -> list[tuple[float, int]]:
    """Returns (seconds since the beginning of the lane, bytes) of each bucket that is exchanged as a whole."""
    found: list[tuple[float, int]] = []
    size, limit, when = 0, first_bucket_bytes(several_hosts=several_hosts), 0.0
    for when, one in arrivals:
        size += one
        if size >= limit:
            found.append((when, size))
            size, limit = 0, BUCKET_BYTES
    return [*found, (when, size)] if size else found


def traffic(lanes: int, devices: Devices, *, ordered: bool) -> tuple[float, float]:
    """Returns how many bytes a host sends to others, and a device to the others of its host, for each byte of gradients."""
    count, hosts, local = devices.count, devices.hosts, devices.per_host
    if count == 1:
        return 0.0, 0.0
    if not ordered:
        return 2 * (hosts - 1) / hosts, 2 * (local - 1) / local
    # A rank sends the sums of its subtrees, and that of its chunk over all lanes.
    sums = [1 + len(subtrees(lanes, share(lanes, rank, count))) for rank in range(count)]
    if host_shares(lanes, count, local) is not None:
        return 2 * (hosts - 1) / hosts, max(sums) * (local - 1) / local
    if count == 2 and max(sums) == 2:
        return (1.0, 0.0) if hosts == 2 else (0.0, 1.0)
    of_host = max(sum(sums[first : first + local]) for first in range(0, count, local))
    return of_host * (count - local) / count, max(sums) * (local - 1) / count


@dataclass(frozen=True)
class DeviceForecast:
    """A run on some devices."""

    devices: Devices
    stages: tuple[_StepForecast, ...] = ()
    """One for each stage of the plan; empty if there is a :attr:`problem`."""
    expected: Forecast | None = None
    problem: str | None = None
    """Why the run cannot be carried out so."""
    uneven: tuple[str, ...] = ()
    """Stages whose lanes the devices cannot share out equally: some wait for others."""
    dollars: float | None = None
    requests: int | None = None
    """To an object store, by all hosts; None if the images do not lie in one."""
    request_dollars: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all values as dicts, lists and numbers, for JSON."""
        return {
            **asdict(self),
            "devices": str(self.devices),
            "count": self.devices.count,
            "stages": [{**asdict(stage), "bound": stage.bound} for stage in self.stages],
            "expected": None if self.expected is None else self.expected.to_dict(),
        }


def device_forecast(
    plan: Plan, costs: Costs, devices: Devices, links: Links, *, price: float | None = None
) -> DeviceForecast:
    """Returns the forecast of ``plan`` on ``devices``; ``price`` is in dollars for an hour of one device. Errors as
    :func:`step_on`."""
    if devices.count > plan.most_devices:
        few = next(one for one in plan.stages if one.fit == "updates" and one.lanes == plan.most_devices)
        return DeviceForecast(devices, problem=f"stage {few.name!r} has {counted(few.lanes, 'lane')}")
    ordered = plan.recipe.deterministic or costs.on_cpu  # as stagewright.engine.lanes.sums_in_order
    own = [cost.of(stage) for stage, cost in zip(plan.stages, costs.stages, strict=True)]
    steps = tuple(
        step_on(stage, cost, devices, links, ordered=ordered) for stage, cost in zip(plan.stages, own, strict=True)
    )
    shared = tuple(_shared_out(cost, step, devices.count) for cost, step in zip(own, steps, strict=True))
    expected = forecast(plan, replace(costs, stages=shared), alone=costs)
    hours = expected.total_seconds / 3600
    return DeviceForecast(
        devices,
        steps,
        expected,
        uneven=tuple(one.name for one in plan.stages if one.fit == "updates" and one.lanes % devices.count),
        dollars=None if price is None else hours * devices.count * price,
    )


def _shared_out(cost: StageCost, step: _StepForecast, count: int) -> StageCost:
    """Returns ``cost``, measured on one device, as it is on ``count`` with updates as ``step``: updates, evaluations and features
    are shared out, while saves are the work of the first process."""
    return replace(
        cost,
        step_seconds=step.seconds,
        entry_seconds=cost.entry_seconds - cost.shared_entry_seconds * (1 - 1 / count),
        eval_image_seconds=cost.eval_image_seconds / count,
        recalibrate_seconds=cost.recalibrate_seconds / count,
        short=None,
    )


def _bounded(share: float) -> float:
    return min(1.0, max(0.0, share))
