"""How fast a run goes, and how long it will take."""

from __future__ import annotations

from dataclasses import dataclass

from stagewright.plan.plan import Plan, StagePlan


@dataclass
class ProgressEstimator:
    """Speed now and time left, from what this process saw of the present stage.

    Counting begins at a stage's first fetch, so that warming up (compiling, filling caches) does not spoil the estimate.
    Stages to come are taken to cost what the present one does, in proportion to :func:`_work`; they are not known while the
    present one trains on features that were computed once.
    """

    on_features: bool = False
    stage: StagePlan | None = None
    evaluated_in: int = -1
    eval_seconds: float = 0.0
    eval_pixels: float = 0.0
    """Of one picture each, so that evaluations at another size can be told from it."""
    work: float = 0.0
    images: int = 0
    images_a_second: float = 0.0
    began_at: float | None = None
    marked_at: float = 0.0
    marked_images: int = 0
    epoch_at: float | None = None
    epoch_images: int = 0

    def add_step(self, stage: StagePlan) -> None:
        """An update of ``stage`` was fetched."""
        if self.stage is None or stage.index != self.stage.index:
            self.stage, self.began_at = stage, None
        self.images += stage.batch_size
        self.work += _work(stage)

    def add_evaluation(self, stage: StagePlan, seconds: float) -> None:
        """An evaluation in ``stage`` took ``seconds``. Those of earlier stages count until there is one of this stage."""
        if self.evaluated_in != stage.index:
            self.evaluated_in, self.eval_seconds, self.eval_pixels = stage.index, 0.0, 0.0
        self.eval_seconds += seconds
        self.eval_pixels += stage.image_size**2

    def update_speed(self, train_seconds: float) -> float:
        """Images a second of training since the last call."""
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
        """Training seconds and images a second since the last evaluation of this process."""
        seconds, images = train_seconds - (self.epoch_at or 0.0), self.images - self.epoch_images
        self.epoch_at, self.epoch_images = train_seconds, self.images
        return round(seconds, 3), round(images / max(seconds, 1e-9), 2)

    def eta_seconds(self, plan: Plan, step: int) -> float | None:
        """Seconds from ``step`` to the end of the plan with its evaluations; None while too little was seen."""
        if self.began_at is None or self.work <= 0.0 or self.marked_at <= self.began_at:
            return None
        if self.on_features and self.stage is not None and plan.total_steps > self.stage.end_step:
            return None
        work = sum(max(0, stage.end_step - max(step, stage.first_step)) * _work(stage) for stage in plan.stages)
        pixels = sum(plan.num_evaluations(stage, step) * stage.image_size**2 for stage in plan.stages)
        evaluating = pixels * self.eval_seconds / self.eval_pixels if self.eval_pixels else 0.0
        return work * (self.marked_at - self.began_at) / self.work + evaluating


def _work(stage: StagePlan) -> float:
    """What an update costs, in passes over a pixel: forwards, and where more than the head trains, backwards, which is twice
    as much."""
    return stage.batch_size * stage.image_size**2 * (1 if stage.train == "head" else 3)
