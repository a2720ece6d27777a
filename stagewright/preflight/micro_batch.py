"""Micro-batches: how many pictures fit on the device at a time, found by trying before the plan is made.

Tried is what a run does: whole updates and an evaluation at the largest stage, with halves of the batch until nothing
runs out of memory. On a CPU nothing is tried: the system gives out more memory than there is and kills the process that
uses it, so there is no error to learn from; ``micro_batch_size: auto`` is the whole batch there.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from stagewright.augment.draw import draw
from stagewright.data.batches.batch import Batch
from stagewright.data.dataset import Dataset
from stagewright.data.images.crop import IN_MEMORY
from stagewright.data.images.memory_cache import cache_for_plan
from stagewright.engine.build import build_state
from stagewright.engine.evaluate import evaluate
from stagewright.engine.numerics import Numerics, numerics_of
from stagewright.engine.state import TrainState
from stagewright.engine.step import update
from stagewright.errors import NotFinite, RecipeError
from stagewright.model.average import has_batch_norm
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.system.memory import out_of_memory

_HEADROOM = 0.05
"""Share of the device's memory that is kept free while trying: for batches on their way and for fragmentation."""


@dataclass(frozen=True)
class Fit:
    """What was found."""

    micro_batch_size: int | None
    """None where whole batches fit."""
    notice: str | None
    """What there is to say of it."""


def fitting_micro_batch(plan: Plan, device: torch.device, *, reserved_bytes: int = 0) -> Fit:
    """The largest of B, B/2, B/4 ... pictures that go through the network of ``plan`` on the CUDA ``device`` at a time.

    ``reserved_bytes`` stay free beside it, for pictures that will lie on the device. Weights are not loaded, nothing is
    compiled; compiled graphs need less, CUDA graphs may need more. Random states change (:mod:`stagewright.system.isolation`).
    RecipeError where a single picture does not fit.
    """
    if device.type != "cuda":
        return Fit(None, None)
    free, total = torch.cuda.mem_get_info(device)
    ballast = min(reserved_bytes, free // 2) + round(_HEADROOM * total)
    recipe = plan.recipe.changed(model={**plan.recipe.model.model_dump(), "weights": None}, compile=False)
    state, _ = build_state(plan.model_copy(update={"recipe": recipe}), device)
    numerics = numerics_of(plan, state.model)
    normed = has_batch_norm(state.model)
    held = torch.empty(ballast, dtype=torch.uint8, device=device)
    try:
        found = min(fitted(state, plan, stage, numerics) for stage in largest_stages(plan))
    finally:
        del held, state
        _give_back(device)
    batch_size = max(stage.batch_size for stage in plan.stages)
    return Fit(found, notice(found, batch_size, batch_norm=normed)) if found < batch_size else Fit(None, None)


def resident_bytes(plan: Plan, dataset: Dataset) -> int:
    """Bytes that the pictures of ``dataset`` will take on a CUDA device, if they come to lie there (at most)."""
    images = cache_for_plan(plan, dataset.manifest, dataset.images)
    array = images.array if isinstance(images, IN_MEMORY) else None
    return 0 if array is None else array.nbytes


def largest_stages(plan: Plan) -> list[StagePlan]:
    """The stage with the most pixels a batch; where it trains a part alone, also the largest that trains all."""

    def pixels(stage: StagePlan) -> tuple[int, int]:
        return stage.batch_size * max(stage.image_size, eval_image_size(plan, stage)) ** 2, stage.index

    largest = max(plan.stages, key=pixels)
    whole = [stage for stage in plan.stages if stage.train == "all"]
    return [largest] if largest.train == "all" or not whole else [largest, max(whole, key=pixels)]


def fitted(state: TrainState, plan: Plan, stage: StagePlan, numerics: Numerics) -> int:
    """How many pictures at a time ``stage`` can train and evaluate on the state's device, of its own batch size halved as
    often as needed."""
    device = state.device
    apply_trainable(state.model, stage.train)

    def attempt(size: int) -> None:
        set_train_mode(state.model)
        # Twice: the optimizer's own tensors come with the first update, and stand beside the second's gradients.
        for step in (stage.first_step, stage.first_step):
            batch = _pictures(stage.batch_size, stage.image_size, device)
            rows = np.arange(stage.batch_size)
            draws = draw(stage.augment, plan.recipe.seed, rows, np.zeros_like(rows), stage.image_size)
            hyper = replace(stage.hyper(step), average_weight=float(stage.average.kind != "none"))
            batch = replace(batch, step=step, draws=draws)
            update(state, plan, stage, batch, numerics, hyper=hyper, micro_batch_size=size)
        # What the throw-away weights answer does not matter to memory.
        with _averaged(state), contextlib.suppress(NotFinite):
            seen = _pictures(size, eval_image_size(plan, stage), device)
            evaluate(state.model, state.forward, [seen], numerics)

    def recover() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        _give_back(device)

    return largest_that_fits(stage.batch_size, attempt, recover)


def largest_that_fits(batch_size: int, attempt: Callable[[int], object], recover: Callable[[], None]) -> int:
    """``batch_size`` halved (rounded up) until ``attempt(size)`` no longer runs out of memory.

    ``recover`` is called after each that does. RecipeError where even 1 does.
    """
    size = batch_size
    while True:
        try:
            attempt(size)
            return size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Outside of the handler: what it holds, the frames of the attempt with their tensors, is free by now.
        recover()
        if size == 1:
            raise RecipeError(
                f"not even one picture at a time fits into the device's memory: {reason}",
                "a network and pictures of which one fits",
                "take a smaller image_size or model, a device with more memory, or --device cpu",
            )
        size = -(-size // 2)


def notice(micro_batch_size: int, batch_size: int, *, batch_norm: bool) -> str:
    """What a person is told of micro-batches that had to be smaller than the batch."""
    text = (
        f"batches of {batch_size:,} do not fit into the device's memory: they go through the network "
        f"{micro_batch_size:,} at a time, and the update is still that of all {batch_size:,}"
    )
    if batch_norm:
        text += f"; batch norm takes its statistics over {micro_batch_size:,}, which can change what comes out"
    return text


def _pictures(count: int, size: int, device: torch.device) -> Batch:
    """Grey pictures on ``device``: what is on them does not matter to memory."""
    images = torch.full((count, size, size, 3), 127, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    return Batch(0, images, labels, torch.ones(count, dtype=torch.bool, device=device), ())


@contextmanager
def _averaged(state: TrainState) -> Iterator[None]:
    if not state.average.tensors:
        yield
        return
    with state.average.swapped_in(state.model):
        yield


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
