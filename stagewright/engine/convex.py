"""The optimum of a linear head on fixed features: multinomial logistic regression, solved instead of approached by updates.

With the features x of a frozen body, the best weights W (K, D) and biases b (K,) of a linear layer are the minimum of a convex
function: the weighted mean cross-entropy plus ``strength / 2 * |W|^2``. The biases are not penalised. This is what
scikit-learn's ``LogisticRegression`` minimises with ``C = 1 / (n * strength)``. L-BFGS (Liu and Nocedal, 1989; SciPy's) finds
it in float64; products with the features are float32, their sums over blocks of rows float64.

Features are centred, which changes nothing since the biases are free, and divided by one number, so that their mean squared
norm is 1. A strength is given relative to this norm, so that one grid of strengths suits every network. All rows are read in
blocks of :data:`BLOCK` rows, so features may lie in a mapped file, and the bits depend on nothing but the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import log_softmax

from stagewright.errors import Interrupted

Vector = NDArray[np.float64]

BLOCK = 2048
"""Number of rows that are processed at once. Constant, because it determines the order of summation."""
_COPIED_BYTES = 2**28
"""Features of at most this size are centred once and kept; larger ones are centred at every use, with the same bits."""
_LEAST_SCALE = 1e-2
"""Smallest number by which features are divided. The features of pretrained networks are 100 to 10,000 times as large; those of
an untrained network in evaluation mode can be so small that the head would need weights with which any later update diverges."""
_MOST_ITERATIONS = 2000
_MEMORY = 12
"""Number of earlier steps from which L-BFGS estimates the curvature."""
_PRODUCTS_FOR_THREADS = 10**8
"""Number of products of a pass over the features from which it is divided among threads."""
_NOISE = 1e-11
"""Relative change of the objective, or absolute below 1, that is no longer more than rounding."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The features and labels of N images, each in V views, to which a head with K outputs is fitted."""

    views: tuple[Tensor, ...]
    """V tensors (N, D) of floating point, all on one device: each image's features in each view. A view of an image has 1 / V
    of its weight."""
    labels: Tensor
    """int64 (N,), on the same device."""
    weights: Tensor
    """float64 (N,), on the same device, at least 0 and not all 0: weight of each image; only their ratios matter. The features
    of an image with weight 0 may be infinite or NaN."""
    num_classes: int
    smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, in [0, 1)."""

    @property
    def num_features(self) -> int:
        return self.views[0].shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """Weighted mean of the features, float64 (D,)."""
        total = torch.zeros(self.num_features, dtype=torch.float64, device=self.labels.device)
        for part, block in self._raw_blocks():
            total += self.weights[part] @ self._used(block, part).double()
        return total / (self.weights.sum() * len(self.views))

    @cached_property
    def scale(self) -> float:
        """Square root of the weighted mean squared norm of the centred features, at least :data:`_LEAST_SCALE`."""
        total = torch.zeros((), dtype=torch.float64, device=self.labels.device)
        for part, block in self._raw_blocks():
            norms = (self._used(block, part).double() - self.mean).square().sum(dim=1)
            total += self.weights[part] @ norms
        return max(float(total / (self.weights.sum() * len(self.views))) ** 0.5, _LEAST_SCALE)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields (images, their centred and scaled features float32 (B, D)) of all views; images of weight 0 have zeros."""
        if self._copied is not None:
            yield from self._copied
        else:
            yield from self._centred()

    @cached_property
    def _copied(self) -> list[tuple[slice, Tensor]] | None:
        size = 4 * len(self.views) * len(self.labels) * self.num_features
        return list(self._centred()) if size <= _COPIED_BYTES else None

    def _centred(self) -> Iterator[tuple[slice, Tensor]]:
        mean, factor = self.mean.float(), 1.0 / self.scale
        for part, block in self._raw_blocks():
            yield part, self._used((block.float() - mean) * factor, part)

    def _raw_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for view in self.views:
            for first in range(0, len(view), BLOCK):
                part = slice(first, min(first + BLOCK, len(view)))
                yield part, view[part]

    def _used(self, block: Tensor, part: slice) -> Tensor:
        return block.masked_fill((self.weights[part] == 0)[:, None], 0.0)


@dataclass(frozen=True, eq=False)
class Solution:
    """The minimum at one strength."""

    theta: Vector
    """float64 (K * D + K,): weights and biases for the centred and scaled features."""
    value: float
    """The objective: weighted mean cross-entropy and penalty."""
    grad_norm: float
    """L2 norm of the objective's gradient."""
    iterations: int


def finite_rows(views: tuple[Tensor, ...]) -> Tensor:
    """Returns which images have finite features in all ``views`` (N, D), bool (N,)."""
    blocks = [[torch.isfinite(block).all(dim=1) for block in view.split(BLOCK)] for view in views]
    return torch.stack([torch.cat(parts) for parts in blocks]).all(dim=0)


def solve(
    problem: Problem,
    strength: float,
    *,
    weights: Tensor | None = None,
    start: Vector | None = None,
    tolerance: float = 1e-5,
    stop: Callable[[], bool] = lambda: False,
) -> Solution:
    """Returns the minimum of ``problem`` at the relative ``strength``, searched from ``start`` (None: from zero).

    ``weights`` (N,) replace the problem's own, also its zeros by zeros: the features stay centred and scaled as they are. It
    ends where the objective is at most about ``tolerance`` times itself above the minimum: an objective with this penalty that
    has the gradient g is at most ``|g|^2 / (2 * strength)`` above it. It also ends where float32 cannot tell two steps apart.
    ``stop`` is called at each evaluation; if it returns True, :class:`stagewright.errors.Interrupted` is raised.
    """
    shares = problem.weights if weights is None else weights
    shares = shares / (shares.sum() * len(problem.views))
    size = (problem.num_features + 1) * problem.num_classes
    newest = Solution(np.zeros(0), 0.0, np.inf, 0)

    def evaluated(theta: Vector) -> tuple[float, Vector]:
        nonlocal newest
        if stop():
            raise Interrupted
        value, gradient = _objective(problem, shares, strength, theta)
        newest = Solution(theta.copy(), value, float(np.linalg.norm(gradient)), newest.iterations)
        return value, gradient

    def end_at_minimum(intermediate_result: OptimizeResult) -> None:
        at = newest
        if at.value == intermediate_result.fun and at.grad_norm**2 <= 2.0 * strength * tolerance * at.value:
            raise StopIteration

    with threadpool_limits(1, user_api="blas"), _threads_for(problem), _float32_products():
        result = minimize(
            evaluated,
            np.zeros(size) if start is None else start,
            jac=True,
            method="L-BFGS-B",
            callback=end_at_minimum,
            options={
                "maxcor": _MEMORY,
                "maxiter": _MOST_ITERATIONS,
                "maxfun": 2 * _MOST_ITERATIONS,
                "ftol": _NOISE,
                "gtol": 0.0,
            },
        )
        theta = np.asarray(result.x, dtype=np.float64)
        value, gradient = _objective(problem, shares, strength, theta)
    return Solution(theta, value, float(np.linalg.norm(gradient)), int(result.nit))


def _objective(problem: Problem, shares: Tensor, strength: float, theta: Vector) -> tuple[float, Vector]:
    """Returns the objective and its gradient at ``theta``. ``shares`` (N,) add up to 1 / V."""
    weight, bias = _unpacked(problem, theta)
    device, off = problem.labels.device, problem.smoothing / problem.num_classes
    weight_sum, bias_sum = torch.zeros_like(weight), torch.zeros_like(bias)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    narrow, offset = weight.float().T.contiguous(), bias.float()
    for part, block in problem.blocks():
        labels, share = problem.labels[part, None], shares[part]
        logs = log_softmax(torch.addmm(offset, block, narrow).double(), dim=1)
        losses = (1.0 - problem.smoothing) * logs.gather(1, labels)[:, 0]
        if off:
            losses = losses + off * logs.sum(dim=1)
        loss -= share @ losses
        residual = (logs.exp() - off).scatter_add_(1, labels, torch.full_like(logs[:, :1], problem.smoothing - 1.0))
        residual *= share[:, None]
        weight_sum += (residual.float().T @ block).double()
        bias_sum += residual.sum(dim=0)
    value = float(loss) + 0.5 * strength * float(weight.square().sum())
    gradient = torch.cat([(weight_sum + strength * weight).flatten(), bias_sum])
    return value, gradient.cpu().numpy()


def log_losses(problem: Problem, theta: Vector) -> tuple[Tensor, Tensor]:
    """Returns (plain cross-entropy without label smoothing, share of the views that are classified correctly) of each image,
    float64 (N,), means over its views."""
    weight, bias = _unpacked(problem, theta)
    loss, correct = torch.zeros_like(problem.weights), torch.zeros_like(problem.weights)
    narrow, offset = weight.float().T.contiguous(), bias.float()
    with _threads_for(problem), _float32_products():
        for part, block in problem.blocks():
            logits = torch.addmm(offset, block, narrow).double()
            loss[part] -= log_softmax(logits, dim=1).gather(1, problem.labels[part, None])[:, 0]
            correct[part] += (logits.argmax(dim=1) == problem.labels[part]).double()
    return loss / len(problem.views), correct / len(problem.views)


def layer(problem: Problem, theta: Vector) -> tuple[Tensor, Tensor]:
    """Returns the weights (K, D) and biases (K,) of the layer for the features as they are, float64. The biases' mean, which no
    probability depends on, is 0 before the features' mean is taken out."""
    weight, bias = _unpacked(problem, theta)
    weight = weight / problem.scale
    return weight, bias - bias.mean() - weight @ problem.mean


def inverse_strength(problem: Problem, strength: float) -> float:
    """Returns the relative ``strength`` as the ``C`` of scikit-learn's LogisticRegression, for weights with a mean of 1.

    For two classes scikit-learn has one vector of weights, the difference of ours, whose penalty counts half.
    """
    images = int((problem.weights > 0).sum())
    return (2.0 if problem.num_classes == 2 else 1.0) / (images * strength * problem.scale**2)


def _unpacked(problem: Problem, theta: Vector) -> tuple[Tensor, Tensor]:
    """Returns the weights (K, D) and biases (K,) in ``theta``, float64 on the features' device."""
    both = torch.from_numpy(np.array(theta)).to(problem.labels.device)
    at = problem.num_classes * problem.num_features
    return both[:at].view(problem.num_classes, problem.num_features), both[at:]


@contextmanager
def _threads_for(problem: Problem) -> Iterator[None]:
    """Context with a single thread of torch on a CPU if an evaluation takes only milliseconds.

    The threads would take longer to start and to wait for each other, much longer where other processes use the cores.
    """
    before = torch.get_num_threads()
    products = len(problem.views) * len(problem.labels) * problem.num_features * problem.num_classes
    try:
        if products < _PRODUCTS_FOR_THREADS:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _float32_products() -> Iterator[None]:
    """Context in which CUDA computes float32 products in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
