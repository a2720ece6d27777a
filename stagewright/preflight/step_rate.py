"""Measures the training speed of a network with images that are already loaded."""

from __future__ import annotations

import time

import torch

from stagewright.data.batches.batch import Batch
from stagewright.engine.build import build_state
from stagewright.engine.numerics import auto_precision, numerics_of, prepare_torch
from stagewright.engine.step import update
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

_WARM_UP = 3


def step_rate(
    model: str, num_classes: int, image_size: int, batch_size: int, device: torch.device, seconds: float
) -> float:
    """Returns the images per second of whole updates (forward, backward, SGD with momentum) on random images on ``device``,
    measured for ``seconds``."""
    classes = tuple(f"class{at}" for at in range(max(num_classes, 2)))
    info = DatasetInfo(num_train=batch_size, num_val=0, num_test=0, classes=classes, digest="")
    plain = {"model": {"name": model}, "image_size": image_size, "batch_size": batch_size, "epochs": "1000000st"}
    plan = resolve(recipes.from_dict(plain), info, precision=auto_precision(device))
    prepare_torch(plan.recipe, device)
    state, _ = build_state(plan, device)
    stage, numerics = plan.stages[0], numerics_of(plan, state.model)
    apply_trainable(state.model, stage.train)
    set_train_mode(state.model, stage.norm)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (batch_size, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    images, labels = pictures.permute(0, 3, 1, 2).to(device), torch.arange(batch_size, device=device) % len(classes)
    valid = torch.ones(batch_size, dtype=torch.bool, device=device)
    done, began = 0, 0.0
    while True:
        if done == _WARM_UP:
            _settle(device)
            began = time.perf_counter()
        batch = Batch(done, images, labels, valid, ())
        update(state, plan, stage, batch, numerics)
        done += 1
        if done > _WARM_UP and time.perf_counter() - began >= seconds:
            _settle(device)
            return (done - _WARM_UP) * batch_size / (time.perf_counter() - began)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
