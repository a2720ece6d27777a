"""Says in which order a plan reads its images, and refuses an order that mixes classes badly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stagewright.data.batches.blocked_order import window_blocks
from stagewright.data.batches.class_mixing import WARN_BELOW, class_mixing
from stagewright.data.batches.specs import stage_rows
from stagewright.data.dataset import Dataset
from stagewright.errors import DataError
from stagewright.plan.plan import Plan
from stagewright.text import counted


def with_order_notes(plan: Plan, dataset: Dataset, say: Callable[[str], None]) -> Dataset:
    """Returns ``dataset`` with notes on the order of ``plan``, after saying them; unchanged if the order is ``full``.

    Raises DataError if the batches have too few classes (``data.min_mixing``).
    """
    mixing = class_mixing(plan, dataset.manifest)
    if mixing is None:
        return dataset
    least = plan.recipe.data.min_mixing
    if mixing < least:
        raise DataError(
            f"order: blocked with {dataset.manifest.source!r}: a batch has {mixing:.0%} of the classes that it has with full",
            f"{least:.0%} or more, since batches of few classes train badly",
            "pack the pictures again in mixed order (data pack --order mixed), or --set order=full, or accept it with "
            f"--set data.min_mixing={np.floor(mixing * 100) / 100:g}",
        )
    notes = [f"{_order_sentence(plan, dataset)}; a batch has {mixing:.0%} of the classes that it has with order: full"]
    if mixing < WARN_BELOW:
        notes.append(
            f"warning: below {WARN_BELOW:.0%}, batches of few classes train worse; data pack --order mixed mixes them"
        )
    for note in notes:
        say(note)
    return replace(dataset, notes=(*dataset.notes, *notes))


def _order_sentence(plan: Plan, dataset: Dataset) -> str:
    stage = next(one for one in plan.stages if one.fit == "updates")
    assert dataset.manifest.blocks is not None
    blocks = dataset.manifest.blocks[stage_rows(plan, dataset.manifest, stage)]
    count = len(np.unique(blocks))
    window = window_blocks(count, stage.lanes)
    lanes = "" if stage.lanes == 1 else f", in each of {stage.lanes} lanes"
    return f"order: blocked, {counted(count, 'block')}, shuffled within windows of {window}{lanes}"
