"""The network of a Bundle as it predicts: on CPUs with its batch norms folded, which is the same function and faster, and in
bfloat16 where the processor is faster in it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from stagewright.model.fold import folded_copy, pairs_at
from stagewright.model.two_precisions import TwoPrecisions, bfloat16_copy


class Network:
    """Gives the network for predictions with the present weights of ``model``.

    ``image_size`` is the side of its images in pixels. Without ``fold`` its batch norms stay. ``margin`` is that of
    :class:`stagewright.model.two_precisions.TwoPrecisions`; None: float32 alone. On other devices than CPUs it is the model.
    """

    def __init__(self, model: nn.Module, image_size: int, fold: bool, margin: float | None = None) -> None:
        self.model = model
        self.image_size = image_size
        self.fold = fold
        self.margin = margin
        self._of: object = None
        self._made: tuple[nn.Module, nn.Module] | None = None

    def present(self) -> nn.Module:
        """Returns the network in evaluation mode; the one of the last call, unless the model was changed in place since then."""
        return self._networks()[1]

    def exact(self) -> nn.Module:
        """Returns the network as :meth:`present` does, in float32."""
        return self._networks()[0]

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """Returns the network in float32, and the one that predicts."""
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        if not on_cpu or (self.margin is None and not self._pairs):
            return self.model, self.model
        state = _state(self.model)
        if self._made is None or state is None or state != self._of:
            self._made, self._of = self._build(), state
        return self._made

    def _build(self) -> tuple[nn.Module, nn.Module]:
        exact = folded_copy(self.model, self._pairs)
        exact.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.margin is None:
            return exact, exact
        fast = bfloat16_copy(exact, torch.zeros(2, 3, self.image_size, self.image_size))
        return exact, exact if fast is None else TwoPrecisions(exact, fast, self.margin)

    @cached_property
    def _pairs(self) -> dict[str, str]:
        return pairs_at(self.model, self.image_size) if self.fold else {}


def _state(model: nn.Module) -> object:
    """Returns what changes when tensors of ``model`` are changed or replaced, or hooks are added; None if that is unknown."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None  # such tensors do not count their changes
    hooks = [tuple(part._forward_hooks) + tuple(part._forward_pre_hooks) for part in model.modules()]
    return [(id(tensor), tensor._version) for tensor in tensors], hooks
