"""Forecasts of a plan on several devices: times from a probe, and what each host reads from an object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stagewright.data.dataset import Dataset
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.data.remote.traffic import expected_traffic
from stagewright.plan.cost import Costs
from stagewright.plan.devices import DeviceForecast, Devices, Links, device_forecast
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.training.streaming import prepare_cache

WITHIN = {"cuda": 80e9, "cpu": 8e9}
"""Bits a second between the devices of a host, if nothing is given: GPUs by PCIe, and processes on a CPU."""


def device_forecasts(
    plan: Plan,
    dataset: Dataset,
    costs: Costs,
    layouts: Sequence[Devices],
    execution: Execution,
    *,
    between: float,
    within: float | None = None,
    price: float | None = None,
) -> list[DeviceForecast]:
    """Returns the forecasts of ``plan``, whose stages have ``costs`` on one device, on each of ``layouts``.

    ``between`` and ``within``: bits a second between hosts and between the devices of a host; None: :data:`WITHIN`. ``price``:
    dollars for an hour of one device. RecipeError for a probe without the parts of an update.
    """
    kind = "cpu" if costs.on_cpu else "cuda"
    links = Links(between, within or WITHIN[kind])
    found = [device_forecast(plan, costs, one, links, price=price) for one in layouts]
    return [one if one.problem else _with_requests(one, plan, dataset, execution) for one in found]


def _with_requests(one: DeviceForecast, plan: Plan, dataset: Dataset, execution: Execution) -> DeviceForecast:
    """Returns ``one`` with the requests of all hosts, which are taken to be those of the first for each."""
    devices = one.devices
    ranks = HostRanks(0, 0, devices.per_host, devices.count)
    cache = prepare_cache(dataset.images, plan, dataset.manifest, execution, ranks, check=False)
    if cache is None:
        return one
    needs = Needs(plan, dataset.manifest, cache.table, ranks)
    requests = devices.hosts * expected_traffic(needs, cache.capacity).requests
    return replace(one, requests=requests, request_dollars=requests / 1000 * execution.get_price)
