"""What a run's batches hold: augmentation by keys, copies that are the same in every pass, nothing else random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stagewright import recipes
from stagewright.augment.apply import augment_some
from stagewright.augment.draw import Draws
from stagewright.augment.pipeline import augment
from stagewright.data.decode import ArrayImages
from stagewright.data.loader import BatchSpec, load_batches
from stagewright.data.manifest import Manifest
from stagewright.data.stream import eval_specs, recalibration_specs, train_specs
from stagewright.plan import Plan
from stagewright.resolve import resolve

TRAIN, VAL, SIZE = 30, 10, 16


def manifest() -> Manifest:
    count = TRAIN + VAL
    names = pa.array([f"{row:03d}" for row in range(count)])
    splits = np.where(np.arange(count) < TRAIN, 0, 1).astype(np.int8)
    sides = np.full(count, SIZE, np.int32)
    return Manifest(
        "", "memory", ("a", "b"), names, names, (np.arange(count) % 2).astype(np.int32), splits, sides, sides
    )


def plan(batch_size: int = 9, epochs: str = "4ep", **augmentation: Any) -> Plan:
    plain = {
        "model": {"name": "cifar_resnet18"},
        "image_size": SIZE,
        "batch_size": batch_size,
        "epochs": epochs,
        "augment": {"crop": "pad", **augmentation},
    }
    return resolve(recipes.from_plain(plain), manifest().info())


def seen(made: Plan, specs: list[BatchSpec]) -> list[torch.Tensor]:
    """Every picture of ``specs`` as the network will see it, but for normalisation."""
    random = np.random.default_rng(0)
    images = ArrayImages(random.integers(0, 256, (TRAIN + VAL, SIZE, SIZE, 3), dtype=np.uint8))
    pictures = []
    for batch in load_batches(images, specs, workers=0):
        views = batch.images
        if batch.draws is not None:
            views = augment_some(views, batch.draws, batch.drawn_for, (127, 127, 127))
        pictures += list(views)
    return pictures


def test_a_plain_recipe_draws_nothing_more() -> None:
    assert all(spec.draws is None and spec.drawn_for is None for spec in train_specs(plan(), manifest(), 0))


def test_a_stream_begun_later_is_the_same_stream() -> None:
    made = plan(policy="randaugment", hue=0.2, erasing=0.5)
    whole = seen(made, list(train_specs(made, manifest(), 0)))
    for first in (1, 5, made.total_steps - 1):
        rest = seen(made, list(train_specs(made, manifest(), first)))
        assert all(map(torch.equal, rest, whole[9 * first :])) and len(rest) == len(whole) - 9 * first


def test_evaluation_is_exact_and_without_augmentation() -> None:
    made = plan(policy="randaugment", copies=2)
    for spec in eval_specs(made, manifest(), made.stages[0], "val"):
        assert spec.draws is None and spec.exact and not spec.geometry.flips.any()
    assert not any(spec.exact for spec in train_specs(made, manifest(), 0))
    exact = resolve(made.recipe.model_copy(update={"decode": "exact"}), manifest().info())
    assert all(spec.exact for spec in train_specs(exact, manifest(), 0))


def test_statistics_are_taken_from_augmented_pictures() -> None:
    made = plan(policy="randaugment")
    assert all(spec.draws is not None for spec in recalibration_specs(made, manifest(), made.stages[0], 20))


def test_copies_make_an_epoch_longer_and_are_the_same_in_every_pass() -> None:
    made = plan(batch_size=10, copies=2, rotation=30, brightness=0.4, epochs="3ep")
    assert made.stages[0].num_images == 3 * TRAIN and made.total_steps == 3 * 9
    specs = list(train_specs(made, manifest(), 0))
    views, rows = seen(made, specs), np.concatenate([spec.rows for spec in specs])
    for row in range(TRAIN):
        by_pass = [
            sorted(views[at].numpy().tobytes() for at in range(90 * p, 90 * p + 90) if rows[at] == row)
            for p in range(3)
        ]
        assert len(by_pass[0]) == 3 and len(set(by_pass[0])) == 3, "the picture itself and two different copies"
        assert by_pass[0] == by_pass[1] == by_pass[2]


def test_the_picture_itself_is_among_its_copies() -> None:
    made = plan(batch_size=15, copies=1, rotation=30, epochs="1ep")
    for spec in train_specs(made, manifest(), 0):
        assert spec.drawn_for is not None and spec.draws is not None
        untouched = np.setdiff1d(np.arange(15), spec.drawn_for)
        inset = SIZE * (1 - 0.875) / 2
        assert np.array_equal(
            spec.geometry.boxes[untouched], np.tile([inset, inset, SIZE - inset, SIZE - inset], (len(untouched), 1))
        )
        assert not spec.geometry.flips[untouched].any() and not spec.geometry.shifts[untouched].any()
        assert len(spec.draws) == len(spec.drawn_for)


def test_augmenting_some_leaves_the_others_and_what_was_given_alone() -> None:
    made = plan(rotation=30, brightness=0.5)
    draws = next(iter(train_specs(made, manifest(), 0))).draws
    assert isinstance(draws, Draws)
    images = torch.randint(0, 256, (9, 3, SIZE, SIZE), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    places = np.array([1, 4, 6])
    result = augment_some(images, draws.take(places), places, (1, 2, 3))
    everything = augment(images, draws, (1, 2, 3))
    assert torch.equal(images, before)
    for at in range(9):
        assert torch.equal(result[at], everything[at] if at in places else before[at])
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment_some(images, draws, None, (1, 2, 3)), everything)
