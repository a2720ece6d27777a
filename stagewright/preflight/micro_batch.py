"""Finds the micro-batch size: how many images fit on the device at once, by trying before the plan is made.

It runs whole updates and an evaluation of the largest stage and halves the batch until the device's memory is sufficient. On
a CPU nothing is tried: the system promises more memory than it has and kills a process that uses too much, so there would be
no error to catch. There ``micro_batch_size: auto`` is the whole batch.
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
from stagewright.system.surroundings import memory_advice

_HEADROOM = 0.05
"""Share of the device's memory that stays unused while trying, for prefetched batches and fragmentation."""


@dataclass(frozen=True)
class _Fit:
    """The result of the search."""

    micro_batch_size: int | None
    """Number of images, or None if whole batches fit."""
    notice: str | None
    """A notice for the user, or None."""


def fitting_micro_batch(plan: Plan, device: torch.device, *, reserved_bytes: int = 0) -> _Fit:
    """Finds the largest of B, B/2, B/4 ... images that can go through the network of ``plan`` at once on the CUDA ``device``.

    ``reserved_bytes`` are left free in addition, for images that will be cached on the device. Weights are not loaded and
    nothing is compiled; compiled graphs need less memory, CUDA graphs may need more. It changes random states
    (:mod:`stagewright.system.isolation` restores them). RecipeError if not even one image fits.
    """
    if device.type != "cuda":
        return _Fit(None, None)
    if not (largest := largest_stages(plan)):
        return _Fit(None, None)
    free, total = torch.cuda.mem_get_info(device)
    ballast = min(reserved_bytes, free // 2) + round(_HEADROOM * total)
    recipe = plan.recipe.changed(model={**plan.recipe.model.model_dump(), "weights": None}, compile=False)
    state, _ = build_state(plan.model_copy(update={"recipe": recipe}), device)
    numerics = numerics_of(plan, state.model)
    normed = has_batch_norm(state.model)
    held = torch.empty(ballast, dtype=torch.uint8, device=device)
    try:
        found = min(fitted(state, plan, stage, numerics) for stage in largest)
    finally:
        del held, state
        _free_memory(device)
    batch_size = max(stage.batch_size for stage in plan.stages if stage.fit == "updates")
    return _Fit(found, notice(found, batch_size, batch_norm=normed)) if found < batch_size else _Fit(None, None)


def resident_bytes(plan: Plan, dataset: Dataset) -> int:
    """Returns the most bytes that the images of ``dataset`` can use on a CUDA device; 0 if they will not be cached there."""
    images = cache_for_plan(plan, dataset.manifest, dataset.images)
    array = images.array if isinstance(images, IN_MEMORY) else None
    return 0 if array is None else array.nbytes


def largest_stages(plan: Plan) -> list[StagePlan]:
    """Returns the stage with the most pixels per batch; if it does not train all parameters, also the largest stage that
    does. Stages that find an optimum, whose images go through the network without gradients, do not count; [] if there are no
    others."""

    def pixels(stage: StagePlan) -> tuple[int, int]:
        return stage.batch_size * max(stage.image_size, eval_image_size(plan, stage)) ** 2, stage.index

    timed = [stage for stage in plan.stages if stage.fit == "updates"]
    if not timed:
        return []
    largest = max(timed, key=pixels)
    whole = [stage for stage in timed if stage.train == "all"]
    return [largest] if largest.train == "all" or not whole else [largest, max(whole, key=pixels)]


def fitted(state: TrainState, plan: Plan, stage: StagePlan, numerics: Numerics) -> int:
    """Returns how many images ``stage`` can train on and evaluate at once on the state's device: its batch size, halved as
    often as needed."""
    device = state.device
    apply_trainable(state.model, stage.train)

    def attempt(size: int) -> None:
        set_train_mode(state.model, stage.norm)
        # Two updates: the optimizer allocates its state in the first one, and the second one needs gradients in addition.
        for step in (stage.first_step, stage.first_step):
            batch = _grey_batch(stage.batch_size, stage.image_size, device)
            rows = np.arange(stage.batch_size)
            draws = draw(stage.augment, plan.recipe.seed, rows, np.zeros_like(rows), stage.image_size)
            hyper = replace(stage.hyper(step), average_weight=float(stage.average.kind != "none"))
            batch = replace(batch, step=step, draws=draws)
            update(state, plan, stage, batch, numerics, hyper=hyper, lanes=-(-stage.batch_size // size))
        # The temporary weights may give infinity or NaN, which does not affect memory.
        with _averaged(state), contextlib.suppress(NotFinite):
            seen = _grey_batch(size, eval_image_size(plan, stage), device)
            evaluate(state.model, state.forward, [seen], numerics)

    def recover() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        _free_memory(device)

    return largest_that_fits(stage.batch_size, attempt, recover, memory_advice(str(device), stage.image_size))


def largest_that_fits(
    batch_size: int, attempt: Callable[[int], object], recover: Callable[[], None], advice: tuple[str, str]
) -> int:
    """Halves ``batch_size`` (rounded up) until ``attempt(size)`` does not run out of memory; returns the size.

    ``recover`` is called after each failed attempt. RecipeError with ``advice`` (what is allowed, what to do) if even size 1
    fails.
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
        # Called outside the except block: inside it, the traceback would keep the tensors of the failed attempt alive.
        recover()
        if size == 1:
            raise RecipeError(
                f"not even one picture at a time fits into the device's memory: {reason}",
                *advice,
            )
        size = -(-size // 2)


def notice(micro_batch_size: int, batch_size: int, *, batch_norm: bool) -> str:
    """Returns the notice for the user about micro-batches that are smaller than the batch."""
    text = (
        f"batches of {batch_size:,} do not fit into the device's memory: they go through the network "
        f"{micro_batch_size:,} at a time, and each update still uses the gradient of all {batch_size:,}"
    )
    if batch_norm:
        text += f"; batch norm computes its statistics over {micro_batch_size:,}, which can change the result"
    return text


def _grey_batch(count: int, size: int, device: torch.device) -> Batch:
    """Returns a batch of grey images on ``device``; their content does not affect memory."""
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


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
