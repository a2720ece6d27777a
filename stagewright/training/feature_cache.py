"""The network of each stage: all of it, or its upper part on features of the frozen lower part, stored once per split."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from stagewright.data.batches.batch import Batch
from stagewright.data.batches.specs import stage_rows, whole_specs
from stagewright.data.batches.transfer import on_device
from stagewright.data.manifest import Manifest
from stagewright.data.sources.verify import images_gone
from stagewright.engine.cut import Cut
from stagewright.engine.folding import network_pairs
from stagewright.engine.frozen_features import CachedFeatures, Features, cut_in_two, stage_cut
from stagewright.engine.frozen_norms import FrozenNorms
from stagewright.engine.numerics import Numerics
from stagewright.engine.state import TrainState
from stagewright.errors import ModelError, StorageError
from stagewright.model.fold import skeleton
from stagewright.plan.plan import Plan, StagePlan
from stagewright.rundir.event_kinds import Computing, Notice
from stagewright.storage.scratch import scratch_array
from stagewright.text import size_text
from stagewright.training.batches import Batches
from stagewright.training.read_watch import ReadWatch
from stagewright.training.recorder import Recorder

MOST_IN_MEMORY = 2 * 2**30
"""Limit of the features of one split in bytes that are stored in memory; more are stored in a file of the run's directory."""


@dataclass
class FeatureCache:
    """Which stages train on features, the network of the stage that the model is in, and its features."""

    plan: Plan
    state: TrainState
    numerics: Numerics
    batches: Batches
    recorder: Recorder
    reading: ReadWatch
    current: Features | None = field(init=False, default=None)
    """Features of the present stage; None if it trains on images."""
    _whole: Callable[[Tensor], Tensor] | None = field(init=False, default=None)
    """The whole network with frozen norms, if the present stage trains that on images."""

    @cached_property
    def cuts(self) -> dict[int, Cut]:
        """{stage index: cut} of all stages that train on features. ModelError if a stage asks for it and cannot be cut."""
        found: dict[int, Cut] = {}
        for stage in self.plan.stages:
            cut = stage_cut(self.state.model, stage)
            if cut is not None:
                found[stage.index] = cut
            elif stage.cache_views:
                raise _not_cuttable(stage)
        return found

    @cached_property
    def pairs(self) -> dict[str, str]:
        """{convolution: batch norm} of the pairs in the network that can be folded."""
        return network_pairs(self.plan, self.state)

    def _blank(self, stage: StagePlan) -> Tensor:
        return torch.zeros(2, 3, stage.image_size, stage.image_size, device=self.state.device)

    @cached_property
    def stored(self) -> frozenset[int]:
        """Indices of the stages whose features are stored, so that their images need not be read for each update.

        The others compute them for each batch, with the same bits.
        """
        free = shutil.disk_usage(self.recorder.run.root).free
        found = [
            index
            for index, cut in self.cuts.items()
            if self.plan.stages[index].fit == "optimum"
            or (
                self.batches.execution.cache_features
                and self._num_bytes(self.plan.stages[index], cut) <= max(MOST_IN_MEMORY, free // 2)
            )
        ]
        return frozenset(self.batches.ranks.tell(found))

    def _num_bytes(self, stage: StagePlan, cut: Cut) -> int:
        return cut.bytes_each * max(stage.num_images * stage.num_views, self.plan.dataset.num_val)

    def enter(self, stage: StagePlan) -> None:
        """Makes the network of ``stage`` from the model; features of the previous stage are dropped, those of ``stage`` are
        computed at first use."""
        model, cut = self.state.model, self.cuts.get(stage.index)
        self.current = self._whole = None
        if cut is not None:
            self.current = cut_in_two(model, cut, self.pairs, self._blank(stage), frozen=stage.norm == "frozen")
        elif stage.norm == "frozen" and self.pairs and self.state.forward is model:
            self._whole = FrozenNorms(model, self.pairs, skeleton(model, self.pairs))

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """The part of the network that is applied to a batch in the present stage, which maps images or features to logits."""
        if self.current is not None:
            return self.current.upper
        return self._whole or self.state.forward

    def replace_images(self, batch: Batch, stage: StagePlan, manifest: Manifest) -> Batch:
        """Returns ``batch`` with features instead of images if the stage trains on them, else ``batch``."""
        if self.current is None:
            return batch
        kept = self.of("train", stage, manifest)
        return self.computed(batch) if kept is None else kept.replace_images(batch)

    def computed(self, batch: Batch) -> Batch:
        """Returns ``batch`` on the device with its features, computed now, instead of images."""
        assert self.current is not None
        batch = on_device(batch, self.state.device)
        with self.numerics.autocast(self.state.device):
            return self.current.applied(batch, self.numerics.network_input)

    def of(self, split: str, stage: StagePlan, manifest: Manifest, *, mirrored: bool = False) -> CachedFeatures | None:
        """Returns the features of a split in ``stage``, which must be the present one; computes them at the first call.

        ``mirrored``: those of the mirror images, of the split "train". None if they are not stored. Raises ``Interrupted`` if a
        stop was requested, DataError if too many images cannot be read.
        """
        features = self.current
        assert features is not None
        if stage.index not in self.stored:
            return None
        kept_as = f"{split}, mirrored" if mirrored else split
        if kept_as not in features.kept:
            views = max(1, stage.cache_views) if split == "train" else 1
            rows = stage_rows(self.plan, manifest, stage) if split == "train" else manifest.rows(split)
            total = views * len(rows)
            text = _sentence(stage, features.cut, f"{'mirrored ' * mirrored}{split}", views, total)
            self.recorder.log.emit(Notice(step=self.state.step, text=text))
            ranks, state = self.batches.ranks, self.state
            specs = ranks.in_turn(whole_specs(self.plan, manifest, stage, split, mirrored=mirrored))
            with self.batches.load(specs) as batches, self.numerics.autocast(state.device):
                own = features.found(batches, lambda batch: self.numerics.network_input(on_device(batch, state.device)))
                features.kept[kept_as] = features.collected(
                    ranks.all_found(own, total),
                    total,
                    self._empty,
                    stop=ranks.stops,
                    progress=lambda done: self._tell_progress(done, total, f"features of {split} pictures"),
                )
            bad = list(features.kept[kept_as].bad.items())
            if self.reading.is_gone(len(bad), total // views):
                del features.kept[kept_as]
                raise images_gone(manifest, bad, len(bad), total // views, f"the {split} part")
        return features.kept[kept_as]

    def _tell_progress(self, done: int, total: int, what: str) -> None:
        self.batches.ranks.at("features", self.state.step, f"{done} pictures")
        self.recorder.log.emit(Computing(step=self.state.step, done=done, total=total, what=what))

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        """Returns a float32 tensor of ``shape`` for features: on the device, or in a file if it is large."""
        if 4 * torch.Size(shape).numel() <= MOST_IN_MEMORY:
            return torch.empty(shape, device=self.state.device)
        try:
            return torch.from_numpy(scratch_array(self.recorder.run.root, shape, "float32"))
        except OSError as error:
            size = size_text(4 * torch.Size(shape).numel())
            raise StorageError(
                f"{self.recorder.run.root}: no room for the features of the frozen blocks, {size}B: {error.strerror}",
                "a disk with that much free space",
                "free some, or take fewer views (cache.views) or a smaller image_size; then resume",
            ) from error


def _sentence(stage: StagePlan, cut: Cut, split: str, views: int, total: int) -> str:
    size = f"{size_text(total * cut.bytes_each)}B"
    if views == 1:
        what = "the body is frozen" if stage.train == "head" else f"what stands before {cut.name} is frozen"
        return f"stage {stage.name!r}: {what}, so its features of {total:,} {split} pictures are computed once ({size})"
    return (
        f"stage {stage.name!r}: what stands before {cut.name} is frozen, so its features of {views} views of "
        f"{total // views:,} {split} pictures are computed once ({size})"
    )


def _not_cuttable(stage: StagePlan) -> ModelError:
    return ModelError(
        f"stage {stage.name!r}: cache: the network cannot be cut in front of what trains ({stage.train})",
        "a network whose frozen part gives one tensor to the rest, in front of the head or of a block",
        "give train: last:N, or remove cache from the stage",
    )
