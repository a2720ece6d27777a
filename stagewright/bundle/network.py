"""The network of a Bundle as it predicts: on CPUs with its batch norms folded, which is the same function and faster."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from stagewright.model.fold import folded_copy, pairs_at


class Network:
    """Gives the network for predictions with the present weights of ``model``.

    ``image_size`` is the side of its images in pixels. Without ``fold``, and on other devices than CPUs, it is the model itself.
    """

    def __init__(self, model: nn.Module, image_size: int, fold: bool) -> None:
        self.model = model
        self.image_size = image_size
        self.fold = fold
        self._of: object = None
        self._folded: nn.Module | None = None

    def present(self) -> nn.Module:
        """Returns the network in evaluation mode; the one of the last call, unless the model was changed in place since then."""
        if not self.fold or next(self.model.parameters()).device.type != "cpu" or not self._pairs:
            return self.model
        state = _state(self.model)
        if self._folded is None or state is None or state != self._of:
            self._folded, self._of = folded_copy(self.model, self._pairs), state
            self._folded.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return self._folded

    @cached_property
    def _pairs(self) -> dict[str, str]:
        return pairs_at(self.model, self.image_size)


def _state(model: nn.Module) -> object:
    """Returns what changes when tensors of ``model`` are changed or replaced, or hooks are added; None if that is unknown."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None  # such tensors do not count their changes
    hooks = [tuple(part._forward_hooks) + tuple(part._forward_pre_hooks) for part in model.modules()]
    return [(id(tensor), tensor._version) for tensor in tensors], hooks
