"""What is known about the future agrees with what the run reads: when each block is needed, by whom, and how much that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stagewright.data.batches.specs import train_specs
from stagewright.data.blocks import blocks_of
from stagewright.data.images.places import Places
from stagewright.data.manifest import Manifest
from stagewright.data.remote.capacity import check_capacity
from stagewright.data.remote.eviction import NEVER
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.data.remote.table import BlockTable
from stagewright.data.remote.traffic import expected_traffic
from stagewright.distributed.tree import share
from stagewright.errors import RecipeError
from stagewright.plan.lanes import lane_starts
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

COUNT, EACH = 400, 9_000


def pictures() -> tuple[Manifest, BlockTable]:
    """400 images of 9 KB in two files, of which every fifth is for validation; 7 or 8 are a block."""
    order = np.random.default_rng(1).permutation(COUNT)
    splits = np.where(np.arange(COUNT) % 5 == 4, 1, 0).astype(np.int8)
    which, offsets = (order % 2).astype(np.int32), (order // 2).astype(np.int64) * EACH
    places = Places(("a", "b"), (COUNT * EACH,) * 2, which, offsets, np.full(COUNT, EACH, np.int64))
    labels = (np.arange(COUNT) % 3).astype(np.int32)
    blocks = blocks_of(places, splits, labels)
    names, sides = pa.array([f"{row:03d}" for row in range(COUNT)]), np.full(COUNT, 32, np.int32)
    manifest = Manifest("", "memory", ("a", "b", "c"), names, names, labels, splits, sides, sides, blocks=blocks)
    return manifest, BlockTable(places, blocks, splits)


def plan_of(manifest: Manifest, **changes: Any) -> Plan:
    stages = [
        {"epochs": "13st", "batch_size": 30, "data_fraction": 0.5},
        {"epochs": "23st", "batch_size": 36},
    ]
    fields = {"image_size": 16, "spread": 3, "order": "blocked", "stages": stages, "eval": {"every": "10st"}, **changes}
    return resolve(recipes.from_dict(fields), manifest.info())


@pytest.mark.parametrize("order", ["blocked", "full"])
@pytest.mark.parametrize("ranks", [HostRanks(), HostRanks(1, 0, 2, 3), HostRanks(2, 2, 1, 3)])
def test_blocks_are_needed_when_they_are_read(order: str, ranks: HostRanks) -> None:
    manifest, table = pictures()
    plan = plan_of(manifest, order=order)
    read = dict[int, set[int]]()
    own = dict[int, set[int]]()
    for spec in train_specs(plan, manifest, 0):
        stage = plan.stage_at(spec.step)
        starts = lane_starts(stage.batch_size, stage.lanes)
        for found, first, last in (
            (read, ranks.first, ranks.first + ranks.count - 1),
            (own, ranks.own, ranks.own),
        ):
            lanes = share(3, first, ranks.size).start, share(3, last, ranks.size).stop
            found[spec.step] = set(table.block_of[spec.rows[starts[lanes[0]] : starts[lanes[1]]]].tolist())
    for step in range(0, plan.total_steps, 4):
        next_use = Needs(plan, manifest, table, ranks).next_use(step)
        for block in np.flatnonzero(table.split_of == 0).tolist():
            uses = [at for at in range(step, plan.total_steps) if block in read[at]]
            # It may say "now" for a block that is used before and after in the same pass, and "never" for one far ahead.
            assert next_use[block] == NEVER or next_use[block] <= (uses[0] if uses else NEVER)
            if uses and uses[0] == step:
                assert next_use[block] == step
        blocks, firsts = Needs(plan, manifest, table, ranks).wanted(step)
        assert firsts.tolist() == sorted(firsts.tolist())
        assert own[step] <= set(blocks[firsts == step].tolist())


def test_validation_images_are_needed_at_the_next_evaluation() -> None:
    manifest, table = pictures()
    plan = plan_of(manifest)
    needs, val = Needs(plan, manifest, table, HostRanks()), table.split_of == 1
    assert val.any() and set(needs.next_use(0)[val]) == {10.0} and set(needs.next_use(14)[val]) == {23.0}
    assert set(needs.next_use(plan.total_steps + 1)[val]) == {NEVER}


def test_stages_on_cached_features_read_nothing() -> None:
    manifest, table = pictures()
    plan = plan_of(manifest)
    train = table.split_of == 0
    needs = Needs(plan, manifest, table, HostRanks(), unread=frozenset({1}))
    assert set(needs.next_use(plan.stages[1].first_step)[train]) == {NEVER}
    assert len(needs.wanted(plan.stages[1].first_step)[0]) == 0 < len(needs.wanted(0)[0])


def test_blocks_are_told_apart_and_whole() -> None:
    _, table = pictures()
    assert table.sizes.sum() == COUNT * EACH
    for block in range(len(table)):
        rows = table.rows(block)
        assert sorted(rows.tolist()) == np.flatnonzero(table.block_of == block).tolist()
        spans = [span for span, _ in table.spans(block)]
        bounds = [
            (span.offset + begin, span.offset + end) for span, pieces in table.spans(block) for begin, end in pieces
        ]
        assert [at for begin, end in bounds for at in range(begin, end, EACH)] == table.places.offsets[rows].tolist()
        assert sum(end - begin for begin, end in bounds) == table.sizes[block] == len(rows) * EACH
        assert len(spans) == table.num_requests[block]
        assert sum(span.length for span in spans) == table.request_bytes[block]
        assert table.inner[rows].tolist() == (np.arange(len(rows)) * EACH).tolist()


def test_traffic_and_the_least_capacity() -> None:
    manifest, table = pictures()
    plan = plan_of(manifest)
    needs = Needs(plan, manifest, table, HostRanks())
    whole = expected_traffic(needs, 10**9)
    assert whole.fits and whole.blocks == len(table) and whole.requests == table.num_requests.sum()
    part = expected_traffic(needs, int(table.sizes.sum() * 0.4))
    assert not part.fits and part.bytes > whole.bytes and part.requests > whole.requests
    check_capacity(2 * needs.window_bytes, needs, blocked=True)
    with pytest.raises(RecipeError, match="two windows of blocks"):
        check_capacity(2 * needs.window_bytes - 1, needs, blocked=True)
    full = Needs(plan_of(manifest, order="full"), manifest, table, HostRanks())
    with pytest.raises(RecipeError, match="order: full reads them at random"):
        check_capacity(2 * needs.window_bytes, full, blocked=False)
