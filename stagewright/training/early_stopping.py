"""Early stopping: counts evaluations without improvement, and says why a run ends before its plan does."""

from __future__ import annotations

import math

from stagewright.engine.evaluate import Evaluation
from stagewright.engine.state import EarlyStopping, TrainState
from stagewright.measures.metrics import rises
from stagewright.plan.plan import Plan
from stagewright.recipe.recipe import Recipe
from stagewright.text import count_text, number_text

_ERRORS_TO_TELL = 6
"""Smallest number of errors that a network without an error can be told apart from: if only one of two networks errs on each
of n images, the two-sided sign test gives 2 * 2**-n, which is 0.0625 for 5 and 0.03125 for 6 (W. J. Dixon and A. M. Mood,
"The statistical sign test", JASA 41 (1946), 557-566; for paired classes the exact form of McNemar's test)."""
_FEWEST_IMAGES = 50
"""With fewer validation images, few errors are no sign of a good network."""


def update_early_stopping(recipe: Recipe, watch: EarlyStopping, result: Evaluation, metric: float) -> EarlyStopping:
    """Returns the state of early stopping after one more evaluation; ``result`` is that of the better weights, ``metric`` their
    value of ``eval.metric``."""
    stop, best = recipe.stop, watch.best
    higher = rises(recipe.eval.metric) if stop.metric is None else stop.metric == "val_top1"
    value = metric if stop.metric is None else result.top1 if higher else result.loss
    better = best is None or (value > best + stop.min_delta if higher else value < best - stop.min_delta)
    if better and math.isfinite(result.loss) and math.isfinite(value):
        return EarlyStopping(value, 0)
    return EarlyStopping(best, watch.stale + 1)


def reason_to_end(plan: Plan, state: TrainState) -> str | None:
    """Returns in a sentence why the run ends at the present step before its plan does, or None if it goes on.

    A function of plan and state alone, so that a resumed run ends where an unbroken one does.
    """
    stop, watch = plan.recipe.stop, state.early_stopping
    if stop.patience is not None and watch.stale >= stop.patience:
        best = number_text(watch.best, ".4g")
        name = stop.metric or f"val_{plan.recipe.eval.metric}"
        return f"{name} has not improved on {best} in {watch.stale} evaluations"
    return _head_suffices(plan, state) if stop.head_suffices else None


def _head_suffices(plan: Plan, state: TrainState) -> str | None:
    """Why training more than the head could not be told to be better; None elsewhere than at the end of the head's stages."""
    head, images = plan.head_stage, plan.dataset.num_val
    if head is None or state.step != head.end_step or images < _FEWEST_IMAGES:
        return None
    if state.latest is None or state.latest.step != state.step:  # this step's evaluation is pending
        return None
    # The score is a share of the images that could be read. Taken of all images it is not fewer errors than there were.
    errors = round((100.0 - state.latest.top1) / 100.0 * images)
    if errors >= _ERRORS_TO_TELL:
        return None
    return (
        f"the head alone makes {count_text(errors, 'error')} on {images:,} validation pictures: even weights without an "
        f"error could not be told apart from it (sign test, fewer than {_ERRORS_TO_TELL} errors)"
    )
