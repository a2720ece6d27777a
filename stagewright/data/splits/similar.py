"""Groups near duplicates, so that a split keeps them together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stagewright.data.inspect.evidence import Evidence
from stagewright.data.inspect.fingerprint import Rows
from stagewright.data.inspect.read import near_rows, read_fingerprints
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.scan import Progress, Scan
from stagewright.text import counted


def group_similar(
    listing: Listing, *, workers: int, progress: Progress | None, max_pixels: int
) -> tuple[Listing, Scan]:
    """Returns ``listing`` with groups that near duplicates share (also mirrored ones), and the scan of its files.

    Groups that the listing has already are never divided: those that share near duplicates become one, named after the
    first. A set outside of all groups is named after its content; images without near duplicates keep what they have.
    """
    fingerprints = read_fingerprints(listing, workers, progress, max_pixels)
    evidence = Evidence(listing, fingerprints, near_rows(fingerprints), listing.parts)
    names: list[str | None] = [None] * len(listing.paths) if listing.groups is None else listing.groups.to_pylist()
    sets: defaultdict[int, list[int]] = defaultdict(list)
    for row, number in enumerate(_joined(evidence, names).tolist()):
        if fingerprints.readable[row]:
            sets[number].append(row)
    merged, similar = [*names], 0
    for rows in sets.values():
        if len(set(evidence.units[rows].tolist())) == 1:
            continue
        known = sorted({name for row in rows if (name := names[row]) is not None})
        more = f" and {len(known) - 1} more" if len(known) > 1 else ""
        content = min(fingerprints.digests[row].tobytes() for row in rows).hex()
        for row in rows:
            merged[row] = f"{known[0]}{more}" if known else f"similar {content[:12]}"
        similar += not known or bool(more)
    note = f"near duplicates stay together: {counted(similar, 'new group')}"
    name = listing.group_name or "similar"
    groups = pa.array(merged, pa.string()) if any(group is not None for group in merged) else None
    return replace(listing, groups=groups, group_name=name, notes=(*listing.notes, note)), fingerprints.scan()


def _joined(evidence: Evidence, names: list[str | None]) -> Rows:
    """Returns (N,): the number of the set that each row belongs to: rows that groups or near duplicates connect."""
    units, pairs = evidence.units, evidence.pairs
    at = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
    base = int(units.max(initial=-1)) + 1
    grouped = [(int(units[row]), base + at[name]) for row, name in enumerate(names) if name is not None]
    edges = np.array([*grouped, *zip(units[pairs.first], units[pairs.second], strict=True)], np.int64).reshape(-1, 2)
    size = base + len(at)
    links = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(size, size))
    return connected_components(links, directed=False)[1][units].astype(np.int64)
