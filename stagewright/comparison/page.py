"""The page of a comparison, in one file: the sentences, a table that sorts at a click on its head, and the figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from stagewright.comparison.compared import Compared
from stagewright.comparison.figures import draw
from stagewright.comparison.rows import FACTS, Row, runs_text
from stagewright.comparison.words import COLUMNS as _ALL
from stagewright.comparison.words import cells, head_sentences, known
from stagewright.report.drawing import Drawing
from stagewright.report.elements import document, figure, section, text
from stagewright.rundir.directory import RunDir
from stagewright.text import ABSENT

_NAME = "compare.html"
_RESULTS = (
    *("variant", "settings", "rank", "test top-1 %", "seeds", "spread", "against the first", "verdict", "top-5 %"),
    *("validation top-1 %", "time", "trials", "status"),
)
_COSTS = (
    *("variant", "parameters / trained last", "MACs", "images/s", "s/epoch", "peak GB", "ms at 1", "images/s at 64"),
)
_TEXTS = ("variant", "settings", "verdict", "status", "provenance", *FACTS)
_STYLE = """
th button { all: unset; cursor: pointer; } th button:hover, th button:focus-visible { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after { content: " \\2193"; }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
td.v { min-width: 7.5rem; max-width: 20rem; } td.name { min-width: 8rem; max-width: 16rem; overflow-wrap: anywhere; }
.better { color: #00805e; font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
@media (prefers-color-scheme: dark) { .better { color: #3ecf9f; } }
"""
_SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) table.tHead.addEventListener("click", event => {
  const head = event.target.closest("th"); if (!head) return;
  const at = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
  const key = row => row.cells[at].dataset.v ?? row.cells[at].textContent;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)], [n, m] = [parseFloat(x), parseFloat(y)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(n) || isNaN(m) ? x.localeCompare(y) : n - m;
    return down ? -order : order;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  table.tBodies[0].append(...rows);
});
"""


def default_place(found: Compared) -> Path:
    """Returns where the page is written: ``compare.html`` in the folder of the study, or in the innermost one that holds all
    runs."""
    if found.entries.folder is not None:
        return found.entries.folder / _NAME
    places = [record.path.resolve().parent for entry in found.entries.entries for record in entry.records]
    return Path(os.path.commonpath(places)) / _NAME


def page(found: Compared, place: Path | None = None) -> str:
    """Returns the HTML of the page; links in it lead from ``place``, where it will be written."""
    title = found.entries.study.name if found.entries.study is not None else f"{len(found.rows)} recipes"
    if found.single and found.entries.study is None:
        title = f"{len(found.rows)} models"
    sentences = "".join(f"<p>{text(sentence)}</p>" for sentence in head_sentences(found))
    drawings = "".join(figure(one) for one in draw(found))
    search = _search(found)
    body = "".join(
        (
            f"<header><h1>{text(title)} compared</h1>{sentences}</header>",
            section("Results", _table(found, known(found, _RESULTS))),
            section("Figures", f'<div class="figures">{drawings}</div>' if drawings else ""),
            section("Costs", _costs(found)),
            section("Where they come from", _origins(found)),
            section("What differs", _facts(found)),
            section("Validation scores, which chose", search),
            section("Runs", _runs(found, place or default_place(found))),
        )
    )
    return document(f"{title} compared: stagewright", f"{body}<script>{_SCRIPT}</script>", style=_STYLE)


def _search(found: Compared) -> str:
    """Returns the figures of how a study chose; for want of Optuna those that need it are a sentence."""
    from stagewright.comparison.search_figures import draw_search

    if found.entries.study is None or found.entries.folder is None:
        return ""
    drawings: list[Drawing] = []
    note = ""
    try:
        drawings.extend(draw_search(found.entries.study, found.entries.folder))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "optuna":
            raise
        note = "<p><i>Importance and parallel coordinates need Optuna: pip install 'stagewright[study]'</i></p>"
    shown = "".join(figure(one) for one in drawings)
    return f'<div class="figures">{shown}</div>{note}' if shown else note


def _table(found: Compared, names: Sequence[str]) -> str:
    """Returns a table of some of the columns that sorts by what :func:`_key` says."""
    kinds = ["" if name in _TEXTS else ' class="n"' for name in names]
    head = "".join(
        f'<th{kind} scope="col"><button type="button">{text(name)}</button></th>'
        for kind, name in zip(kinds, names, strict=True)
    )
    lines = []
    for row in found.rows:
        by_name = dict(zip(_ALL, cells(found, row), strict=True))
        line = []
        for kind, name in zip(kinds, names, strict=True):
            style = {
                "variant": ' class="name"',
                "settings": ' class="v"',
                "verdict": ' class="v"',
                "status": ' class="v"',
            }.get(name, kind)
            line.append(f'<td{style} data-v="{text(_key(row, name))}">{_cell(row, name, by_name[name])}</td>')
        lines.append(f"<tr>{''.join(line)}</tr>")
    return f'<div class="wide"><table class="sorts"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(row: Row, name: str, shown: str) -> str:
    if name == "verdict" and row.against is not None:
        kind = row.against.verdict if row.against.verdict in ("better", "worse") else ""
        return f'<span class="{kind}">{text(shown)}</span>' if kind else text(shown)
    if name == "test top-1 %" and row.scored is not None:
        value, _, rest = shown.partition(" ")
        return f"<b>{text(value)}</b> {text(rest)}"
    return text(shown)


def _key(row: Row, name: str) -> object:
    """Returns what a cell is sorted by; empty for what is not known, which comes last."""
    costs = row.costs
    value: object = {
        "variant": row.name,
        "settings": ", ".join(row.entry.labels.values()),
        "rank": row.ranks and sum(row.ranks) / 2,
        "test top-1 %": row.scored and row.scored.percent,
        "seeds": row.tested,
        "spread": row.spread,
        "against the first": row.against and row.against.points,
        "verdict": row.against and row.against.verdict,
        "top-5 %": row.top5,
        "validation top-1 %": row.val_top1,
        "parameters / trained last": row.parameters,
        "MACs": costs and costs.macs,
        "images/s": costs and costs.train_images_per_second,
        "s/epoch": costs and costs.epoch_seconds,
        "peak GB": costs and costs.train_gb,
        "ms at 1": costs and costs.latency_ms,
        "images/s at 64": costs and costs.images_per_second,
        "time": row.seconds,
        "trials": row.entry.trials or None,
        "status": row.status,
    }[name]
    return "" if value is None else value


def _costs(found: Compared) -> str:
    measured = {row.costs.device for row in found.rows if row.costs is not None and row.costs.device}
    if not measured:
        note = "<p><i>Not measured: stagewright compare --measure does, with nothing else on the machine.</i></p>"
        return _table(found, _COSTS[:2]) + note
    disturbed = [row.name for row in found.rows if row.costs is not None and row.costs.is_disturbed]
    note = f"Measured on {', '.join(sorted(measured))}, in turns, medians."
    note += f" Disturbed by other processes: {', '.join(disturbed)}." if disturbed else ""
    return f"{_table(found, known(found, _COSTS))}<p><i>{text(note)}</i></p>"


def _origins(found: Compared) -> str:
    rows = [f"<li><b>{text(row.name)}</b>: {text(row.provenance)}</li>" for row in found.rows if row.provenance]
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _facts(found: Compared) -> str:
    """Returns the facts of each row; those that should not differ and do are red."""
    if not found.differing:
        return "<p>Picture size, crop, precision, hardware, versions and length are the same in all rows.</p>"
    head = "".join(f"<th>{text(name)}</th>" for name in ("variant", *found.differing))
    lines = []
    for row in found.rows:
        parts = [f'<td class="name">{text(row.name)}</td>']
        for name in found.differing:
            value = row.facts[FACTS.index(name)] or ABSENT
            kind = ' class="bad"' if name in found.unequal and value != ABSENT else ""
            parts.append(f"<td{kind}>{text(value)}</td>")
        lines.append(f"<tr>{''.join(parts)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _runs(found: Compared, place: Path) -> str:
    """Returns a list of all runs below their rows, with links to their pages, and what is wrong with them."""
    items = []
    for row in found.rows:
        runs = []
        for one in row.entry.runs:
            name = text(one.name)
            if one.record is not None and (report := RunDir(one.record.path).report).is_file():
                there = quote(os.path.relpath(report.resolve(), place.resolve().parent))
                name = f'<a href="{text(there)}">{name}</a>'
            runs.append(f"{name} {text('' if one.status == 'finished' else one.status)}".strip())
        problems = "".join(f'<br><span class="bad">{text(line)}</span>' for line in row.problems)
        items.append(f"<li><b>{text(row.name)}</b> ({text(runs_text(row))}): {', '.join(runs)}{problems}</li>")
    return f"<details><summary>All runs</summary><ul>{''.join(items)}</ul></details>"
