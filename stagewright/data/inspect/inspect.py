"""Inspect: the doctor for data. One look at every file, findings in words, a verdict, nothing changed.

Owns the pass over the files and what is told of it: on the terminal (``print``) and to programs (``to_dict``). The page for
people is in :mod:`stagewright.data.inspect.page`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.decode import NOT_IDENTIFIED, image_extensions
from stagewright.data.inspect.findings import SEVERITIES, Evidence, Finding, Item, Severity, find
from stagewright.data.inspect.fingerprint import Looks, Rows, look, near_pairs
from stagewright.data.manifest import SPLITS
from stagewright.data.pack.reader import is_pack
from stagewright.data.sources import scan
from stagewright.data.sources.assemble import assemble
from stagewright.data.sources.folders import TABLES, UNDECIDED, Listing, absolute_path
from stagewright.data.sources.local import list_source
from stagewright.data.sources.walk import walk
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.system.threads import Pool
from stagewright.text import counted, printable, seconds_text, shortened

if TYPE_CHECKING:
    from rich.console import Console

_CHUNK = 64
_SHOWN_CLASSES, _SHOWN_FILES = 14, 3
_STYLES: dict[Severity, str] = {"serious": "bold red", "warning": "yellow", "notice": "cyan"}


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in a set of pictures."""

    source: str
    """DATA as it was given."""
    evidence: Evidence
    findings: tuple[Finding, ...]
    """The serious ones first."""
    split: str
    """``given`` by DATA, ``made`` here from the seed (also in part), or ``none`` where that was refused."""
    seed: int
    seconds: float

    @property
    def serious(self) -> bool:
        """Whether anything found makes results wrong or training refuse."""
        return any(finding.severity == "serious" for finding in self.findings)

    @property
    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def verdict(self) -> str:
        """One sentence on the whole."""
        count = self.counts
        if self.serious:
            found = counted(count["serious"], "serious finding")
            return f"Not ready: {found}. Results on this data would be wrong, or training refuses."
        if count["warning"]:
            return f"Usable, with {counted(count['warning'], 'warning')}: nothing stands in the way of training."
        return "Nothing to complain about." if not self.findings else "Sound: nothing but notices."

    def class_rows(self) -> list[tuple[str, dict[str, int]]]:
        """For each class, the largest first: its name and pictures in ``train``, ``val``, ``test``, ``undecided``, and
        ``unreadable``."""
        evidence = self.evidence
        columns = {name: evidence.counts(part) for part, name in enumerate(SPLITS)}
        columns["undecided"] = evidence.counts(UNDECIDED)
        bad = np.array(sorted(evidence.looks.reasons.keys() - evidence.looks.not_images), np.int64)
        columns["unreadable"] = np.bincount(evidence.labels[bad], minlength=len(evidence.classes))
        order = np.argsort(-evidence.counts(), kind="stable")
        return [
            (evidence.classes[at], {name: int(column[at]) for name, column in columns.items()}) for at in order.tolist()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it; docs/inspect.md describes the keys, which stay."""
        evidence, looks = self.evidence, self.evidence.looks
        rows = np.flatnonzero(looks.readable)
        width, height = looks.widths[rows], looks.heights[rows]
        groups = evidence.listing.groups
        return {
            "version": 1,
            "source": self.source,
            "root": evidence.listing.root,
            "verdict": self.verdict,
            "serious": self.serious,
            "seconds": round(self.seconds, 3),
            "files": len(looks.sizes),
            "pictures": len(rows),
            "bytes": int(looks.sizes[rows].sum()),
            "split": self.split,
            "seed": self.seed,
            "classes": [{"name": name, **counts} for name, counts in self.class_rows()],
            "groups": None if groups is None else len(groups.drop_null().unique()),
            "formats": _tally(looks.formats[rows]),
            "modes": _tally(looks.modes[rows]),
            "grey": int(looks.grey[rows].sum()),
            "width": _spread(width),
            "height": _spread(height),
            "aspect": _spread(np.round(width / np.maximum(height, 1), 4)),
            "findings": [self._plain_finding(finding) for finding in self.findings],
            "notes": list(evidence.listing.notes),
        }

    def where(self, item: Item) -> tuple[str, str]:
        """The class and the part (train, val, test or nothing) of a file; nothing for what is not in the listing."""
        if item.row < 0:
            return "", ""
        part = int(self.evidence.parts[item.row])
        return self.evidence.listing.labels[item.row].as_py(), "" if part == UNDECIDED else SPLITS[part]

    def _plain_finding(self, finding: Finding) -> dict[str, Any]:
        files = []
        for item in finding.items:
            label, part = self.where(item)
            set_ = None if item.set < 0 else item.set
            files.append({"path": item.path, "class": label, "split": part, "detail": item.detail, "set": set_})
        keys = ("kind", "severity", "what", "why", "todo")
        texts = {key: getattr(finding, key) for key in keys}
        return {**texts, "count": len(files), "sets": finding.sets, "names": list(finding.names), "files": files}

    def print(self, console: Console) -> None:
        """Shows it on the terminal: overview, classes, findings, verdict."""
        from rich.padding import Padding
        from rich.text import Text

        console.print(Text(self._headline(), style="bold"))
        for line in self.facts():
            console.print(Text(line))
        console.print(self._class_table())
        for note in self.evidence.listing.notes:
            console.print(Text(f"· {printable(note)}", style="dim"))
        for finding in self.findings:
            head = Text(f"\n{finding.severity:<8}", style=_STYLES[finding.severity])
            head.append(f" {printable(finding.what)}", style="bold")
            console.print(head)
            console.print(Padding(Text(f"{printable(finding.why)}. To do: {printable(finding.todo)}."), (0, 0, 0, 9)))
            for line in self._file_lines(finding, console.width):
                console.print(Text(f"         {line}", style="dim"), soft_wrap=True)
        style = "red" if self.serious else "yellow" if self.counts["warning"] else "green"
        console.print(Text(f"\n{self.verdict}", style=f"bold {style}"))

    def _headline(self) -> str:
        evidence = self.evidence
        text = f"{printable(self.source)}: {counted(int(evidence.looks.readable.sum()), 'picture')}"
        return f"{text} in {counted(len(evidence.classes), 'class')}, looked at in {seconds_text(self.seconds)}"

    def facts(self) -> list[str]:
        """Formats, sizes and split in a few lines for a person."""
        plain = self.to_dict()
        if not plain["pictures"]:
            return []
        formats = ", ".join(f"{name} {number:,}" for name, number in plain["formats"].items())
        size = [f"{what} {plain[what]['min']:,} to {plain[what]['max']:,} (median {plain[what]['median']:,.0f}) px"
                for what in ("width", "height")]  # fmt: skip
        how = {
            "given": "split as DATA gives it",
            "made": f"split made here, where DATA has none, with seed {self.seed}: identical files stay together, near "
            "duplicates need not",
            "none": "no split can be made",
        }
        lines = [f"{formats}; {plain['bytes'] / 1e6:,.1f} MB", ", ".join(size), how[self.split]]
        if plain["groups"]:
            lines.append(f"{counted(plain['groups'], 'group')} in column '{self.evidence.listing.group_name}'")
        return lines

    def _class_table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        rows = self.class_rows()
        names = [name for name in (*SPLITS, "undecided", "unreadable") if any(counts[name] for _, counts in rows)]
        table = Table("class", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in names:
            table.add_column(name, justify="right")
        hidden = len(rows) - _SHOWN_CLASSES
        for at, (label, counts) in enumerate(rows):
            if hidden > 0 and _SHOWN_CLASSES - 4 <= at < len(rows) - 4:
                if at == _SHOWN_CLASSES - 4:
                    table.add_row(Text(f"… {counted(hidden, 'class')} between …", style="dim"))
                continue
            table.add_row(Text(shortened(printable(label), 40)), *(f"{counts[name]:,}" for name in names))
        return table

    def _file_lines(self, finding: Finding, width: int) -> list[str]:
        lines, seen = [], set()
        for item in finding.items:
            if len(lines) >= _SHOWN_FILES + (finding.sets > 0):
                break
            label, part = self.where(item)
            extra = ", ".join(printable(text) for text in (part, label, item.detail) if text)
            mark = "" if item.set < 0 else "  = " if item.set in seen else "    "
            seen.add(item.set)
            path = shortened(printable(item.path), max(24, width - 14 - len(extra)))
            lines.append(f"{mark}{path}" + (f"  ({extra})" if extra else ""))
        more = len(finding.items) - len(lines)
        return [*lines, f"and {more:,} more"] if more else lines


def inspect(
    source: str, settings: Data, seed: int = 0, *, workers: int = 2, progress: scan.Progress | None = None
) -> Inspection:
    """Looks at every file of ``source`` with ``workers`` threads, each read once, and says what it found.

    ``settings`` and ``seed`` are those a run would have: the split is the one it would get. ``progress(done, total)`` is
    called as it goes on. DataError where ``source`` is not a folder or a table of files.
    """
    began = time.perf_counter()
    if source.startswith("torchvision:") or is_pack(absolute_path(source)):
        raise DataError(
            f"{source!r} is not a set of files",
            "a folder of class folders; a folder with train/, val/ and test/; a table; digits",
            "inspect the files that it was made from",
        )
    listing = list_source(source, settings)
    looks = _look_at(listing, workers, progress)
    parts, split, refusal = _split(source, listing, looks, settings, seed)
    readable = np.flatnonzero(looks.readable)
    _, first = np.unique(np.ascontiguousarray(looks.digests[readable]).view("V16").ravel(), return_index=True)
    first = readable[np.sort(first)]
    pairs = near_pairs(looks.thumbs[first])
    pairs = type(pairs)(first[pairs.first], first[pairs.second], pairs.mirrored, pairs.complete)
    strict = settings.bad_images == "fail"
    evidence = Evidence(listing, looks, pairs, parts, strict, refusal, _unlisted(source, listing))
    return Inspection(source, evidence, find(evidence), split, seed, time.perf_counter() - began)


def _look_at(listing: Listing, workers: int, progress: scan.Progress | None) -> Looks:
    """Looks at all files of ``listing``."""
    paths = listing.paths
    looks = Looks.empty(len(paths))
    chunks = [np.arange(at, min(at + _CHUNK, len(paths))) for at in range(0, len(paths), _CHUNK)]
    finished = 0
    with Pool(max(workers, 1), "inspect") as pool:
        if progress is not None:
            progress(0, len(paths))
        futures = [pool.submit(_fill_in, listing.root, paths, looks, chunk) for chunk in chunks]
        for future in as_completed(futures):
            finished += future.result()
            if progress is not None:
                progress(finished, len(paths))
    looks.not_images.update(
        row
        for row, reason in looks.reasons.items()
        if reason == NOT_IDENTIFIED and not scan.has_image_extension(paths[row].as_py())
    )
    return looks


def _fill_in(root: str, paths: pa.StringArray, looks: Looks, rows: Rows) -> int:
    for row, path in zip(rows.tolist(), paths.take(pa.array(rows)).to_pylist(), strict=True):
        file = os.path.join(root, path)
        try:
            data = scan.read_image(file, os.path.getsize(file))
        except OSError as error:
            looks.reasons[row] = f"the file cannot be opened: {error.strerror or error}"
            continue
        if data is None:
            looks.reasons[row] = NOT_IDENTIFIED
            continue
        looks.sizes[row] = len(data)
        looks.digests[row] = np.frombuffer(scan.digest_of(data), np.uint8)
        looks.put(row, look(data))
    return len(rows)


def _split(source: str, listing: Listing, looks: Looks, settings: Data, seed: int) -> tuple[NDArray[np.int8], str, str]:
    """The part of each file as a run would have it, where it comes from, and why a run refuses the data."""
    parts = np.where(looks.readable, listing.parts, UNDECIDED).astype(np.int8)
    try:
        manifest, _, _ = assemble(source, listing, looks.scan(), settings, seed)
    except DataError as error:
        return parts, "given" if (listing.parts != UNDECIDED).any() else "none", str(error)
    made = bool((parts[looks.readable] != manifest.splits).any())
    parts[looks.readable] = manifest.splits
    return parts, "made" if made else "given", ""


def _unlisted(source: str, listing: Listing) -> tuple[str, ...]:
    """Pictures in the folder of a table that none of its rows names."""
    if Path(source).suffix.lower() not in TABLES or not os.path.isfile(absolute_path(source)):
        return ()
    named = set(listing.paths.to_pylist()) | {item.path for item in listing.excluded}
    stems = {os.path.splitext(item.path)[0] for item in listing.excluded}
    return tuple(
        path
        for path in sorted(walk(listing.root).files)
        if path not in named
        and os.path.splitext(path)[0] not in stems
        and os.path.splitext(path)[1].lower() in image_extensions()
    )


def _tally(values: NDArray[np.object_]) -> dict[str, int]:
    return dict(Counter(values.tolist()).most_common())


def _spread(values: NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {"min": 0, "median": 0, "max": 0}
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}
