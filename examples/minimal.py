"""A training loop of your own, with nothing of stagewright but its functions: no recipe, no plan, no run directory.

    python examples/minimal.py

Handwritten digits in a few seconds on a CPU. Everything that is decided at a step is a function of (SEED, step): which
pictures form the batch (order), how each of them is seen (augment), which are mixed (mixing), the learning rate (schedule).
So there is no scheduler, sampler or generator whose state would have to be saved: keep `state.content()` after any
step, give it to `state.restore()` of a new process, call `train(state, first_step=...)`, and the same weights come out.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.amp.grad_scaler import GradScaler

from stagewright import rng
from stagewright.augment.geometry import train_geometry
from stagewright.augment.mixing import draw_mix
from stagewright.data.batches.batch import Batch
from stagewright.data.batches.order import batch_places
from stagewright.data.images.crop import gather
from stagewright.engine.numerics import Numerics
from stagewright.engine.optim import make_optimizer
from stagewright.engine.state import TrainState
from stagewright.engine.step import train_step
from stagewright.model.groups import parameter_groups
from stagewright.plan import schedule
from stagewright.plan.plan import Hyper
from stagewright.recipe.recipe import Augment, Evaluation, Mix

SEED, STEPS, BATCH, SIZE = 0, 200, 64, 16
PEAK_LR, MOMENTUM, WEIGHT_DECAY, EMA_DECAY = 0.1, 0.9, 5e-4, 0.98
AUGMENT = Augment(crop="pad", flip=0.0)  # shifted by up to an eighth; a mirrored digit is another sign
MIX = Mix(mixup=0.2, probability=0.5)
NUMERICS = Numerics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), precision="fp32", channels_last=False)


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training pictures, uint8 (N, 16, 16, 3), and labels, int64 (N,); then those of the test."""
    flat, labels = load_digits(return_X_y=True)
    grey = np.rint(np.asarray(flat).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    pictures = np.ascontiguousarray(np.stack([grey] * 3, axis=-1))
    # One key for each purpose, mixed by a hash: the split shares no randomness with the order, whatever the seed.
    shuffled = rng.permutation(rng.key(SEED, rng.Stream.SPLIT), len(labels))
    train, test = shuffled[360:], shuffled[:360]
    return pictures[train], np.asarray(labels)[train], pictures[test], np.asarray(labels)[test]


def network() -> nn.Module:
    """Any module that maps (B, 3, H, W) to logits will do."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def make_batch(pictures: np.ndarray, labels: np.ndarray, step: int) -> Batch:
    """The batch of ``step``: position p of an endless stream is place p % N of pass p // N, shuffled anew in each pass."""
    places, passes = batch_places(SEED, len(pictures), 0, BATCH, step)
    sides = np.full(BATCH, SIZE)
    view = train_geometry(AUGMENT, SEED, places, passes, sides, sides, SIZE, Evaluation())
    seen = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    gather(pictures, places, view.shifts, view.flips, seen)
    images = torch.from_numpy(seen).permute(0, 3, 1, 2)
    return Batch(step, images, torch.from_numpy(labels[places]), torch.ones(BATCH, dtype=torch.bool), ())


def hyper(step: int) -> Hyper:
    """What update ``step`` uses. Change it as you like: there is nothing that remembers what it said before."""
    # Without the division, the average would hold the random weights of the beginning for a hundred steps.
    average = (1 - EMA_DECAY) / (1 - EMA_DECAY ** (step + 1))
    lr = PEAK_LR * schedule.one_cycle(step, STEPS, pct_start=0.25)
    return Hyper(lr, MOMENTUM, WEIGHT_DECAY, label_smoothing=0.05, clip_norm=None, average_weight=average)


def train(state: TrainState, pictures: np.ndarray, labels: np.ndarray, first_step: int = 0) -> None:
    """The loop that is yours: log, evaluate, save or stop at any step of it."""
    state.model.train()
    for step in range(first_step, STEPS):
        batch, now = make_batch(pictures, labels, step), hyper(step)
        mix = draw_mix(MIX, SEED, step, BATCH, SIZE)
        seed = rng.torch_seed(SEED, rng.Stream.MODEL, step)  # for dropout, which this network does not have
        loss, top1, _ = train_step(state, batch, now, mix, seeds=[seed], numerics=NUMERICS).tolist()
        state.step = step + 1
        if state.step % 40 == 0:
            print(f"step {state.step:3d}  lr {now.lr:.4f}  loss {loss:.3f}  batch top-1 {100 * top1:.1f} %")


@torch.no_grad()
def accuracy(model: nn.Module, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 in percent."""
    model.eval()
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    everything = Batch(0, images, torch.from_numpy(labels), torch.ones(len(labels), dtype=torch.bool), ())
    right = model(NUMERICS.network_input(everything)).argmax(dim=1) == everything.labels
    return 100 * float(right.float().mean())


if __name__ == "__main__":
    torch.manual_seed(rng.torch_seed(SEED, rng.Stream.INIT))
    model = network()
    groups = parameter_groups(model, WEIGHT_DECAY, decay_norm_and_bias=False)
    optimizer = make_optimizer(groups, "sgd", lr=PEAK_LR, momentum=MOMENTUM, nesterov=True)
    state = TrainState(model, model, optimizer, GradScaler("cpu", enabled=False))
    train_pictures, train_labels, test_pictures, test_labels = load()
    train(state, train_pictures, train_labels)
    raw = accuracy(model, test_pictures, test_labels)
    with state.average.swapped_in(model):
        averaged = accuracy(model, test_pictures, test_labels)
    print(f"test top-1: {raw:.2f} % with the last weights, {averaged:.2f} % with their moving average")
