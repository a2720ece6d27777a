"""Caches features of a frozen body: computed once per split, in stages whose images are not augmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from stagewright.data.batches.batch import Batch
from stagewright.data.batches.specs import has_fixed_views, whole_specs
from stagewright.data.batches.transfer import on_device
from stagewright.data.manifest import Manifest
from stagewright.data.sources.verify import images_gone
from stagewright.engine.frozen_features import MOST_BYTES, CachedFeatures, Cut, Features, find_cut, linear_cut
from stagewright.engine.numerics import Numerics
from stagewright.engine.state import TrainState
from stagewright.errors import ModelError
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.plan import Plan, StagePlan
from stagewright.rundir.event_kinds import Computing, Notice
from stagewright.training.batches import Batches
from stagewright.training.read_watch import ReadWatch
from stagewright.training.recorder import Recorder


@dataclass
class FeatureCache:
    """Which stages train a head on cached features, and the features of the stage that the model is in."""

    plan: Plan
    state: TrainState
    numerics: Numerics
    batches: Batches
    recorder: Recorder
    reading: ReadWatch
    current: Features | None = field(init=False, default=None)
    """Features of the present stage; None if it trains on images."""

    @cached_property
    def cuts(self) -> dict[int, Cut]:
        """{stage index: cut} of all stages that train the head on cached features."""
        found: dict[int, Cut] = {}
        for stage in self.plan.stages:
            if stage.fit == "optimum":
                found[stage.index] = self._linear_cut(stage)
            elif has_fixed_views(stage) and stage.num_steps * stage.batch_size >= stage.num_images:
                apply_trainable(self.state.model, stage.train)
                set_train_mode(self.state.model)
                blank = torch.zeros(2, 3, stage.image_size, stage.image_size, device=self.state.device)
                cut = find_cut(self.state.model, blank)
                images = max(stage.num_images, self.plan.dataset.num_val)
                if cut is not None and cut.bytes_each * images <= MOST_BYTES:
                    found[stage.index] = cut
        return found

    def _linear_cut(self, stage: StagePlan) -> Cut:
        """Returns the cut in front of the linear head; ModelError if there is none, or if the features need too much memory."""
        blank = torch.zeros(2, 3, stage.image_size, stage.image_size, device=self.state.device)
        cut = linear_cut(self.state.model, blank)
        images = max(stage.num_images * (2 if stage.augment.flip else 1), self.plan.dataset.num_val)
        if cut.bytes_each * images > MOST_BYTES:
            most = MOST_BYTES // cut.bytes_each
            raise ModelError(
                f"stage {stage.name!r}: features of {images:,} views of pictures need {cut.bytes_each * images / 2**30:.1f} GiB",
                f"{most:,} views, which need {MOST_BYTES / 2**30:.0f} GiB",
                "write augment: {flip: 0} in the stage, a smaller data_fraction, or fit: updates",
            )
        return cut

    @property
    def stages(self) -> frozenset[int]:
        """Indices of the stages that train on features, so that their training images need not be read for each update."""
        return frozenset(self.cuts)

    def enter(self, stage: StagePlan) -> None:
        """Drops the features of the previous stage; those of ``stage`` are computed at first use."""
        cut = self.cuts.get(stage.index)
        self.current = None if cut is None else Features(self.state.model, cut)

    def replace_images(self, batch: Batch, stage: StagePlan, manifest: Manifest) -> Batch:
        """Returns ``batch`` with cached features instead of images if the stage trains on them, else ``batch``."""
        return batch if self.current is None else self.of("train", stage, manifest).replace_images(batch)

    def of(self, split: str, stage: StagePlan, manifest: Manifest, *, mirrored: bool = False) -> CachedFeatures:
        """Returns the features of a split in ``stage``, which must be the present one; computes them at the first call.

        ``mirrored``: those of the mirror images, of the split "train". Raises ``Interrupted`` if a stop was requested, DataError
        if too many images cannot be read.
        """
        features = self.current
        assert features is not None
        kept_as = f"{split}, mirrored" if mirrored else split
        if kept_as not in features.kept:
            total = stage.num_images if split == "train" else len(manifest.rows(split))
            text = (
                f"stage {stage.name!r}: the body is frozen and pictures are not augmented, so its features of {total:,} "
                f"{'mirrored ' if mirrored else ''}{split} pictures are computed once"
            )
            self.recorder.log.emit(Notice(step=self.state.step, text=text))
            specs = whole_specs(self.plan, manifest, stage, split, mirrored=mirrored)
            with self.batches.load(specs) as batches, self.numerics.autocast(self.state.device):
                features.kept[kept_as] = features.compute(
                    batches,
                    lambda batch: self.numerics.network_input(on_device(batch, self.state.device)),
                    stop=lambda: self.batches.stop.requested,
                    progress=lambda done: self.recorder.log.emit(
                        Computing(step=self.state.step, done=done, total=total, what=f"features of {split} pictures")
                    ),
                )
            bad = list(features.kept[kept_as].bad.items())
            if self.reading.is_gone(len(bad), total):
                del features.kept[kept_as]
                raise images_gone(manifest, bad, len(bad), total, f"the {split} part")
        return features.kept[kept_as]
