"""One self-contained page about several runs: their results, their curves laid over each other, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagewright.recipe.differences import differing, value_text
from stagewright.report import results
from stagewright.report.elements import document, section, table, text
from stagewright.report.overlay import look
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES
from stagewright.report.theme import Drawing
from stagewright.text import ABSENT, counted, seconds_text

_COSMETIC = ("name", "description")
_CURVES = (
    "<p><i>Each run in the colour of its line above, a thin line is its training loss; a star marks the chosen weights, unless "
    "they are a mixture made at the end.</i></p>"
)


@dataclass(frozen=True, slots=True)
class Against:
    """How a run compares with the first one on the images that both evaluated."""

    split: str
    """``test`` or ``val``."""
    points: float
    """Its top-1 minus that of the first, in percentage points."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    images: int


def page(
    records: Sequence[RunRecord],
    drawings: Sequence[Drawing],
    against: Sequence[Against | None],
    data: Sequence[str],
    links: Sequence[str | None],
) -> str:
    """Returns the HTML of the page on ``records``, the first of which is what the others are compared with.

    ``drawings`` come from :func:`stagewright.report.overlay.draw_overlay`; ``against`` has the comparison of each run with the
    first, ``data`` sentences on how their data differ, ``links`` the address of each run's own page, if there is one.
    """
    figures = "".join(f'<figure role="img" aria-label="{text(one.alt)}">{one.svg}</figure>' for one in drawings)
    names = _names(records)
    body = "".join(
        (
            f"<header><h1>{counted(len(records), 'run')} compared</h1></header>",
            section("Results", _results(records, names, against, links)),
            section("Curves", f'{_CURVES}<div class="figures">{figures}</div>' if figures else ""),
            section("Recipes", _recipes(records, names)),
            section("Data", _list(data)),
            section("Versions", _versions(records, names)),
            section("Files", _list([f"{run.name}: {problem}" for run in records for problem in run.problems])),
        )
    )
    return document(f"{', '.join(names)}: stagewright", body)


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Returns the runs' names, or their paths where two have the same."""
    names = [record.name for record in records]
    return [str(run.path) if names.count(name) > 1 else name for name, run in zip(names, records, strict=True)]


def _results(
    records: Sequence[RunRecord], names: Sequence[str], against: Sequence[Against | None], links: Sequence[str | None]
) -> str:
    rows = []
    for at, (record, name) in enumerate(zip(records, names, strict=True)):
        scores = {split: results.score(record, split) for split in ("test", "val")}
        seconds = sum(part for _, part in results.time_split(record))
        shown = f'<a href="{text(links[at])}">{text(name)}</a>' if links[at] else text(name)
        summary, plan = record.summary, record.plan.get("recipe", {})
        rows.append(
            (
                f'<span class="run">{_line(at)} {shown}</span>',
                text(record.status),
                text(_short(summary.get("data") or ABSENT)),
                text(summary.get("model") or plan.get("model", {}).get("name", ABSENT)),
                *(_score(scores[split]) for split in ("test", "val")),
                _against(against[at], first=at == 0),
                f"{record.step:,}",
                seconds_text(seconds) if seconds > 0 else ABSENT,
            )
        )
    head = ("run", "status", "data", "model", "test top-1 %", "validation top-1 %")
    note = (
        "<p><i>Intervals of 95 %: of a score alone (Wilson), and of a difference on the same pictures, paired (Bonett and Price, "
        "adjusted Wald). They describe the choice of pictures, not the variation between seeds.</i></p>"
    )
    return table((*head, f"against {text(names[0])}", "updates", "time"), rows, left=4) + note


def _short(data: str) -> str:
    """Returns the last part of a path."""
    return data.rstrip("/").rpartition("/")[2] or data


def _line(at: int) -> str:
    """Returns the line of a run in the figures, as a small drawing."""
    own = look(at)
    dashes = f' stroke-dasharray="{" ".join(f"{2 * part:g}" for part in own.dashes)}"' if own.dashes else ""
    line = f'<line x1="1" x2="25" y1="5" y2="5" stroke="{own.colour}" stroke-width="3"{dashes}/>'
    return f'<svg class="key" viewBox="0 0 26 10" width="26" height="10" aria-hidden="true">{line}</svg>'


def _score(score: results.Score | None) -> str:
    if score is None:
        return ABSENT
    low, high = score.interval
    return f"<b>{score.percent:.2f}</b> ({low:.1f} to {high:.1f})"


def _against(found: Against | None, *, first: bool) -> str:
    if first or found is None:
        return "" if first else ABSENT
    clear = found.low > 0 or found.high < 0
    points = f"<b>{found.points:+.2f}</b>" if clear else f"{found.points:+.2f}"
    return f"{points} ({found.low:+.1f} to {found.high:+.1f}), {found.images:,} {SPLIT_NAMES[found.split]}"


def _recipes(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    recipes = [
        {key: value for key, value in run.plan.get("recipe", {}).items() if key not in _COSMETIC} for run in records
    ]
    return _fields(recipes, names) or "<p>The recipes are the same.</p>"


def _versions(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    shown = (
        "stagewright",
        "git_commit",
        "python",
        "torch",
        "torchvision",
        "timm",
        "cpu",
        "cores",
        "device_name",
        "created",
    )
    return _fields([{name: run.env.get(name) for name in shown} for run in records], names)


def _fields(values: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Returns a table of the fields in which any of ``values`` differs from the first; empty if there are none."""
    found: dict[str, dict[int, Any]] = {}
    for at, other in enumerate(values):
        for path, mine, theirs in differing(values[0], other):
            found.setdefault(path, {})[0] = mine
            found[path][at] = theirs
    rows = [
        (text(path), *(text(value_text(by_run.get(at, by_run[0]))) for at in range(len(values))))
        for path, by_run in found.items()
    ]
    return table(("field", *map(text, names)), rows, left=len(names) + 1) if rows else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""
