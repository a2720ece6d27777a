"""Tests the content of batches: augmentation depends only on keys, and copies are the same in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stagewright.augment.draw import Draws
from stagewright.augment.geometry import train_geometry
from stagewright.augment.normalise import augment_some
from stagewright.augment.pipeline import augment
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.order import batch_places
from stagewright.data.batches.specs import eval_specs, recalibration_specs, stage_rows, train_specs
from stagewright.data.images.decode import ArrayImages
from stagewright.data.manifest import Manifest
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

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
    return resolve(recipes.from_dict(plain), manifest().info())


def seen(made: Plan, specs: list[BatchSpec]) -> list[torch.Tensor]:
    """Returns every image of ``specs`` with all augmentations, before normalisation."""
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
        assert len(by_pass[0]) == 3 and len(set(by_pass[0])) == 3, "the image itself and two different copies"
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


RARE = 6


def skewed() -> Manifest:
    """A manifest as from :func:`manifest`, but with only 6 images of class b among the 30 training images."""
    made = manifest()
    labels = np.where(np.arange(TRAIN + VAL) < TRAIN - RARE, 0, 1).astype(np.int32)
    return replace(made, labels=labels)


def sampled_plan(sampling: str = "balanced", batch_size: int = 9, epochs: str = "4ep", **augmentation: Any) -> Plan:
    natural = plan(batch_size, epochs, **augmentation).recipe
    return resolve(natural.changed(sampling=sampling), skewed().info())


def words(monkeypatch: pytest.MonkeyPatch, made: Plan, specs: Callable[[], Iterator[BatchSpec]]) -> list[Any]:
    """Returns (row, number used as the pass) of every image of ``specs``."""
    found: list[Any] = []

    def watched(augment: Any, seed: int, rows: Any, passes: Any, *more: Any) -> Any:
        found.extend(zip(rows.tolist(), passes.tolist(), strict=True))
        return train_geometry(augment, seed, rows, passes, *more)

    monkeypatch.setattr("stagewright.data.batches.specs.train_geometry", watched)
    list(specs())
    return found


def test_sampling_changes_neither_length_nor_natural_batches() -> None:
    natural = plan()
    assert natural.recipe.sampling == "natural"
    for sampling in ("square_root", "balanced"):
        assert sampled_plan(sampling).total_steps == natural.total_steps
    for spec, places in zip(train_specs(natural, manifest(), 0), range(99), strict=False):
        assert spec.rows.tolist() == batch_places(natural.recipe.seed, TRAIN, 0, 9, places)[0].tolist()


@pytest.mark.parametrize(("sampling", "rare"), [("square_root", 10), ("balanced", 15)])
def test_every_pass_shows_each_class_its_share(sampling: str, rare: int) -> None:
    made = sampled_plan(sampling, batch_size=10)
    labels = np.concatenate([spec.labels for spec in train_specs(made, skewed(), 0)])
    assert [int(labels[at : at + TRAIN].sum()) for at in range(0, 4 * TRAIN, TRAIN)] == [rare] * 4


def test_sampled_streams_go_on_from_any_step() -> None:
    made = sampled_plan(policy="randaugment", hue=0.2)
    whole = seen(made, list(train_specs(made, skewed(), 0)))
    for first in (1, 5, made.total_steps - 1):
        assert all(map(torch.equal, seen(made, list(train_specs(made, skewed(), first))), whole[9 * first :]))


def test_a_picture_that_comes_again_in_a_pass_is_augmented_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampled_plan(batch_size=10, rotation=30, brightness=0.4)
    specs = list(train_specs(made, skewed(), 0))
    rows, views = np.concatenate([spec.rows for spec in specs]), seen(made, specs)
    for row in range(TRAIN - RARE, TRAIN):
        of_it = [views[at].numpy().tobytes() for at in np.flatnonzero(rows == row)]
        assert len(of_it) == 10, "2.5 a pass"
        assert len(set(of_it)) == 10
    found = words(monkeypatch, made, lambda: train_specs(made, skewed(), 0))
    assert len(set(found)) == len(found), "no key is used twice"
    assert {word for _, word in found if word < 2**40} == {0, 1, 2, 3}, (
        "the first view of an image in a pass has the key of the pass"
    )


def test_sampling_within_a_share_of_the_data() -> None:
    recipe = sampled_plan().recipe.changed(data_fraction=0.5)
    made = resolve(recipe, skewed().info())
    kept = set(stage_rows(made, skewed(), made.stages[0]).tolist())
    specs = list(train_specs(made, skewed(), 0))
    rows, labels = (np.concatenate([getattr(spec, name) for spec in specs]) for name in ("rows", "labels"))
    assert len(kept) == 15 and set(rows[: 4 * 15].tolist()) == kept
    assert [int((labels[at : at + 15] == 0).sum()) for at in range(0, 4 * 15, 15)] == [8] * 4


def test_sampling_with_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass has 60 places, of which 30 are for 6 rare images and their copies: each comes 2 or 3 times, with its own views."""
    made = sampled_plan(batch_size=10, copies=1, rotation=30, epochs="6ep")
    found = words(monkeypatch, made, lambda: train_specs(made, skewed(), 0))
    assert len(found) == 6 * 60
    for at in range(0, 360, 60):
        one_pass = found[at : at + 60]
        assert len(set(one_pass)) == 60 and sum(row >= TRAIN - RARE for row, _ in one_pass) == 30
    first, again, third = ({word + view * 2**40 for word in (2**61, 2**61 + 1)} for view in (0, 1, 2))
    first = first - {2**61} | {-1}  # the image itself
    assert {word for row, word in found if row >= TRAIN - RARE} == first | again | third
    common = [word for row, word in found if row < TRAIN - RARE]
    assert set(common) == first | again, "twice if a pass contains parts of two permutations of the class"
    assert sum(word in again for word in common) < len(common) / 4


def test_statistics_are_taken_from_classes_as_they_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampled_plan(batch_size=10)
    specs = list(recalibration_specs(made, skewed(), made.stages[0], 30))
    assert int(sum(spec.labels.sum() for spec in specs)) == 15
    found = words(monkeypatch, made, lambda: recalibration_specs(made, skewed(), made.stages[0], 30))
    assert len(set(found)) == 30 and min(word for _, word in found) == 2**62
