"""Decides what of a run's network is folded: in its evaluations, and where its norms are frozen in training."""

from __future__ import annotations

from stagewright.engine.state import TrainState
from stagewright.model.fold import pairs_at
from stagewright.plan.plan import Plan, eval_image_size


def network_pairs(plan: Plan, state: TrainState) -> dict[str, str]:
    """Returns the pairs of the run's network that can be folded.

    A function of plan and network alone, never of weights or of a measured time, so that a resumed run computes the same bits.
    """
    return pairs_at(state.model, eval_image_size(plan, plan.stages[0]))


def predicts_in_bfloat16(plan: Plan, state: TrainState) -> bool:
    """Returns whether the network is in bfloat16 where it only predicts, on a CPU and without ``compile``."""
    plain = plan.precision == "fp32" and not plan.recipe.compile
    return plan.eval_precision == "bf16" and plain and state.device.type == "cpu"


def folds_evaluations(plan: Plan, state: TrainState) -> bool:
    """Returns whether evaluations on images fold what they can: where ``eval.fold`` holds, on a CPU, not compiled."""
    return plan.recipe.eval.fold and not plan.recipe.compile and state.device.type == "cpu"
