"""Frozen features: where the body of a network is frozen and pictures are always seen alike, what it makes of them is
computed once, and the head trains from memory.

The network is cut in front of the outermost module that holds everything trainable and by which alone the logits come
out. Whether it can be cut is tried, not guessed: what stands before the cut must give the same bits twice, in training
mode as in evaluation, and change no buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stagewright.data.batches.batch import BadRow, Batch
from stagewright.errors import Interrupted
from stagewright.model.groups import modes_kept

MOST_BYTES = 2 * 2**30
"""Features of a split that would take more are not kept. A constant, so that every machine decides alike."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a network is cut."""

    name: str
    """Of the module behind the cut, which takes the features and gives the logits."""
    bytes_each: int
    """Size of a picture's features."""


class _Reached(Exception):
    """The forward pass has come to the cut."""


@torch.no_grad()
def find_cut(model: nn.Module, images: Tensor) -> Cut | None:
    """Where ``model``, in the mode it trains in, can be cut; None where it cannot. ``images`` (B, 3, S, S) are any, B >= 1.

    Restores training modes and buffers; seeds torch's generator, which every update does too.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable or len(trainable) == len(list(model.parameters())):
        return None
    owners = [name.split(".")[:-1] for name in trainable]
    shared = _common(owners)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with modes_kept(model) as modes:
            for depth in range(1, len(shared) + 1):
                cut = _plan_at_factor(model, ".".join(shared[:depth]), images, modes, buffers)
                if cut is not None:
                    return cut
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return None


def _common(paths: list[list[str]]) -> list[str]:
    shared = paths[0]
    for path in paths[1:]:
        length = next((at for at, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), None)
        shared = shared[: min(len(shared), len(path)) if length is None else length]
    return shared


def _plan_at_factor(
    model: nn.Module, name: str, images: Tensor, modes: dict[nn.Module, bool], buffers: dict[str, Tensor]
) -> Cut | None:
    module = model.get_submodule(name)
    found: list[Tensor] = []
    for seed, training in ((1, True), (2, True), (3, False)):
        for part, mode in modes.items():
            part.training = mode and training
        torch.manual_seed(seed)
        features = features_of(model, module, images)
        if features is None:
            return None
        found.append(features)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = module.register_forward_pre_hook(count)
    try:
        whole = model(images)
    finally:
        handle.remove()
    same = all(torch.equal(found[0], other) for other in found[1:])
    still = all(torch.equal(buffer, buffers[key]) for key, buffer in model.named_buffers())
    if not (same and still and calls == 1 and isinstance(whole, Tensor) and torch.equal(whole, module(found[0]))):
        return None
    return Cut(name, found[0][0].numel() * found[0].element_size())


def features_of(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor | None:
    """What ``module`` of ``model`` is first given when the model sees ``images``; None unless that is one tensor with a row
    for each picture. Nothing behind it is computed."""
    taken: list[Tensor] = []

    def take(_: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and not named and len(given[0]) == len(images):
            taken.append(given[0])
        raise _Reached

    handle = module.register_forward_pre_hook(take, with_kwargs=True)
    try:
        model(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return taken[0].detach() if taken else None


@dataclass(eq=False)
class CachedFeatures:
    """The features of some pictures: ``values`` (N, ...) on the device, of the ascending manifest ``rows`` (N,)."""

    rows: NDArray[np.int64]
    values: Tensor
    bad: dict[int, str]
    """Manifest row and reason of what could not be read."""

    def replace_images(self, batch: Batch) -> Batch:
        """``batch`` with features in the place of its pictures, and its unreadable ones named."""
        places = np.searchsorted(self.rows, batch.rows)
        images = self.values.index_select(0, torch.from_numpy(places).to(self.values.device))
        if not self.bad:
            return replace(batch, images=images)
        readable = np.array([row not in self.bad for row in batch.rows.tolist()])
        valid = torch.from_numpy(readable).to(batch.valid.device)
        bad: tuple[BadRow, ...] = tuple((row, self.bad[row]) for row in batch.rows.tolist() if row in self.bad)
        return replace(batch, images=images, valid=valid, bad_rows=bad)


@dataclass(eq=False)
class Features:
    """A stage's cut network, and the features of the splits it was asked for."""

    model: nn.Module
    cut: Cut
    kept: dict[str, CachedFeatures] = field(default_factory=dict)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """What is behind the cut: features (B, ...) to logits (B, classes)."""
        return self.model.get_submodule(self.cut.name)

    def inside(self, name: str) -> bool:
        """Whether the tensor ``name`` of the model lies behind the cut, so that features do not hang on it."""
        return name.startswith(f"{self.cut.name}.")

    @torch.no_grad()
    def compute(
        self,
        batches: Iterable[Batch],
        network_input: Callable[[Batch], Tensor],
        stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> CachedFeatures:
        """The features of the pictures of ``batches``, whose rows ascend, with the network in evaluation mode.

        ``stop`` is asked before every batch and makes it raise :class:`stagewright.engine.evaluate.Interrupted`; ``progress`` is
        told the pictures done.
        """
        module = self.model.get_submodule(self.cut.name)
        values: list[Tensor] = []
        rows: list[NDArray[np.int64]] = []
        bad: dict[int, str] = {}
        with modes_kept(self.model):
            self.model.eval()
            for batch in batches:
                if stop():
                    raise Interrupted
                features = features_of(self.model, module, network_input(batch))
                assert features is not None
                values.append(features)
                rows.append(batch.rows)
                bad.update(batch.bad_rows)
                progress(sum(map(len, rows)))
        return CachedFeatures(np.concatenate(rows), torch.cat(values), bad)
