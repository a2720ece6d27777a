"""The lanes of an update: statistics, numbers and gradients of each, and what they come to together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from stagewright.augment.mixing import MixDraw, apply_mix, draw_mix
from stagewright.data.batches.batch import Batch, lane_of
from stagewright.engine.build import build_state
from stagewright.engine.lane_check import check_buffers
from stagewright.engine.lanes import Lanes
from stagewright.engine.loss import mixed_losses
from stagewright.engine.numerics import Numerics, numerics_of
from stagewright.engine.optim import make_optimizer
from stagewright.engine.state import TrainState
from stagewright.engine.step import train_step, update
from stagewright.errors import ModelError, RecipeError
from stagewright.model.groups import parameter_groups
from stagewright.plan.plan import DatasetInfo, Hyper, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Mix

INFO = DatasetInfo(num_train=50, num_val=10, num_test=0, classes=("a", "b"), digest="x")


def plan(**fields: object) -> Plan:
    usual = {"model": {"name": "mobilenet_v2"}, "image_size": 32, "epochs": "2st"}
    return resolve(recipes.from_dict({**usual, **fields}), INFO)


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"batch_size": 1}, "batches of 1 train on one image alone"),
        ({"batch_size": 8, "micro_batch_size": 1}, "batches of 8 in 8 lanes train on one image alone"),
        ({"batch_size": 5, "micro_batch_size": 2}, "batches of 5 in 3 lanes train on one image alone"),
    ],
)
def test_batch_norm_that_would_see_one_value_is_refused_at_the_set_up(fields: dict[str, int], given: str) -> None:
    with pytest.raises(RecipeError) as error:
        build_state(plan(**fields), torch.device("cpu"))
    assert given in error.value.given and "2 images or more" in error.value.allowed


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 5, "micro_batch_size": 4},
        {"batch_size": 1, "image_size": 64},
        {"batch_size": 1, "train": "head"},
        {"batch_size": 1, "model": {"name": "vit", "options": {"patch": 16, "width": 24, "depth": 1, "heads": 2}}},
    ],
)
def test_where_one_image_is_enough_it_trains(fields: dict[str, object]) -> None:
    made = plan(**fields)
    state, _ = build_state(made, torch.device("cpu"))
    stage = made.stages[0]
    shape = (stage.batch_size, 3, stage.image_size, stage.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, valid = torch.zeros(stage.batch_size, dtype=torch.int64), torch.ones(stage.batch_size, dtype=torch.bool)
    from stagewright.model.groups import apply_trainable, set_train_mode

    apply_trainable(state.model, stage.train)
    set_train_mode(state.model)
    stats = update(state, made, stage, Batch(0, images, labels, valid, ()), numerics_of(made, state.model))
    assert torch.isfinite(stats).all()


def test_a_lane_of_one_picture_by_lack_of_memory_is_refused_in_words() -> None:
    made = plan(batch_size=4)
    state, _ = build_state(made, torch.device("cpu"))
    state.model.train()
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(0, images, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool), ())
    with pytest.raises(RecipeError, match="in 4 lanes train on one image alone"):
        update(state, made, made.stages[0], batch, numerics_of(made, state.model), lanes=4)


class Net(nn.Module):
    """Convolution, batch norm with ``momentum``, dropout and a head; a parameter that is not used."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm2d(6, momentum=momentum)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), self.norm, nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 4)
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


NUMERICS = Numerics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "fp32", True)


def made_batch(size: int, invalid: tuple[int, ...] = ()) -> Batch:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (size, 8, 8, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    valid = torch.ones(size, dtype=torch.bool)
    valid[list(invalid)] = False
    return Batch(0, images, torch.randint(0, 4, (size,), generator=generator), valid, ())


def trained(model: nn.Module, lanes: int, batch: Batch, draw: MixDraw, steps: int = 3) -> list[Tensor]:
    state = TrainState(
        model,
        model,
        make_optimizer(parameter_groups(model, 0.1, True), "sgd", lr=0.1, momentum=0.9),
        GradScaler("cpu", enabled=False),
    )
    hyper = Hyper(lr=0.1, momentum=0.9, weight_decay=0.1, label_smoothing=0.1, clip_norm=0.5, average_weight=0.0)
    made = Lanes(model, lanes)
    return [
        train_step(
            state, batch, hyper, draw, seeds=[100 * step + lane for lane in range(lanes)], lanes=made, numerics=NUMERICS
        )
        for step in range(steps)
    ]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_update_in_lanes_is_that_of_plain_torch(momentum: float | None) -> None:
    """Each lane by itself, its gradient, the sum by the tree, and running statistics as after one batch after another."""
    sizes, invalid = [4, 3, 3], (5,)
    draw = MixDraw("mixup", 0.75, None, np.array([1, 2, 3, 0, 5, 6, 4, 8, 9, 7]))
    batch, own, model = made_batch(10, invalid), Net(momentum), Net(momentum)
    stats = trained(own, 3, batch, draw, steps=2)
    plain = torch.optim.SGD(parameter_groups(model, 0.1, True), lr=0.1, momentum=0.9, weight_decay=0.1)
    parameters = [one for name, one in model.named_parameters() if name != "idle"]
    for step in range(2):
        gradients, losses, start, readable = [], [], 0, 0.0
        for lane, size in enumerate(sizes):
            part = lane_of(batch, start, start + size)
            images = NUMERICS.network_input(part)
            mixed = apply_mix(images, part.labels, part.valid, draw.of(start, start + size))
            torch.manual_seed(100 * step + lane)
            loss = (mixed_losses(model(mixed.images), mixed, "cross_entropy", 0.1, None) * mixed.weight).sum() / 10
            gradients.append(torch.autograd.grad(loss, parameters))
            losses.append(loss.detach())
            start, readable = start + size, readable + float(mixed.weight.sum())
        assert readable == 8
        for at, parameter in enumerate(parameters):
            parameter.grad = (gradients[0][at] + gradients[1][at] + gradients[2][at]) * (10 / readable)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        plain.step()
        assert torch.allclose(stats[step][0], torch.stack(losses).sum() * 10 / readable, atol=1e-6)
        assert torch.allclose(stats[step][2], norm, rtol=1e-4)
    for (name, one), (_, other) in zip(own.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    assert own.norm.momentum == momentum and own.norm.num_batches_tracked == torch.tensor(6)


def test_lanes_share_no_statistics_and_no_partners() -> None:
    """What one lane holds does not change what another gives: its loss depends on its own images."""
    draw = draw_mix(Mix(mixup=1.0, probability=1.0), 0, 0, 8, 8, lanes=2)
    assert sorted(draw.partner[:4]) == [0, 1, 2, 3] and draw.kind == "mixup"
    batch, losses = made_batch(8), []
    for other in (batch.images, batch.images.roll(1, 3)):
        images = torch.cat([batch.images[:4], other[4:]])
        model = Net()
        lanes = Lanes(model, 2)
        found = []
        with lanes.update():
            for start in (0, 4):
                with lanes.lane() as numbers:
                    part = lane_of(replace(batch, images=images), start, start + 4)
                    mixed = apply_mix(NUMERICS.network_input(part), part.labels, part.valid, draw.of(start, start + 4))
                    torch.manual_seed(1)
                    loss = mixed_losses(model(mixed.images), mixed, "cross_entropy", 0.0, None).mean()
                    loss.backward()
                    numbers.append(loss.detach()[None])
                    found.append(float(loss.detach()))
        lanes.finish(1)
        losses.append(found)
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_a_failed_update_leaves_momentum_and_no_gradient() -> None:
    model = Net()
    lanes = Lanes(model, 2)
    with pytest.raises(MemoryError), lanes.update(), lanes.lane() as numbers:
        model(torch.zeros(2, 3, 8, 8)).sum().backward()
        numbers.append(torch.zeros(1))
        raise MemoryError
    assert model.norm.momentum == 0.1 and all(one.grad is None for one in model.parameters())


def test_the_seams_of_memory_do_not_matter_to_a_lane() -> None:
    """A lane's images lie in memory as those of a batch that holds nothing else."""
    batch = replace(made_batch(10), rows=np.arange(10), views=np.arange(10))
    part = lane_of(batch, 4, 7)
    assert part.images.storage_offset() == 0 and part.images.is_contiguous(memory_format=torch.channels_last)
    assert part.images.untyped_storage().nbytes() == part.images.numel()
    assert part.rows.tolist() == [4, 5, 6] and torch.equal(part.images, batch.images[4:7])
    assert lane_of(batch, 0, 10) is batch


class Counting(nn.Module):
    """Counts its training steps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return self.head(images.mean((2, 3)))


def test_a_buffer_that_training_changes_is_refused_in_lanes() -> None:
    in_lanes = plan(batch_size=8, spread=4)
    with pytest.raises(ModelError, match="changes its buffer steps") as error:
        check_buffers(Counting(), in_lanes)
    assert "4 lanes" in error.value.given and "spread: 1" in error.value.remedy
    check_buffers(Counting(), plan(batch_size=8))
    check_buffers(Net(), in_lanes)
