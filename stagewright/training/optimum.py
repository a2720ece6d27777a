"""The one update of a stage with ``fit: optimum``: finds the best head for all features (:mod:`stagewright.engine.strength`).

It is a pure function of the body's weights, the images and the recipe, so a run that was killed in it does it again, with the
same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stagewright.data.batches.batch import Batch
from stagewright.data.batches.order import class_shares
from stagewright.data.manifest import Manifest
from stagewright.data.sources.assemble import group_keys
from stagewright.data.splits.folds import Folds, inner_folds
from stagewright.engine.convex import Problem, finite_rows, inverse_strength, layer
from stagewright.engine.numerics import Numerics
from stagewright.engine.state import TrainState
from stagewright.engine.strength import Optimum, fit_head
from stagewright.errors import ModelError
from stagewright.plan.plan import Hyper, Plan, StagePlan
from stagewright.rundir.event_kinds import Computing, Notice
from stagewright.text import counted
from stagewright.training.feature_cache import FeatureCache
from stagewright.training.ranks import Ranks
from stagewright.training.recorder import Recorder

_FOLDS = 5


@dataclass(frozen=True)
class OptimumUpdate:
    """Finds the optimum of the head in stages that ask for it."""

    plan: Plan
    state: TrainState
    numerics: Numerics
    features: FeatureCache
    recorder: Recorder
    ranks: Ranks

    def update(self, stage: StagePlan, batch: Batch, hyper: Hyper, manifest: Manifest) -> Tensor:
        """Sets the head to its optimum and updates the average; returns (mean cross-entropy, top-1 share, norm of the
        objective's gradient), float32 of shape (3,), on the device.

        ``batch`` has the features of all images of the stage. Images that are not valid, or whose features are not finite, are
        left out. Raises ``Interrupted`` if a stop was requested; then nothing has changed. ModelError if no image is left.
        """
        problem = self._problem(stage, batch, manifest)
        used = (problem.weights > 0).cpu().numpy()
        folds = inner_folds(
            manifest.content[batch.rows[used]],
            manifest.labels[batch.rows[used]],
            _FOLDS,
            self.plan.recipe.seed,
            manifest.classes,
            None if manifest.groups is None else group_keys(manifest.groups, manifest.content)[batch.rows[used]],
        )
        found = fit_head(
            problem,
            None if folds is None else _scattered(folds, used),
            stop=self.ranks.stops,
            progress=self._tell_progress,
        )
        self._write(problem, found)
        self.state.average.update(self.state.model, hyper.average_weight)
        self._tell(stage, problem, found)
        numbers = [found.loss, found.top1, found.solution.grad_norm]
        return torch.tensor(numbers, dtype=torch.float32, device=self.state.device)

    def _tell_progress(self, done: int, total: int) -> None:
        self.ranks.at("fit", self.state.step, f"{done} fits")
        self.recorder.log.emit(Computing(step=self.state.step, done=done, total=total, what="fits of the head"))

    def _problem(self, stage: StagePlan, batch: Batch, manifest: Manifest) -> Problem:
        valid, views = batch.valid, (batch.images,)
        if stage.augment.flip:
            mirrored = self.features.of("train", stage, manifest, mirrored=True)
            assert mirrored is not None
            other = mirrored.replace_images(replace(batch, valid=torch.ones_like(valid)))
            valid, views = valid & other.valid, (batch.images, other.images)
        finite = finite_rows(views)
        weights = torch.from_numpy(self._class_weights(batch.labels)).to(self.state.device)[batch.labels]
        weights = weights * (valid & finite)
        if not bool(weights.any()):
            raise ModelError(
                f"stage {stage.name!r}: the features of none of its {len(batch.rows):,} images are finite",
                "finite outputs of the frozen body",
                "check the weights that the network begins with",
            )
        lost = batch.rows[(valid & ~finite).cpu().numpy()]
        if len(lost):
            named = ", ".join(manifest.paths[int(row)].as_py() for row in lost[:5])
            more = f" and {len(lost) - 5:,} more" if len(lost) > 5 else ""
            text = f"stage {stage.name!r}: left out, because their features are not finite: {named}{more}"
            self.recorder.log.emit(Notice(step=self.state.step, text=text))
        return Problem(views, batch.labels, weights, len(manifest.classes), stage.label_smoothing)

    def _class_weights(self, labels: Tensor) -> NDArray[np.float64]:
        """Returns the weight of an image of each class, float64 (K,): that in the loss, times how often its class is sampled
        compared with natural sampling."""
        counts = np.bincount(labels.cpu().numpy(), minlength=len(self.plan.dataset.classes))
        weights = class_shares(counts, self.plan.recipe.sampling) * counts.sum() / np.maximum(counts, 1)
        if self.numerics.class_weights is not None:
            weights = weights * self.numerics.class_weights.double().cpu().numpy()
        return weights

    @torch.no_grad()
    def _write(self, problem: Problem, found: Optimum) -> None:
        assert self.features.current is not None
        head = self.state.model.get_submodule(self.features.current.cut.name)
        assert isinstance(head, nn.Linear)
        weight, bias = layer(problem, found.solution.theta)
        head.weight.copy_(weight)
        head.bias.copy_(bias)

    def _tell(self, stage: StagePlan, problem: Problem, found: Optimum) -> None:
        lowest = min(found.log_losses.values(), default=float("nan"))
        how = f"the best of {len(found.log_losses)} in {counted(found.num_folds, 'fold')} by log loss ({lowest:.4g})"
        if not found.num_folds:
            how = "the default, because the classes or groups do not allow two folds"
        text = (
            f"stage {stage.name!r}: the head is at its optimum after {counted(found.solution.iterations, 'iteration')}; "
            f"strength of the penalty {found.strength:.2g} (C = {inverse_strength(problem, found.strength):.3g}), {how}"
        )
        self.recorder.log.emit(Notice(step=self.state.step, text=text))


def _scattered(folds: Folds, used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the fold of each of N images, -1 for those that are not ``used`` (N,); ``folds`` are those of the others."""
    whole = np.full(len(used), -1, np.int64)
    whole[used] = folds
    return whole
