"""What is refused before any image is read: too many processes, and networks that cannot be trained in lanes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stagewright.api.prepare import prepare
from stagewright.errors import DataError, ModelError, RecipeError, WorldError
from stagewright.plan.execution import Execution
from stagewright.preflight.early_lanes import check_compress, check_processes
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest


class Counting(nn.Module):
    """Counts its training steps in a buffer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return self.head(images.mean(dim=(2, 3)))


def counting(num_classes: int) -> nn.Module:
    return Counting(num_classes)


def prepared(tmp_path: Path, processes: int, base: str | Mapping[str, object], *overrides: str) -> None:
    """Prepares a run of pictures that are not there: what is refused later is refused as missing data."""
    recipe = base if isinstance(base, str) else recipes.from_dict(dict(base))
    execution = Execution(device="cpu", processes=processes)
    prepare(tmp_path / "nothing", RecipeRequest(recipe, overrides=overrides), execution, print)


def test_more_processes_than_lanes(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="3 processes, but the plan divides each update into 2 lanes"):
        prepared(tmp_path, 3, {"spread": 2})
    with pytest.raises(WorldError, match="into 2 lanes"):
        prepared(tmp_path, 3, "auto", "spread=2")
    stages = [{"epochs": "1st", "batch_size": 16}, {"epochs": "1st", "batch_size": 8}]
    with pytest.raises(WorldError, match="into 2 lanes"):
        prepared(tmp_path, 3, {"spread": 2, "micro_batch_size": 4, "stages": stages})


def test_as_many_processes_as_lanes(tmp_path: Path) -> None:
    for processes, fields in ((2, {"spread": 2}), (4, {"spread": 2, "batch_size": 16, "micro_batch_size": 4}), (5, {})):
        with pytest.raises(DataError, match="nothing"):
            prepared(tmp_path, processes, fields)


def test_a_spread_above_the_batch(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="spread 5 over batches of 4"):
        prepared(tmp_path, 1, {"spread": 5, "batch_size": 4})
    with pytest.raises(RecipeError, match="spread 5 over batches of 4"):
        prepared(tmp_path, 5, {"batch_size": 4})


@pytest.mark.parametrize("fields", [{"spread": 2}, {"batch_size": 16, "micro_batch_size": 8}])
def test_a_network_whose_buffers_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
) -> None:
    (tmp_path / "own_network.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    own = {"model": {"name": "python:own_network:counting"}}
    with pytest.raises(ModelError, match=r"lanes, but a training step of Counting changes its buffer steps"):
        prepared(tmp_path, 1, {**own, **fields})
    with pytest.raises(DataError, match="nothing"):
        prepared(tmp_path, 1, own)


def test_the_fork_is_named() -> None:
    check_processes(2, 2)
    with pytest.raises(WorldError) as caught:
        check_processes(2, 3)
    assert caught.value.allowed == "1 to 2 processes" and "plan with --spread 3" in caught.value.remedy
    with pytest.raises(WorldError) as caught:
        check_processes(1, 3, Path("runs/a"))
    assert caught.value.given.endswith("into 1 lane")
    assert (
        "start 1, or fork" in caught.value.remedy and "stagewright resume runs/a --set spread=3" in caught.value.remedy
    )


def test_compressed_gradients_in_a_fixed_order(tmp_path: Path) -> None:
    execution = Execution(device="cpu", processes=2, compress=True)
    with pytest.raises(RecipeError, match=r"--compress bf16 where gradients are added in a fixed order \(on a CPU\)"):
        prepare(tmp_path / "nothing", RecipeRequest(recipes.from_dict({"spread": 2})), execution, print)
    with pytest.raises(RecipeError, match=r"\(deterministic: true\)"):
        check_compress(True, Recipe(deterministic=True), torch.device("cuda"))
    check_compress(True, Recipe(), torch.device("cuda"))
    check_compress(False, Recipe(deterministic=True), torch.device("cpu"))
