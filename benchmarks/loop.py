"""Loop overhead: images/s of a stagewright run on data in memory against a bare PyTorch loop doing the same work.

Both train the same CIFAR-style ResNet on 32x32 pictures in memory with pad-and-crop, flip, label smoothing, SGD with
Nesterov momentum and clipping. The bare loop is the shortest that does this: one tensor of pictures, vectorised crop and
flip, forward, backward, step; nothing logged, nothing saved. The run is a whole one: loader, schedule, keyed draws,
steps.csv, progress; set-up, evaluation and checkpoints are outside the timed part of both. Rounds alternate; medians.

    python benchmarks/loop.py [--width 16] [--batch-size 128] [--steps 40] [--rounds 7] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import cross_entropy, pad

from stagewright.data.images.decode import ArrayImages
from stagewright.data.manifest import Manifest
from stagewright.engine.build import build_model
from stagewright.engine.numerics import numerics_of, prepare_torch
from stagewright.model.groups import parameter_groups
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.system.device import choose_device, device_name
from stagewright.system.signals import StopSignal
from stagewright.training.setup import RunInputs, open_session

PICTURES, CLASSES = 5120, 10


def pictures() -> tuple[np.ndarray, Manifest]:
    """Random pictures and a manifest in which all but a few of them train."""
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (PICTURES, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, CLASSES, PICTURES).astype(np.int32)
    names = pa.array([f"train/{at:06d}" for at in range(PICTURES)])
    splits = np.where(np.arange(PICTURES) < 64, 1, 0).astype(np.int8)
    sides = np.full(PICTURES, 32, np.int32)
    classes = tuple(f"class{at}" for at in range(CLASSES))
    return array, Manifest("", "memory", classes, names, names, labels, splits, sides, sides)


def plan_of(manifest: Manifest, width: int, batch_size: int, steps: int) -> Plan:
    recipe = recipes.from_dict(
        {
            "model": {"name": "cifar_resnet18", "options": {"width": width}},
            "image_size": 32,
            "batch_size": batch_size,
            "epochs": f"{steps}st",
            "augment": {"crop": "pad", "flip": 0.5},
            "optimizer": {"nesterov": True, "clip_norm": 1.0},
            "label_smoothing": 0.1,
            "eval": {"every": 1.0, "crop": 1.0},
            "checkpoints": {"every": 1.0},
        }
    )
    return resolve(recipe, manifest.info())


def ours(plan: Plan, manifest: Manifest, array: np.ndarray, device: str, workers: int) -> float:
    """Images/s of the training part of a run."""
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop:
        run = RunDir.create(Path(folder) / "run")
        run.write_start(plan, manifest, environment("memory", ["benchmark"], device, ""))
        execution = Execution(device=device, workers=workers, pages=False, quiet=True)
        session = open_session(RunInputs(run, plan, manifest, ArrayImages(array), execution, stop))
        stage = plan.stages[0]
        session.clock.switch("train")
        start = 0.0
        with session.train_batches(0) as batches:
            session.begin(stage, session.enter(stage))
            for batch in batches:
                if batch.step == WARM:
                    _wait(session.state.device)
                    start = time.perf_counter()
                session.update(stage, batch)
        session.recorder.fetch()
        _wait(session.state.device)
        seconds = time.perf_counter() - start
        session.recorder.close()
    return (plan.total_steps - WARM) * stage.batch_size / seconds


def bare(plan: Plan, manifest: Manifest, array: np.ndarray, device: str) -> float:
    """Images/s of the shortest PyTorch loop that does the same to the same pictures."""
    stage = plan.stages[0]
    model = build_model(plan, pretrained=False)[0].to(device).to(memory_format=torch.channels_last).train()
    numerics = numerics_of(plan, model)
    groups = [{k: g[k] for k in ("params", "weight_decay")} for g in parameter_groups(model, 1e-4, False)]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    data = torch.from_numpy(array).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(manifest.labels).long().to(device)
    scale = (1 / (255 * torch.tensor(numerics.std, device=device)))[:, None, None]
    shift = (torch.tensor(numerics.mean, device=device) / torch.tensor(numerics.std, device=device))[:, None, None]
    rows = torch.from_numpy(manifest.rows("train")).to(device)
    order = rows[torch.randperm(len(rows), device=device)]
    start = 0.0
    for step in range(plan.total_steps):
        if step == WARM:
            _wait(torch.device(device))
            start = time.perf_counter()
        chosen = order[torch.arange(step * stage.batch_size, (step + 1) * stage.batch_size, device=device) % len(order)]
        images = crop_and_flip(data[chosen])
        images = (images * scale - shift).contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(model(images), labels[chosen], label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(torch.device(device))
    return (plan.total_steps - WARM) * stage.batch_size / (time.perf_counter() - start)


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Pad by 4, take a random 32x32 window of each, flip half: vectorised."""
    count, device = len(images), images.device
    padded = pad(images, (4, 4, 4, 4))
    y = torch.randint(0, 9, (count, 1, 1, 1), device=device) + torch.arange(32, device=device)[:, None]
    x = torch.randint(0, 9, (count, 1, 1, 1), device=device) + torch.arange(32, device=device)
    x = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, x, x.flip(-1))
    return padded[
        torch.arange(count, device=device)[:, None, None, None], torch.arange(3, device=device)[:, None, None], y, x
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    asked = parser.parse_args()
    array, manifest = pictures()
    plan = plan_of(manifest, asked.width, asked.batch_size, asked.steps)
    prepare_torch(plan.recipe, choose_device(asked.device))
    rates: dict[str, list[float]] = {"run": [], "bare": []}
    for _ in range(asked.rounds):
        rates["run"].append(ours(plan, manifest, array, asked.device, asked.workers))
        rates["bare"].append(bare(plan, manifest, array, asked.device))
    ratios = [a / b for a, b in zip(rates["run"], rates["bare"], strict=True)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{'':10} median images/s   all rounds")
    for name, values in rates.items():
        print(f"{name:10} {medians[name]:12,.0f}      {', '.join(f'{value:,.0f}' for value in values)}")
    print(f"run / bare: {100 * statistics.median(ratios):.1f} % (median of the rounds' ratios), "
          f"{100 * medians['run'] / medians['bare']:.1f} % (ratio of medians)")  # fmt: skip
    if asked.out:
        env = environment(
            "memory", ["python", "benchmarks/loop.py"], asked.device, device_name(choose_device(asked.device))
        )
        del env["cwd"]  # a path of this machine
        arguments = {name: value for name, value in vars(asked).items() if name != "out"}
        asked.out.write_text(json.dumps({"rates": rates, "ratios": ratios, "arguments": arguments, **env}, indent=1))


if __name__ == "__main__":
    main()
