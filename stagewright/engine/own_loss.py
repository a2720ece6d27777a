"""Users' losses (``loss: python:module:function``): calls them for each micro-batch and tests them once before training.

``function(logits, targets)`` gets logits float32 (N, C) and targets float32 (N, C), and returns the loss of each image,
(N,) of floating point. A row of ``targets`` is the target probability of each class and sums to 1; it includes mixing and
label smoothing. The engine computes the mean, masks unreadable images and applies class weights. An image's loss must not
depend on the other images of its micro-batch, so that the size of micro-batches does not change an update. Evaluation is
always cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stagewright.augment.mixing import MixedBatch
from stagewright.errors import ModelError
from stagewright.system.named_functions import check_arguments, load_function, raised_at

_FIELD = "loss"
_SIGNATURE = "a function of (logits float32 (N, C), targets float32 (N, C)) that returns the loss of each image, (N,)"
_ROWS = 6
_BLIND = 64
"""Most classes over which the loss of chance is averaged."""


def own_losses(
    logits: Tensor, part: MixedBatch, name: str, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Returns the losses of the function ``name`` for ``logits`` float32 (N, C): float32 (N,).

    With ``class_weights`` (float32 (C,)) a loss is multiplied by the weight of the image's label, or by the mean of its two
    labels as they are mixed. ModelError if the result is not one loss per image.
    """
    losses = _called(name, logits, soft_targets(part, logits.shape[1], label_smoothing)).float()
    if class_weights is None:
        return losses
    weight = class_weights[part.labels_a]
    if part.lam != 1.0:
        weight = part.lam * weight + (1.0 - part.lam) * class_weights[part.labels_b]
    return losses * weight


def soft_targets(part: MixedBatch, num_classes: int, label_smoothing: float) -> Tensor:
    """Returns the target probabilities of the classes, float32 (N, num_classes): ``lam`` of the own label and the rest of the
    partner's, of which ``label_smoothing`` is spread evenly over all classes."""
    targets = torch.zeros(len(part.labels_a), num_classes, device=part.labels_a.device)
    targets.scatter_(1, part.labels_a[:, None], part.lam)
    if part.lam != 1.0:
        rest = torch.full_like(targets[:, :1], 1.0 - part.lam)
        targets.scatter_add_(1, part.labels_b[:, None], rest)
    return (1.0 - label_smoothing) * targets + label_smoothing / num_classes if label_smoothing else targets


def _called(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    losses = load_function(name, _FIELD, _SIGNATURE)(logits, targets)
    if not isinstance(losses, Tensor) or losses.shape != (len(logits),) or not losses.is_floating_point():
        is_tensor = isinstance(losses, Tensor)
        what = f"{tuple(losses.shape)} {losses.dtype}" if is_tensor else f"a {type(losses).__name__}"
        reduced = is_tensor and losses.ndim == 0
        raise ModelError(
            f"loss: {name} gave {what} for logits {tuple(logits.shape)}",
            _SIGNATURE,
            'leave out the mean: torch\'s own losses take reduction="none"'
            if reduced
            else "return one loss for each image",
        )
    return losses


def check_loss(name: str, num_classes: int, device: torch.device) -> None:
    """Tests the loss ``name`` on random logits and targets.

    RecipeError if it cannot be imported or does not take two arguments. ModelError unless it returns finite losses, one for each
    image and independent of the other images, with gradients for the logits.
    """
    function = load_function(name, _FIELD, _SIGNATURE)
    check_arguments(function, name, _FIELD, _SIGNATURE, (None, None), {})
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_ROWS, max(num_classes, 2), generator=generator).to(device).requires_grad_()
    targets = torch.rand(_ROWS, max(num_classes, 2), generator=generator).add(0.1).to(device)
    targets = targets / targets.sum(dim=1, keepdim=True)
    try:
        with torch.enable_grad():
            losses = _called(name, logits, targets)
            alone = torch.cat([_called(name, logits[at : at + 1], targets[at : at + 1]) for at in range(_ROWS)])
    except ModelError:
        raise
    except Exception as error:
        how = f"given logits and targets {tuple(logits.shape)} float32"
        raise ModelError(
            f"loss: {name}, {how}: {raised_at(error, name)}", _SIGNATURE, "correct the function"
        ) from error
    if not bool(torch.isfinite(losses).all()):
        raise ModelError(
            f"loss: {name} gave losses that are not finite for logits from a normal distribution",
            _SIGNATURE,
            "keep logarithms and divisions away from 0: log_softmax in place of the logarithm of a softmax",
        )
    gradient = torch.autograd.grad(losses.sum(), logits, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        raise ModelError(
            f"loss: {name} lets no finite gradient through to the logits",
            _SIGNATURE,
            "look for detach(), no_grad(), argmax or rounding",
        )
    if not torch.allclose(losses, alone, rtol=1e-4, atol=1e-5):
        raise ModelError(
            f"loss: {name} gives an image another loss in a batch of {_ROWS} than alone",
            "a loss of each image that does not depend on the others: batches go through the network in parts",
            "leave mean, sum and normalisation over the batch out",
        )


def blind_loss(name: str, num_classes: int) -> float:
    """Returns the mean loss of equal logits for all classes (the loss of chance), or 1 if it is not above 0."""
    classes = min(num_classes, _BLIND)
    with torch.no_grad():
        losses = _called(name, torch.zeros(classes, num_classes), torch.eye(num_classes)[:classes])
    value = float(losses.float().mean())
    return value if 0.0 < value < float("inf") else 1.0
