"""The page of a cross-validation: its accuracy, its folds with links to the pages of their runs, and the errors of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagewright.measures.folds import FoldAccuracy
from stagewright.report import curve_plots, mistakes, results, theme
from stagewright.report.elements import document, section, table, text
from stagewright.report.gallery import Gallery
from stagewright.report.html import groups_section, mistakes_section
from stagewright.report.measures_page import measures_section, units_of
from stagewright.report.read import RunRecord
from stagewright.text import ABSENT, count_text, number_text, percent_text, seconds_text


@dataclass(frozen=True, eq=False)
class FoldRow:
    """A fold of the page."""

    name: str
    page: str
    """Address of the run's own page."""
    pictures: int
    """Held-out images that could be read."""
    accuracy: float
    """In [0, 1]; NaN without images."""
    record: RunRecord


def folds_page(
    record: RunRecord, folds: Sequence[FoldRow], accuracy: FoldAccuracy, known: Mapping[str, Any], *, final: str | None
) -> str:
    """Returns the HTML of the page.

    ``record`` has the answers of all folds as its test predictions, ``known`` is the content of folds.json, ``final`` the name of
    the directory of the run on all images, if there is one.
    """
    with theme.themed():
        drawings = {one.name: one for one in (*mistakes.draw(record), *curve_plots.draw(record))}
    gallery = Gallery(record)
    body = "".join(
        (
            _head(record, known, len(folds)),
            section("Result", _result(record, accuracy, known, final)),
            section("Folds", _folds(folds, accuracy)),
            section("Where it is wrong", mistakes_section(record, drawings, gallery)),
            section("Measures", _measures(record, drawings)),
            section("Groups", groups_section(record)),
            section("Data", _data(known)),
        )
    )
    return document(f"{record.name}: stagewright", body, style=gallery.style)


def _head(record: RunRecord, known: Mapping[str, Any], count: int) -> str:
    plan = record.plan.get("recipe", {})
    facts = [
        f"recipe {text(plan.get('name', ABSENT))}",
        f"model {text(plan.get('model', {}).get('name', ABSENT))}",
        f"data {text(known['data'])}",
        f"seeds {known['seed']:,} to {known['seed'] + count - 1:,}",
    ]
    return f"<header><h1>{text(record.name)}: {count} folds</h1><p>{' · '.join(facts)}</p></header>"


def _result(record: RunRecord, accuracy: FoldAccuracy, known: Mapping[str, Any], final: str | None) -> str:
    found, answered = accuracy.pooled, record.predictions["test"]
    if found.value is None or found.low is None or found.high is None:
        return "<p>None of the held-out pictures could be read.</p>"
    seen = [one for one in accuracy.by_fold if not math.isnan(one)]
    cards = (
        f'<div class="card"><div class="big">{100 * found.value:.2f}<small> %</small></div>'
        f"<div><b>top-1 on out-of-fold pictures</b><br>{answered.correct:,} of {len(answered):,} pictures<br>"
        f"95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %<br><i>used to choose nothing</i></div></div>"
        f'<div class="card"><div class="big">±{number_text(100 * accuracy.sd, ".2f")}</div>'
        f"<div><b>points between the folds</b> (standard deviation)<br>from {100 * min(seen):.2f} to {100 * max(seen):.2f} %<br>"
        f"mean {100 * accuracy.mean:.2f} %</div></div>"
    )
    corrected = accuracy.corrected_t
    wider = ""
    if corrected.low is not None and corrected.high is not None:
        ends = f"{100 * corrected.low:.1f} to {100 * corrected.high:.1f} %"
        wider = f" From the {len(seen)} values of the folds alone it would be {ends} (Nadeau and Bengio)."
    tiny = '<p class="bad">A rehearsal (--tiny): the accuracy has no meaning.</p>' if known["tiny"] else ""
    model = (
        f'<p>A model trained on the pictures of all folds: <a href="{text(final)}/report.html">{text(final)}</a>.</p>'
        if final
        else f"<p>A model for use, trained on all of them: <code>stagewright finish {text(record.name)}</code></p>"
    )
    share = 100.0 * (len(accuracy.by_fold) - 1) / len(accuracy.by_fold)
    return (
        f'{tiny}<div class="cards">{cards}</div>'
        f"<p>Each picture is answered by the run that did not train on it. The interval describes the choice of "
        f"{units_of(record)} and knows that the runs share training pictures, so it is wider than one of as many independent "
        f"answers.{wider} "
        f"It is of the procedure: what such a training reaches on new pictures of the same kind, with "
        f"{percent_text(share, 0)} of these pictures to train on.</p>{model}"
    )


def _folds(folds: Sequence[FoldRow], accuracy: FoldAccuracy) -> str:
    rows = []
    for one in folds:
        best = results.chosen(one.record)
        val = results.score(one.record, "val")
        rows.append(
            (
                f'<a href="{text(one.page)}">{text(one.name).replace(" ", "&nbsp;")}</a>',
                f"{one.pictures:,}",
                ABSENT if math.isnan(one.accuracy) else f"<b>{100 * one.accuracy:.2f}</b>",
                ABSENT if math.isnan(one.accuracy) else f"{100 * (one.accuracy - accuracy.mean):+.2f}",
                ABSENT if val is None else f"{val.percent:.2f}",
                ABSENT if best is None else f"{best.step:,} of {one.record.total_steps:,}",
                number_text(one.record.summary.get("seed")),
                seconds_text(sum(part for _, part in results.time_split(one.record))),
            )
        )
    head = ("fold", "held out", "top-1 %", "from the mean", "its validation %", "weights of step", "seed", "time")
    return table(head, rows)


def _measures(record: RunRecord, drawings: dict[str, Any]) -> str:
    found = measures_section(record, drawings)
    note = "<p><i>These intervals do not know that the runs share training pictures: they are too narrow.</i></p>"
    return f"{found}{note}" if found else ""


def _data(known: Mapping[str, Any]) -> str:
    lines = [
        f"{count_text(known['images'], 'picture')} in folds, {'given by DATA' if known['given'] else 'made by stagewright'}"
    ]
    if known["test_images"]:
        lines.append(f"{count_text(known['test_images'], 'picture')} of the test part are in no fold and stayed closed")
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in (*lines, *known['notes']))}</ul>"
