"""Compares the entries of a study or of a list of runs: who is better, who cannot be told apart, and what that rests on.

A pure reader; needs no torch. The statistics are those of :mod:`stagewright.measures.seeds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np

from stagewright.comparison.entries import Entries, Entry, entries_of
from stagewright.comparison.pictures import SamePictures, same_pictures
from stagewright.comparison.rows import Against, Row, Scored, described, differing_facts
from stagewright.errors import CheckpointError, RecipeError
from stagewright.measures.seeds import Contrast, Seeds, best_of
from stagewright.report.read import RunRecord
from stagewright.rundir.held_test import times_opened
from stagewright.storage.files import user_path

MARGIN = 0.5
LEVEL = 95.0


@dataclass(frozen=True)
class _Selection:
    """How the runs of a study chose each other by validation scores."""

    trials: int
    """Number of runs that were compared."""
    best: float
    """The best mean validation top-1 of a variant, in percent."""
    too_high: float | None
    """By how many points the best of so many would be too high if all were equally good; None where it cannot be told."""


@dataclass(frozen=True)
class Compared:
    """A comparison: its rows, of which those with test answers stand first, and what holds for all."""

    rows: tuple[Row, ...]
    entries: Entries
    margin: float
    """In percentage points."""
    level: float
    """In percent."""
    pictures: int
    """Number of test pictures that all compared runs have read; 0 where no test part is open."""
    groups: int | None
    """Number of groups that these pictures are of; None where they have none."""
    single: bool
    """Whether trained models are compared, not recipes, since each has one seed."""
    excess: float | None
    """How much more seeds differ than coin flips would make them differ; 1 for not more."""
    opened: tuple[int, int]
    """How many runs have opened their test part, and how often altogether."""
    selection: _Selection | None
    differing: tuple[str, ...]
    """The facts in which rows differ."""
    unequal: tuple[str, ...]
    """Those of them that the study does not allow for."""
    notes: tuple[str, ...]


def compare(places: Sequence[str | Path], *, margin: float = MARGIN, level: float = LEVEL) -> Compared:
    """Returns the comparison of the study in a folder, or of runs, also unfinished ones.

    ``margin`` is the difference in percentage points below which two recipes count as equal; ``level`` is that of the intervals
    in percent. RecipeError for a margin that is not above 0 and below 100, and for a level that is not from 50 to below 100.
    CheckpointError and DataError for what cannot be compared, by name.
    """
    check(margin, level)
    return compared(entries_of([user_path(place) for place in places]), margin, level)


def check(margin: float, level: float) -> None:
    """RecipeError for a margin or a level that :func:`compare` does not take."""
    if not 0 < margin < 100:
        raise RecipeError(f"a margin of {margin:g}", "percentage points, above 0 and below 100", "leave it at 0.5")
    if not 50 <= level < 100:
        raise RecipeError(f"a level of {level:g}", "percent, from 50 to below 100", "leave it at 95")


def compared(entries: Entries, margin: float, level: float) -> Compared:
    """Returns the comparison of ``entries``; errors as for :func:`compare`."""
    answered = [(entry, _answered(entry)) for entry in entries.entries]
    counts = {len(records) for _, records in answered if records}
    notes: list[str] = []
    if 1 in counts and len(counts) > 1:
        alone = [entry.name for entry, records in answered if len(records) == 1]
        if entries.study is None:
            raise CheckpointError(
                f"one seed of {', '.join(alone)}, and more of the others",
                "one seed of each, which compares trained models, or two and more of each, which compares recipes",
                "train the other seeds (train --seed N), or leave them out",
            )
        notes.append(f"{', '.join(alone)}: one seed has finished, the others are not compared with it yet")
        answered = [(entry, records if len(records) > 1 else []) for entry, records in answered]
    tested = [(entry, records) for entry, records in answered if records]
    rows = {entry.name: described(entry, len(records)) for entry, records in answered}
    found: SamePictures | None = None
    seeds: Seeds | None = None
    order = [entry.name for entry, _ in tested]
    if tested:
        used = [(entry.name, record) for entry, records in tested for record in records]
        own = {record.path for _, record in used}
        others = [(entry.name, one) for entry in entries.entries for one in entry.records if one.path not in own]
        found = same_pictures(used, others)
        notes += found.notes
        seeds = _seeds(tested, found, level)
        rows.update(_results(tested, rows, found, seeds, entries.study is not None, margin))
        if entries.study is not None:
            order.sort(key=lambda name: -_percent(rows[name]))
    rest = [entry.name for entry, records in answered if not records]
    if entries.study is not None:
        rest.sort(key=lambda name: -(rows[name].val_top1 or -math.inf))
    listed = [rows[name] for name in [*order, *rest]]
    differing = differing_facts(listed)
    records = [record for entry in entries.entries for record in entry.records]
    openings = [count for record in records if (count := times_opened(record.log))]
    return Compared(
        rows=tuple(listed),
        entries=entries,
        margin=margin,
        level=level,
        pictures=0 if found is None else found.pictures,
        groups=None if found is None or found.groups is None else len(np.unique(found.groups)),
        single=seeds is not None and seeds.single,
        excess=None if seeds is None or math.isnan(seeds.excess) else seeds.excess,
        opened=(len(openings), sum(openings)),
        selection=_selection(entries),
        differing=tuple(differing),
        unequal=tuple(_unequal(entries, differing)),
        notes=tuple(notes),
    )


def _unequal(entries: Entries, differing: list[str]) -> list[str]:
    """Returns the facts that make rows differ though the study does not say so: of runs given one by one all."""
    length = {"epochs": "epochs", "steps": "updates"}
    kept = []
    for name in differing:
        a_length = name in ("epochs", "updates") and entries.study is not None
        if not a_length or (entries.study is not None and length.get(entries.study.equal.kind) == name):
            kept.append(name)
    return kept


def _answered(entry: Entry) -> list[RunRecord]:
    return [one for one in entry.records if "test" in one.predictions and len(one.predictions["test"])]


def _percent(row: Row) -> float:
    return row.scored.percent if row.scored is not None else -math.inf


def _seeds(tested: Sequence[tuple[Entry, list[RunRecord]]], found: SamePictures, level: float) -> Seeds:
    right, at = [], 0
    for _, records in tested:
        right.append(np.stack(found.right[at : at + len(records)]))
        at += len(records)
    return Seeds(right, found.groups, level / 100)


def _results(
    tested: Sequence[tuple[Entry, list[RunRecord]]],
    rows: dict[str, Row],
    found: SamePictures,
    seeds: Seeds,
    is_study: bool,
    margin: float,
) -> dict[str, Row]:
    """Returns the rows with their test results; the first row is the best of a study, and the first of a list."""
    accuracies = [seeds.accuracy(at) for at in range(len(tested))]
    base = max(range(len(tested)), key=lambda at: accuracies[at].value) if is_study else 0
    results, first = {}, 0
    for at, (entry, records) in enumerate(tested):
        top = [one for one in found.among_top[first : first + len(records)] if one is not None]
        first += len(records)
        own, spread = accuracies[at], seeds.spread(at)
        results[entry.name] = replace(
            rows[entry.name],
            scored=Scored(100 * own.value, 100 * own.low, 100 * own.high),
            spread=None if math.isnan(spread) else 100 * spread,
            ranks=seeds.ranks(at) if len(tested) > 1 else None,
            against=None if at == base else _against(seeds, at, base, margin),
            top5=100 * mean(float(one.mean()) for one in top) if len(top) == len(records) else None,
        )
    return results


def _against(seeds: Seeds, at: int, base: int, margin: float) -> Against:
    found = seeds.contrast(at, base)
    verdict = verdict_of(found, margin / 100)
    open_question = verdict == "not told apart" and found.smallest is not None
    return Against(
        100 * found.value,
        100 * found.low,
        100 * found.high,
        found.adjusted,
        f"{verdict} {margin:g}" if verdict == "equal within" else verdict,
        100 * found.smallest if open_question and found.smallest is not None else None,
        seeds.seeds_for(at, base, margin / 100) if open_question else None,
    )


def verdict_of(found: Contrast, margin: float) -> str:
    """Returns ``better``, ``worse``, ``equal within`` the ``margin`` (a share), or ``not told apart``."""
    if found.differs:
        return "better" if found.value > 0 else "worse"
    return "equal within" if -margin < found.low and found.high < margin else "not told apart"


def _selection(entries: Entries) -> _Selection | None:
    """Returns how validation scores chose: the best of T, and how much too high it would be among equals, from the answers to the
    validation pictures of the variants that are compared with one another."""
    trials = max((one.trials for one in entries.entries), default=0)
    if trials < 2:
        return None
    scores, answers = [], []
    for records in entries.chose.values():
        known = [one.predictions["val"] for one in records if "val" in one.predictions]
        if known and len({len(one) for one in known}) == 1:
            right = np.stack([one.labels == one.predicted for one in known])
            answers.append(right.mean(0))
            scores.append(100 * float(right.mean()))
    if not scores:
        return None
    return _Selection(trials, max(scores), _too_high(answers))


def _too_high(answers: Sequence[np.ndarray]) -> float | None:
    """Returns the expected lead of the best among so many equally good ones, in points, from how their answers vary together."""
    if len(answers) < 2 or len({len(one) for one in answers}) > 1:
        return None
    centred = np.stack(answers) - np.mean(answers, axis=0)
    variance = float(np.square(centred - centred.mean(1, keepdims=True)).sum(1).mean()) / len(answers[0]) ** 2
    variance *= len(answers) / (len(answers) - 1)
    return 100 * best_of(len(answers)) * math.sqrt(variance)
