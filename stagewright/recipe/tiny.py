"""The tiny version of a recipe: every stage, in a few steps on small pictures, so that a whole run passes in a minute.

It rehearses what a run does (stages, seams, schedules, mixing, freezing, averages, evaluation, saving, the finished
model), not what it achieves. Whatever the stages differ in they still differ in; no torch, no data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import LR, Average, Recipe, Stage, merged

STEPS = 4
"""Updates of a stage."""
LARGEST_PX, SMALLEST_PX, GRID_PX = 64, 32, 16
"""Pictures are brought to these sizes: networks halve them five times, and many want whole patches of 16."""
LARGEST_BATCH, SMALLEST_BATCH, GRID_BATCH = 16, 4, 2
PICTURES = {"train": 64, "val": 32, "test": 32}
"""Pictures of each split that a tiny run uses, about."""
_RECALIBRATE = 32
_LR = 1e-3

Length = tuple[Duration, ...]
"""How long each stage of a span was, in the recipe as it was."""


def tiny(recipe: Recipe) -> Recipe:
    """``recipe`` with :data:`STEPS` updates a stage, small pictures and batches, one evaluation and one save a stage.

    Picture sizes and batches keep their order and, as far as the grid goes, their ratios; sizes and batches that are small
    already stay. Learning rates that are meant for the recipe's batch go down with it (arXiv:1706.02677), or training would
    diverge; warm-ups, milestones and averages shrink with the stages they lie in; shares of the run stay shares. The
    library's pretrained weights, a range test, early stopping and compiling are left out, and the precision is what suits the
    machine: a CPU takes a minute for what fp16 makes of a few steps. Model, optimizer, mixing, augmentation, trainable
    sets and data fractions are the recipe's.
    """
    stages = recipe.resolved_stages()
    sizes = [*(stage.image_size or 0 for stage in stages), recipe.eval.image_size or 0]
    px = shrunk(sizes, LARGEST_PX, SMALLEST_PX, GRID_PX)
    batches = shrunk([stage.batch_size or 0 for stage in stages], LARGEST_BATCH, SMALLEST_BATCH, GRID_BATCH)
    lengths = tuple(_asked(recipe, stage) for stage in stages)
    small = [
        _stage(given, whole, recipe, px, batches, lengths[at : at + 1])
        for at, (given, whole) in enumerate(zip(recipe.stages, stages, strict=True))
    ]
    evaluation = {**recipe.eval.model_dump(exclude_unset=True), "every": 1.0}
    if recipe.eval.image_size is not None:
        evaluation["image_size"] = px[recipe.eval.image_size]
    own_weights = None if recipe.model.weights == "default" else recipe.model.weights
    return recipe.changed(
        name=f"{recipe.name[:60]}-tiny",
        description=f"a rehearsal of {recipe.name}: what comes out means nothing",
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
    """What a person should know of the tiny version of ``recipe`` before it runs, in a sentence or two."""
    text = f"Tiny: {STEPS} steps a stage on small pictures, to see that everything works; what comes out means nothing."
    return text + (" The pretrained weights are left out." if recipe.model.weights == "default" else "")


def shrunk(values: Iterable[int], largest: int, smallest: int, grid: int) -> dict[int, int]:
    """What each of ``values`` (zeros are none) becomes if the largest is to be at most ``largest``.

    All by one factor, rounded to ``grid`` (a finer one for many values), not below ``smallest``, and different where they were
    different, for which a value may leave its ratio. Nothing grows: what is below ``smallest`` stays, and so does
    everything if all fit already.
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
    """The fields of the tiny stage: what ``given`` says, and what has to shrink of what it inherits (``whole``)."""
    assert whole.image_size and whole.batch_size and whole.average
    fields = given.model_dump(exclude_unset=True)
    fields |= {"epochs": f"{STEPS}st", "image_size": px[whole.image_size], "batch_size": batches[whole.batch_size]}
    if whole.average.kind != "none":
        fields["average"] = _average(given.average, whole.average, span)
    if given.lr is not None:
        own = merged(recipe.lr, given.lr)
        factor = _peak_factor(own, batches) if "peak" in given.lr.model_fields_set else 1.0
        fields["lr"] = _lr(given.lr, own, span, factor)
    return fields


def _lr(given: LR, whole: LR, span: Length, peak_factor: float) -> dict[str, Any]:
    """The fields of ``given`` with lengths in steps and the peak times ``peak_factor``; ``whole`` is all that holds."""
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
    """What a learning rate is multiplied by for the smaller batches, where the plan does not do so by itself."""
    largest = max(batches)
    return 1.0 if lr.batch is not None else batches[largest] / largest


def _average(given: Average | None, whole: Average, span: Length) -> dict[str, Any]:
    fields: dict[str, Any] = given.model_dump(exclude_unset=True) if given is not None else {}
    fields |= {"half_life": _shrunk_length(whole.half_life, span), "every": _shrunk_length(whole.every, span)}
    if whole.recalibrate or (whole.recalibrate is None and whole.kind == "swa"):
        fields["recalibrate"] = min(whole.recalibrate or _RECALIBRATE, _RECALIBRATE)
    return fields


def _asked(recipe: Recipe, stage: Stage) -> Duration:
    """How long the recipe wants the stage, not as a share."""
    assert stage.epochs is not None
    if stage.epochs.unit == "run":
        return Duration(recipe.epochs.value * stage.epochs.value, recipe.epochs.unit)
    return stage.epochs


def _shrunk_length(length: Duration, span: Sequence[Duration]) -> Duration:
    """``length`` from the beginning of ``span``, in steps of the tiny stages: half of a stage stays half of it.

    Shares stay. At least one step where there was any length. Steps of stages that are measured in epochs, say, are in no
    known ratio to them without a data set: one step.
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
