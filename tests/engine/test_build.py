"""Building the state of a plan: the memory format of networks, and that a CPU process reuses the memory that it frees."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from stagewright.engine.build import build_state, check_trained
from stagewright.engine.numerics import numerics_of, takes_channels_last
from stagewright.errors import ModelError
from stagewright.model.zoo import create_model
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.system.device import choose_device
from stagewright.system.machine import disable_malloc_trim

INFO = DatasetInfo(num_train=10, num_val=4, num_test=0, classes=("a", "b"), digest="d")


@pytest.mark.parametrize(
    ("name", "options", "takes"),
    [
        ("cifar_resnet18", {"width": 4}, False),
        ("cifar_resnet18", {"width": 8}, False),
        ("cifar_resnet18", {"width": 16}, True),
        ("torchvision:mobilenet_v2", {}, True),
        ("torchvision:resnet18", {}, True),
    ],
)
def test_networks_that_onednn_would_spoil_stay_contiguous(name: str, options: dict[str, int], takes: bool) -> None:
    assert takes_channels_last(create_model(name, 2, image_size=32, options=options)) is takes


def test_only_strided_pointwise_convolutions_are_meant() -> None:
    assert not takes_channels_last(nn.Sequential(nn.Conv2d(8, 16, 1, stride=2)))
    for harmless in (nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(16, 32, 1, stride=2)):
        assert takes_channels_last(nn.Sequential(harmless))


def test_pictures_come_in_the_layout_of_the_network() -> None:
    for width, last in ((8, False), (16, True)):
        plain = {"model": {"name": "cifar_resnet18", "options": {"width": width}}, "image_size": 32, "epochs": "2st"}
        plan = resolve(recipes.from_dict(plain), INFO)
        state, _ = build_state(plan, choose_device("cpu"))
        assert numerics_of(plan, state.model).channels_last is last
        weight = next(parameter for parameter in state.model.parameters() if parameter.ndim == 4)
        assert weight.permute(0, 2, 3, 1).is_contiguous() is last


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ("cifar_resnet18", ["stagee4.*"], r"stage 'main': train: the pattern 'stagee4.\*' matches no parameter"),
        ("torchvision:resnet18", ["layer4.*", "!layer9"], "'!layer9' matches no parameter"),
        ("torchvision:resnet18", "last:99", "more blocks than the model has"),
        ("torchvision:regnet_y_400mf", ["nothing"], "matches no parameter"),
    ],
)
def test_what_a_stage_trains_is_checked_before_a_plan_is_shown(model: str, train: object, message: str) -> None:
    """Attack a20: a pattern without a parameter was found only when the run began."""
    plain = {"model": {"name": model}, "image_size": 32, "epochs": "2st", "train": train}
    with pytest.raises(ModelError, match=message):
        check_trained(resolve(recipes.from_dict(plain), INFO))
    check_trained(resolve(recipes.from_dict(plain | {"train": "last:1"}), INFO))


@pytest.mark.skipif(sys.platform != "linux" or not disable_malloc_trim(), reason="needs the C library glibc")
def test_memory_that_is_freed_is_used_again() -> None:
    """Large blocks that are freed and allocated again cause page faults only once."""
    code = """
import resource, numpy as np
from stagewright.system.machine import disable_malloc_trim
assert disable_malloc_trim()
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(10_000_000)  # 80 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(faults(20))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000  # 20,000 pages each time, otherwise
