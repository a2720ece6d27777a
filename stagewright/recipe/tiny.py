"""The tiny version of a recipe: all stages, with a few steps on small images, so that a whole run takes about a minute.

It tests that everything in a run works (stages and the transitions between them, schedules, mixing, freezing, averages,
evaluation, checkpoints, the finished model), not what accuracy it reaches. Stages that differ in a setting still differ in
it. This module uses neither torch nor a data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import LR, Average, Recipe, Stage, merged

STEPS = 4
"""Number of updates of each stage."""
LARGEST_PX, SMALLEST_PX, GRID_PX = 64, 32, 16
"""Limits of the image sizes, and their common divisor: networks halve the size five times, and many need a multiple of 16."""
LARGEST_BATCH, SMALLEST_BATCH, GRID_BATCH = 16, 4, 2
NUM_IMAGES = {"train": 64, "val": 32, "test": 32}
"""Approximate number of images of each split that a tiny run uses."""
_RECALIBRATE = 32
_LR = 1e-3

Length = tuple[Duration, ...]
"""The original length of each stage that a schedule covers."""


def tiny(recipe: Recipe) -> Recipe:
    """Returns ``recipe`` with :data:`STEPS` updates (one where ``fit`` is ``optimum``), one evaluation and one checkpoint for
    each stage, and with small images and batches.

    Image and batch sizes keep their order and, up to rounding, their ratios; sizes that are small already do not change.
    Learning rates for the recipe's batch size are reduced in proportion to it (arXiv:1706.02677), otherwise training would
    diverge. Warm-ups, milestones and averages are shortened like the stages that contain them; shares of the run do not
    change. The library's pretrained weights, the range test, early stopping and compiling are left out. The precision is
    ``auto``, since a CPU would need a minute for a few fp16 steps. Model, optimizer, mixing, augmentation, trained
    parameters and data fractions do not change.
    """
    stages = recipe.resolved_stages()
    sizes = [*(stage.image_size or 0 for stage in stages), recipe.eval.image_size or 0]
    px = shrunk(sizes, LARGEST_PX, SMALLEST_PX, GRID_PX)
    batches = shrunk([stage.batch_size or 0 for stage in stages], LARGEST_BATCH, SMALLEST_BATCH, GRID_BATCH)
    lengths = tuple(_original_length(recipe, stage) for stage in stages if stage.fit == "updates")
    small = [
        _stage(given, whole, recipe, px, batches, (_original_length(recipe, whole),))
        for given, whole in zip(recipe.stages, stages, strict=True)
    ]
    evaluation = {**recipe.eval.model_dump(exclude_unset=True), "every": 1.0}
    if recipe.eval.image_size is not None:
        evaluation["image_size"] = px[recipe.eval.image_size]
    own_weights = None if recipe.model.weights == "default" else recipe.model.weights
    return recipe.changed(
        name=f"{recipe.name[:60]}-tiny",
        description=f"a quick test of {recipe.name}; its accuracy has no meaning",
        stages=tuple(small),
        model={**recipe.model.model_dump(exclude_unset=True), "weights": own_weights},
        lr=_lr(recipe.lr, recipe.lr, lengths, _peak_factor(recipe.lr, batches)),
        image_size=max(px.values()),
        batch_size=max(batches.values()),
        eval=evaluation,
        checkpoints={**recipe.checkpoints.model_dump(exclude_unset=True), "every": 1.0},
        stop={},
        precision="auto",
        compile=False,
    )


def describe(recipe: Recipe) -> str:
    """Returns one or two sentences that describe the tiny version of ``recipe`` to the user before it runs."""
    text = (
        f"Tiny: {STEPS} steps a stage on small pictures, to check that everything works; the accuracy has no meaning."
    )
    return text + (" The pretrained weights are not used." if recipe.model.weights == "default" else "")


def shrunk(values: Iterable[int], largest: int, smallest: int, grid: int) -> dict[int, int]:
    """Returns a mapping from each of ``values`` (zeros are ignored) to a reduced value of at most ``largest``.

    All values are scaled by one factor and rounded to multiples of ``grid`` (a smaller grid if there are many values), at
    least ``smallest``. Different values stay different, even if their ratios change. No value becomes larger: values below
    ``smallest`` do not change, and none changes if all are at most ``largest``.
    """
    ascending = sorted(set(values) - {0})
    if not ascending or ascending[-1] <= largest:
        return {value: value for value in ascending}
    found = {value: value for value in ascending if value < smallest}
    rest = ascending[len(found) :]
    while grid > 1 and (largest - smallest) // grid + 1 < len(rest):
        grid //= 2
    new = [max(smallest, grid * round(value * largest / rest[-1] / grid)) for value in rest]
    for at in range(1, len(new)):
        new[at] = max(new[at], new[at - 1] + grid)
    new[-1] = largest
    for at in range(len(new) - 2, -1, -1):
        new[at] = min(new[at], new[at + 1] - grid)
    return found | {value: min(value, small) for value, small in zip(rest, new, strict=True)}


def _stage(
    given: Stage, whole: Stage, recipe: Recipe, px: dict[int, int], batches: dict[int, int], span: Length
) -> dict[str, Any]:
    """Returns the fields of the tiny stage: those of ``given``, and the reduced values of those that it inherits (``whole`` is
    the stage with all inherited fields)."""
    assert whole.image_size and whole.batch_size and whole.average
    fields = given.model_dump(exclude_unset=True)
    fields |= {"image_size": px[whole.image_size], "batch_size": batches[whole.batch_size]}
    if given.fit == "updates":
        fields["epochs"] = f"{STEPS}st"
    if whole.average.kind != "none":
        fields["average"] = _average(given.average, whole.average, span)
    if given.lr is not None:
        own = merged(recipe.lr, given.lr)
        factor = _peak_factor(own, batches) if "peak" in given.lr.model_fields_set else 1.0
        fields["lr"] = _lr(given.lr, own, span, factor)
    return fields


def _lr(given: LR, whole: LR, span: Length, peak_factor: float) -> dict[str, Any]:
    """Returns the fields of ``given`` with lengths in steps and the peak times ``peak_factor``; ``whole`` includes inherited
    fields."""
    fields = given.model_dump(exclude_unset=True)
    if "peak" in given.model_fields_set:
        fields["peak"] = _LR if given.peak == "auto" else given.peak * peak_factor
    if "warmup" in given.model_fields_set:
        fields["warmup"] = _shrunk_length(whole.warmup, span)
    if "milestones" in given.model_fields_set:
        at = {text: _shrunk_length(Duration.parse(text), span) for text in given.milestones}
        fields["milestones"] = {str(at[text]): factor for text, factor in given.milestones.items()}
    return fields


def _peak_factor(lr: LR, batches: dict[int, int]) -> float:
    """Returns the factor on the learning rate for the smaller batches; 1 if the plan scales it itself (``lr.batch``)."""
    largest = max(batches)
    return 1.0 if lr.batch is not None else batches[largest] / largest


def _average(given: Average | None, whole: Average, span: Length) -> dict[str, Any]:
    fields: dict[str, Any] = given.model_dump(exclude_unset=True) if given is not None else {}
    fields |= {"half_life": _shrunk_length(whole.half_life, span), "every": _shrunk_length(whole.every, span)}
    if whole.recalibrate or (whole.recalibrate is None and whole.kind == "swa"):
        fields["recalibrate"] = min(whole.recalibrate or _RECALIBRATE, _RECALIBRATE)
    return fields


def _original_length(recipe: Recipe, stage: Stage) -> Duration:
    """Returns the length of ``stage`` in the original recipe, never as a share of the run."""
    assert stage.epochs is not None
    if stage.epochs.unit == "run":
        return Duration(recipe.epochs.value * stage.epochs.value, recipe.epochs.unit)
    return stage.epochs


def _shrunk_length(length: Duration, span: Sequence[Duration]) -> Duration:
    """Converts ``length``, from the beginning of ``span``, to steps of the tiny stages: half of a stage stays half of it.

    Shares of the run and lengths of 0 do not change; any other length becomes at least one step. If ``length`` has another
    unit than a stage (steps in a stage measured in epochs), their ratio is unknown without a data set, and the stage adds
    no steps.
    """
    if length.unit == "run" or not length.value:
        return length
    steps, left = 0.0, length.value
    for stage in span:
        if stage.unit != length.unit:
            break
        steps += STEPS * min(1.0, left / stage.value)
        left = max(0.0, left - stage.value)
    return Duration(float(max(1, round(steps))), "steps")
