"""The optimum of a head: equal to scikit-learn's, and nothing but the inputs decides its bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from stagewright.engine import convex
from stagewright.engine.convex import Problem, finite_rows, inverse_strength, layer, log_losses, solve
from stagewright.engine.strength import DEFAULT_STRENGTH, GRID, fit_head
from stagewright.errors import Interrupted


def drawn(n: int, d: int, k: int, apart: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features with a mean and different scales, as those of a network, and labels."""
    random = np.random.default_rng(seed)
    centres, labels = random.normal(size=(k, d)) * apart, random.integers(0, k, n)
    scales = np.exp(random.normal(size=d))
    return ((centres[labels] + random.normal(size=(n, d))) * scales + 3.0).astype(np.float32), labels


def problem(x: NDArray[np.float32], labels: NDArray[np.int64], weights: object = None, **fields: float) -> Problem:
    each = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    views, k = (torch.from_numpy(x),), int(labels.max()) + 1
    return Problem(views, torch.from_numpy(labels), torch.from_numpy(each), k, **fields)


def sklearn_fit(x: NDArray[np.float32], labels: object, c: float, weights: object = None) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=c, tol=1e-8, max_iter=20_000)
        return model.fit(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), labels, sample_weight=weights)


@pytest.mark.parametrize(
    ("n", "d", "k", "apart"), [(300, 20, 4, 0.1), (60, 150, 3, 0.2), (200, 30, 2, 0.1), (90, 40, 3, 5)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_optimum_that_scikit_learn_finds(n: int, d: int, k: int, apart: float, weighted: bool) -> None:
    x, labels = drawn(n, d, k, apart)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, n) if weighted else np.ones(n)
    weights *= n / weights.sum()
    p = problem(x, labels, weights)
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    for strength in (1e-1, 1e-3, 1e-5, 1e-7):
        found, c = solve(p, strength), inverse_strength(p, strength)
        model = sklearn_fit(x, labels, c, weights)
        logits = model.decision_function(centred)
        squares = float((model.coef_**2).sum())
        if k == 2:  # one vector, the difference of two
            logits, squares = np.stack([-logits / 2, logits / 2], axis=1), squares / 2
            c = c / 2
        losses = -log_softmax(logits, axis=1)[np.arange(n), labels]
        value = float(weights @ losses) / n + squares / (2 * c * n)
        assert found.value == pytest.approx(value, rel=2e-5), strength
        weight, bias = layer(p, found.theta)
        mine = x.astype(np.float64) @ weight.numpy().T + bias.numpy()
        gap = np.sort(logits, axis=1)
        clear = gap[:, -1] - gap[:, -2] > 0.05
        assert clear.mean() > 0.7 or strength > 1e-2
        assert np.array_equal(mine.argmax(axis=1)[clear], logits.argmax(axis=1)[clear])
        assert float(weights @ log_losses(p, found.theta)[0].numpy()) / n == pytest.approx(
            value - squares / (2 * c * n), rel=5e-3
        )


def test_soft_targets_are_images_of_all_classes() -> None:
    """Label smoothing is the same as images that belong to every class a little."""
    x, labels = drawn(80, 10, 3, 0.3)
    smooth = solve(problem(x, labels, smoothing=0.3), 1e-3)
    every = np.concatenate([labels, *(np.full(80, k) for k in range(3))])
    weights = np.concatenate([np.full(80, 0.7), np.full(240, 0.1)])
    hard = solve(problem(np.concatenate([x] * 4), every, weights), 1e-3)
    assert smooth.value == pytest.approx(hard.value, rel=1e-5)


def test_views_are_rows_of_a_part_of_the_weight() -> None:
    x, labels = drawn(50, 8, 3, 0.3)
    other = x + np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    weights = np.linspace(0.5, 1.5, 50)
    views = (torch.from_numpy(x), torch.from_numpy(other))
    both = Problem(views, torch.from_numpy(labels), torch.from_numpy(weights), 3)
    rows = problem(np.concatenate([x, other]), np.tile(labels, 2), np.tile(weights, 2))
    assert both.scale == pytest.approx(rows.scale, rel=1e-12)
    assert solve(both, 1e-3).value == pytest.approx(solve(rows, 1e-3).value, rel=1e-6)


def test_images_without_weight_are_as_if_not_there() -> None:
    x, labels = drawn(60, 8, 3, 0.3)
    broken = x.copy()
    broken[5], broken[20] = np.nan, np.inf
    weights = np.ones(60)
    weights[[5, 20]] = 0.0
    assert (~finite_rows((torch.from_numpy(x), torch.from_numpy(broken)))).nonzero()[:, 0].tolist() == [5, 20]
    used = weights > 0
    found, expected = solve(problem(broken, labels, weights), 1e-4), solve(problem(x[used], labels[used]), 1e-4)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert np.isfinite(found.theta).all()


def test_where_the_features_lie_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, centred once or at every use; in a mapped file; with a stride."""
    monkeypatch.setattr(convex, "BLOCK", 32)
    x, labels = drawn(150, 12, 3, 0.3)
    expected = solve(problem(x, labels), 1e-4).theta
    mapped = np.memmap(tmp_path / "features", np.float32, "w+", shape=x.shape)
    mapped[:] = x
    wide = np.repeat(x, 2, axis=1)
    monkeypatch.setattr(convex, "_COPIED_BYTES", 0)
    for other in (x, mapped, wide[:, ::2]):
        p = problem(x, labels)
        p = Problem((torch.from_numpy(other),), p.labels, p.weights, 3)
        assert p._copied is None  # pyright: ignore[reportPrivateUsage]
        assert np.array_equal(solve(p, 1e-4).theta, expected)


def test_small_features_do_not_make_huge_weights() -> None:
    x, labels = drawn(60, 8, 3, 0.3)
    weight, _ = layer(small := problem(x * np.float32(1e-9), labels), solve(small, 1e-3).theta)
    assert weight.abs().max() < 100


def test_a_stop_is_heeded_at_each_evaluation() -> None:
    calls = 0

    def third() -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    p = problem(*drawn(60, 8, 3, 0.3))
    with pytest.raises(Interrupted):
        solve(p, 1e-4, stop=third)
    assert calls == 3


def by_scikit_learn(x: NDArray[np.float32], labels: NDArray[np.int64], folds: NDArray[np.int64], c: float) -> float:
    """The mean log loss of cross-validation, in five lines. ``c`` is for all images; parts are smaller."""
    centred, losses = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), np.zeros(len(x))
    for fold in np.unique(folds):
        train, held = folds != fold, folds == fold
        model = sklearn_fit(x[train], labels[train], c * len(x) / train.sum())
        logits = model.decision_function(centred[held] - centred[train].mean(axis=0))
        losses[held] = -log_softmax(logits, axis=1)[np.arange(held.sum()), labels[held]]
    return float(losses.mean())


@pytest.mark.parametrize(("n", "d", "apart"), [(120, 15, 0.2), (80, 120, 0.2)])
def test_the_strength_is_the_one_that_plain_cross_validation_chooses(n: int, d: int, apart: float) -> None:
    x, labels = drawn(n, d, 3, apart, seed=4)
    folds = np.random.default_rng(0).permutation(n) % 5
    p = problem(x, labels)
    found = fit_head(p, folds)
    tried = list(found.log_losses)
    assert tried == list(GRID[: len(tried)]) and 3 < len(tried) < len(GRID)
    plain = {strength: by_scikit_learn(x, labels, folds, inverse_strength(p, strength)) for strength in tried}
    assert found.log_losses == pytest.approx(plain, rel=0.01)
    assert plain[found.strength] <= 1.001 * min(plain.values())
    assert found.strength == min(found.log_losses, key=found.log_losses.__getitem__)
    assert found.log_losses[tried[-1]] > min(found.log_losses.values())
    assert found.solution.value == pytest.approx(solve(p, found.strength).value, rel=1e-5)
    again = fit_head(problem(x, labels), folds)
    assert np.array_equal(found.solution.theta, again.solution.theta) and again.log_losses == found.log_losses


def test_without_folds_it_is_the_default() -> None:
    p = problem(*drawn(60, 8, 3, 0.3))
    found = fit_head(p, None)
    assert (found.strength, found.log_losses) == (DEFAULT_STRENGTH, {})
    assert found.solution.grad_norm < 1e-4 and 0 < found.loss < found.solution.value


def test_what_is_in_every_training_part_is_never_scored() -> None:
    """Fold -1; and a class whose images are all in one fold cannot be known where that fold is left out."""
    x, labels = drawn(60, 8, 3, 0.5)
    labels[:2], labels[2:4] = 3, 4
    folds = np.arange(60) % 3
    folds[:2], folds[2:4] = -1, 1
    found = fit_head(problem(x, labels), folds)
    assert max(found.log_losses.values()) < np.log(5) + 0.1


def test_with_many_images_not_every_fold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagewright.engine.strength._ENOUGH_IMAGES", 30)
    x, labels = drawn(60, 8, 3, 0.3)
    folds, seen = np.arange(60) % 4, list[int]()  # of 15 images each: two are enough
    found = fit_head(problem(x, labels), folds, progress=lambda done, total: seen.append(total))
    assert seen[0] == 2 * len(GRID) + 1 and len(seen) == 2 * len(found.log_losses) + 1 and found.num_folds == 2


def test_progress_counts_fits() -> None:
    seen: list[tuple[int, int]] = []
    fit_head(problem(*drawn(60, 8, 3, 0.3)), np.arange(60) % 2, progress=lambda *at: seen.append(at))
    *before, last = seen
    assert [done for done, _ in before] == list(range(1, len(before) + 1)) and last[0] == last[1]


@pytest.fixture(autouse=True)
def precision_stays() -> Iterator[None]:
    """No test leaves torch with another precision or number of threads."""
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_optimum() -> None:
    p = problem(*drawn(300, 40, 4, 0.2))
    there: tuple[Tensor, ...] = tuple(view.cuda() for view in p.views)
    on_gpu = Problem(there, p.labels.cuda(), p.weights.cuda(), p.num_classes)
    torch.set_float32_matmul_precision("high")
    try:
        assert solve(on_gpu, 1e-5).value == pytest.approx(solve(p, 1e-5).value, rel=1e-5)
    finally:
        torch.set_float32_matmul_precision("highest")
