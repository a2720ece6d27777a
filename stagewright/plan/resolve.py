"""Computes the plan of a recipe on a data set. Every number of a run is computed here, once, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from stagewright.errors import RecipeError
from stagewright.measures.metrics import METRICS, MOST_PROBABILITIES, keeps_probabilities, needs_probabilities
from stagewright.plan.lanes import asked_spread, num_lanes
from stagewright.plan.plan import DatasetInfo, Measured, Plan, Precision, StagePlan, subset_size
from stagewright.plan.schedule import Curve
from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import LR, Average, Recipe, Stage
from stagewright.recipe.schema import problems
from stagewright.text import nearest

_NOTHING = Measured()
MOST_STEPS = 10**9
"""Steps of a run: 200 times what ImageNet takes at a batch of 256 in 1,000 epochs."""
MOST_MOMENTS = 1_000_000
"""Planned evaluations of a run, and planned checkpoints: each is written into the plan."""

_FEW_FOR_STATISTICS = 256
"""Lanes with fewer images leave pretrained batch-norm statistics as they are with ``norm: auto``."""

Length = tuple[Stage, int, int]  # resolved stage, steps, images


def resolve(
    recipe: Recipe, dataset: DatasetInfo, *, precision: Precision = "fp32", measured: Measured = _NOTHING
) -> Plan:
    """Returns the plan of ``recipe`` on ``dataset``; RecipeError names the invalid field.

    ``precision`` is the value of ``precision: auto`` on the device, ``measured`` contains the values of other ``auto`` fields.
    They are ignored for fields that the recipe sets.
    """
    if dataset.num_train < 1:
        raise RecipeError("no training pictures", "at least one a class", "check data.val and data.test")
    _check_class_weights(recipe, dataset)
    _check_early_stopping(recipe, dataset)
    _check_metric(recipe, dataset)
    lengths, stages = _stages(recipe, dataset, measured)
    total_steps = sum(num_steps for _, num_steps, _ in lengths)
    if total_steps > MOST_STEPS:
        given = f"the stages come to {total_steps:,} steps"
        raise RecipeError(given, f"at most {MOST_STEPS:,} steps", "give shorter epochs, or larger batches")
    every_eval = [_multiples(stage, recipe.eval.every, total_steps, "eval.every") for stage in stages]
    every_save = [_multiples(stage, recipe.checkpoints.every, total_steps, "checkpoints.every") for stage in stages]
    return Plan(
        recipe=recipe,
        dataset=dataset,
        precision=precision if recipe.precision == "auto" else recipe.precision,
        eval_precision=_eval_precision(recipe, measured),
        measured=measured,
        stages=tuple(stages),
        total_steps=total_steps,
        eval_steps=tuple(step for steps in every_eval for step in steps) if dataset.num_val else (),
        save_steps=tuple(step for steps in every_save for step in steps),
    )


def _eval_precision(recipe: Recipe, measured: Measured) -> Literal["fp32", "bf16"]:
    asked = recipe.eval.precision
    return (measured.eval_precision or "fp32") if asked == "auto" else asked


def _stages(recipe: Recipe, dataset: DatasetInfo, measured: Measured) -> tuple[list[Length], list[StagePlan]]:
    """Returns the stages' lengths and plans; RecipeError if a product of finite numbers is not finite."""
    stages: list[StagePlan] = []
    try:
        lengths = _stage_lengths(recipe, dataset)
        for _ in lengths:
            stages.append(_stage_plan(recipe, stages, lengths, measured))
    except (ValidationError, OverflowError, ZeroDivisionError) as error:
        why = problems(error) if isinstance(error, ValidationError) else f"{error}"
        raise RecipeError(
            f"stages[{len(stages)}]: a number computed from its fields is not finite: {why}",
            "lengths and learning rates whose products are finite numbers",
            "give smaller (or larger) numbers",
        ) from None
    return lengths, stages


def _check_class_weights(recipe: Recipe, dataset: DatasetInfo) -> None:
    for name in recipe.class_weights if isinstance(recipe.class_weights, dict) else ():
        if name not in dataset.classes:
            raise RecipeError(
                f"class_weights: {name!r} is not a class of the data{nearest(name, dataset.classes)}",
                f"its {len(dataset.classes)} classes: {', '.join(dataset.classes[:20])}"
                + (", ..." if len(dataset.classes) > 20 else ""),
                "correct the name, or remove it; classes that are not named have weight 1",
            )


def _check_metric(recipe: Recipe, dataset: DatasetInfo) -> None:
    metric, classes = recipe.eval.metric, len(dataset.classes)
    if needs_probabilities(metric) and not keeps_probabilities(dataset.num_val, classes):
        raise RecipeError(
            f"eval.metric={metric}: {dataset.num_val:,} validation pictures of {classes:,} classes have "
            f"{dataset.num_val * classes:,} probabilities",
            f"at most {MOST_PROBABILITIES:,}, which are kept in memory",
            f"give eval.metric one of {', '.join(one for one in METRICS if not needs_probabilities(one))}, or a smaller data.val",
        )
    if metric != "top1" and not dataset.num_val:
        raise RecipeError(
            f"eval.metric={metric} without validation pictures has no effect: it is measured on them",
            "a metric where there is a validation part",
            "give data.val a share, or leave eval.metric out",
        )


def _check_early_stopping(recipe: Recipe, dataset: DatasetInfo) -> None:
    stop = recipe.stop
    asked = {"patience": stop.patience is not None, "head_suffices": stop.head_suffices}
    name = next((name for name, given in asked.items() if given), None)
    if name is not None and not dataset.num_val:
        value = str(getattr(stop, name)).lower()
        raise RecipeError(
            f"stop.{name}={value} without validation pictures has no effect: it compares their results",
            "early stopping with a validation part",
            f"give data.val a share, or leave stop.{name} out",
        )


def _stage_lengths(recipe: Recipe, dataset: DatasetInfo) -> list[Length]:
    stages = recipe.resolved_stages()
    shares = [s.epochs.value for s in stages if s.epochs is not None and s.epochs.unit == "run"]
    if shares and len(shares) == len(recipe.timed) and abs(sum(shares) - 1.0) > 1e-6:
        raise RecipeError(
            f"stages[*].epochs: shares of the run add up to {sum(shares):g}",
            "shares that add up to 1",
            "change the epochs of the stages",
        )
    lengths: list[Length] = []
    for stage in stages:
        assert stage.epochs is not None and stage.batch_size is not None and stage.data_fraction is not None
        assert stage.augment is not None
        num_images = subset_size(dataset.num_train, len(dataset.classes), stage.data_fraction)
        num_images *= 1 + stage.augment.copies
        asked = stage.epochs
        if asked.unit == "run":
            # A share of epochs is exact (0.25 of 30ep is 7.5ep); only steps and images are rounded.
            asked = Duration(recipe.epochs.value * asked.value, recipe.epochs.unit)
        steps = _in_images(asked, num_images, stage.batch_size) / stage.batch_size
        lengths.append((stage, max(1, round(steps)), num_images))
    return lengths


def _in_images(duration: Duration, num_images: int, batch_size: int) -> float:
    """Returns ``duration`` (not a share of the run) as a number of images, in a stage of ``num_images`` images."""
    return duration.value * {"epochs": num_images, "steps": batch_size, "images": 1}[duration.unit]


def _steps_within(duration: Duration, span: Sequence[Length]) -> float:
    """Returns ``duration``, counted from the beginning of ``span`` (consecutive stages), in steps; a share means a share of
    ``span``."""
    if duration.unit == "run":
        return duration.value * sum(num_steps for _, num_steps, _ in span)
    if duration.unit == "steps":
        return duration.value
    steps, left = 0.0, duration.value
    for stage, num_steps, num_images in span:
        assert stage.batch_size is not None
        per_step = stage.batch_size / (num_images if duration.unit == "epochs" else 1)
        if left <= num_steps * per_step:
            return steps + left / per_step
        steps, left = steps + num_steps, left - num_steps * per_step
    return steps


def _stage_plan(
    recipe: Recipe, before: Sequence[StagePlan], lengths: Sequence[Length], measured: Measured
) -> StagePlan:
    """Returns the plan of the stage that follows the stages ``before``."""
    stage, num_steps, num_images = lengths[len(before)]
    assert stage.batch_size and stage.epochs and stage.average and stage.augment and stage.mix and stage.name
    optimum = stage.fit == "optimum"
    images_each = num_images if optimum else stage.batch_size
    last = before[-1] if before else None
    first_step = last.end_step if last else 0
    asked = stage.epochs
    if asked.unit == "run":
        asked = Duration(recipe.epochs.value * asked.value, recipe.epochs.unit)
    lr = stage.lr or recipe.lr
    own_span = lr.span == "stage"
    timed = [length for length in lengths if length[0].fit == "updates"]
    span = [lengths[len(before)]] if own_span or optimum else timed
    peak = 0.0 if optimum else _peak_lr(lr, stage, timed[0][0].batch_size, measured)
    micro = measured.micro_batch_size if recipe.micro_batch_size == "auto" else recipe.micro_batch_size
    if lr.schedule == "swa" and not own_span and not optimum:
        raise RecipeError(
            "lr.schedule: swa covers the whole run",
            "swa in the lr of one stage",
            "put lr: {schedule: swa} into that stage",
        )
    start_lr = last.hyper(first_step - 1).lr if last and last.fit == "updates" else peak
    total_images = sum(steps * one.batch_size for one, steps, _ in timed if one.batch_size)
    micro_batch_size = min(micro or stage.batch_size, stage.batch_size, images_each)
    lanes = 1 if optimum else stage_lanes(recipe, measured, stage.name, stage.batch_size, micro_batch_size)
    log_decay, log_before = _ema_logs(stage.average, num_images, images_each, total_images or num_images, last)
    return StagePlan(
        index=len(before),
        name=stage.name,
        fit=stage.fit,
        first_step=first_step,
        num_steps=num_steps,
        image_size=stage.image_size or recipe.image_size,
        batch_size=images_each,
        micro_batch_size=micro_batch_size,
        lanes=lanes,
        num_images=num_images,
        data_fraction=stage.data_fraction or 1.0,
        first_pass=last.first_pass + last.num_passes if last else 0,
        num_passes=-(-num_steps * images_each // num_images),
        epochs_asked=_in_images(asked, num_images, images_each) / num_images,
        epochs_given=num_steps * images_each / num_images,
        epochs_before=last.epochs_before + last.epochs_given if last else 0.0,
        train=(train := _trained(stage.train or recipe.train, measured)),
        norm=_norm(recipe, stage, -(-images_each // lanes)),
        cache_views=0 if stage.cache is None or train == "all" else stage.cache.views,
        augment=stage.augment,
        mix=stage.mix,
        label_smoothing=stage.label_smoothing or 0.0,
        clip_norm=stage.clip_norm,
        weight_decay=stage.weight_decay or 0.0,
        momentum=stage.momentum or 0.0,
        momentum_range=lr.momentum if lr.schedule == "one_cycle" and not optimum else None,
        on_enter=stage.on_enter or "keep_optimizer",
        peak_lr=peak,
        curve=Curve(kind="constant", num_steps=1) if optimum else _curve(lr, span, start_lr / peak),
        curve_first_step=first_step if own_span or optimum else sum(one.fit == "optimum" for one in before),
        average=stage.average,
        average_log_decay=log_decay,
        average_log_before=log_before,
        average_every=max(1, round(_steps_within(stage.average.every, [lengths[len(before)]]))),
    )


def _trained(train: str | tuple[str, ...], measured: Measured) -> str | tuple[str, ...]:
    if train == "upper" and measured.upper is None:
        raise RecipeError(
            "train is upper, but nobody has looked at the network",
            "last:N, or upper where the network can be built before the plan is made",
            "train and plan do this themselves; otherwise give last:N",
        )
    return measured.upper if train == "upper" and measured.upper else train


def stage_lanes(recipe: Recipe, measured: Measured, name: str, batch_size: int, micro_batch_size: int) -> int:
    """Returns the number of lanes of the stage ``name``. RecipeError if the batch has fewer images than devices."""
    spread = asked_spread(recipe.spread, measured.spread)
    if spread > batch_size:
        raise RecipeError(
            f"stage {name!r}: spread {spread} over batches of {batch_size}",
            f"spread up to {batch_size}, since each device needs at least one picture of a batch",
            f"give spread: {batch_size} or less, or a larger batch_size",
        )
    return num_lanes(batch_size, spread, micro_batch_size)


def _norm(recipe: Recipe, stage: Stage, lane_size: int) -> Literal["train", "frozen"]:
    """Returns how batch norms work in a stage; ``auto`` freezes pretrained statistics that a small lane would only disturb."""
    norm = stage.norm or recipe.norm
    if norm == "auto":
        return "frozen" if recipe.model.weights is not None and lane_size < _FEW_FOR_STATISTICS else "train"
    return norm


def _peak_lr(lr: LR, stage: Stage, first_batch_size: int | None, measured: Measured) -> float:
    """Returns the schedule's peak in a stage: scaled by its batch size, limited by ``cap``, times its ``lr_scale``."""
    assert stage.batch_size and first_batch_size
    peak, batch = lr.peak, lr.batch
    if peak == "auto":
        if measured.lr is None:
            raise RecipeError(
                "lr.peak is auto, but no learning rate was measured",
                "a number, or a range test before the plan is made",
                "stagewright lr-find DATA finds a learning rate; train and plan run the range test themselves",
            )
        peak, batch = measured.lr, lr.batch and first_batch_size
    peak *= stage.batch_size / batch if batch else 1.0
    return min(peak, lr.cap or peak) * (stage.lr_scale or 1.0)


def _curve(lr: LR, span: Sequence[Length], start_factor: float) -> Curve:
    num_steps = sum(steps for _, steps, _ in span)
    warmup_steps = min(num_steps, round(_steps_within(lr.warmup, span)))
    pct_start = 0.3
    if lr.warmup.value:
        pct_start = lr.warmup.value if lr.warmup.unit == "run" else warmup_steps / num_steps
    milestones = [(round(_steps_within(Duration.parse(at), span)), factor) for at, factor in lr.milestones.items()]
    return Curve(
        kind=lr.schedule,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        warmup_start=lr.warmup_start,
        final=lr.final,
        div=lr.div,
        final_div=lr.final_div,
        pct_start=pct_start,
        anneal=lr.anneal,
        milestones=tuple(sorted(milestones)),
        interpolate=lr.interpolate,
        start_factor=start_factor if lr.schedule == "swa" else 1.0,
    )


def _ema_logs(
    average: Average, num_images: int, batch_size: int, total_images: int, last: StagePlan | None
) -> tuple[float, float]:
    """Returns (log of the decay per step, sum of these logs over the directly preceding EMA stages)."""
    if average.kind != "ema":
        return 0.0, 0.0
    length = average.half_life
    images = length.value * total_images if length.unit == "run" else _in_images(length, num_images, batch_size)
    log_decay = math.log(0.5) * batch_size / max(images, 1e-9)
    if last is None or last.average.kind != "ema":
        return log_decay, 0.0
    return log_decay, last.average_log_before + last.num_steps * last.average_log_decay


def _multiples(stage: StagePlan, every: Duration, total_steps: int, field: str) -> list[int]:
    """Returns the steps (finished updates) at all multiples of ``every`` within the stage, and its end.

    RecipeError if there are more than MOST_MOMENTS.
    """
    if every.unit == "run":
        gap = every.value * total_steps
        gap = _checked_gap(stage, gap, every, field)
        first = math.floor(stage.first_step / gap) + 1 if gap > 0 else 0
        marks = [round(k * gap) for k in range(first, math.ceil(stage.end_step / gap) + 1)] if gap > 0 else []
    else:
        gap = _in_images(every, stage.num_images, stage.batch_size) / stage.batch_size
        gap = _checked_gap(stage, gap, every, field)
        count = math.ceil(stage.num_steps / gap) if gap > 0 else 0
        marks = [stage.first_step + round(k * gap) for k in range(1, count + 1)]
    inside = {step for step in marks if stage.first_step < step < stage.end_step}
    return sorted(inside | {stage.end_step})


def _checked_gap(stage: StagePlan, gap: float, every: Duration, field: str) -> float:
    """``gap`` in steps, at least 1 unless it is 0 (never); RecipeError where its multiples are too many to write down."""
    gap = max(gap, 1.0) if gap > 0 else 0.0
    count = stage.num_steps / gap if gap else 0.0
    if count > MOST_MOMENTS:
        raise RecipeError(
            f"{field}: {every} comes {round(count):,} times in stage {stage.name!r}",
            f"at most {MOST_MOMENTS:,} times in a stage",
            f"give a longer {field}, or shorter stages",
        )
    return gap
