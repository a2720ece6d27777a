"""Tells in a few seconds how long a run will take on this CPU: one forward pass, one update of each kind, a few images.

The cost probe (:mod:`stagewright.preflight.cost_probe`) rehearses a run and takes longer; budgets are based on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import torch

from stagewright.augment.custom import load_custom
from stagewright.data.batches.batch import Batch
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import Dataset
from stagewright.engine.build import build_state
from stagewright.engine.folding import network_pairs, predicts_in_bfloat16
from stagewright.engine.frozen_features import cut_in_two, stage_cut
from stagewright.engine.frozen_norms import FrozenNorms
from stagewright.engine.numerics import Numerics, numerics_of, prepare_torch
from stagewright.engine.state import TrainState
from stagewright.engine.step import update
from stagewright.model.fold import folded_copy, skeleton
from stagewright.model.groups import modes_kept
from stagewright.model.two_precisions import bfloat16_copy
from stagewright.plan.plan import HEAD_GRID, Plan, StagePlan
from stagewright.system.isolation import preserve_global_state

_IMAGES = 32
"""Number of images that are read, and of images in a timed forward pass."""
_UPDATED = 16
"""Most images of a timed update; larger batches take as many times longer."""
_FIT_SECONDS = 1.5e-7
"""Seconds of the fit of a head with its cross-validation for each feature of each view, times the number of classes (measured
from 1,200 views of 1,280 features and 10 classes to 10,000 of 1,024 and 50, 2 cores)."""
_CLOSE = 0.2
"""Share of the images whose first two classes are close in bfloat16."""
_SAVE_SECONDS = 0.5
_AROUND_SECONDS = 8.0
"""Start, set-up, the bundle and the report (MobileNetV2, 2 cores)."""


def quick_forecast(plan: Plan, dataset: Dataset) -> float:
    """Returns the approximate seconds that a run of ``plan`` takes on this CPU, from a few measurements of about 3 seconds."""
    with preserve_global_state():
        device = torch.device("cpu")
        prepare_torch(plan.recipe, device)
        for name in {stage.augment.custom for stage in plan.stages if stage.augment.custom}:
            load_custom(name)
        state, _ = build_state(plan, device)
        numerics = numerics_of(plan, state.model, dataset.manifest)
        return _Forecast(plan, dataset, state, numerics).seconds()


@dataclass
class _Forecast:
    """Measures on the state of a run before its first step, which it changes, and adds up."""

    plan: Plan
    dataset: Dataset
    state: TrainState
    numerics: Numerics
    forward: float = field(init=False, default=0.0)
    """Seconds of a forward pass of one image through the whole network, as measured last."""

    @cached_property
    def pairs(self) -> dict[str, str]:
        return network_pairs(self.plan, self.state)

    @cached_property
    def load(self) -> float:
        return self._load_seconds()

    def seconds(self) -> float:
        """Returns the seconds of the run."""
        info = self.plan.dataset
        total = sum(self._stage(stage) for stage in self.plan.stages)
        compared = len(HEAD_GRID) if self.plan.compares_head else 1
        final = compared * info.num_val + min(compared, 2) * info.num_test
        total += final * self.forward + (info.num_val + info.num_test) * self.load
        return total + _SAVE_SECONDS * len(self.plan.save_steps) + _AROUND_SECONDS

    def _stage(self, stage: StagePlan) -> float:
        """Seconds of a stage with its evaluations; sets ``forward``, those of a forward pass of one image."""
        model = self.state.model
        cut = stage_cut(model, stage)
        blank = torch.zeros(2, 3, stage.image_size, stage.image_size)
        folded = FrozenNorms(model, self.pairs, skeleton(model, self.pairs))
        in_float32 = self._forward_seconds(stage, folded)
        self.forward = in_float32 * self._evaluation_share(stage)
        sets = 1 if stage.average.kind == "none" else 2
        evaluated = self.plan.dataset.num_val * sets * self.plan.num_evaluations(stage)
        shown, updated = stage.num_steps * stage.batch_size, min(stage.lane_size, _UPDATED)
        if cut is None:
            whole = folded if stage.norm == "frozen" and self.pairs and not self.plan.recipe.compile else model
            update_seconds = self._update_seconds(stage, whole, self._images(stage, updated))
            reading = self.plan.dataset.num_val * self.plan.num_evaluations(stage) * self.load
            return stage.num_steps * update_seconds + shown * self.load + evaluated * self.forward + reading
        views = stage.num_images * stage.num_views
        parts = cut_in_two(model, cut, self.pairs, blank, frozen=stage.norm == "frozen")
        lower = self._forward_seconds(stage, parts.lower)
        entering = (views + self.plan.dataset.num_val) * (lower + self.load)
        if stage.fit == "optimum":
            return entering + _FIT_SECONDS * views * cut.bytes_each / 4 * len(self.plan.dataset.classes)
        features = parts.lower(self._images(stage, updated))
        update_seconds = self._update_seconds(stage, parts.upper, features)
        return entering + stage.num_steps * update_seconds + evaluated * max(0.0, in_float32 - lower)

    def _evaluation_share(self, stage: StagePlan) -> float:
        """Time of an evaluation of one image as a share of that in float32."""
        if not predicts_in_bfloat16(self.plan, self.state):
            return 1.0
        exact, images = folded_copy(self.state.model, self.pairs), self._images(stage, 2)
        fast = bfloat16_copy(exact, images)
        if fast is None:
            return 1.0
        seconds = self._forward_seconds(stage, lambda given: fast(given.bfloat16()))
        return _CLOSE + seconds / self._forward_seconds(stage, exact)

    def _images(self, stage: StagePlan, count: int) -> torch.Tensor:
        images = torch.zeros(count, 3, stage.image_size, stage.image_size)
        return images.to(memory_format=torch.channels_last if self.numerics.channels_last else torch.contiguous_format)

    def _forward_seconds(self, stage: StagePlan, network: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Seconds of a forward pass of one image in evaluation mode."""
        images = self._images(stage, _IMAGES)
        with modes_kept(self.state.model), torch.no_grad():
            self.state.model.eval()
            return _best_of(2, lambda: network(images)) / _IMAGES

    def _update_seconds(
        self, stage: StagePlan, network: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
    ) -> float:
        """Seconds of an update of the stage with loaded images; changes the weights."""
        labels = torch.arange(len(given)) % len(self.plan.dataset.classes)
        batch = Batch(stage.first_step, given, labels, torch.ones(len(given), dtype=torch.bool), ())

        def one() -> None:
            update(self.state, self.plan, stage, batch, self.numerics, lanes=1, forward=network)

        return _best_of(2, one) * stage.batch_size / len(given)

    def _load_seconds(self) -> float:
        """Seconds to read one image as the last stage does, with all threads, and to augment it."""
        manifest, first = self.dataset.manifest, self.plan.stages[-1].first_step
        specs = list(islice(train_specs(self.plan, manifest, first), 1))
        began = time.perf_counter()
        with closing(load_batches(self.dataset.images, specs, workers=auto_workers(manifest))) as batches:
            for batch in batches:
                self.numerics.network_input(batch)
        return (time.perf_counter() - began) / len(specs[0].rows)


def _best_of(count: int, work: Callable[[], object]) -> float:
    """Returns the least seconds of ``count`` calls after a first one."""
    work()
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
