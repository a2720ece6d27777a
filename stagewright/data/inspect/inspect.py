"""Inspects a data set: reads every file once, without changing anything, and returns findings and a verdict.

The terminal output is in ``stagewright.cli.data_views``, the HTML page in :mod:`stagewright.data.inspect.page`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright.data.account import Account
from stagewright.data.images.decode import image_extensions
from stagewright.data.inspect.advice import new_split
from stagewright.data.inspect.evidence import SEVERITIES, Evidence, Finding, Item, Severity
from stagewright.data.inspect.findings import find
from stagewright.data.inspect.fingerprint import Fingerprints
from stagewright.data.inspect.read import near_rows, read_fingerprints
from stagewright.data.inspect.similar import grouped_listing
from stagewright.data.manifest import SPLITS
from stagewright.data.pack.remote import is_pack_source
from stagewright.data.sources import scan
from stagewright.data.sources.assemble import account_of, assemble, needs_split
from stagewright.data.sources.embedded import image_column, parquet_files
from stagewright.data.sources.folders import TABLES, UNDECIDED, Listing, absolute_path, place_of_groups
from stagewright.data.sources.local import list_source
from stagewright.data.sources.walk import walk
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.text import counted


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of an inspection."""

    source: str
    """DATA as the user gave it."""
    evidence: Evidence
    findings: tuple[Finding, ...]
    """The serious ones first."""
    split: str
    """Where the split comes from: ``given`` by DATA, ``made`` from the seed (in whole or in part), or ``none`` if training
    refuses the data."""
    seed: int
    """Seed of the split."""
    seconds: float
    """Duration of the inspection."""

    @property
    def serious(self) -> bool:
        """Whether any finding is serious: results would be wrong, or training refuses the data."""
        return any(finding.severity == "serious" for finding in self.findings)

    @property
    def counts(self) -> dict[Severity, int]:
        """Number of findings of each severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def verdict(self) -> str:
        """One sentence that sums up the findings."""
        count = self.counts
        if self.serious:
            found = counted(count["serious"], "serious finding")
            return f"Not ready: {found}. Results on this data would be wrong, or training refuses."
        if count["warning"]:
            return f"Usable, with {counted(count['warning'], 'warning')}: nothing prevents training."
        return "No problems found." if not self.findings else "Ready: only notices."

    @property
    def account(self) -> Account:
        """How many images were read, what was left out and what could not be read."""
        return account_of(self.evidence.listing, self.evidence.fingerprints.scan())

    def class_rows(self) -> list[tuple[str, dict[str, int]]]:
        """Returns the name of each class with its numbers of images, the largest class first.

        The keys of the numbers are ``train``, ``val``, ``test``, ``undecided`` and ``unreadable``.
        """
        evidence = self.evidence
        columns = {name: evidence.counts(part) for part, name in enumerate(SPLITS)}
        columns["undecided"] = evidence.counts(UNDECIDED)
        bad = np.array(sorted(evidence.fingerprints.reasons.keys() - evidence.fingerprints.not_images), np.int64)
        columns["unreadable"] = np.bincount(evidence.labels[bad], minlength=len(evidence.classes))
        order = np.argsort(-evidence.counts(), kind="stable")
        return [
            (evidence.classes[at], {name: int(column[at]) for name, column in columns.items()}) for at in order.tolist()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``--json``, whose keys docs/inspect.md describes; they stay the same in later versions."""
        evidence, fingerprints = self.evidence, self.evidence.fingerprints
        rows = np.flatnonzero(fingerprints.readable)
        width, height = fingerprints.widths[rows], fingerprints.heights[rows]
        groups = evidence.listing.groups
        return {
            "version": 1,
            "source": self.source,
            "root": evidence.listing.root,
            "verdict": self.verdict,
            "serious": self.serious,
            "seconds": round(self.seconds, 3),
            "files": len(fingerprints.sizes),
            "pictures": len(rows),
            "bytes": int(fingerprints.sizes[rows].sum()),
            "split": self.split,
            "seed": self.seed,
            "classes": [{"name": name, **counts} for name, counts in self.class_rows()],
            "groups": None if groups is None else len(groups.drop_null().unique()),
            "formats": _tally(fingerprints.formats[rows]),
            "modes": _tally(fingerprints.modes[rows]),
            "grey": int(fingerprints.grey[rows].sum()),
            "width": _spread(width),
            "height": _spread(height),
            "aspect": _spread(np.round(width / np.maximum(height, 1), 4)),
            "findings": [self._plain_finding(finding) for finding in self.findings],
            "account": self.account.to_dict(),
            "notes": list(evidence.listing.notes),
        }

    def where(self, item: Item) -> tuple[str, str]:
        """Returns the class and the split (train, val or test) of a file; each is "" if unknown."""
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
        keys = ("kind", "severity", "what", "why", "todo", "command")
        texts = {key: getattr(finding, key) for key in keys}
        return {**texts, "count": len(files), "sets": finding.sets, "names": list(finding.names), "files": files}

    def facts(self) -> list[str]:
        """Returns formats, sizes and split in a few lines for the user."""
        plain = self.to_dict()
        if not plain["pictures"]:
            return []
        formats = ", ".join(f"{name} {number:,}" for name, number in plain["formats"].items())
        size = [f"{what} {plain[what]['min']:,} to {plain[what]['max']:,} (median {plain[what]['median']:,.0f}) px"
                for what in ("width", "height")]  # fmt: skip
        how = {
            "given": "split as DATA gives it",
            "made": f"DATA has no complete split; this one was made with seed {self.seed}: identical files stay together, "
            + ("near duplicates too" if self.evidence.together else "near duplicates may not"),
            "none": "no split can be made",
        }
        lines = [f"{formats}; {plain['bytes'] / 1e6:,.1f} MB", ", ".join(size), how[self.split]]
        if plain["groups"]:
            place = place_of_groups(self.evidence.listing.group_name)
            lines.append(f"{counted(plain['groups'], 'group')} in {place}")
        return lines


def inspect(source: str, settings: Data, *, workers: int = 2, progress: scan.Progress | None = None) -> Inspection:
    """Reads every file of ``source`` once, with ``workers`` threads, and returns what is wrong with the data set.

    The split is the one that a run with the same ``settings`` would use. ``progress(done, total)`` is called
    with the number of files during the inspection, and with 0, 0 when the images are compared. Raises DataError if ``source``
    is not a folder or a table of files.
    """
    began = time.perf_counter()
    if source.startswith("torchvision:") or is_pack_source(source):
        raise DataError(
            f"{source!r} is not a set of image files",
            "a folder of class folders; a folder with train/, val/ and test/; a table; digits",
            "inspect the files that it was made from",
        )
    listing = list_source(source, settings)
    fingerprints = read_fingerprints(listing, workers, progress, settings.max_pixels)
    if progress is not None:
        progress(0, 0)  # the comparison has begun
    pairs = near_rows(fingerprints)
    together = settings.near == "together" and needs_split(listing)
    if together:
        listing = grouped_listing(Evidence(listing, fingerprints, pairs, listing.parts))
    parts, split, refusal = _split(source, listing, fingerprints, settings)
    evidence = Evidence(
        listing,
        fingerprints,
        pairs,
        parts,
        strict=settings.bad_images == "fail",
        refusal=refusal,
        unlisted=_unlisted(source, listing),
        new_split=new_split(source, settings),
        together=together,
    )
    return Inspection(source, evidence, find(evidence), split, settings.split_seed, time.perf_counter() - began)


def _split(
    source: str, listing: Listing, fingerprints: Fingerprints, settings: Data
) -> tuple[NDArray[np.int8], str, str]:
    """Returns the split that a run would use, (N,) int8; :attr:`Inspection.split`; and why training refuses the data, or
    ""."""
    parts = np.where(fingerprints.readable, listing.parts, UNDECIDED).astype(np.int8)
    try:
        manifest = assemble(source, listing, fingerprints.scan(), settings).manifest
    except DataError as error:
        return parts, "given" if (listing.parts != UNDECIDED).any() else "none", str(error)
    made = bool((parts[fingerprints.readable] != manifest.splits).any())
    parts[fingerprints.readable] = manifest.splits
    return parts, "made" if made else "given", ""


def _unlisted(source: str, listing: Listing) -> tuple[str, ...]:
    """Returns the images in a table's folder that no row of the table names."""
    place = absolute_path(source)
    if place.suffix.lower() not in TABLES or not place.is_file() or (parquet_files(place) and image_column(place)):
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
