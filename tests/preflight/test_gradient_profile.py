"""The parts of an update: which gradients come, in which order, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stagewright.preflight.gradient_profile import gradient_profile

CPU = torch.device("cpu")


@pytest.mark.parametrize("lanes", [1, 3])
def test_gradients_come_from_the_last_layer_to_the_first(lanes: int) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 2))
    model[3].requires_grad_(False)
    updates = 0

    def update() -> None:
        nonlocal updates
        updates += 1
        for _ in range(lanes):
            model(torch.ones(6, 4)).sum().backward()
        model.zero_grad()

    found = gradient_profile(update, model, lanes, CPU)
    assert found is not None and updates == 12
    assert sorted(size for _, size in found.arrivals) == sorted(4 * n for n in (4 * 64, 64, 64, 64, 8 * 2, 2))
    assert {size for _, size in found.arrivals[:2]} == {4 * 8 * 2, 4 * 2} and found.bytes == 4 * (4 * 64 + 3 * 64 + 18)
    assert found.arrivals[-1][1] in (4 * 4 * 64, 4 * 64)  # those of the first layer, in either order
    assert [at for at, _ in found.arrivals] == sorted(at for at, _ in found.arrivals)
    assert (
        min(
            found.lane_seconds,
            found.update_seconds - lanes * found.lane_seconds,
            found.copy_seconds,
            found.send_seconds,
            found.noise_seconds,
        )
        > 0
    )
    assert found.statistics_bytes == 4 * 2 * 64
    assert not any(one._post_accumulate_grad_hooks for one in model.parameters())


def test_an_update_without_gradients() -> None:
    assert gradient_profile(lambda: None, nn.Linear(2, 2), 1, CPU) is None
