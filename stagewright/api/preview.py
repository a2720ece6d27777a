"""Shows the training images of one step as the network is fed them, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stagewright.api.prepare import gather
from stagewright.api.run import Say
from stagewright.data.account import Account
from stagewright.data.manifest import Manifest
from stagewright.engine.fed import Fed, evaluation_views, fed_at, levels
from stagewright.engine.numerics import auto_precision
from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Measured, Plan, StagePlan, eval_image_size
from stagewright.plan.resolve import resolve
from stagewright.preflight.auto_fields import measure
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request, recipe_flags
from stagewright.report.batch_page import BatchView, Pair, page, png
from stagewright.storage.files import write_for_user
from stagewright.system.device import choose_device
from stagewright.system.output import tell
from stagewright.text import count_text, nearest, some

SHOWN = 32
"""Number of images that are shown unless another number is given."""


@dataclass(frozen=True, eq=False, repr=False)
class Preview:
    """The batch of one step as the network is fed it, and the evaluation's view of its first images. A notebook shows it."""

    plan: Plan
    manifest: Manifest
    fed: Fed
    """The whole batch: rows, labels, mixing, and the bits that a training gives to the network."""
    evaluated: NDArray[np.uint8]
    """(M, E, E, 3): the first M images of the batch as an evaluation after this stage sees them."""
    account: Account
    """How many images DATA has, and what was left out."""

    @property
    def images(self) -> Tensor:
        """The network's input, float32 (N, 3, S, S): augmented, normalised, mixed."""
        return self.fed.mixed.images

    @property
    def labels(self) -> list[str]:
        """The class of each image, or both classes with their shares, such as ``cat 70 % + dog 30 %``."""
        mixed, classes = self.fed.mixed, self.manifest.classes
        return [
            _label(classes[own], classes[other], mixed.lam, weight > 0)
            for own, other, weight in zip(
                mixed.labels_a.tolist(), mixed.labels_b.tolist(), mixed.weight.tolist(), strict=True
            )
        ]

    @property
    def facts(self) -> list[str]:
        """Sentences on the step: where it is, how its images are augmented and mixed."""
        return _facts(self.plan, self.fed, self.manifest)

    def to_html(self) -> str:
        """Returns a page of the first M images, which needs no other file."""
        return page(self._view())

    def to_png(self) -> bytes:
        """Returns the same as the bytes of a PNG file."""
        return png(self._view())

    def save(self, path: str | Path) -> None:
        """Writes the page or, for a name that ends with ``.png``, the PNG; ``-`` is standard output. StorageError if it
        cannot be written."""
        write_for_user(path, self.to_png() if str(path).lower().endswith(".png") else self.to_html())

    def __repr__(self) -> str:
        return f"<Preview of step {self.fed.step}: {len(self.fed.rows)} pictures>"

    def _repr_html_(self) -> str:
        """Returns the page in a frame, for notebooks: its style does not reach the rest of the notebook."""
        return f'<iframe srcdoc="{escape(self.to_html())}" style="width:100%;height:640px;border:0"></iframe>'

    def _view(self) -> BatchView:
        count = len(self.evaluated)
        pixels, labels = levels(self.images[:count], self.fed.numerics), self.labels
        paths = [self.manifest.paths.take(rows[:count]).to_pylist() for rows in (self.fed.rows, self.fed.partners)]
        pairs = [
            Pair(pixels[at], self.evaluated[at], labels[at], tuple(dict.fromkeys(path[at] for path in paths)))
            for at in range(count)
        ]
        title = f"What step {self.fed.step:,} feeds the network"
        return BatchView(title, self.facts, pairs, self.fed.stage.batch_size - count)


def preview(  # the function behind `stagewright data preview`: most keywords are its options, by the same names
    data: str | Path,
    recipe: str | Path | Recipe | RecipeRequest = "auto",
    *,
    stage: str | None = None,
    step: int | None = None,
    overrides: Sequence[str] = (),
    tiny: bool = False,
    shown: int = SHOWN,
    execution: Execution | None = None,
    model: str | Callable[..., object] | None = None,
    weights: str | Path | None = None,
    epochs: str | float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    say: Say = tell,
) -> Preview:
    """Returns the training images of a step exactly as :func:`stagewright.api.train.train` would feed them to the network, bit
    for bit on the same device. Nothing is trained or written.

    ``step`` is the number of the update, from 0, as the plan counts them; with ``stage``, the name of one, it is counted from
    that stage's beginning. Without it, the first one is taken. ``shown`` is the number of images of the batch that the page
    has, beside their evaluation. The other arguments are those of ``train``, and the learning rate, which is not needed, is
    not measured where the recipe says ``lr: auto``. RecipeError for a stage or step that the plan does not have.
    """
    execution = execution or Execution()
    if shown < 1:
        raise RecipeError(f"{shown} pictures to show", "1 or more", "give a larger number")
    flags = recipe_flags(model=model, weights=weights, batch_size=batch_size, image_size=image_size, seed=seed)
    request = as_request(recipe, overrides, flags, epochs)
    dataset, chosen = gather(data, request, execution, say, tiny=tiny)
    device, manifest = choose_device(execution.device), dataset.manifest
    # No image depends on the learning rate, so any value will do.
    measured = measure(chosen, dataset, execution, lambda sentence: None, Measured(lr=1.0))
    plan = resolve(chosen, manifest.info(), precision=auto_precision(device), measured=measured)
    fed = fed_at(plan, manifest, dataset.images, _step_of(plan, stage, step), device=device)
    views = evaluation_views(plan, manifest, dataset.images, fed.stage, fed.rows[:shown])
    return Preview(plan, manifest, fed, views, dataset.account)


def _step_of(plan: Plan, stage: str | None, step: int | None) -> int:
    """Returns the number of the update, from 0 over the run; RecipeError if the plan has no such stage or step."""
    names = [one.name for one in plan.stages]
    if stage is not None and stage not in names:
        raise RecipeError(f"stage {stage!r}{nearest(stage, names)}", some(names), "name one of the plan's stages")
    first, count, where = 0, plan.total_steps, "the plan"
    if stage is not None:
        found = plan.stages[names.index(stage)]
        first, count, where = found.first_step, found.num_steps, f"stage {stage!r}"
    if not 0 <= (step or 0) < count:
        raise RecipeError(
            f"step {step}, but {where} has {count_text(count, 'step')}",
            f"0 to {count - 1}",
            "give one of these; stagewright plan shows the steps of each stage",
        )
    return first + (step or 0)


def _label(own: str, other: str, share: float, readable: bool) -> str:
    if not readable:
        return f"{own}: could not be read, so it does not count"
    return own if own == other else f"{own} {100 * share:.0f} % + {other} {100 * (1 - share):.0f} %"


def _facts(plan: Plan, fed: Fed, manifest: Manifest) -> list[str]:
    stage, recipe = fed.stage, plan.recipe
    place = f"stage {stage.name} ({stage.index + 1} of {len(plan.stages)}), step {fed.step:,} of 0 to {plan.total_steps - 1:,}"
    sizes = f"{stage.image_size} px, in an evaluation {eval_image_size(plan, stage)} px"
    lines = [
        f"{manifest.source}, recipe {recipe.name}, seed {recipe.seed}: {place}, epoch {stage.epoch_at(fed.step):.2f}."
    ]
    if stage.fit == "optimum":
        mirrored = " and their mirror images" if stage.augment.flip else ""
        lines.append(
            f"This step finds the optimum of the head for all {count_text(stage.batch_size, 'picture')}{mirrored}, {sizes}."
        )
        return lines
    lines.append(f"{count_text(stage.batch_size, 'picture')} of {sizes}. {_mixing(fed)}")
    lines.append(f"Augmentation: {_augmentation(stage)}.")
    if stage.label_smoothing:
        lines.append(f"Label smoothing of {stage.label_smoothing:g} is added to the shares of the classes.")
    return lines


def _mixing(fed: Fed) -> str:
    if fed.draw.kind == "none":
        return "Nothing is mixed at this step."
    how = (
        "a box of each picture comes from its partner"
        if fed.draw.kind == "cutmix"
        else "each is blended with a partner"
    )
    return f"{fed.draw.kind.capitalize()} at this step: {how}, and {100 * fed.mixed.lam:.0f} % is its own."


def _augmentation(stage: StagePlan) -> str:
    """Returns the fields that differ from the defaults, after crop and flip, as the recipe writes them."""
    given = stage.augment.model_dump(mode="json", exclude_defaults=True)
    fields = {"crop": stage.augment.crop, "flip": stage.augment.flip, **given}
    return ", ".join(f"{name} {_in_words(value)}" for name, value in fields.items())


def _in_words(value: object) -> str:
    return " to ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
