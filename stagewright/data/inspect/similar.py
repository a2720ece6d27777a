"""Groups near duplicates, so that a split keeps them together.

Likeness is no equivalence: in a slow pan each frame is a near duplicate of the next, and the first and the last have nothing in
common. Followed from pair to pair, such a chain can swallow a class, which then is in one part alone. So a set that holds more
than half of a class is looked at again. If most of its pairs are near duplicates themselves, it is one scene, which no honest
split can divide: it stays together, and a note says so. Otherwise it is a chain, and is cut where its pairs differ most.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stagewright.data.inspect.evidence import Evidence
from stagewright.data.inspect.fingerprint import Rows, normalised
from stagewright.data.inspect.read import near_rows, read_fingerprints
from stagewright.data.sources.folders import BY_LIKENESS, Listing
from stagewright.data.sources.scan import Progress, Scan
from stagewright.text import counted, some

_SWALLOWED, _PIECE, _DENSE = 0.5, 0.25, 0.5
"""Largest share of a class in a set that is not looked at again, and in a piece of a chain; share of near pairs of a scene."""


def group_similar(
    listing: Listing, *, workers: int, progress: Progress | None, max_pixels: int
) -> tuple[Listing, Scan]:
    """Returns ``listing`` with groups that near duplicates share, and the scan of its files, which are read once."""
    fingerprints = read_fingerprints(listing, workers, progress, max_pixels)
    evidence = Evidence(listing, fingerprints, near_rows(fingerprints), listing.parts)
    return grouped_listing(evidence), fingerprints.scan()


def grouped_listing(evidence: Evidence) -> Listing:
    """Returns the listing of ``evidence`` with groups that near duplicates share (also mirrored ones), and notes on them.

    Groups that the listing has already are never divided: those that share near duplicates become one, named after the
    first. A set outside of all groups is named after its content; images without near duplicates keep what they have.
    """
    listing, fingerprints = evidence.listing, evidence.fingerprints
    names: list[str | None] = [None] * len(listing.paths) if listing.groups is None else listing.groups.to_pylist()
    joined = _Joined.of(evidence, names)
    sets: defaultdict[int, list[int]] = defaultdict(list)
    for row, number in enumerate(joined.sets.tolist()):
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
    name = listing.group_name or BY_LIKENESS
    groups = pa.array(merged, pa.string()) if any(group is not None for group in merged) else None
    return replace(listing, groups=groups, group_name=name, notes=(*listing.notes, note, *joined.notes))


@dataclass
class _Joined:
    """The sets of rows that groups or near duplicates connect."""

    evidence: Evidence
    grouped: Rows
    """(G, 2): the unit of a row that has a group, and the node of its group."""
    num_nodes: int
    sets: Rows
    """(N,): number of the set of each row."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, evidence: Evidence, names: list[str | None]) -> _Joined:
        units, pairs = evidence.units, evidence.pairs
        at = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
        base = int(units.max(initial=-1)) + 1
        grouped = [(int(units[row]), base + at[name]) for row, name in enumerate(names) if name is not None]
        edges = np.array(grouped, np.int64).reshape(-1, 2)
        near = np.stack([units[pairs.first], units[pairs.second]], axis=1).astype(np.int64)
        sets = _components(np.concatenate([edges, near]), base + len(at))
        found = cls(evidence, edges, base + len(at), sets[units])
        found._look_again(sets, near)
        return found

    def _look_again(self, sets: Rows, near: Rows) -> None:
        """Cuts the chains among ``sets`` (nodes,) that hold too much of a class; adds notes on them and on scenes."""
        shares = self._shares(self.sets)
        chains, scenes, cut = [], [], np.zeros(len(near), bool)
        for number in np.unique(shares[0][shares[2] > _SWALLOWED]):
            inside = np.flatnonzero(sets[near[:, 0]] == number) if len(near) else np.zeros(0, np.int64)
            size = len(np.unique(near[inside]))
            if 2 * size < len(np.unique(self.evidence.units[self.sets == number])):
                continue  # its size comes from a group that DATA gives
            label = int(shares[1][shares[0] == number][shares[2][shares[0] == number].argmax()])
            if len(inside) >= _DENSE * size * (size - 1) / 2:
                scenes.append(label)
                continue
            cut[inside] = True
            chains.append(label)
        pieces = self._cut(near, cut) if chains else sets
        if apart := int((pieces[near[cut, 0]] != pieces[near[cut, 1]]).sum()):
            self.sets = pieces[self.evidence.units]
            self.notes.append(
                f"{counted(len(chains), 'chain')} of near duplicates, each with more than half of a class "
                f"({self._named(chains)}), cut where the images differ most: {counted(apart, 'pair')} of near duplicates "
                "may be in two parts"
            )
        if scenes:
            self.notes.append(
                f"{counted(len(scenes), 'set')} of near duplicates with more than half of a class ({self._named(scenes)}): "
                "each shows one scene, so that the class is hardly measured on another; add pictures of others"
            )

    def _named(self, labels: list[int]) -> str:
        return some((self.evidence.classes[label] for label in sorted(set(labels))), 5)

    def _shares(self, sets: Rows) -> tuple[Rows, Rows, NDArray[np.float64]]:
        """Returns the sets and classes that meet, (P,) each, and the share of the class's images in the set."""
        rows = self.evidence.fingerprints.readable
        pairs, counts = np.unique(np.stack([sets[rows], self.evidence.labels[rows]], 1), axis=0, return_counts=True)
        return pairs[:, 0], pairs[:, 1], counts / self.evidence.counts()[pairs[:, 1]]

    def _cut(self, near: Rows, cut: NDArray[np.bool_]) -> Rows:
        """Returns (nodes,): the set of each node, after the pairs ``near[cut]`` were joined again: the nearest first, and only
        where no set becomes larger than a piece. Groups and identical thumbnails are joined first, whatever their size."""
        evidence, pairs = self.evidence, self.evidence.pairs
        nodes = _components(np.concatenate([self.grouped, near[~cut]]), self.num_nodes)
        apart = _apart(evidence.fingerprints.thumbs, pairs.first[cut], pairs.second[cut], pairs.mirrored[cut])
        links = nodes[near[cut]]
        equal = apart == 0
        nodes = _components(links[equal], int(nodes.max()) + 1)[nodes]
        rows = np.flatnonzero(evidence.fingerprints.readable)
        counts: defaultdict[int, dict[int, int]] = defaultdict(dict)
        for node, label in zip(nodes[evidence.units[rows]].tolist(), evidence.labels[rows].tolist(), strict=True):
            counts[node][label] = counts[node].get(label, 0) + 1
        most = np.maximum(_PIECE * evidence.counts(), 1).tolist()
        head = list(range(int(nodes.max()) + 1))

        def top(node: int) -> int:
            while head[node] != node:
                head[node] = node = head[head[node]]
            return node

        order = np.argsort(apart, kind="stable")
        for one, two in nodes[near[cut]][order].tolist():
            first, second = sorted((top(one), top(two)))
            sums = {label: counts[first].get(label, 0) + count for label, count in counts[second].items()}
            if first != second and all(count <= most[label] for label, count in sums.items()):
                head[second] = first
                counts[first] |= sums
        return np.array([top(node) for node in nodes.tolist()], np.int64)


def _components(edges: Rows, size: int) -> Rows:
    """Returns (size,): the number of each node's connected component."""
    links = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(size, size))
    return connected_components(links, directed=False)[1].astype(np.int64)


_CHUNK = 4096


def _apart(thumbs: NDArray[np.uint8], first: Rows, second: Rows, mirrored: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns (M,): the mean difference of the pixels of each pair, in standard deviations; ``mirrored`` (M,): of the mirror
    image of the second."""
    apart = np.zeros(len(first))
    for at in range(0, len(first), _CHUNK):
        part = slice(at, at + _CHUNK)
        two = np.where(mirrored[part, None, None, None], thumbs[second[part]][:, :, ::-1], thumbs[second[part]])
        apart[part] = np.abs(normalised(thumbs[first[part]]) - normalised(two)).mean(axis=(1, 2))
    return apart
