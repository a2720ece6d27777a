"""Compiled networks: exactly the graphs known from the plan, none run uncompiled, and the same numbers as without compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import stop_after
from torch import Tensor, nn

import stagewright as sw
from stagewright.api.resume_check import differences
from stagewright.data.batches.batch import Batch
from stagewright.engine.build import build_state
from stagewright.engine.compile import Compiled, Graph, known_graphs, pad_batch
from stagewright.engine.evaluate import evaluate
from stagewright.engine.numerics import Numerics
from stagewright.errors import ModelError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.rundir.directory import RunDir

CPU = torch.device("cpu")
QUIET = Execution(device="cpu", workers=0, pages=False, quiet=True, save_minutes=1e9)
INFO = DatasetInfo(num_train=36, num_val=12, num_test=12, classes=("a", "b", "c"), digest="d")
PLAIN = Numerics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "fp32", False)


def silent(text: str) -> None: ...


def three_stages(**changes: Any) -> Recipe:
    """Two sizes; trains the head, then everything, then the last blocks; lanes of 5, 4 and 4; EMA, then SWA.

    The 12 validation pictures come in batches of 5, 5 and 2.
    """
    mix = {"mixup": 0.4, "cutmix": 1.0, "probability": 0.7}
    return recipes.from_dict(
        {
            "seed": 5,
            "model": {"name": "cifar_resnet18", "options": {"width": 4}},
            "compile": True,
            "batch_size": 13,
            "micro_batch_size": 5,
            "lr": {"peak": 0.05},
            "eval": {"every": "2st", "precision": "fp32"},
            "data": {"val": 0.2, "test": 0.2},
            "stages": [
                {"epochs": "4st", "image_size": 16, "train": "head", "mix": mix},
                {"epochs": "4st", "image_size": 24, "mix": mix, "average": {"kind": "ema", "half_life": "2st"}},
                {
                    **{"epochs": "4st", "image_size": 24, "train": "last:2"},
                    "average": {"kind": "swa", "every": "2st", "recalibrate": 12},
                },
            ],
            **changes,
        }
    )


@pytest.fixture
def counters() -> Iterator[dict[str, Any]]:
    """Returns the counters of torch's compiler, reset to 0; reaching the recompile limit is an error."""
    from torch._dynamo import config, reset
    from torch._dynamo.utils import counters

    reset()
    counters.clear()
    with config.patch(
        fail_on_recompile_limit_hit=True,
        recompile_limit=config.recompile_limit,
        accumulated_recompile_limit=config.accumulated_recompile_limit,
    ):
        yield counters
    reset()
    counters.clear()


@pytest.fixture
def uncompiled_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced as usual but run uncompiled (backend "eager"): the number of graphs does not depend on the backend."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, **{**how, "backend": "eager"}))


def go(data: Path, recipe: Recipe, out: Path, **more: Any) -> sw.Run:
    return sw.train(data, recipe, out=out, execution=QUIET, say=silent, **more)


def test_the_graphs_of_a_plan() -> None:
    plan = resolve(three_stages(), INFO)
    training = {
        *{Graph(size, 16, "head") for size in (5, 4)},
        *{Graph(size, 24, train) for size in (5, 4) for train in ("all", "last:2")},
    }
    assert known_graphs(plan) == training | {Graph(5, 16, None), Graph(5, 24, None)}
    whole = resolve(three_stages(micro_batch_size="auto", eval={"image_size": 32}), INFO)
    assert known_graphs(whole) == {
        *(Graph(13, 16, "head"), Graph(13, 24, "all"), Graph(13, 24, "last:2")),
        Graph(12, 32, None),
    }
    few = resolve(three_stages(micro_batch_size="auto"), INFO.model_copy(update={"num_val": 7, "num_test": 0}))
    assert {graph for graph in known_graphs(few) if graph.train is None} == {Graph(7, 16, None), Graph(7, 24, None)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "channels_last", "width"), [("fp32", False, 4), ("bf16", True, 16)], ids=["fp32", "bf16"]
)
@pytest.mark.long
def test_each_graph_is_compiled_once(
    picture_folder: Path,
    tmp_path: Path,
    counters: dict[str, Any],
    uncompiled_graphs: None,
    precision: str,
    channels_last: bool,
    width: int,
) -> None:
    """Training and evaluation, two sizes, three trainable sets, lanes of two sizes, a short last evaluation batch."""
    from torch._dynamo import config

    model = {"name": "cifar_resnet18", "options": {"width": width}}
    recipe = three_stages(precision=precision, channels_last=channels_last, model=model)
    config.recompile_limit = 0  # so that the run has only the graphs that it adds itself
    run = go(picture_folder, recipe, tmp_path / "run")
    assert run.finished
    expected = known_graphs(RunDir(run.path).read_plan())
    assert len(expected) == 8
    assert counters["stats"]["unique_graphs"] == len(expected), "not the number known from the plan"
    assert counters["frames"] == {"total": len(expected), "ok": len(expected)}
    assert not counters["graph_break"]


@pytest.mark.slow
def test_without_a_higher_limit_torch_stops_compiling(
    picture_folder: Path,
    tmp_path: Path,
    counters: dict[str, Any],
    uncompiled_graphs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shows that the higher limit is needed, so that the test above can fail."""
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    monkeypatch.setattr("stagewright.engine.compile.raise_recompile_limit", lambda graphs: None)
    config.recompile_limit = 7
    with pytest.raises(FailOnRecompileLimitHit):
        go(picture_folder, three_stages(), tmp_path / "run")


@pytest.mark.slow
def test_compiled_and_plain_networks_train_the_same(
    picture_folder: Path, tmp_path: Path, uncompiled_graphs: None
) -> None:
    """Graphs that run uncompiled give the numbers of the plain network, also with a short last batch of an evaluation."""
    compiled = go(picture_folder, three_stages(), tmp_path / "compiled")
    plain = go(picture_folder, three_stages(compile=False), tmp_path / "plain")
    for name in ("steps.csv", "metrics.csv"):
        numbers = [np.genfromtxt(run.path / name, delimiter=",", names=True) for run in (compiled, plain)]
        for column in numbers[0].dtype.names or ():
            assert numbers[0][column] == pytest.approx(numbers[1][column], rel=1e-5, nan_ok=True), (name, column)
    assert compiled.summary["top1"] == plain.summary["top1"]


class ByBrightness(nn.Module):
    """Computes logits from each image alone, and records the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.seen: list[tuple[tuple[int, ...], bool]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((tuple(images.shape), self.scale.requires_grad))
        return images.mean(dim=(1, 2, 3))[:, None] * self.scale * torch.tensor([1.0, -1.0, 0.0])


def as_it_is(model: nn.Module, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    monkeypatch.setattr(torch, "compile", lambda model, **how: model)
    monkeypatch.setattr("stagewright.engine.compile.raise_recompile_limit", lambda graphs: None)
    return Compiled(model, plan, CPU)


def test_a_short_last_batch_is_padded_and_padding_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ByBrightness()
    compiled = as_it_is(model, resolve(three_stages(), INFO), monkeypatch)
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (13, 8, 8, 3), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)
    labels = torch.randint(0, 3, (13,), generator=random)
    valid = torch.ones(13, dtype=torch.bool)
    valid[12] = False
    slices = [slice(0, 5), slice(5, 10), slice(10, 13)]
    batches = [Batch(at, pictures[s], labels[s], valid[s], ()) for at, s in enumerate(slices)]
    found = evaluate(model, compiled, batches, PLAIN)
    assert [shape[0] for shape, _ in model.seen] == [5, 5, 5]
    assert not any(needs for _, needs in model.seen) and model.scale.requires_grad, "frozen only during the evaluation"
    plain = evaluate(model, model, batches, PLAIN)
    assert [shape[0] for shape, _ in model.seen[3:]] == [5, 5, 3]
    assert found.numbers() == plain.numbers() and (found.images, found.unreadable) == (12, 1)
    assert np.array_equal(found.predictions.predicted, plain.predictions.predicted)
    compiled(torch.zeros(2, 3, 8, 8))
    assert model.seen[-1] == ((2, 3, 8, 8), True)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_padding_keeps_the_memory_format(layout: torch.memory_format, count: int) -> None:
    whole = torch.randn(5, 3, 8, 8).contiguous(memory_format=layout)
    padded = pad_batch(whole[:count], 5)
    assert padded.shape == whole.shape and padded.stride() == whole.stride()
    assert torch.equal(padded[:count], whole[:count]) and not padded[count:].any()


def test_gradients_leave_the_memory_of_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenedTest as far as possible without CUDA: the first gradients are still correct after their memory was overwritten."""
    model = ByBrightness()
    compiled = as_it_is(model, resolve(three_stages(), INFO), monkeypatch)
    model.scale.grad = torch.ones(3)
    compiled.keep_gradients()
    assert model.scale.grad is not None
    before = model.scale.grad
    compiled.cuda_graphs = True
    compiled.keep_gradients()
    before.fill_(torch.nan)
    assert torch.equal(model.scale.grad, torch.ones(3))
    model.scale.sum().backward()
    assert torch.equal(model.scale.grad, torch.full((3,), 2.0))


def test_cuda_graphs_want_cuda(picture_folder: Path, tmp_path: Path) -> None:
    recipe = three_stages(compile="cudagraphs")
    with pytest.raises(RecipeError, match=r"compile: cudagraphs on cpu[\s\S]*allowed:[\s\S]*--set compile=true"):
        build_state(resolve(recipe, INFO), CPU)
    with pytest.raises(RecipeError):
        go(picture_folder, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_compiled_for_real(picture_folder: Path, tmp_path: Path, counters: dict[str, Any]) -> None:
    """Compiled by inductor, whose random numbers for drop-path differ: same number of graphs, and same bits after a stop."""
    small = {
        "model": {"name": "vit", "options": {"patch": 8, "depth": 2, "heads": 1, "width": 16}, "drop_path": 0.4},
        "optimizer": {"name": "adamw"},
        "lr": {"peak": 0.002},
        "stages": [
            {"epochs": "3st", "image_size": 16, "train": "head"},
            {"epochs": "3st", "image_size": 16, "average": {"kind": "ema", "half_life": "2st"}},
        ],
    }
    recipe = three_stages(**small)
    whole = go(picture_folder, recipe, tmp_path / "whole")
    expected = known_graphs(RunDir(whole.path).read_plan())
    assert len(expected) == 5 and counters["stats"]["unique_graphs"] == 5

    plan, manifest = RunDir(whole.path).read_plan(), RunDir(whole.path).manifest
    broken = RunDir.create(tmp_path / "broken")
    broken.manifest.write_bytes(manifest.read_bytes())
    for name in ("recipe", "env", "plan"):
        getattr(broken, name).write_bytes(getattr(RunDir(whole.path), name).read_bytes())
    assert not sw.resume(broken.root, execution=QUIET, say=silent, arm=stop_after(4)).finished
    assert sw.resume(broken.root, execution=QUIET, say=silent).finished
    assert RunDir(broken.root).read_plan() == plan
    assert differences(RunDir(whole.path), broken) == []


@pytest.mark.slow
def test_a_machine_that_cannot_compile_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, picture_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    with pytest.raises(ModelError, match=r"could not compile[\s\S]*--set compile=false"):
        go(picture_folder, three_stages(), tmp_path / "run")


def test_errors_of_the_network_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("the network's own")

    compiled = as_it_is(Broken(), resolve(three_stages(), INFO), monkeypatch)
    with pytest.raises(RuntimeError, match="the network's own"):
        compiled(torch.zeros(1, 3, 8, 8))


MALLOC_DEBUG = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")


@pytest.mark.long
@pytest.mark.skipif(not MALLOC_DEBUG.exists(), reason="needs glibc's checks of the heap, on x86_64")
def test_compiled_networks_with_few_channels_write_nothing_beyond_their_memory() -> None:
    """The layout that torch chooses by itself makes oneDNN write past its workspace (see takes_channels_last)."""
    code = (
        "import torch; from stagewright.engine.compile import Compiled; from stagewright.model.zoo import create_model\n"
        "from stagewright.plan.plan import DatasetInfo; from stagewright.plan.resolve import resolve\n"
        "from stagewright.recipe.recipe import Recipe\n"
        "info = DatasetInfo(num_train=36, num_val=12, num_test=12, classes=('a', 'b'), digest='d')\n"
        "recipe = Recipe.model_validate({'compile': True, 'batch_size': 6, 'image_size': 16})\n"
        "model = create_model('cifar_resnet18', 4, image_size=16, options={'width': 4})\n"
        "network = Compiled(model, resolve(recipe, info), torch.device('cpu'))\n"
        "for _ in range(30): network(torch.randn(6, 3, 16, 16)).square().mean().backward()\n"
    )
    checks = {"LD_PRELOAD": str(MALLOC_DEBUG), "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, **checks}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
