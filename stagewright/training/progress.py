"""Estimates the speed of a run and its remaining time."""

from __future__ import annotations

from dataclasses import dataclass

from stagewright.plan.cost import num_weights
from stagewright.plan.plan import HEAD_GRID, Plan, StagePlan


@dataclass
class ProgressEstimator:
    """Estimates images per second and remaining time from what this process has measured in the present stage.

    Counting begins at the first fetch of a stage, so that compiling and filling caches do not distort the estimate. The time of
    later stages is extrapolated from the present one in proportion to :func:`_work`. While the present stage trains on cached
    features, the time of later stages is unknown.
    """

    on_features: bool = False
    stage: StagePlan | None = None
    evaluated_in: int = -1
    eval_seconds: float = 0.0
    eval_pixels: float = 0.0
    """Sum over evaluations of the pixels per image times the sets of weights, from which other evaluations are extrapolated."""
    work: float = 0.0
    images: int = 0
    images_a_second: float = 0.0
    began_at: float | None = None
    marked_at: float = 0.0
    marked_images: int = 0
    epoch_at: float | None = None
    epoch_images: int = 0
    num_closed: int = 0
    """Number of test images that the finish leaves closed."""

    def add_step(self, stage: StagePlan) -> None:
        """Counts an update of ``stage`` whose numbers were fetched."""
        if self.stage is None or stage.index != self.stage.index:
            self.stage, self.began_at = stage, None
        self.images += stage.batch_size
        self.work += _work(stage)

    def add_evaluation(self, stage: StagePlan, seconds: float) -> None:
        """Counts an evaluation in ``stage`` that took ``seconds``; the first one of a stage replaces those of earlier stages."""
        if self.evaluated_in != stage.index:
            self.evaluated_in, self.eval_seconds, self.eval_pixels = stage.index, 0.0, 0.0
        self.eval_seconds += seconds
        self.eval_pixels += num_weights(stage) * stage.image_size**2

    def update_speed(self, train_seconds: float) -> float:
        """Returns the images per second of training since the last call; ``train_seconds`` is the training time so far."""
        if self.epoch_at is None:
            self.epoch_at, self.epoch_images = train_seconds, self.images
        if self.began_at is None:
            self.began_at = self.marked_at = train_seconds
            self.marked_images, self.work = self.images, 0.0
        elif train_seconds > self.marked_at:
            self.images_a_second = (self.images - self.marked_images) / (train_seconds - self.marked_at)
            self.marked_at, self.marked_images = train_seconds, self.images
        return self.images_a_second

    def end_epoch(self, train_seconds: float) -> tuple[float, float]:
        """Returns training seconds and images per second since the last evaluation, or since this process began."""
        seconds, images = train_seconds - (self.epoch_at or 0.0), self.images - self.epoch_images
        self.epoch_at, self.epoch_images = train_seconds, self.images
        return round(seconds, 3), round(images / max(seconds, 1e-9), 2)

    def eta_seconds(self, plan: Plan, step: int) -> float | None:
        """Returns the seconds from ``step`` until the model is chosen, with all evaluations, those of the finish too; None while
        they are unknown. Before the first evaluation of this process, a forward pass counts as a third of an update."""
        if self.began_at is None or self.work <= 0.0 or self.marked_at <= self.began_at:
            return None
        if self.on_features and self.stage is not None and plan.total_steps > self.stage.end_step:
            return None
        work = sum(max(0, stage.end_step - max(step, stage.first_step)) * _work(stage) for stage in plan.stages)
        rate = (self.marked_at - self.began_at) / self.work
        images = sum(
            plan.num_evaluations(stage, step) * num_weights(stage) * plan.dataset.num_val * stage.image_size**2
            for stage in plan.stages
        )
        images += _finished_images(plan, self.num_closed) * plan.stages[-1].image_size ** 2
        measured = self.eval_pixels * plan.dataset.num_val
        evaluating = images * (self.eval_seconds / measured if measured else 0.0 if self.on_features else rate)
        return work * rate + evaluating


def _finished_images(plan: Plan, num_closed: int) -> int:
    """Returns the number of images that the finish answers: of each candidate where the head alone is compared."""
    compared = len(HEAD_GRID) if plan.compares_head else 1
    return compared * plan.dataset.num_val + min(compared, 2) * (plan.dataset.num_test - num_closed)


def _work(stage: StagePlan) -> float:
    """Returns the relative cost of an update: pixels times 1 for the forward pass, plus 2 for backward if the body trains."""
    return stage.batch_size * stage.image_size**2 * (1 if stage.train == "head" else 3)
