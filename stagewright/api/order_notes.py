"""Says in which order a plan reads its images, and refuses an order that mixes classes badly."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stagewright.data.batches.blocked_order import window_blocks
from stagewright.data.batches.class_mixing import WARN_BELOW, class_mixing
from stagewright.data.batches.specs import stage_rows
from stagewright.data.dataset import Dataset
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.data.remote.traffic import expected_traffic
from stagewright.distributed.environment import read_place
from stagewright.errors import DataError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.text import counted
from stagewright.training.streaming import prepare_cache


def with_order_notes(plan: Plan, dataset: Dataset, execution: Execution, say: Callable[[str], None]) -> Dataset:
    """Returns ``dataset`` with notes on what ``plan`` reads in which order, after saying them; else unchanged.

    Raises DataError if the batches have too few classes (``data.min_mixing``), and RecipeError if the cache is too small.
    """
    notes = [*_order_notes(plan, dataset), *_store_notes(plan, dataset, execution)]
    for note in notes:
        say(note)
    return replace(dataset, notes=(*dataset.notes, *notes)) if notes else dataset


def _order_notes(plan: Plan, dataset: Dataset) -> list[str]:
    mixing = class_mixing(plan, dataset.manifest)
    if mixing is None:
        return []
    least = plan.recipe.data.min_mixing
    if mixing < least:
        raise DataError(
            f"order: blocked with {dataset.manifest.source!r}: a batch has {mixing:.0%} of the classes that it has with full",
            f"{least:.0%} or more, since batches of few classes train badly",
            "pack the pictures again in mixed order (data pack --order mixed), or --set order=full, or accept it with "
            f"--set data.min_mixing={int(mixing * 100) / 100:g}",
        )
    notes = [f"{_order_sentence(plan, dataset)}; mixing {mixing:.0%}: so many of the classes in a batch of order: full"]
    if mixing < WARN_BELOW:
        notes.append(
            f"warning: mixing below {WARN_BELOW:.0%}: batches of few classes train worse; data pack --order mixed mixes them"
        )
    return notes


def _order_sentence(plan: Plan, dataset: Dataset) -> str:
    stage = next(one for one in plan.stages if one.fit == "updates")
    assert dataset.manifest.blocks is not None
    count = len(np.unique(dataset.manifest.blocks[stage_rows(plan, dataset.manifest, stage)]))
    window = window_blocks(count, stage.lanes)
    lanes = "" if stage.lanes == 1 else f" in each of {stage.lanes} lanes"
    return f"order: blocked, {counted(count, 'block')}, shuffled within windows of {window}{lanes}"


def _store_notes(plan: Plan, dataset: Dataset, execution: Execution) -> list[str]:
    """Returns what a run reads from an object store, and what that costs; nothing for data elsewhere."""
    alone = read_place(os.environ) is None  # otherwise each host has a part, which only its processes know
    cache = prepare_cache(dataset.images, plan, dataset.manifest, execution, HostRanks(), check=alone)
    if cache is None:
        return []
    traffic = expected_traffic(Needs(plan, dataset.manifest, cache.table, HostRanks()), cache.capacity)
    dollars = traffic.requests / 1000 * execution.get_price
    how = "each block once, as all fit" if traffic.fits else "at most, as not all fit"
    return [
        f"read from {dataset.manifest.root}: {counted(traffic.blocks, 'block')}, {traffic.bytes / 1e9:,.3g} GB in "
        f"{traffic.requests:,} GETs (${dollars:,.2f} at ${execution.get_price:g} for 1,000), {how} into the cache of "
        f"{cache.capacity / 1e9:,.3g} GB"
    ]
