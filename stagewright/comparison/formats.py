"""A comparison as a table of Markdown, as CSV with one number a column, and as plain data for JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict

from stagewright.comparison.compared import Compared
from stagewright.comparison.rows import FACTS, Row
from stagewright.comparison.words import COLUMNS, cells, head_sentences
from stagewright.text import printable, table_cell


def markdown(found: Compared) -> str:
    """Returns the head's sentences and the whole table in GitHub's Markdown."""
    head = "\n\n".join(_escaped(sentence) for sentence in head_sentences(found))
    rows = [COLUMNS, ["---"] * len(COLUMNS), *([_cell(cell) for cell in cells(found, row)] for row in found.rows)]
    return f"{head}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in r"\`*_[]<>#|" else one for one in printable(text))


def _cell(text: str) -> str:
    return _escaped(text).replace("\n", " ")


def comma_separated(found: Compared) -> str:
    """Returns CSV with a line for each row: numbers with all digits, empty where they are not known; percent, points, seconds."""
    rows = [_flat(row) for row in found.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["variant"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else _text(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _text(value: object) -> object:
    return table_cell(value) if isinstance(value, str) else value


def _flat(row: Row) -> dict[str, object]:
    scored, against, costs = row.scored, row.against, row.costs
    named = {} if costs is None else costs.model_dump(mode="json")
    return {
        "variant": row.name,
        "phase": row.entry.phase,
        "rank_best": row.ranks and row.ranks[0],
        "rank_worst": row.ranks and row.ranks[1],
        "test_top1": scored and scored.percent,
        "test_top1_low": scored and scored.low,
        "test_top1_high": scored and scored.high,
        "seeds_tested": row.tested,
        "seeds": len(row.entry.runs),
        "spread": row.spread,
        "against_first": against and against.points,
        "against_first_low": against and against.low,
        "against_first_high": against and against.high,
        "against_first_p": against and against.p,
        "verdict": against and against.verdict,
        "smallest_seen": against and against.smallest,
        "seeds_for_margin": against and against.seeds,
        "test_top5": row.top5,
        "val_top1": row.val_top1,
        "parameters": row.parameters,
        "parameters_trained_last": row.trained_last,
        **{name: named.get(name) for name in _COSTS},
        "seconds": row.seconds,
        "trials": row.entry.trials,
        **dict(zip(FACTS, row.facts, strict=True)),
        "status": row.status,
        "provenance": row.provenance,
    }


_COSTS = (
    *(
        "macs",
        "train_images_per_second",
        "epoch_seconds",
        "train_gb",
        "latency_ms",
        "images_per_second",
        "is_disturbed",
    ),
    "device",
)


def plain(found: Compared) -> dict[str, object]:
    """Returns all of it as plain data for JSON; accuracies in percent, differences in percentage points."""
    return {
        "pictures": found.pictures,
        "groups": found.groups,
        "level": found.level,
        "margin": found.margin,
        "of": "trained models" if found.single else "recipes",
        "seed_excess": found.excess,
        "runs_that_opened_the_test_part": found.opened[0],
        "openings": found.opened[1],
        "selection": None if found.selection is None else asdict(found.selection),
        "differing": list(found.differing),
        "unequal": list(found.unequal),
        "notes": list(found.notes),
        "sentences": head_sentences(found),
        "rows": [
            {
                **_flat(row),
                "labels": dict(row.entry.labels),
                "runs": [
                    {
                        "name": one.name,
                        "seed": one.seed,
                        "status": one.status,
                        "path": None if one.record is None else str(one.record.path),
                        "problem": one.problem,
                    }
                    for one in row.entry.runs
                ],
                "problems": list(row.problems),
            }
            for row in found.rows
        ],
    }
