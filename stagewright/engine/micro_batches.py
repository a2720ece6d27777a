"""Divides a batch into micro-batches."""

from __future__ import annotations

from stagewright.errors import RecipeError
from stagewright.plan.plan import StagePlan


def micro_batch_sizes(batch_size: int, most: int) -> list[int]:
    """Returns the sizes of the micro-batches of a batch, in order: ``most`` images each, and the rest in the last.

    If the rest is a single image, it gets a second one from the micro-batch before it: batch norm cannot train on one value.
    """
    whole, left = divmod(batch_size, most)
    sizes = [most] * whole + ([left] if left else [])
    if left == 1 and whole and most > 2:
        sizes[-2:] = [most - 1, 2]
    return sizes


def single_image_error(error: ValueError, stage: StagePlan, micro_batch_size: int) -> RecipeError | None:
    """Returns the error to raise if torch's ``error`` is about batch norm with one value per channel, else None."""
    if "more than 1 value per channel" not in str(error):
        return None
    size = stage.batch_size
    batches = f"batches of {size}" + ("" if size == 1 else f" in micro-batches of {micro_batch_size}")
    return RecipeError(
        f"stage {stage.name!r}: {batches} train on one image alone, which the network's batch norm cannot at "
        f"{stage.image_size} x {stage.image_size} pixels: {str(error).splitlines()[0]}",
        "batches and micro-batches of 2 images or more, or images of which the network keeps more than one pixel",
        "change batch_size or micro_batch_size, take larger images, or a network without batch norm",
    )
