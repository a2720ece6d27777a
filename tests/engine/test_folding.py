"""What of a run's network is folded in its evaluations: a function of plan and network."""

from __future__ import annotations

from typing import Any

import pytest

from stagewright.engine.build import build_state
from stagewright.engine.folding import folds_evaluations, network_pairs
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.system.device import choose_device

INFO = DatasetInfo(num_train=10, num_val=4, num_test=0, classes=("a", "b"), digest="d")


@pytest.mark.parametrize(
    ("model", "more", "pairs"),
    [
        ("cifar_resnet18", {}, 20),
        ("cifar_resnet18", {"eval": {"fold": False}}, 0),
        ("cifar_resnet18", {"compile": True}, 0),
        ("vit", {}, 0),
    ],
)
def test_what_is_folded(model: str, more: dict[str, Any], pairs: int) -> None:
    options = {"width": 4} if model != "vit" else {"patch": 8, "depth": 1, "heads": 1, "width": 8}
    plain = {"model": {"name": model, "options": options}, "image_size": 16, "epochs": "2st", **more}
    plan = resolve(recipes.from_dict(plain), INFO)
    state, _ = build_state(plan, choose_device("cpu"))
    assert len(network_pairs(plan, state) if folds_evaluations(plan, state) else {}) == pairs


def test_folding_is_part_of_the_plan() -> None:
    plain: dict[str, Any] = {"model": {"name": "cifar_resnet18"}, "image_size": 16, "epochs": "2st"}
    plans = [resolve(recipes.from_dict({**plain, "eval": {"fold": fold}}), INFO) for fold in (True, False)]
    assert plans[0].digest != plans[1].digest
