"""Terminal output of ``stagewright doctor`` and ``stagewright data bench``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stagewright.system.tables import FittingTable
from stagewright.text import number_text

if TYPE_CHECKING:  # torch comes with it
    from stagewright.preflight.doctor import Check
    from stagewright.preflight.loader_bench import Benchmark


def checks_view(checks: Sequence[Check]) -> RenderableType:
    """Returns one row for each check."""
    table = Table.grid(padding=(0, 2))
    for check in checks:
        colour = {"ok": "green", "slow": "yellow", "will fail": "red"}[check.verdict]
        table.add_row(Text(check.verdict, colour), check.name, Text(check.text))
    return table


def benchmark_view(found: Benchmark) -> RenderableType:
    """Returns a table of the loaders, the time per image, and the summary."""
    table = FittingTable()
    table.add_column("way")
    for name in ("size", "threads", "prefetch", "images/s", "x torchvision", "KB each"):
        table.add_column(name, justify="right", no_wrap=True)
    bases = {rate.image_size: rate.images_per_second for rate in found.rates if rate.what == "torchvision"}
    for rate in sorted(found.rates, key=lambda rate: -rate.image_size):
        base = bases.get(rate.image_size)
        table.add_row(
            rate.what,
            str(rate.image_size),
            str(rate.threads),
            str(rate.prefetch),
            f"{rate.images_per_second:,.0f}",
            f"{rate.images_per_second / base:.2f}" if base else "",
            f"{rate.disk_bytes / 1e3:,.1f}" if rate.disk_bytes else "",
        )
    parts = ", ".join(f"{name} {number_text(value)} µs" for name, value in found.split.items())
    return Group(
        Text(f"{found.pictures:,} pictures of {found.source}, {found.decoder}"),
        table,
        Text(f"One thread spends on a picture: {parts}"),
        Text(found.verdict()),
    )
