"""Losses per sample: cross-entropy or binary cross-entropy, with mixed labels and class weights.

Labels stay class numbers; only a user's own loss gets soft targets (:mod:`stagewright.engine.own_loss`). The loss of a mixed
label is the mixture of both labels' losses, which is that of the mixed target. The loss of an update is ``sum(losses *
weight) / number of valid samples``; class weights are 1 on average over the images as often as they are drawn, so that the loss,
and with it the best learning rate, keeps its scale. Only training uses class weights and ``bce``: an evaluation's loss is always
plain cross-entropy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stagewright.augment.mixing import MixedBatch
from stagewright.data.batches.order import class_shares
from stagewright.data.manifest import Manifest
from stagewright.engine.own_loss import own_losses
from stagewright.recipe.recipe import Recipe
from stagewright.system.named_functions import is_named

LossName = str
"""``cross_entropy``, ``bce`` or ``python:module:function`` (:mod:`stagewright.engine.own_loss`)."""


def mixed_losses(
    logits: Tensor, part: MixedBatch, loss: LossName, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """``loss`` of each sample, float32 (B,), of ``logits`` float32 (B, K): ``lam`` of the own label's and the rest of the
    partner's.

    Each label's loss, its smoothing included, is multiplied by the label's weight in ``class_weights`` (float32 (K,)), as if
    its pictures came so many times as often. torch's ``cross_entropy(weight=...)`` does the same without smoothing; with it,
    it weights the smoothing's share of every other class by that class's weight instead.
    """
    if is_named(loss):
        return own_losses(logits, part, loss, label_smoothing, class_weights)
    losses = _label_losses(logits, part.labels_a, loss, label_smoothing, class_weights)
    if part.lam == 1.0:
        return losses
    other = _label_losses(logits, part.labels_b, loss, label_smoothing, class_weights)
    return part.lam * losses + (1.0 - part.lam) * other


def _label_losses(
    logits: Tensor, labels: Tensor, loss: LossName, label_smoothing: float, class_weights: Tensor | None
) -> Tensor:
    if loss == "bce":
        losses = binary_cross_entropy(logits, labels, label_smoothing)
    else:
        losses = cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return losses if class_weights is None else losses * class_weights[labels]


def binary_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean over the K classes of the logistic loss of "is it this class?", float32 (B,), of ``logits`` (B, K).

    The label's target is ``1 - s + s / K``, every other's ``s / K`` with ``s = label_smoothing``, as timm's
    ``BinaryCrossEntropy`` has it without a threshold (arXiv:2110.00476, section 2.1).
    """
    off = label_smoothing / logits.shape[1]
    targets = torch.full_like(logits, off).scatter_(1, labels[:, None], 1.0 - label_smoothing + off)
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def class_weights(recipe: Recipe, manifest: Manifest) -> Tensor | None:
    """Returns the recipe's class weights, float32 (K,) on the CPU, or None if ``recipe.class_weights`` is ``none``.

    They are scaled to a mean of 1 over the training images as often as ``recipe.sampling`` draws them. With ``balanced``, the
    sum of the weights of all images drawn is the same for each class. Unknown class names were already refused by
    :func:`stagewright.plan.resolve.resolve`.
    """
    if recipe.class_weights == "none":
        return None
    counts = np.bincount(manifest.labels[manifest.rows("train")], minlength=len(manifest.classes))
    shares = class_shares(counts, recipe.sampling)
    if recipe.class_weights == "balanced":
        weights = np.divide(1.0, shares, out=np.ones_like(shares), where=shares > 0)
    else:
        weights = np.array([recipe.class_weights.get(name, 1.0) for name in manifest.classes])
    return torch.from_numpy((weights / (weights * shares).sum()).astype(np.float32))
