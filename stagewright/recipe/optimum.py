"""What a stage with ``fit: optimum`` needs: a head alone, on images that look the same whenever they are seen.

Only then the training is a convex problem with one optimum, which :mod:`stagewright.engine.convex` finds.
"""

from __future__ import annotations

from typing import Protocol

from stagewright.recipe.fields import Augment, Mix
from stagewright.recipe.holds import conditions, why_without_effect
from stagewright.recipe.schema import Frozen

_INSTEAD = "or write fit: updates"


class _Stage(Protocol):
    """A stage with all inherited fields."""

    @property
    def train(self) -> str | tuple[str, ...] | None: ...
    @property
    def mix(self) -> Mix | None: ...
    @property
    def augment(self) -> Augment | None: ...


def unused_in_optimum(stage: Frozen) -> list[str]:
    """Returns a sentence for each field that ``stage``, which finds an optimum, sets without effect."""
    found = []
    for name in type(stage).model_fields:
        if name in stage.model_fields_set and getattr(stage, name) is not None and why_without_effect(stage, name):
            why = (
                "it is one update" if name == "epochs" else "there is no rate, momentum or decay; its penalty is chosen"
            )
            found.append(f"{name}: has no effect where fit is optimum ({why}): leave it out, {_INSTEAD}")
    return found


def obstacles_to_optimum(stage: _Stage, loss: str) -> list[str]:
    """Returns a sentence, which begins with the field, for each setting with which the stage has no single optimum."""
    found = []
    if stage.train != "head":
        found.append(f"train: is {stage.train!r}; fit: optimum needs train: head, {_INSTEAD}")
    if loss != "cross_entropy":
        found.append(f"fit: optimum needs loss: cross_entropy, not {loss}; write fit: updates")
    mix, augment = stage.mix, stage.augment
    if mix is not None and mix.probability and (mix.mixup or mix.cutmix):
        found.append(f"mix: fit: optimum sees images unmixed; write mix: none in the stage, {_INSTEAD}")
    if augment is None:
        return found
    if augment.crop != "none":
        found.append(
            f"augment.crop: is {augment.crop}; fit: optimum sees each image in the same views: write augment: {{crop: none}} "
            f"in the stage, {_INSTEAD}"
        )
    for name, field in Augment.model_fields.items():
        # A field with a condition is a detail of another field, and has an effect only where that one is on.
        if name not in ("crop", "flip") and not conditions(Augment, name) and getattr(augment, name) != field.default:
            found.append(
                f"augment.{name}: is {getattr(augment, name)}; fit: optimum sees each image in the same views: write "
                f"augment: {{{name}: {_off(field.default)}}} in the stage, {_INSTEAD}"
            )
    return found


def _off(default: object) -> str:
    if isinstance(default, tuple):
        return str(list(default))
    return "none" if default is None else str(default)
