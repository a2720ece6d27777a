"""HTML page of an inspection: one self-contained file with the verdict, the findings and thumbnails of their images.

The page has no scripts and loads nothing from the network: thumbnails are data URIs, limited in number and size; charts
are SVG, in colours for light and dark mode. All text that comes from files, folders and tables is escaped.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import decode
from stagewright.data.images.encode import data_uri
from stagewright.data.images.limits import accepted
from stagewright.data.inspect.evidence import SEVERITIES, Finding, Item
from stagewright.data.inspect.inspect import Inspection
from stagewright.rng import Stream, keys
from stagewright.storage.files import FORBIDDEN, read_file, write_for_user
from stagewright.text import counted, printable, seconds_text, shortened

_STYLE = (Path(__file__).parent / "page.css").read_text("utf-8")

_SIDE, _QUALITY = 144, 72
_MOST_BYTES = 6_000_000
"""Maximum size of all thumbnails together, in base64, so that the page is small enough to be sent by mail."""
_FILES, _SETS, _PER_SET = 12, 12, 4
_SAMPLED_CLASSES, _SAMPLES = 40, 8
_LISTED, _CLASS_ROWS, _BARS = 200, 1000, 24
_OPENED = 12
"""A list of at most so many files is shown at once where there are no thumbnails: unreadable files, rows without file."""
_BINS = 24


def write_page(inspection: Inspection, path: str | Path) -> None:
    """Writes the page to ``path`` (:func:`~stagewright.storage.files.write_for_user`)."""
    write_for_user(path, page(inspection))


def page(inspection: Inspection) -> str:
    """Returns the page as HTML."""
    thumbs = _Thumbs(inspection)
    parts = (
        _head(inspection),
        _section("Findings", "".join(_finding(inspection, finding, thumbs) for finding in inspection.findings)),
        _section("Distributions", _charts(inspection)),
        _section("Classes", _class_table(inspection)),
        _section("Samples", _samples(inspection, thumbs)),
        _section("Notes", _notes(inspection)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(inspection.source)}: data inspection</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


class _Thumbs:
    """Makes JPEG thumbnails of the files of an inspection until ``_MOST_BYTES`` are used; decodes each file once."""

    def __init__(self, inspection: Inspection) -> None:
        self.listing = inspection.evidence.listing
        found = inspection.evidence.fingerprints
        self.readable, self.widths, self.heights = found.readable, found.widths, found.heights
        self.left = _MOST_BYTES
        self.known: dict[int, str] = {}

    def html(self, row: int, alt: str = "") -> str:
        """Returns the thumbnail of ``row`` as HTML, or a short text if it cannot be shown. ``alt`` is escaped text."""
        if row < 0:
            return '<div class="pic">no file</div>'
        if not self.readable[row]:
            return '<div class="pic">unreadable</div>'
        if row not in self.known:
            self.known[row] = self._made(row)
        image = self.known[row]
        if not image or len(image) > self.left:
            return '<div class="pic">not shown</div>'
        self.left -= len(image)
        return f'<div class="pic"><img alt="{alt}" {image}></div>'

    def _made(self, row: int) -> str:
        """Returns the attributes of an ``img`` element, except ``alt``; "" if the file cannot be read any more."""
        try:
            data = read_file(Path(self.listing.root, self.listing.paths[row].as_py()), final=FORBIDDEN)
            picture = decode(data, accepted(self.widths[row], self.heights[row]))
        except OSError:  # the file was removed after the inspection
            return ""
        small = 'class="small" ' if max(picture.size) <= _SIDE // 2 else ""
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=_QUALITY)
        return f'{small}loading="lazy" src="{data_uri(file.getvalue())}"'


def _text(value: object) -> str:
    """Returns ``value``, which comes from files or the user, as escaped text."""
    return escape(printable(value))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _head(inspection: Inspection) -> str:
    counts = inspection.counts
    worst = next((severity for severity in SEVERITIES if counts[severity]), "good")
    evidence = inspection.evidence
    overview = (
        f"{counted(int(evidence.fingerprints.readable.sum()), 'picture')} in {counted(len(evidence.classes), 'class')}, "
        f"inspected in {seconds_text(inspection.seconds)}"
    )
    lines = "".join(f"<p>{_text(line)}</p>" for line in (overview, *inspection.facts()))
    marks = "".join(
        f'<span class="{severity}"><span class="badge">{_many(number, severity)}</span></span>'
        for severity, number in counts.items()
        if number
    )
    return (
        f"<header><h1>{_text(inspection.source)}</h1>"
        f'<div class="verdict {worst}">{_text(inspection.verdict)}</div><div>{marks}</div>{lines}</header>'
    )


def _many(number: int, severity: str) -> str:
    return f"{number} serious" if severity == "serious" else counted(number, severity)


def _finding(inspection: Inspection, finding: Finding, thumbs: _Thumbs) -> str:
    shown = _sets(inspection, finding, thumbs) if finding.sets else _files(inspection, finding, thumbs)
    command = f'<pre class="command">{_text(finding.command)}</pre>' if finding.command else ""
    listed = _list(inspection, finding, opened=not shown and len(finding.items) <= _OPENED)
    return (
        f'<article class="finding {finding.severity}" id="{escape(finding.kind)}">'
        f'<h3><span class="badge">{finding.severity}</span>{_text(finding.what)}</h3>'
        f"<p>{_text(finding.why[:1].upper() + finding.why[1:])}. "
        f'<b class="todo">To do:</b> {_text(finding.todo)}.</p>{command}{shown}{listed}</article>'
    )


def _sets(inspection: Inspection, finding: Finding, thumbs: _Thumbs) -> str:
    """Returns the first sets of copies, each with its images side by side."""
    by_set: dict[int, list[Item]] = {}
    for item in finding.items:
        by_set.setdefault(item.set, []).append(item)
    blocks = []
    for items in list(by_set.values())[:_SETS]:
        figures = "".join(_figure(inspection, item, thumbs) for item in _examples(inspection, items))
        more = len(items) - _PER_SET
        note = f'<figcaption class="more">and {more:,} more</figcaption>' if more > 0 else ""
        blocks.append(f'<div class="set">{figures}{note}</div>')
    more = len(by_set) - _SETS
    return f'<div class="sets">{"".join(blocks)}</div>' + (
        f'<p class="quiet">and {more:,} more sets</p>' if more > 0 else ""
    )


def _examples(inspection: Inspection, items: Sequence[Item]) -> list[Item]:
    """Returns a few images of a set; first one of each class and split, then others."""
    seen: set[tuple[str, str]] = set()
    first, rest = [], []
    for item in items:
        where = inspection.where(item)
        (rest if where in seen else first).append(item)
        seen.add(where)
    return [*first, *rest][:_PER_SET]


def _files(inspection: Inspection, finding: Finding, thumbs: _Thumbs) -> str:
    """Returns the first files whose images can be shown."""
    items = [item for item in finding.items if item.row >= 0 and inspection.evidence.fingerprints.readable[item.row]][
        :_FILES
    ]
    if not items:
        return ""
    return f'<div class="grid">{"".join(_figure(inspection, item, thumbs) for item in items)}</div>'


def _figure(inspection: Inspection, item: Item, thumbs: _Thumbs) -> str:
    label, part = inspection.where(item)
    facts = " · ".join(_text(text) for text in (part, item.detail) if text)
    caption = f"<b>{_text(label)}</b><br>{_text(shortened(item.path, 80))}" + (f"<br>{facts}" if facts else "")
    return f"<figure>{thumbs.html(item.row, _text(item.path))}<figcaption>{caption}</figcaption></figure>"


def _list(inspection: Inspection, finding: Finding, *, opened: bool) -> str:
    """Returns a table of the first 200 files, collapsed if not ``opened``; ``--json`` lists all."""
    if not finding.items:
        return ""
    rows = []
    for item in finding.items[:_LISTED]:
        label, part = inspection.where(item)
        number = [str(item.set + 1)] if finding.sets else []
        rows.append([_text(text) for text in (*number, item.path, label, part, item.detail)])
    head = (["set"] if finding.sets else []) + ["file", "class", "part", ""]
    more = len(finding.items) - _LISTED
    rest = f'<p class="quiet">and {more:,} more; --json lists all</p>' if more > 0 else ""
    count = counted(len(finding.items), "row" if finding.kind == "rows-without-file" else "file")
    return f"<details{' open' if opened else ''}><summary>{count}</summary>{_table(head, rows)}{rest}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Returns a table of cells that are HTML already; the last ``numbers`` columns are numbers."""
    kinds = ["" if at < len(head) - numbers else ' class="n"' for at in range(len(head))]
    top = "".join(f"<th{kind}>{title}</th>" for kind, title in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _parts(inspection: Inspection) -> list[str]:
    rows = inspection.class_rows()
    return [name for name in ("train", "val", "test", "undecided") if any(counts[name] for _, counts in rows)]


def _charts(inspection: Inspection) -> str:
    fingerprints = inspection.evidence.fingerprints
    rows = np.flatnonzero(fingerprints.readable)
    if not len(rows):
        return ""
    width, height = fingerprints.widths[rows].astype(float), fingerprints.heights[rows].astype(float)
    charts = [
        _bars(inspection),
        _histogram("Shorter side, pixels", np.minimum(width, height), log=True),
        _histogram("Width / height", width / height, log=True, form=".2f"),
        _histogram("File size, kB", fingerprints.sizes[rows] / 1000, log=True, form=",.1f"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _histogram(title: str, values: NDArray[np.float64], *, log: bool, form: str = ",.0f") -> str:
    """Returns a histogram with bins of equal width, on a logarithmic axis if ``log``; one sentence if all values are equal."""
    low, high = float(values.min()), float(values.max())
    if high <= low * 1.001:
        return f"<figure><figcaption><b>{title}</b>: {low:{form}} everywhere</figcaption></figure>"
    scale = np.log(np.maximum(values, 1e-9)) if log else values
    counts, _ = np.histogram(scale, bins=_BINS)
    top = counts.max()
    bars = "".join(
        f'<rect x="{8 + at * 324 / _BINS:.1f}" y="{112 - 92 * count / top:.1f}" width="{324 / _BINS - 1.5:.1f}" '
        f'height="{max(92 * count / top, 1.0):.1f}" fill="var(--accent)"/>'
        for at, count in enumerate(counts.tolist())
        if count
    )
    middle = float(np.median(values))
    return (
        f'<figure><svg viewBox="0 0 340 134" role="img" aria-label="{title}: from {low:{form}} to {high:{form}}">'
        f'<text class="name" x="8" y="12">{title}, median {middle:{form}}</text>{bars}'
        f'<path d="M8 112.5H332" stroke="var(--grid)"/><text x="8" y="127">{low:{form}}</text>'
        f'<text x="332" y="127" text-anchor="end">{high:{form}}</text></svg></figure>'
    )


def _bars(inspection: Inspection) -> str:
    """Returns a bar chart of images by class, stacked by split; of many classes, only the largest and the smallest."""
    rows, parts = inspection.class_rows(), _parts(inspection)
    half = _BARS // 2
    shown = rows if len(rows) <= _BARS else [*rows[:half], *rows[-half:]]
    longest = max(sum(counts[part] for part in parts) for _, counts in rows)
    lines, y = [], 20
    for label, counts in shown:
        x, total = 128.0, sum(counts[part] for part in parts)
        lines.append(f'<text class="name" x="122" y="{y + 10}" text-anchor="end">{_text(shortened(label, 18))}</text>')
        for part in parts:
            length = 164 * counts[part] / max(longest, 1)
            lines.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="12" fill="var(--{part})"/>')
            x += length
        lines.append(f'<text x="{x + 4:.1f}" y="{y + 10}">{total:,}</text>')
        y += 16
    hidden = len(rows) - len(shown)
    title = "Pictures of each class" + (f" ({hidden:,} between left out)" if hidden else "")
    key = "".join(f'<span class="key" style="background:var(--{part})"></span>{part}' for part in parts)
    return (
        f'<figure><svg viewBox="0 0 340 {y + 4}" role="img" aria-label="{title}"><text class="name" x="8" y="12">{title}'
        f"</text>{''.join(lines)}</svg><figcaption>{key}</figcaption></figure>"
    )


def _class_table(inspection: Inspection) -> str:
    parts = _parts(inspection)
    rows = inspection.class_rows()
    total = max(1, sum(counts[part] for _, counts in rows for part in parts))
    bad = any(counts["unreadable"] for _, counts in rows)
    cells = []
    for label, counts in rows[:_CLASS_ROWS]:
        own = sum(counts[part] for part in parts)
        numbers = [f"{counts[part]:,}" for part in parts] + [f"{own:,}", f"{100 * own / total:.1f} %"]
        cells.append((_text(label), *numbers, *([f"{counts['unreadable']:,}"] if bad else [])))
    head = ["class", *parts, "all", "share", *(["unreadable"] if bad else [])]
    table = _table(head, cells, len(head) - 1)
    return f"<details><summary>All {len(rows):,} classes</summary>{table}</details>" if len(rows) > 30 else table


def _samples(inspection: Inspection, thumbs: _Thumbs) -> str:
    """Returns some images of each class. The choice depends only on their content, so it is the same on every call."""
    evidence = inspection.evidence
    content = np.ascontiguousarray(evidence.fingerprints.digests[:, :8]).view("<u8").ravel().astype(np.uint64)
    rows = np.flatnonzero(evidence.fingerprints.readable)
    rows = rows[np.argsort(keys(0, Stream.SPLIT, content[rows]), kind="stable")]
    blocks = []
    names = [label for label, _ in inspection.class_rows()]
    for label in names[:_SAMPLED_CLASSES]:
        own = rows[evidence.labels[rows] == evidence.classes.index(label)][:_SAMPLES]
        paths = [_text(evidence.listing.paths[int(row)].as_py()) for row in own]
        pictures = "".join(thumbs.html(int(row), path) for row, path in zip(own, paths, strict=True))
        if pictures:
            blocks.append(f'<div class="sample"><h3>{_text(label)}</h3><div class="row">{pictures}</div></div>')
    more = len(names) - _SAMPLED_CLASSES
    return "".join(blocks) + (f'<p class="quiet">and {more:,} more classes</p>' if more > 0 else "")


def _notes(inspection: Inspection) -> str:
    lines = "".join(
        f"<li>{_text(note)}</li>" for note in (*inspection.evidence.listing.notes, *inspection.account.lines())
    )
    return f"<ul>{lines}</ul>" if lines else ""
