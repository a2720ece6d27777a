"""Terminal output of ``stagewright compare``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from stagewright.comparison.compared import Compared
from stagewright.comparison.rows import FACTS, Row
from stagewright.comparison.words import COLUMNS, cells, head_sentences, known, verdict_text
from stagewright.system.tables import FittingTable
from stagewright.text import ABSENT, printable

_RESULTS = ("variant", "settings", "rank", "test top-1 %", "seeds", "spread", "against the first", "verdict")
_MORE = (
    *(
        "variant",
        "top-5 %",
        "validation top-1 %",
        "parameters / trained last",
        "MACs",
        "images/s",
        "s/epoch",
        "peak GB",
    ),
    *("ms at 1", "images/s at 64", "time", "trials", "px"),
)
_WRAPPED = ("variant", "settings", "verdict", "status")


def compare_view(found: Compared) -> RenderableType:
    """Returns the head's sentences, the results, the costs, where each row comes from, and what is wrong."""
    parts: list[RenderableType] = [Text(printable(line)) for line in head_sentences(found)]
    results = (
        _RESULTS if any(row.scored for row in found.rows) else ("variant", "settings", "seeds", "validation top-1 %")
    )
    states = {row.status for row in found.rows}
    parts.append(_table(found, known(found, results if states == {"finished"} else (*results, "status"))))
    more = [name for name in _MORE if name not in results[1:] and (name != "px" or "px" in found.differing)]
    parts.append(_table(found, known(found, more)))
    parts += [Text(f"· {printable(line)}") for line in _open_questions(found)]
    parts += [Text(f"· {printable(line)}") for line in _origins(found.rows)]
    parts += [Text(f"· {printable(line)}", style="red") for line in _unequal(found)]
    parts += [Text(f"· {printable(line)}", style="dim") for row in found.rows for line in row.problems]
    return Group(*parts)


def _table(found: Compared, names: Sequence[str]) -> FittingTable:
    table = FittingTable()
    for name in names:
        text = name in _WRAPPED
        table.add_column(name, overflow="fold", no_wrap=not text, justify="left" if text else "right")
    for row in found.rows:
        by_name = dict(zip(COLUMNS, cells(found, row), strict=True))
        if row.against is not None:
            by_name["verdict"] = row.against.verdict
        table.add_row(*(Text(printable(by_name[name])) for name in names))
    return table


def _open_questions(found: Compared) -> list[str]:
    return [
        f"{row.name}: {verdict_text(row.against, found.margin)}"
        for row in found.rows
        if row.against is not None and row.against.smallest is not None
    ]


def _origins(rows: Sequence[Row]) -> list[str]:
    """Returns where each row's weights come from; said once where it is the same for all."""
    origins = {row.provenance for row in rows if row.provenance}
    if len(origins) == 1:
        return [f"all: {origins.pop()}"]
    return [f"{row.name}: {row.provenance}" for row in rows if row.provenance]


def _unequal(found: Compared) -> list[str]:
    """Returns the values of what rows differ in and should not."""
    lines = []
    for name in found.unequal:
        values: dict[str, list[str]] = {}
        for row in found.rows:
            values.setdefault(row.facts[FACTS.index(name)] or ABSENT, []).append(row.name)
        parts = (f"{value} ({', '.join(names)})" for value, names in values.items())
        lines.append(f"{name} differs: {'; '.join(parts)}")
    return lines
