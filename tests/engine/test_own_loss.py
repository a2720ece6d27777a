"""Losses of one's own: the same numbers as the package's where they mean the same, exact in micro-batches, and tried first."""

from __future__ import annotations

from math import log
from pathlib import Path

import own_parts
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stagewright.augment.mixing import MixDraw, MixedBatch, apply_mix
from stagewright.engine.loss import mixed_losses
from stagewright.engine.own_loss import blind_loss, check_loss, soft_targets
from stagewright.errors import ModelError, RecipeError
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.training.guard import Guard

B, K = 12, 5
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5, 1.7])
CPU = torch.device("cpu")
PLAIN = "python:own_parts:plain"


def part(lam: float) -> MixedBatch:
    torch.manual_seed(1)
    return MixedBatch(torch.empty(0), torch.randint(0, K, (B,)), torch.randint(0, K, (B,)), lam, torch.ones(B))


def logits() -> Tensor:
    torch.manual_seed(2)
    return 4 * torch.randn(B, K)


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_ones_own_is_the_packages(lam: float, smoothing: float) -> None:
    """Unweighted in every case; weighted where labels are not mixed."""
    for weights in (None, WEIGHTS) if lam == 1.0 else (None,):
        own = mixed_losses(logits(), part(lam), PLAIN, smoothing, weights)
        assert torch.allclose(own, mixed_losses(logits(), part(lam), "cross_entropy", smoothing, weights), atol=1e-5)


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_targets_are_torchs_soft_labels(lam: float) -> None:
    one = part(lam)
    targets = soft_targets(one, K, 0.1)
    assert targets.dtype == torch.float32 and torch.allclose(targets.sum(dim=1), torch.ones(B))
    theirs = lam * cross_entropy(logits(), one.labels_a, label_smoothing=0.1)
    theirs = theirs + (1 - lam) * cross_entropy(logits(), one.labels_b, label_smoothing=0.1)
    assert torch.allclose(cross_entropy(logits(), targets), theirs, atol=1e-5)


def test_a_mixed_image_weighs_as_its_labels_do_in_their_shares() -> None:
    one = part(0.3)
    weight = 0.3 * WEIGHTS[one.labels_a] + 0.7 * WEIGHTS[one.labels_b]
    own = mixed_losses(logits(), one, "python:own_parts:focal", 0.0, WEIGHTS)
    assert torch.allclose(own, own_parts.focal(logits(), soft_targets(one, K, 0.0)) * weight)


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_an_update_in_parts_is_that_of_the_whole(micro: int) -> None:
    gradients = []
    for size in (B, micro):
        weight = torch.zeros(K, requires_grad=True)
        mixed = apply_mix(
            torch.zeros(B, 3, 2, 2),
            part(1.0).labels_a,
            torch.ones(B),
            MixDraw("none", 1.0, None, torch.arange(B).numpy()),
        )
        for at in range(0, B, size):
            rows = slice(at, at + size)
            cut = MixedBatch(
                mixed.images[rows], mixed.labels_a[rows], mixed.labels_b[rows], mixed.lam, mixed.weight[rows]
            )
            losses = mixed_losses(logits()[rows] + weight, cut, "python:own_parts:focal", 0.1)
            (losses.sum() / B).backward()
        assert weight.grad is not None
        gradients.append(weight.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_right_losses_pass_and_leave_the_random_state(classes: int) -> None:
    before = torch.get_rng_state()
    for name in ("focal", "plain"):
        check_loss(f"python:own_parts:{name}", classes, CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "given", "remedy"),
    [
        ("mean_loss", r"gave \(\) torch.float32 for logits \(6, 4\)", 'reduction="none"'),
        ("not_finite_loss", "losses that are not finite", "log_softmax"),
        ("detached_loss", "no finite gradient", "detach"),
        ("batch_loss", "another loss in a batch of 6 than alone", "normalisation"),
        ("fails_loss", r"IndexError: .*\(.*own_parts.py, line \d+\)", "correct"),
    ],
)
def test_wrong_losses_are_explained(name: str, given: str, remedy: str) -> None:
    with pytest.raises(ModelError, match=given) as caught:
        check_loss(f"python:own_parts:{name}", 4, CPU)
    assert name in caught.value.given and caught.value.allowed and remedy in caught.value.remedy


def test_a_loss_of_other_arguments_or_of_nowhere() -> None:
    with pytest.raises(RecipeError, match=r"loss: python:own_parts:takes_labels cannot be called with .*too many"):
        check_loss("python:own_parts:takes_labels", 4, CPU)
    with pytest.raises(RecipeError, match="loss: python:own_parts:focall: module own_parts has no"):
        check_loss("python:own_parts:focall", 4, CPU)


def test_the_guard_knows_its_scale(picture_folder: Path) -> None:
    assert blind_loss(PLAIN, 7) == pytest.approx(log(7))
    assert blind_loss(PLAIN, 1000) == pytest.approx(log(1000))
    assert blind_loss("python:own_parts:focal", 4) == pytest.approx(0.75**2 * log(4))
    info = DatasetInfo(num_train=100, num_val=0, num_test=0, classes=tuple("abcd"), digest="x")
    plan = resolve(recipes.load("quick", ["loss=python:own_parts:focal"]), info)
    assert Guard(plan).blind_loss == pytest.approx(0.75**2 * log(4))
