"""What a comparison says in words: what its intervals speak of, how it came about, and each cell of its table."""

from __future__ import annotations

from collections.abc import Sequence

from stagewright.comparison.compared import Compared
from stagewright.comparison.rows import Against, Row, runs_text
from stagewright.text import ABSENT, count_text, number_text, seconds_text, size_text


def head_sentences(found: Compared) -> list[str]:
    """Returns what a reader must know before the table, one sentence or two each."""
    words = []
    tested = [row for row in found.rows if row.scored is not None]
    level = f"{found.level:g} %"
    what = count_text(found.pictures, "test picture")
    if found.groups is not None:
        what += f" of {count_text(found.groups, 'group')}"
    if not tested:
        words.append(
            "No test part is open yet: only validation scores are shown, which have chosen weights themselves."
        )
    elif found.single:
        others = f"other {_units(found)} of the same kind"
        words.append(
            f"These trained models, not the recipes: each has one seed. Intervals of {level} speak of {others} "
            f"({what}), not of training again."
        )
    else:
        words.append(
            f"Intervals of {level} speak of training again (other seeds) and of other {_units(found)} "
            f"of the same kind ({what})."
        )
    if len(tested) > 1:
        words.append(
            f"The verdicts better and worse hold at {100 - found.level:g} % for all pairs together (Holm); an interval is that "
            "of its own pair."
        )
    if found.excess is not None:
        words.append(f"The variance between seeds is {found.excess:.2g} times that of coin flips on each picture.")
    runs, times = found.opened
    if runs:
        again = "once each" if runs == times else f"{times:,} times altogether"
        words.append(f"The test part was opened by {count_text(runs, 'run')}, {again}.")
    if (chosen := found.selection) is not None:
        high = (
            ""
            if chosen.too_high is None
            else f"; the best of equals would be too high by about {chosen.too_high:.1f} points"
        )
        words.append(
            f"{count_text(chosen.trials, 'run')} chose by validation scores, which are not results: the best variant had "
            f"{chosen.best:.1f} %{high}."
        )
    if found.unequal:
        words.append(f"Rows differ in {', '.join(found.unequal)}.")
    return [*words, *(f"{note[0].upper()}{note[1:]}." for note in found.notes)]


def _units(found: Compared) -> str:
    return "pictures" if found.groups is None else "groups of pictures"


def score_cell(row: Row) -> str:
    """Returns ``81.32 (80.1 to 82.5)``, the test top-1 in percent with its interval."""
    own = row.scored
    return ABSENT if own is None else f"{own.percent:.2f} ({own.low:.1f} to {own.high:.1f})"


def settings_cell(found: Compared, row: Row) -> str:
    """Returns the values that a search gave a variant, whose name says nothing of them; nothing for all others."""
    is_search = found.entries.study is not None and found.entries.study.search is not None
    return ", ".join(f"{name} {_rounded(value)}" for name, value in row.entry.labels.items()) if is_search else ""


def _rounded(label: str) -> str:
    """Returns a number's text with four digits, and any other label as it is."""
    try:
        return f"{float(label):.4g}"
    except ValueError:
        return label


def known(found: Compared, names: Sequence[str]) -> list[str]:
    """Returns those of ``names`` of columns in which any row has something."""
    rows = [dict(zip(COLUMNS, cells(found, row), strict=True)) for row in found.rows]
    return [name for name in names if any(row[name] not in _NOTHING for row in rows)]


def ranks_cell(row: Row) -> str:
    """Returns ``1`` or ``1 to 3``."""
    if row.ranks is None:
        return ABSENT
    low, high = row.ranks
    return f"{low}" if low == high else f"{low} to {high}"


def against_cell(row: Row, *, first: bool) -> str:
    """Returns ``-1.25 (-2.0 to -0.5)``; nothing for the first row."""
    own = row.against
    if first or own is None:
        return "" if first else ABSENT
    return f"{own.points:+.2f} ({own.low:+.1f} to {own.high:+.1f})"


def verdict_text(own: Against, margin: float) -> str:
    """Returns the verdict with what would tell more: ``not told apart: 80 % of such studies would see 2.3 points; about 9 seeds
    would see 0.5``, or ``to see 0.5 takes more pictures``."""
    if own.smallest is None:
        return own.verdict
    more = (
        f"to see {margin:g} takes more pictures"
        if own.seeds is None
        else f"about {own.seeds:,} seeds would see {margin:g}"
    )
    return f"{own.verdict}: 80 % of such studies would see {own.smallest:.1f} points; {more}"


def share_text(value: float | None, digits: int = 2) -> str:
    """Returns a percentage without its sign."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def parameters_cell(row: Row) -> str:
    """Returns ``28.3 M / 0.1 M``: all parameters and those that the last stage trains."""
    if row.parameters is None:
        return ABSENT
    return f"{size_text(row.parameters)} / {size_text(row.trained_last)}"


_NOTHING = ("", ABSENT, f"{ABSENT} / {ABSENT}")
COLUMNS = (
    *("variant", "settings", "rank", "test top-1 %", "seeds", "spread", "against the first", "verdict", "top-5 %"),
    *("validation top-1 %", "parameters / trained last", "MACs", "images/s", "s/epoch", "peak GB", "ms at 1"),
    *("images/s at 64", "time", "trials", "px", "status", "provenance"),
)
"""The columns of the whole table, in all formats for people."""


def cells(found: Compared, row: Row) -> Sequence[str]:
    """Returns the cells of a row, one for each of :data:`COLUMNS`."""
    base = next((one for one in found.rows if one.scored is not None), None)
    costs = row.costs
    return (
        row.name,
        settings_cell(found, row),
        ranks_cell(row),
        score_cell(row),
        runs_text(row),
        share_text(row.spread),
        against_cell(row, first=row is base),
        verdict_text(row.against, found.margin) if row.against is not None else "",
        share_text(row.top5),
        share_text(row.val_top1),
        parameters_cell(row),
        size_text(None if costs is None else costs.macs),
        number_text(None if costs is None else costs.train_images_per_second),
        number_text(None if costs is None else costs.epoch_seconds, ",.3g"),
        number_text(None if costs is None else costs.train_gb, ".2f"),
        number_text(None if costs is None else costs.latency_ms, ",.3g"),
        number_text(None if costs is None else costs.images_per_second),
        ABSENT if row.seconds is None else seconds_text(row.seconds),
        f"{row.entry.trials:,}" if row.entry.trials else ABSENT,
        row.facts[0] or ABSENT,
        row.status,
        row.provenance or ABSENT,
    )
