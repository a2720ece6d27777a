"""Frozen features: what the frozen lower part of a network makes of each image is computed once, and the upper part trains on it.

The network is cut (:mod:`stagewright.engine.cut`) in front of its head, or in front of the first block that trains. If images are
augmented, each has several fixed views, with the features of each of them. Whether features are stored or computed for each
batch anew does not change a bit: :class:`LowerPart` always runs on the same number of images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stagewright.data.batches.batch import BadRow, Batch
from stagewright.data.batches.specs import has_fixed_views
from stagewright.engine.compile import pad_batch
from stagewright.engine.cut import Cut, features_of, find_cut, linear_cut, upper_part
from stagewright.engine.frozen_norms import FrozenNorms
from stagewright.errors import Interrupted
from stagewright.model.fold import folded_copy, skeleton
from stagewright.model.groups import apply_trainable, modes_kept, set_train_mode
from stagewright.plan.plan import StagePlan

_AT_ONCE = 32
"""Number of images in each forward pass of a lower part. Kernels differ by the number of images, and with them the last bits; the
place of an image and its neighbours make no difference."""


class Found(NamedTuple):
    """The features of a batch of images."""

    rows: NDArray[np.int64]
    """int64 (B,): rows of the manifest."""
    features: Tensor
    """float32 (B, ...)."""
    bad_rows: tuple[BadRow, ...]


@dataclass(frozen=True, eq=False)
class LowerPart:
    """Maps images (B, 3, S, S) to features (B, ...), by a network in evaluation mode that is stopped at the module ``name``."""

    network: nn.Module
    name: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features, which depend on each image alone, bit for bit."""
        module, parts = self.network.get_submodule(self.name), images.split(_AT_ONCE)
        found: list[Tensor] = []
        with modes_kept(self.network):
            self.network.eval()
            for part in parts:
                features = features_of(self.network, module, pad_batch(part, _AT_ONCE))
                assert features is not None
                found.append(features[: len(part)].float())
        return torch.cat(found)


@dataclass(eq=False)
class CachedFeatures:
    """Features of V views of N images: ``values`` (V * N, ...), view by view, and their manifest ``rows`` (N,), ascending."""

    rows: NDArray[np.int64]
    values: Tensor
    bad: dict[int, str] = field(default_factory=dict)
    """Images that could not be read: the reason by manifest row."""

    def replace_images(self, batch: Batch) -> Batch:
        """Returns ``batch`` with features (B, ...) instead of images; ``valid`` and ``bad_rows`` mark the unreadable ones."""
        if batch.views is None and np.array_equal(self.rows, batch.rows):  # all images at once, which need no copy
            images = self.values
        else:
            places = np.searchsorted(self.rows, batch.rows)
            if batch.views is not None:
                places = places + batch.views * len(self.rows)
            images = self.values.index_select(0, torch.from_numpy(places).to(self.values.device)).to(batch.valid.device)
        if not self.bad:
            return replace(batch, images=images)
        readable = np.array([row not in self.bad for row in batch.rows.tolist()])
        valid = torch.from_numpy(readable).to(batch.valid.device)
        bad: tuple[BadRow, ...] = tuple((row, self.bad[row]) for row in batch.rows.tolist() if row in self.bad)
        return replace(batch, images=images, valid=valid, bad_rows=bad)


@dataclass(eq=False)
class Features:
    """The network of a stage, cut in two, and the stored features by split."""

    cut: Cut
    lower: LowerPart
    upper: Callable[[Tensor], Tensor]
    """Maps features (B, ...) to logits (B, K)."""
    inside: frozenset[str]
    """Names of the model's tensors that belong to the upper part alone, so that features do not depend on them."""
    kept: dict[str, CachedFeatures] = field(default_factory=dict)

    def applied(self, batch: Batch, network_input: Callable[[Batch], Tensor]) -> Batch:
        """Returns ``batch`` with its features, computed now, instead of images; ``network_input`` makes the network's input."""
        return replace(batch, images=self.lower(network_input(batch)), draws=None, drawn_for=None)

    def found(self, batches: Iterable[Batch], network_input: Callable[[Batch], Tensor]) -> Iterator[Found]:
        """Yields the features of ``batches``, computed now; ``network_input`` makes the network's input from a batch."""
        for batch in batches:
            yield Found(batch.rows, self.lower(network_input(batch)), batch.bad_rows)

    def collected(
        self,
        found: Iterable[Found],
        num_views: int,
        empty: Callable[[tuple[int, ...]], Tensor],
        stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> CachedFeatures:
        """Collects the features ``found`` of all N images in ascending order of their rows, once for each view.

        ``num_views`` is their number V * N, and ``empty`` makes the tensor of a shape that takes their features. ``stop`` is
        called after every batch; if it returns True, :class:`stagewright.errors.Interrupted` is raised. ``progress`` is called
        with the number of views done so far.
        """
        rows: list[NDArray[np.int64]] = []
        bad: dict[int, str] = {}
        values: Tensor | None = None
        done = 0
        for batch in found:
            if stop():
                raise Interrupted
            values = empty((num_views, *batch.features.shape[1:])) if values is None else values
            values[done : done + len(batch.rows)] = batch.features
            done += len(batch.rows)
            rows.append(batch.rows)
            bad.update(batch.bad_rows)
            progress(done)
        assert values is not None and done == num_views
        whole = np.concatenate(rows)
        return CachedFeatures(whole[: len(np.unique(whole))], values, bad)


def stage_cut(model: nn.Module, stage: StagePlan) -> Cut | None:
    """Returns where ``model`` is cut in ``stage``, and sets what trains in it and its modes; None if it trains on images.

    A stage trains on features if it finds an optimum, has cached views, or sees each image at least once and always alike.
    """
    apply_trainable(model, stage.train)
    set_train_mode(model, stage.norm)
    blank = torch.zeros(2, 3, stage.image_size, stage.image_size)
    if stage.fit == "optimum":
        return linear_cut(model, blank)
    alike = has_fixed_views(stage) and stage.num_steps * stage.batch_size >= stage.num_images
    return find_cut(model, blank) if stage.cache_views or alike else None


def cut_in_two(model: nn.Module, cut: Cut, pairs: Mapping[str, str], blank: Tensor, *, frozen: bool) -> Features:
    """Returns the network in two parts: the lower one with its norms folded, the upper one too if its norms are ``frozen``."""
    upper = upper_part(model, cut.name, blank)
    assert upper is not None
    inside = frozenset(name for name, _ in [*upper.named_parameters(), *upper.named_buffers()])
    above = {one: norm for one, norm in pairs.items() if f"{one}.weight" in inside and f"{norm}.running_var" in inside}
    below = {
        one: norm
        for one, norm in pairs.items()
        if f"{one}.weight" not in inside and f"{norm}.running_var" not in inside
    }
    lower = LowerPart(folded_copy(model, below), cut.name)
    if not (frozen and above):
        return Features(cut, lower, upper, inside)
    part = upper_part(skeleton(model, above), cut.name, blank)
    assert part is not None
    return Features(cut, lower, FrozenNorms(model, above, part), inside)
