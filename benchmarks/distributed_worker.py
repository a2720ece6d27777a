"""A process of ``distributed.py``: carries out updates, in one way or several in turns, and prints updates/s as JSON lines.

What is needed for the case ``earlier`` is also in the code before lanes; the rest is imported where it is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {
    "resnet18": ({"name": "resnet18"}, 64, 32),
    "cifar_resnet18": ({"name": "cifar_resnet18", "options": {"width": 16}}, 32, 64),
}
"""Model, image size, images of an update."""
IMAGES, CLASSES, LOADED, WARM = 1024, 10, 8, 2
Rates = dict[str, list[float]]
Way = Callable[[Any], None]


def data_of(image_size: int) -> tuple[np.ndarray, Any]:
    """Random images, uint8 (N, S, S, 3), and their manifest."""
    from stagewright.data.manifest import Manifest

    random = np.random.default_rng(0)
    array = random.integers(0, 256, (IMAGES, image_size, image_size, 3), dtype=np.uint8)
    labels = random.integers(0, CLASSES, IMAGES).astype(np.int32)
    names = pa.array([f"train/{at:06d}" for at in range(IMAGES)])
    splits = np.where(np.arange(IMAGES) < 64, 1, 0).astype(np.int8)
    sides = np.full(IMAGES, image_size, np.int32)
    classes = tuple(f"class{at}" for at in range(CLASSES))
    return array, Manifest("", "memory", classes, names, names, labels, splits, sides, sides)


def plan_of(network: str, manifest: Any, updates: int, lanes: int = 1) -> Any:
    """The plan of ``updates`` updates of ``network``, each in ``lanes`` lanes."""
    from stagewright.plan.resolve import resolve
    from stagewright.recipe import recipes

    model, image_size, batch_size = NETWORKS[network]
    recipe = {
        "model": model,
        "image_size": image_size,
        "batch_size": batch_size,
        "epochs": f"{updates}st",
        "augment": {"crop": "pad", "flip": 0.5},
        "optimizer": {"nesterov": True, "clip_norm": 1.0},
        "label_smoothing": 0.1,
        "eval": {"every": 1.0, "crop": 1.0},
        "checkpoints": {"every": 1.0},
        **({"spread": lanes} if lanes > 1 else {}),  # the field is younger than the code before lanes
    }
    return resolve(recipes.from_dict(recipe), manifest.info())


def loop_worker(network: str, updates: int) -> None:
    """Says where its package lies, then carries out a run for each line of standard input, and prints its updates/s."""
    from loop import WARM as UNTIMED
    from loop import ours

    import stagewright
    from stagewright.engine.numerics import prepare_torch
    from stagewright.system.device import choose_device

    _, image_size, batch_size = NETWORKS[network]
    array, manifest = data_of(image_size)
    plan = plan_of(network, manifest, updates + UNTIMED)
    prepare_torch(plan.recipe, choose_device("cpu"))
    ours(plan_of(network, manifest, UNTIMED + 1), manifest, array, "cpu", 1)
    print(json.dumps(str(stagewright.__file__)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(ours(plan, manifest, array, "cpu", 1) / batch_size), flush=True)


def updates_worker(network: str, updates: int, rounds: int, case: str) -> None:
    """Lets the ways of ``case`` take turns; the first process prints their updates/s, and how far
    the ways' weights are from each other, and from the initial ones, after one update."""
    from stagewright.data.batches.loader import load_batches
    from stagewright.data.batches.specs import train_specs
    from stagewright.data.batches.transfer import on_device
    from stagewright.data.images.decode import ArrayImages
    from stagewright.distributed.world import join_world
    from stagewright.engine.numerics import prepare_torch
    from stagewright.system.signals import StopSignal
    from stagewright.training.ranks import Ranks

    array, manifest = data_of(NETWORKS[network][1])
    with join_world("cpu") as world:
        plan = plan_of(network, manifest, LOADED, world.size)
        prepare_torch(plan.recipe, world.device)
        specs = Ranks(StopSignal(), world).own_part(plan, train_specs(plan, manifest, 0), lambda stage: stage.lanes)
        loaded = load_batches(ArrayImages(array), islice(specs, LOADED), workers=0)
        batches = [on_device(batch, world.device) for batch in loaded]

        def source(count: int) -> Iterator[Any]:
            """The batches of ``count`` updates: those loaded before, or in the case ``loader`` from a loader of one thread."""
            if case != "loader":
                return (batches[at % len(batches)] for at in range(count))
            whole = plan_of(network, manifest, count, world.size)
            own = Ranks(StopSignal(), world).own_part(whole, train_specs(whole, manifest, 0), lambda stage: stage.lanes)
            read = load_batches(ArrayImages(array), islice(own, count), workers=1)
            return (replace(on_device(batch, world.device), step=at % LOADED) for at, batch in enumerate(read))

        ways: dict[str, Way] = {}
        models, moved = [], 0.0
        for name, make in makers(plan, world, case).items():
            ways[name], model = make()
            initial = copied(model)
            ways[name](batches[0])
            models.append(copied(model))
            moved = distance(initial, models[-1])
        difference = max(distance(models[0], other) for other in models[1:])
        rates: Rates = {name: [] for name in ways}
        for number in range(-1, rounds):
            names = list(ways)
            turn = max(number, 0) % len(names)
            for name in names[turn:] + names[:turn]:
                count = updates if number >= 0 else WARM
                world.barrier()
                began = perf_counter()
                for batch in source(count):
                    ways[name](batch)
                world.barrier()
                if number >= 0:
                    rates[name].append(count / (perf_counter() - began))
        if world.is_first:
            print(json.dumps({"rates": rates, "difference": difference, "moved": moved}), flush=True)


def copied(model: Any) -> list[Any]:
    """Copies of the weights of ``model``."""
    return [one.detach().clone() for one in model.parameters()]


def distance(some: list[Any], others: list[Any]) -> float:
    """The largest difference between two lists of tensors."""
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def makers(plan: Any, world: Any, case: str) -> dict[str, Callable[[], tuple[Way, Any]]]:
    """What makes each way of ``case`` and its model."""
    if case == "lanes":
        return {"1 lane": lambda: our_way(plan, world, 1), "8 lanes": lambda: our_way(plan, world, 8)}
    return {
        "ordered": lambda: our_way(plan, world, world.size),
        "all_reduce": lambda: our_way(plan, world, world.size, ordered=False),
        "ddp": lambda: ddp_way(plan, views=False),
        "ddp views": lambda: ddp_way(plan, views=True),
    }


def state_of(plan: Any) -> tuple[Any, Any]:
    """The state before the first update, with its network in training mode, and the numerics."""
    import torch

    from stagewright.engine.build import build_state
    from stagewright.engine.numerics import numerics_of
    from stagewright.model.groups import apply_trainable, set_train_mode

    state, _ = build_state(plan, torch.device("cpu"))
    apply_trainable(state.model, plan.stages[0].train)
    set_train_mode(state.model, plan.stages[0].norm)
    return state, numerics_of(plan, state.model)


def our_way(plan: Any, world: Any, lanes: int, *, ordered: bool = True) -> tuple[Way, Any]:
    """The update of a run."""
    from stagewright.engine.lanes import Lanes
    from stagewright.engine.step import update

    state, numerics = state_of(plan)
    own = Lanes(state.model, lanes, world, ordered=ordered) if lanes > 1 else lanes

    def carry_out(batch: Any) -> None:
        update(state, plan, plan.stages[0], batch, numerics, lanes=own)

    return carry_out, state.model


def ddp_way(plan: Any, *, views: bool) -> tuple[Way, Any]:
    """The shortest loop around torch's DDP that does the same."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    from stagewright.engine.optim import set_hyper

    state, numerics = state_of(plan)
    stage, optimizer = plan.stages[0], state.optimizer
    wrapped = DistributedDataParallel(state.model, gradient_as_bucket_view=views)

    def carry_out(batch: Any) -> None:
        hyper = stage.hyper(batch.step)
        set_hyper(optimizer, lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay)
        logits = wrapped(numerics.network_input(batch))
        cross_entropy(logits, batch.labels, label_smoothing=hyper.label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), hyper.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return carry_out, state.model


def main() -> None:
    """``loop NETWORK UPDATES``, or another case: ``CASE NETWORK UPDATES ROUNDS``."""
    case, network, *numbers = sys.argv[1:]
    if case == "loop":
        loop_worker(network, int(numbers[0]))
    else:
        updates_worker(network, int(numbers[0]), int(numbers[1]), case)


if __name__ == "__main__":
    main()
