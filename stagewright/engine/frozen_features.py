"""Frozen features: if the body of a network is frozen and images are not augmented, its output for each image is computed
once, and the head trains on these cached features.

The network is cut in front of the outermost module that contains all trainable parameters and whose output is the logits.
:func:`find_cut` tests by running the network whether it can be cut: the part before the cut must give bit-identical features
twice in training mode and once in evaluation mode, and must not change a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stagewright.data.batches.batch import BadRow, Batch
from stagewright.errors import Interrupted, ModelError
from stagewright.model.groups import head_modules, modes_kept

MOST_BYTES = 2 * 2**30
"""Limit of the features of one split in bytes; larger ones are not cached. Constant, so that every machine decides the same."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The place where a network is cut."""

    name: str
    """Name of the module after the cut, which maps features to logits."""
    bytes_each: int
    """Size in bytes of the features of one image."""


class _CutReached(Exception):
    """Ends a forward pass at the cut."""


@torch.no_grad()
def find_cut(model: nn.Module, images: Tensor) -> Cut | None:
    """Returns where ``model``, in its present training mode, can be cut, or None if it cannot.

    ``images`` (B, 3, S, S) with B >= 1 are for the test run; their content does not matter. Restores training modes and buffers.
    Seeds torch's global generator, as every update does too.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable or len(trainable) == len(list(model.parameters())):
        return None
    owners = [name.split(".")[:-1] for name in trainable]
    shared = _common_prefix(owners)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with modes_kept(model) as modes:
            for depth in range(1, len(shared) + 1):
                cut = _cut_at(model, ".".join(shared[:depth]), images, modes, buffers)
                if cut is not None:
                    return cut
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return None


def _common_prefix(paths: list[list[str]]) -> list[str]:
    shared = paths[0]
    for path in paths[1:]:
        length = next((at for at, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), None)
        shared = shared[: min(len(shared), len(path)) if length is None else length]
    return shared


def _cut_at(
    model: nn.Module, name: str, images: Tensor, modes: dict[nn.Module, bool], buffers: dict[str, Tensor]
) -> Cut | None:
    """Returns the cut before the module ``name``, or None if the network cannot be cut there."""
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
    unchanged = all(torch.equal(buffer, buffers[key]) for key, buffer in model.named_buffers())
    if not (same and unchanged and calls == 1 and isinstance(whole, Tensor) and torch.equal(whole, module(found[0]))):
        return None
    return Cut(name, found[0][0].numel() * found[0].element_size())


@torch.no_grad()
def linear_cut(model: nn.Module, images: Tensor) -> Cut:
    """Returns the cut in front of the linear layer that is the whole head of ``model`` in evaluation mode.

    ``images`` (B, 3, S, S) with B >= 1 are for the test run. ModelError unless the head is one linear layer with biases that is
    called once, with one vector for each image, and whose outputs are the logits. Restores training modes.
    """
    names = head_modules(model)
    head = model.get_submodule(names[0]) if len(names) == 1 else None
    if isinstance(head, nn.Linear) and head.bias is not None:
        calls: list[object] = []
        handle = head.register_forward_pre_hook(lambda *_: calls.append(None))
        with modes_kept(model):
            model.eval()
            try:
                logits = model(images)
            finally:
                handle.remove()
            features = features_of(model, head, images)
        plain = isinstance(logits, Tensor) and len(calls) == 1
        if plain and features is not None and features.ndim == 2 and torch.equal(head(features), logits):
            return Cut(names[0], features[0].numel() * features.element_size())
    what = ", ".join(f"{name} ({type(model.get_submodule(name)).__name__})" for name in names) or "no module"
    raise ModelError(
        f"fit: optimum: the head of this network is {what}, and its logits are not the outputs of one linear layer",
        "a network whose logits are the outputs of one linear layer with biases",
        "write fit: updates, with epochs and lr, in the stage",
    )


def features_of(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor | None:
    """Returns the input of ``module`` at its first call in a forward pass of ``model`` on ``images`` (B, 3, S, S).

    None unless that input is a single tensor of shape (B, ...). Nothing after the cut is computed.
    """
    taken: list[Tensor] = []

    def take(_: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and not named and len(given[0]) == len(images):
            taken.append(given[0])
        raise _CutReached

    handle = module.register_forward_pre_hook(take, with_kwargs=True)
    try:
        model(images)
    except _CutReached:
        pass
    finally:
        handle.remove()
    return taken[0].detach() if taken else None


@dataclass(eq=False)
class CachedFeatures:
    """Features of N images: ``values`` (N, ...) on the device, and their manifest ``rows`` (N,), ascending."""

    rows: NDArray[np.int64]
    values: Tensor
    bad: dict[int, str]
    """Images that could not be read: the reason by manifest row."""

    def replace_images(self, batch: Batch) -> Batch:
        """Returns ``batch`` with features (B, ...) instead of images; ``valid`` and ``bad_rows`` mark the unreadable ones."""
        if np.array_equal(self.rows, batch.rows):  # all images at once, which need no copy
            images = self.values
        else:
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
    """The network of a stage with its cut, and the cached features by split."""

    model: nn.Module
    cut: Cut
    kept: dict[str, CachedFeatures] = field(default_factory=dict)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """The module after the cut, which maps features (B, ...) to logits (B, K)."""
        return self.model.get_submodule(self.cut.name)

    def inside(self, name: str) -> bool:
        """Returns whether the tensor ``name`` of the model is after the cut, so that features do not depend on it."""
        return name.startswith(f"{self.cut.name}.")

    @torch.no_grad()
    def compute(
        self,
        batches: Iterable[Batch],
        network_input: Callable[[Batch], Tensor],
        stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> CachedFeatures:
        """Computes the features of all images of ``batches``, whose rows must ascend, with the network in evaluation mode.

        ``network_input`` makes the network's input from a batch. ``stop`` is called before every batch; if it returns True,
        :class:`stagewright.errors.Interrupted` is raised. ``progress`` is called with the number of images done so far.
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
