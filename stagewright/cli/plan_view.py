"""Formats a plan or a range test for the terminal: a table and a few sentences."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from stagewright.plan.lr_curve import MEANING, RangeTest, Suggestions, lr_text
from stagewright.plan.plan import Plan, StagePlan, stage_ends
from stagewright.recipe import recipes
from stagewright.system.tables import FittingTable
from stagewright.text import ABSENT, folded


def plan_view(plan: Plan) -> RenderableType:
    """Returns a rich table with one row per stage, and sentences below it."""
    title = f"Plan {plan.digest[:12]}: recipe {plan.recipe.name}, model {plan.recipe.model.name}"
    table = FittingTable(Text(title))
    table.add_column("stage", no_wrap=True)
    for name in ("steps", "epochs", "pictures", "px", "batch", "LR first", "LR peak", "LR last"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(*map(Text, _cells(stage)))
    return Group(table, *(Text(line) for line in _sentences(plan)))


def lr_view(test: RangeTest, found: Suggestions, folder: Path) -> RenderableType:
    """Returns a table of the learning rates that a range test suggests, and sentences on how to use them."""
    table = FittingTable()
    table.add_column("suggestion", no_wrap=True)
    table.add_column("LR", justify="right", no_wrap=True)
    table.add_column("what it is")
    for name, lr in found.lrs.items():
        chosen = name == found.chosen
        table.add_row(
            f"> {name}" if chosen else f"  {name}", lr_text(lr), MEANING[name], style="bold" if chosen else None
        )
    end = "the loss diverged" if test.ended_early else "the test ended"
    lines = [
        f"{len(test.lrs)} of {test.planned} updates, to LR {lr_text(float(test.lrs[-1]))}, where {end}.",
        *(note[:1].upper() + note[1:] + "." for note in found.notes),
        f"The curve is {folder / 'lr-find.png'} (numbers: {folder / 'lr-find.csv'}).",
        f"Use it with --lr {lr_text(found.lr)}; --lr auto repeats the test before each run.",
    ]
    return Group(table, *(Text(line) for line in lines))


def _cells(stage: StagePlan) -> list[str]:
    ends = stage_ends(stage)
    return [
        stage.name,
        f"{stage.num_steps:,}",
        f"{stage.epochs_given:.4g}",
        f"{stage.num_images:,}",
        str(stage.image_size),
        f"{stage.batch_size:,}",
        *(f"{ends[key]:.2g}" if stage.fit == "updates" else ABSENT for key in ("lr_first", "lr_peak", "lr_last")),
    ]


def _stage_sentence(stage: StagePlan, first: bool) -> str:
    if stage.fit == "optimum":
        views = "the centre view of each picture" + (" and its mirror image" if stage.augment.flip else "")
        return (
            f"{stage.name}: step {stage.first_step:,}; finds the optimum of the head on the frozen body, from {views}; "
            f"average {stage.average.kind}."
        )
    ends = stage_ends(stage)
    momentum = f"momentum {ends['momentum_first']:.3g}"
    if stage.momentum_range:
        momentum = f"momentum {ends['momentum_first']:.3g} > {ends['momentum_peak']:.3g} > {ends['momentum_last']:.3g}"
    parts = [
        f"steps {stage.first_step:,} to {stage.end_step - 1:,}",
        f"trains {stage.train if isinstance(stage.train, str) else ', '.join(stage.train)}",
        *(["batch norms frozen"] if stage.norm == "frozen" else []),
        *([f"{stage.cache_views} cached views of each picture"] if stage.cache_views else []),
        f"mixing {_mixing(stage)}",
        f"average {stage.average.kind}",
        momentum
        + ("" if first else (", kept from before" if stage.on_enter == "keep_optimizer" else ", buffers reset")),
    ]
    if stage.lanes > 1:
        parts.append(f"{stage.lanes} lanes of {stage.lane_size} pictures")
    if abs(stage.epochs_asked - stage.epochs_given) > 5e-4 * max(stage.epochs_asked, 1.0):
        epochs = "1 epoch" if stage.epochs_asked == 1 else f"{stage.epochs_asked:.4g} epochs"
        parts.append(f"{epochs} asked, {stage.epochs_given:.4g} given")
    return f"{stage.name}: {'; '.join(parts)}."


def _mixing(stage: StagePlan) -> str:
    mix = stage.mix
    parts = [f"{name} {alpha:g}" for name, alpha in (("mixup", mix.mixup), ("cutmix", mix.cutmix)) if alpha > 0]
    return " / ".join(parts) if parts and mix.probability > 0 else "none"


def _sentences(plan: Plan) -> list[str]:
    info = plan.dataset
    lines = [
        f"{info.num_train:,} training, {info.num_val:,} validation and {info.num_test:,} test pictures in "
        f"{len(info.classes)} classes; {plan.total_steps:,} steps; {plan.precision}; seed {plan.recipe.seed}.",
        f"{len(plan.eval_steps)} evaluations, {len(plan.save_steps)} planned checkpoints "
        f"(the newest {plan.recipe.checkpoints.keep} and the best are kept).",
    ]
    if (most := plan.most_devices) > 1:
        lines.append(f"Runs on 1 to {most} devices with the same bits (spread, --nproc).")
    if plan.measured.lr is not None and plan.recipe.lr.peak == "auto":
        lines.append(f"lr: auto is {lr_text(plan.measured.lr)}, found by a range test on the first stage.")
    return [*(_stage_sentence(stage, stage.index == 0) for stage in plan.stages), *lines]


def recipe_list(width: int | None) -> str:
    """Returns the names of the shipped recipes with their descriptions, in lines of at most ``width`` characters if given."""
    described = {name: recipes.load(name).description for name in recipes.shipped()}
    described[recipes.AUTO] = "the default: examines data and machine, chooses a recipe and states the reasons"
    indent = max(map(len, described)) + 2
    lines: list[str] = []
    for name in sorted(described):
        text = described[name] if width is None else folded(described[name], width - indent)
        lines += [f"{name:<{indent}}{text}".replace("\n", "\n" + " " * indent)]
    return "\n".join(lines)
