"""Early stopping: counts evaluations without improvement."""

from __future__ import annotations

import math

from stagewright.engine.evaluate import Evaluation
from stagewright.engine.state import EarlyStopping
from stagewright.recipe.recipe import Stop


def update_early_stopping(stop: Stop, watch: EarlyStopping, result: Evaluation) -> EarlyStopping:
    """Returns the state of early stopping after one more evaluation; ``result`` is that of the better weights."""
    rises = stop.metric == "val_top1"
    value, best = result.top1 if rises else result.loss, watch.best
    better = best is None or (value > best + stop.min_delta if rises else value < best - stop.min_delta)
    if better and math.isfinite(result.loss):
        return EarlyStopping(value, 0)
    return EarlyStopping(best, watch.stale + 1)
