"""Describes the model that a run makes: the specification of its Bundle."""

from __future__ import annotations

from stagewright.bundle.bundle import BundleSpec, Preprocessing
from stagewright.data.manifest import Manifest
from stagewright.engine.numerics import Numerics
from stagewright.engine.state import Score
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.recipe.fields import reading_fields

NOT_OPENED = "not opened"
"""What the model card says of a test part that is closed."""


def model_spec(
    plan: Plan,
    manifest: Manifest,
    numerics: Numerics,
    score: Score,
    stage: StagePlan,
    *,
    top1: dict[str, float],
    stopped_at: str | None = None,
    close_margin: float | None = None,
    expected: str | None = None,
    trained_from: str | None = None,
) -> BundleSpec:
    """Returns the specification of the Bundle with the weights of ``score``, which predicts as ``stage`` evaluates.

    ``top1`` is in percent, by split. ``stopped_at`` says how much of the plan was done where that was not all
    (:func:`stagewright.text.done_text`); ``close_margin`` is that of predictions in bfloat16, None where they are in float32.
    ``expected`` says what accuracy other runs let expect, ``trained_from`` where the initial weights came from and what trained.
    """
    recipe = plan.recipe
    return BundleSpec(
        model=recipe.model.name,
        options=dict(recipe.model.options),
        drop_path=recipe.model.drop_path,
        image_size=max(stage.image_size for stage in plan.stages),
        classes=plan.dataset.classes,
        preprocessing=Preprocessing(
            image_size=eval_image_size(plan, stage),
            crop=recipe.eval.crop,
            fit=recipe.eval.fit,
            interpolation=recipe.interpolation,
            mean=numerics.mean,
            std=numerics.std,
        ),
        training={
            "recipe": recipe.name,
            "data": manifest.source,
            "read_as": recipe.data.model_dump(mode="json", include=set(reading_fields())),
            "weights": score.weights,
            "step": score.step,
            **({} if stopped_at is None else {"stopped_at": stopped_at}),
            "top1": top1,
            **({"test_part": NOT_OPENED} if manifest.num_closed else {}),
            **({} if expected is None else {"expected": expected}),
            "images": {"train": plan.dataset.num_train, "val": plan.dataset.num_val, "test": plan.dataset.num_test},
            "plan_digest": plan.digest,
            "dataset_digest": plan.dataset.digest,
            "initial_weights": recipe.model.weights,
            **({} if trained_from is None else {"trained_from": trained_from}),
        },
        fold=recipe.eval.fold,
        close_margin=close_margin,
        names=recipe.data.names if isinstance(recipe.data.names, dict) else {},
    )
