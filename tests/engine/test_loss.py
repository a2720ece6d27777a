"""Losses compared with torch's and timm's; class weights tested by their purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from stagewright.api.train import train
from stagewright.augment.mixing import MixedBatch
from stagewright.data.manifest import Manifest
from stagewright.engine.loss import LossName, binary_cross_entropy, class_weights, mixed_losses
from stagewright.errors import RecipeError
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe

B, K = 12, 5
SMOOTHING = [0.0, 0.1, 0.5]
LOSSES: list[LossName] = ["cross_entropy", "bce"]
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5, 1.7])


def part(lam: float = 1.0) -> MixedBatch:
    torch.manual_seed(1)
    a, b = torch.randint(0, K, (B,)), torch.randint(0, K, (B,))
    return MixedBatch(torch.empty(0), a, a if lam == 1.0 else b, lam, torch.ones(B))


def logits() -> Tensor:
    torch.manual_seed(2)
    return 4 * torch.randn(B, K)


def close(a: Tensor, b: Tensor) -> bool:
    assert a.shape == b.shape and a.dtype == b.dtype == torch.float32
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    ours = mixed_losses(logits(), part(), "cross_entropy", smoothing)
    assert torch.equal(ours, cross_entropy(logits(), part().labels_a, label_smoothing=smoothing, reduction="none"))


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_weighted_cross_entropy_is_torchs_with_smoothing_weighted_like_its_label(smoothing: float) -> None:
    labels = part().labels_a
    ours = mixed_losses(logits(), part(), "cross_entropy", smoothing, WEIGHTS)
    torchs = cross_entropy(logits(), labels, weight=WEIGHTS, label_smoothing=smoothing, reduction="none")
    # torch: (1 - s) w[label] nll[label] + s / K * sum over classes k of w[k] nll[k]; here the sum's w[k] is w[label].
    nll = -logits().log_softmax(1)
    other = smoothing / K * ((WEIGHTS[labels][:, None] - WEIGHTS) * nll).sum(1)
    assert close(ours, torchs + other)
    assert close(ours, torchs) == (smoothing == 0.0)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_bce_is_timms(smoothing: float) -> None:
    theirs = BinaryCrossEntropy(smoothing=smoothing, reduction="none")(logits(), part().labels_a).mean(1)
    assert close(mixed_losses(logits(), part(), "bce", smoothing), theirs)
    assert close(binary_cross_entropy(logits(), part().labels_a, smoothing), theirs)


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("lam", [0.3, 0.5])
def test_mixed_losses_are_those_of_the_mixed_target(lam: float, smoothing: float) -> None:
    mixed = part(lam)
    soft = lam * one_hot(mixed.labels_a, K).float() + (1 - lam) * one_hot(mixed.labels_b, K).float()
    expected = cross_entropy(logits(), soft, label_smoothing=smoothing, reduction="none")
    assert close(mixed_losses(logits(), mixed, "cross_entropy", smoothing), expected)

    # timm mixes each image with that at the mirrored index, and smooths the targets before the loss
    mirrored = MixedBatch(mixed.images, mixed.labels_a, mixed.labels_a.flip(0), lam, mixed.weight)
    target = mixup_target(mixed.labels_a, K, lam, smoothing)
    theirs = BinaryCrossEntropy(smoothing=smoothing, reduction="none")(logits(), target).mean(1)
    assert close(mixed_losses(logits(), mirrored, "bce", smoothing), theirs)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_label_of_a_mixture_has_its_own_weight(loss: LossName) -> None:
    mixed = part(0.3)
    a = MixedBatch(mixed.images, mixed.labels_a, mixed.labels_a, 1.0, mixed.weight)
    b = MixedBatch(mixed.images, mixed.labels_b, mixed.labels_b, 1.0, mixed.weight)
    own, other = mixed_losses(logits(), a, loss, 0.1), mixed_losses(logits(), b, loss, 0.1)
    expected = 0.3 * WEIGHTS[mixed.labels_a] * own + 0.7 * WEIGHTS[mixed.labels_b] * other
    assert close(mixed_losses(logits(), mixed, loss, 0.1, WEIGHTS), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_sure_and_wrong_answers_keep_a_finite_gradient(loss: LossName) -> None:
    extreme = torch.full((B, K), -200.0)
    extreme[:, 0] = 200.0
    extreme.requires_grad_()
    mixed_losses(extreme, part(0.3), loss, 0.1).sum().backward()
    assert extreme.grad is not None and torch.isfinite(extreme.grad).all() and extreme.grad.abs().max() > 0.1


def manifest(counts: list[int], classes: tuple[str, ...] = ("bird", "blank", "hog")) -> Manifest:
    """Makes a manifest with the given number of training images per class, and one validation image per class."""
    labels = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.arange(len(counts))]).astype(np.int32)
    splits = np.where(np.arange(len(labels)) < sum(counts), 0, 1).astype(np.int8)
    names, sides = pa.array([f"{at}" for at in range(len(labels))]), np.full(len(labels), 8, np.int32)
    return Manifest("", "memory", classes, names, names, labels, splits, sides, sides)


def weights(counts: list[int], **fields: Any) -> list[float]:
    found = class_weights(recipes.from_dict(fields), manifest(counts))
    assert found is not None and found.dtype == torch.float32
    return found.tolist()


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    counts = [60, 30, 10]
    found = weights(counts, class_weights="balanced")
    assert found == pytest.approx([100 / 180, 100 / 90, 100 / 30])
    assert np.dot(counts, found) == pytest.approx(100), "the mean is 1, so that the loss has the same scale"


def test_named_weights_keep_their_proportion_and_others_count_one() -> None:
    found = weights([60, 30, 10], class_weights={"hog": 8.0, "blank": 0.5})
    assert np.array(found) / found[0] == pytest.approx([1.0, 0.5, 8.0])
    assert np.dot([60, 30, 10], found) == pytest.approx(100)


def test_weights_count_pictures_as_often_as_sampling_shows_them() -> None:
    assert weights([60, 30, 10], class_weights="balanced", sampling="balanced") == pytest.approx([1, 1, 1])
    shares = np.sqrt([64, 16, 4]) / np.sqrt([64, 16, 4]).sum()
    halfway = weights([64, 16, 4], class_weights="balanced", sampling="square_root")
    assert halfway * shares == pytest.approx([1 / 3] * 3)
    named = weights([64, 16, 4], class_weights={"hog": 3.0}, sampling="balanced")
    assert named == pytest.approx([0.6, 0.6, 1.8])


def test_a_class_without_training_pictures_does_no_harm() -> None:
    assert weights([60, 0, 20], class_weights="balanced")[::2] == pytest.approx([80 / 120, 80 / 40])
    assert np.isfinite(weights([60, 0, 20], class_weights="balanced")).all()
    assert weights([60, 0, 20], class_weights={"blank": 5.0})[::2] == pytest.approx([1, 1])


def test_no_weights_unless_asked_for() -> None:
    assert class_weights(Recipe(), manifest([3, 2, 1])) is None


@pytest.mark.parametrize("loss", LOSSES)
def test_balanced_weights_make_the_loss_of_an_epoch_the_mean_over_classes(loss: LossName) -> None:
    counts = [7, 4, 1]
    made = manifest(counts)
    found = class_weights(recipes.from_dict({"class_weights": "balanced"}), made)
    labels = torch.from_numpy(made.labels[made.rows("train")]).long()
    epoch = MixedBatch(torch.empty(0), labels, labels, 1.0, torch.ones(12))
    plain = mixed_losses(logits()[:, :3], epoch, loss, 0.1)
    expected = torch.stack([plain[labels == k].mean() for k in range(3)]).mean()
    assert close(mixed_losses(logits()[:, :3], epoch, loss, 0.1, found).mean(), expected)


def test_names_that_are_no_classes_are_refused_with_the_plan() -> None:
    recipe = recipes.from_dict({"class_weights": {"bird": 2.0, "hogg": 3.0}})
    with pytest.raises(RecipeError) as error:
        resolve(recipe, manifest([3, 2, 1]).info())
    assert error.value.given == "class_weights: 'hogg' is not a class of the data; did you mean 'hog'?"
    assert error.value.allowed == "its 3 classes: bird, blank, hog"
    assert "have weight 1" in error.value.remedy
    many = DatasetInfo(num_train=99, num_val=0, num_test=0, classes=tuple(f"c{at}" for at in range(99)), digest="")
    with pytest.raises(RecipeError) as error:
        resolve(recipe, many)
    assert error.value.allowed.startswith("its 99 classes: c0, c1,") and error.value.allowed.endswith("c19, ...")


def test_nothing_is_written_for_a_run_with_unknown_classes(picture_folder: Path, tmp_path: Path) -> None:
    recipe = recipes.from_dict({"class_weights": {"acros": 2.0}, "image_size": 16})
    with pytest.raises(RecipeError, match="'across'"):
        train(picture_folder, recipe, out=tmp_path / "run", say=lambda text: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"bird": 0.0}, {"bird": -1.0}, "equal"])
def test_weights_that_cannot_be_meant(given: Any) -> None:
    with pytest.raises(RecipeError, match="class_weights"):
        recipes.from_dict({"class_weights": given})
