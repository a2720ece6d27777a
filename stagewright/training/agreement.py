"""Measures at the end of a run how far predictions in bfloat16 agree with float32, on validation images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stagewright.data.batches.specs import eval_specs
from stagewright.engine.folding import predicts_in_bfloat16
from stagewright.model.two_precisions import TwoPrecisions, close_calls, margin_of
from stagewright.plan.plan import StagePlan
from stagewright.rundir.event_kinds import Notice
from stagewright.training.evaluator import Evaluator, both_precisions

_MOST_BATCHES = 16
FEWEST_IMAGES = 16
"""With fewer images the margin means nothing, and the model predicts in float32."""


@dataclass(frozen=True)
class Agreement:
    """How predictions of the model in bfloat16, close ones again in float32, differ from those in float32 alone."""

    margin: float
    """Difference of two logits below which they are close, from one half of the images."""
    images: int
    """Number of images of the other half."""
    equal: int
    """Number of these with equal labels."""
    again: int
    """Number of these that were close and computed again."""

    def sentence(self) -> str:
        return (
            f"predictions in bfloat16 have the labels of float32 on {self.equal:,} of {self.images:,} val pictures; "
            f"{self.again:,} were close and computed again in float32"
        )


def measure_agreement(evaluator: Evaluator, stage: StagePlan) -> Agreement | None:
    """Compares both precisions on up to 16 batches, spread over the validation images, and logs the result.

    None if the run does not predict in bfloat16, or has fewer than 16 validation images. Raises ``Interrupted`` if a stop was
    requested.
    """
    session = evaluator.session
    if not predicts_in_bfloat16(session.plan, session.state):
        return None
    network = evaluator.network(stage)
    if not isinstance(network, TwoPrecisions):
        return None
    specs = list(
        eval_specs(session.plan, session.manifest, stage, "val", most=session.micro_batch_size(stage), unread=False)
    )
    chosen = specs[:: -(-len(specs) // _MOST_BATCHES)] if specs else []
    fast, exact = both_precisions(session, network, chosen)
    if len(fast) < FEWEST_IMAGES:
        return None
    found = _compared(fast, exact)
    session.recorder.log.emit(Notice(step=session.state.step, text=found.sentence()))
    return found


def _compared(fast: Tensor, exact: Tensor) -> Agreement:
    """Compares logits (B, K) in both precisions: every second image gives the margin, the others are counted."""
    margin = margin_of(fast[::2], exact[::2])
    fast, exact = fast[1::2], exact[1::2]
    again = close_calls(fast, margin)
    equal = again | (fast.argmax(dim=1) == exact.argmax(dim=1))
    return Agreement(margin, len(fast), int(equal.sum()), int(again.sum()))
