"""The answers of several runs to the same test pictures, and what forbids to compare them.

Pictures are known by their content and class; where two runs have the same manifest, by their path. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.data.manifest import Manifest
from stagewright.data.picture_changes import picture_changes
from stagewright.errors import DataError, StagewrightError
from stagewright.measures.answers import group_numbers
from stagewright.report.read import RunRecord
from stagewright.report.tables import Predictions
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest
from stagewright.text import count_text, counted, some

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
_TOP = 5


@dataclass(frozen=True, eq=False)
class SamePictures:
    """The answers of R runs to the n test pictures that all of them could read."""

    pictures: int
    right: tuple[Bools, ...]
    """(n,) of each run: whether its answer is the true class."""
    among_top: tuple[Bools | None, ...]
    """(n,) of each run: whether the true class is among its first five; None where there are no more classes, and in runs of
    older versions."""
    groups: Ints | None
    """(n,) number of each picture's group; None where the data set has none."""
    notes: tuple[str, ...]
    """Sentences on pictures that are left out, and on identical ones."""


@dataclass(frozen=True, eq=False)
class _Tested:
    """The test part of a run."""

    name: str
    manifest: Manifest
    rows: Ints
    """(T,) the rows of the manifest that are its test part."""
    places: Ints
    """(N,) which of these rows its predictions answer."""
    predictions: Predictions


def same_pictures(runs: Sequence[tuple[str, RunRecord]], others: Sequence[tuple[str, RunRecord]] = ()) -> SamePictures:
    """Returns the answers of ``runs``, (name, run with test answers), to their common test pictures.

    DataError names the runs that were tested on other pictures, labels or classes, with the count of each difference, and those,
    also among the untested ``others``, that trained or chose weights on the pictures that are compared.
    """
    tested = [_tested(name, record) for name, record in runs]
    first = tested[0]
    order = {first.manifest.digest: np.arange(len(first.rows))}
    refused = []
    for one in tested[1:]:
        digest = one.manifest.digest
        if digest in order:
            continue
        if wrong := _differences(first, one):
            refused.append(f"{one.name} was tested on other pictures than {first.name}: {wrong}")
        else:
            order[digest] = _aligned(first, one)
    if refused:
        raise DataError(
            "; ".join(refused),
            "runs that were tested on the same pictures with the same classes",
            "compare runs of one data set with one split (data.split_seed), or evaluate them on one set of pictures",
        )
    _refuse_known(first, [(one.name, one.manifest) for one in tested], others)
    answered = [order[one.manifest.digest][one.places] for one in tested]  # places among the first run's rows
    everywhere = np.zeros(len(first.rows), np.int64)
    for places in answered:
        everywhere[places] += 1
    kept = np.flatnonzero(everywhere == len(tested))
    if not len(kept):
        raise DataError(
            "no test picture was read by all runs", "at least one picture that all have read", "look at the data set"
        )
    right, among = [], []
    for one, places in zip(tested, answered, strict=True):
        at = np.full(len(first.rows), -1, np.int64)
        at[places] = np.arange(len(places))
        rows, own = at[kept], one.predictions
        right.append((own.labels == own.predicted)[rows])
        few = len(first.manifest.classes) <= _TOP
        among.append(None if own.ranks is None or few else (own.ranks <= _TOP)[rows])
    groups = group_numbers(first.manifest.group_names(first.rows[kept]))
    one_group = groups is not None and len(np.unique(groups)) == 1
    lost, same = len(first.rows) - len(kept), len(kept) - len(np.unique(first.manifest.content[first.rows[kept]]))
    notes = [f"{count_text(lost, 'picture')} that a run could not read left out of all"] * (lost > 0)
    notes += [f"{count_text(same, 'picture')} identical to another of them"] * (same > 0)
    notes += ["all test pictures are of one group: the intervals say nothing of other groups"] * one_group
    groups = None if one_group else groups
    return SamePictures(len(kept), tuple(right), tuple(among), groups, tuple(notes))


def _tested(name: str, record: RunRecord) -> _Tested:
    """Returns the test part of a run; DataError if its predictions do not belong to its manifest."""
    manifest = readable_manifest(RunDir(record.path))
    predictions, rows = record.predictions["test"], manifest.rows("test")
    paths = manifest.paths.take(rows).to_pylist()
    at = {path: place for place, path in enumerate(paths)}
    found = [] if predictions.paths is None else [at.get(path, -1) for path in predictions.paths.tolist()]
    places = np.array(found, np.int64)
    if (
        len(places) != len(predictions)
        or (places < 0).any()
        or len(np.unique(places)) < len(places)
        or (manifest.labels[rows[places]] != predictions.labels).any()
    ):
        raise DataError(
            f"the answers in {record.path / 'evaluations' / 'test.parquet'} are not to the test pictures of that run",
            "one answer for each of them, with its class",
            f"stagewright evaluate {record.path} --split test shows what it answers",
        )
    return _Tested(name, manifest, rows, places, predictions)


def _keys(one: _Tested) -> list[tuple[str, str]]:
    hashes = one.manifest.hashes.take(one.rows).to_pylist()
    return [
        (key, one.manifest.classes[label]) for key, label in zip(hashes, one.manifest.labels[one.rows], strict=True)
    ]


def _differences(first: _Tested, other: _Tested) -> str:
    """Returns in what two test parts differ, in words; empty if it is only in the paths, or in pictures for training."""
    words = []
    mine, theirs = (set(one.manifest.classes) for one in (first, other))
    if first.manifest.variant != other.manifest.variant:
        kinds = [one.manifest.variant or "the original files" for one in (first, other)]
        words.append(f"{kinds[1]}, not {kinds[0]}")
    for name, only in ((first.name, mine - theirs), (other.name, theirs - mine)):
        if only:
            words.append(f"{count_text(len(only), 'class', 'classes')} only in {name} ({some(sorted(only), 3)})")
    changes = picture_changes(first.manifest.taken(first.rows), other.manifest.taken(other.rows))
    for name, change in ((first.name, changes.removed), (other.name, changes.added)):
        if change.count:
            words.append(f"{counted(change.count, 'picture')} only in {name}")
    if changes.relabelled.count:
        words.append(f"{counted(changes.relabelled.count, 'picture')} with another class")
    if words:
        words.append(f"data sets {first.manifest.digest[:12]} and {other.manifest.digest[:12]}")
    return ", ".join(words)


def _aligned(first: _Tested, other: _Tested) -> Ints:
    """Returns for each test row of ``other`` the place of the same picture among those of ``first``."""
    order = [sorted(range(len(one.rows)), key=_keys(one).__getitem__) for one in (first, other)]
    found = np.empty(len(order[1]), np.int64)
    found[order[1]] = order[0]
    return found


def _refuse_known(
    first: _Tested, tested: Sequence[tuple[str, Manifest]], others: Sequence[tuple[str, RunRecord]]
) -> None:
    """DataError if runs trained or chose weights on the pictures that are compared, beyond identical pictures that the parts of
    the same data set share in every run."""
    manifests = list(tested)
    for name, record in others:
        try:
            manifests.append((name, Manifest.read(RunDir(record.path).manifest)))
        except StagewrightError:
            continue  # a run that has not begun has seen nothing; a damaged one is a row that says so
    compared = np.unique(first.manifest.content[first.rows])
    seen: dict[str, dict[str, int]] = {}
    digests: dict[str, dict[str, int]] = {}
    for name, manifest in manifests:
        if manifest.digest not in digests:
            digests[manifest.digest] = {
                part: len(np.intersect1d(np.unique(manifest.content[manifest.rows(part)]), compared))
                for part in ("train", "val")
            }
        seen[name] = digests[manifest.digest]
    alike = min(sum(seen[name].values()) for name, _ in tested)
    refused = []
    for name, counts in seen.items():
        if sum(counts.values()) <= alike:
            continue
        verbs = {"train": "was trained on", "val": "chose its weights on"}
        what = [f"{verbs[part]} {count:,}" for part, count in counts.items() if count]
        refused.append(f"{name} {' and '.join(what)} of the {len(compared):,} pictures")
    if refused:
        raise DataError(
            f"{some(refused, 5)} on which {first.name} was tested",
            "runs that have not seen the pictures on which they are compared",
            "leave these runs out, or train them with the parts of the others",
        )
