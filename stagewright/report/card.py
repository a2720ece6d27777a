"""What a notebook shows of a run: a short table and its curves."""

from __future__ import annotations

from collections.abc import Sequence

from stagewright.errors import RecipeError
from stagewright.report.drawing import Plots
from stagewright.report.plots import draw
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES, score, stopped_text, weights_name
from stagewright.report.results import chosen as chosen_weights
from stagewright.system.notebook import heading, table
from stagewright.text import count_text, nearest, some, span_text

_SECONDS = ("setup_seconds", "train_seconds", "eval_seconds", "checkpoint_seconds")


def plots(record: RunRecord, names: Sequence[str]) -> Plots:
    """Returns the figures ``names`` of a run, by the names of the files in its folder plots; ``loss`` is ``loss_step``.
    RecipeError for a figure that the run does not have."""
    found = {drawing.name: drawing for drawing in draw(record)}
    shown = []
    for name in names:
        drawing = found.get(name) or found.get(f"{name}_step")
        if drawing is None:
            raise RecipeError(
                f"plot {name!r}{nearest(name, found)}",
                some([key.removesuffix("_step") for key in found], 20) or "nothing: the run has not begun",
                "choose one of these",
            )
        shown.append(drawing)
    return Plots(tuple(shown))


def run_html(record: RunRecord) -> str:
    """Returns a run as a short table: state, score, what was trained on what, and how long it took."""
    summary, best = record.summary, chosen_weights(record)
    status = stopped_text(record) or f"{record.step:,} of {count_text(record.total_steps, 'step')}"
    rows = [(f"top-1, {SPLIT_NAMES[split]}", _score(record, split)) for split in ("test", "val")]
    if record.num_closed:
        rows.insert(0, (f"top-1, {SPLIT_NAMES['test']}", "test part not opened"))
    if best is not None:
        rows.append(("weights", f"{weights_name(best.weights)}, after step {best.step:,}"))
    rows += [(name, str(summary.get(name) or "")) for name in ("data", "recipe", "model")]
    seconds = sum(float(summary.get(name) or 0) for name in _SECONDS)
    rows.append(("time", span_text(seconds) if seconds else ""))
    title = heading(f"{record.name}: {record.status}", f"{record.path} · {status}")
    return title + table((), [row for row in rows if row[1]], left=2)


def _score(record: RunRecord, split: str) -> str:
    found = score(record, split)
    if found is None or not found.total:
        return ""
    low, high = found.interval
    return f"{found.percent:.1f} % ({low:.1f} to {high:.1f}) of {count_text(found.total, 'picture')}"
