"""``plan --devices``: what was asked for, and its forecasts as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from stagewright.cli.cost_view import money_text, short_time
from stagewright.cli.options import WIRE
from stagewright.errors import RecipeError
from stagewright.plan.devices import DeviceForecast, Devices, parse_devices, parse_rate
from stagewright.plan.plan import Plan
from stagewright.system.tables import FittingTable
from stagewright.text import number_text, percent_text, some, span_text

if TYPE_CHECKING:
    from stagewright.data.dataset import Dataset
    from stagewright.plan.cost import Costs
    from stagewright.plan.execution import Execution


@dataclass(frozen=True)
class Expected:
    """The forecasts of a plan on several devices, and what they rest on."""

    plan: Plan
    device: str
    """The one on which costs were measured."""
    asked: Asked
    rows: list[DeviceForecast]

    def to_json(self) -> list[dict[str, Any]]:
        return [row.to_dict() for row in self.rows]


@dataclass(frozen=True)
class Asked:
    """The options of ``plan --devices``."""

    layouts: list[Devices]
    source: Path | None
    between: float
    within: float | None
    price: float | None

    @classmethod
    def parse(
        cls,
        devices: str | None,
        source: Path | None,
        wire: str,
        within: str | None,
        price: float | None,
        *,
        probe: bool,
    ) -> Asked | None:
        """Returns what was asked for; None without ``--devices``. RecipeError for options that do not go together."""
        if devices is None:
            given = [
                name
                for name, there in (("--from", source), ("--wire", wire != WIRE), ("--wire-within", within))
                if there
            ]
            if given:
                raise RecipeError(f"{given[0]} without --devices", "both", "add --devices 1,2,4, or leave it out")
            return None
        if probe == (source is not None):
            raise RecipeError(
                f"--devices {devices} " + ("with --probe and --from" if probe else "without --probe or --from"),
                "--devices with either of them",
                "leave one out"
                if probe
                else "add --probe, which measures this machine, or --from probe.json of another one",
            )
        rates = parse_rate("--wire", wire), None if within is None else parse_rate("--wire-within", within)
        return cls(parse_devices(devices), source, *rates, price)

    def forecasts(self, plan: Plan, dataset: Dataset, execution: Execution, costs: Costs | None) -> Expected:
        """Returns the forecasts of ``plan``; ``costs`` are those measured now, None: those of the file."""
        from stagewright.api.device_forecasts import device_forecasts
        from stagewright.plan.probe_file import read_probe

        if costs is None:
            assert self.source is not None
            costs = read_probe(self.source, plan)
        more = {"between": self.between, "within": self.within, "price": self.price}
        return Expected(
            plan, costs.device, self, device_forecasts(plan, dataset, costs, self.layouts, execution, **more)
        )


def device_view(expected: Expected) -> RenderableType:
    """Returns a rich table with a row for each stage on each number of devices, and sentences below it."""
    table = FittingTable(Text(f"On several devices like {expected.device}"))
    table.add_column("devices", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    for name in ("step", "img/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    names = ["efficiency", "run takes"]
    names += ["costs"] * (expected.asked.price is not None)
    names += ["GETs"] * any(row.requests is not None for row in expected.rows)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in expected.rows:
        _add(table, expected, row)
    return Group(table, *map(Text, _sentences(expected)))


def _add(table: FittingTable, expected: Expected, row: DeviceForecast) -> None:
    if row.expected is None:
        table.add_row(str(row.devices), "not possible")
        return
    totals = [span_text(row.expected.total_seconds)]
    if row.dollars is not None:
        totals.append(money_text(row.dollars))
    if row.requests is not None:
        totals.append(f"{row.requests:,}")
    blank = [""] * len(totals)
    for at, (stage, step) in enumerate(zip(expected.plan.stages, row.stages, strict=True)):
        table.add_row(
            str(row.devices) if at == 0 else "",
            stage.name,
            short_time(step.seconds),
            number_text(stage.batch_size / max(step.seconds, 1e-9)),
            step.bound,
            percent_text(100 * step.efficiency, 0),
            *(totals if at == 0 else blank),
        )


def _sentences(expected: Expected) -> list[str]:
    asked, rows = expected.asked, expected.rows
    lines = [
        f"{row.devices} devices: not possible, as {row.problem}; --spread plans more." for row in rows if row.problem
    ]
    if uneven := [f"{row.devices} ({some(row.uneven, 3)})" for row in rows if row.uneven]:
        lines.append(f"Lanes not shared out equally, so that some devices wait for others: {some(uneven)}.")
    if any(row.devices.hosts > 1 and not row.problem for row in rows):
        lines.append(f"Between hosts {_rate_text(asked.between)}; --wire gives another rate.")
    if asked.price is not None:
        lines.append(f"At ${asked.price:g} an hour for each device.")
    if dollars := [row.request_dollars for row in rows if row.request_dollars is not None]:
        lines.append(f"GETs of all hosts cost up to {money_text(max(dollars))}.")
    lines.append("The model, and where it ends: docs/scale.md.")
    return lines


def _rate_text(rate: float) -> str:
    unit, size = next(
        (name, size)
        for name, size in (("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3))
        if rate >= size
    )
    return f"{rate / size:g} {unit}"
