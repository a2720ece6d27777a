"""Not a number is never an answer: no field takes one, no score is made of one, no model with one is written or loaded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import nn

import stagewright as sw
from stagewright.bundle.bundle import load_bundle, save_bundle
from stagewright.data.batches.batch import Batch
from stagewright.engine.evaluate import evaluate
from stagewright.engine.numerics import Numerics
from stagewright.engine.state import EarlyStopping
from stagewright.errors import BundleError, NotFinite, RecipeError
from stagewright.plan.plan import Plan
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe, Stop
from stagewright.training.early_stopping import update_early_stopping
from stagewright.training.evaluator import verdict


def models(kind: Any, seen: set[type]) -> Iterator[type[BaseModel]]:
    """Every pydantic model that the annotation ``kind`` reaches."""
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
        seen.add(kind)
        yield kind
        for field in kind.model_fields.values():
            yield from models(field.annotation, seen)
    for part in get_args(kind):
        yield from models(part, seen)


@pytest.mark.parametrize("root", [Recipe, Plan])
def test_no_part_of_recipe_or_plan_takes_numbers_that_are_not_finite(root: type[BaseModel]) -> None:
    """A new part or field cannot forget it: it is said once, in the base that all share."""
    found = list(models(root, set()))
    assert len(found) >= 4
    assert [one.__name__ for one in found if one.model_config.get("allow_inf_nan") is not False] == []


FLOATS = [
    *("lr.peak", "optimizer.weight_decay", "optimizer.momentum", "optimizer.clip_norm", "mix.mixup", "mix.cutmix"),
    *(
        "label_smoothing",
        "data.val",
        "data.max_unreadable",
        "stop.min_delta",
        "guard.spike",
        "guard.lr_factor",
        "eval.crop",
    ),
    *("augment.flip", "augment.brightness", "model.drop_path", "data_fraction", "stages.0.lr_scale"),
]


@pytest.mark.parametrize("field", FLOATS)
@pytest.mark.parametrize("number", ["inf", "-.inf", ".nan", "1e400"])
def test_the_field_is_named(field: str, number: str) -> None:
    with pytest.raises(RecipeError, match=field.split(".")[-1]):
        recipes.load("quick", [f"{field}={number}"])


NESTED = ["mean=[.nan, 0, 0]", "std=[.inf, 1, 1]", "epochs=1e400ep", "epochs=nanep", "class_weights={a: .inf}"]


@pytest.mark.parametrize("override", NESTED)
def test_numbers_within_lists_texts_and_mappings(override: str) -> None:
    with pytest.raises(RecipeError):
        recipes.load("quick", [override])


@pytest.mark.parametrize("name", ["save_minutes", "probe_seconds"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, 0.0])
def test_numbers_of_the_execution(name: str, number: float) -> None:
    with pytest.raises(RecipeError, match=r"a number above 0"):
        sw.Execution(**{name: number})  # pyright: ignore[reportArgumentType]


class Answers(nn.Module):
    """Answers picture i with row i of ``logits``."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.detach()


def batch(valid: list[bool]) -> Batch:
    count = len(valid)
    images = torch.zeros(count, 3, 4, 4, dtype=torch.uint8)
    return Batch(
        0, images, torch.zeros(count, dtype=torch.int64), torch.tensor(valid), (), rows=np.arange(10, 10 + count)
    )


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_finite_is_no_class(number: float) -> None:
    """NaN has its maximum at place 0, so it was class 0, and right where that was the label (situation 073)."""
    model, numerics = (
        Answers([[1.0, 0.0], [0.0, number], [2.0, 1.0]]),
        Numerics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "fp32", False),
    )
    with pytest.raises(NotFinite, match="outputs for 1 of 3 pictures are not finite") as error:
        evaluate(model, model, [batch([True, True, True])], numerics)
    assert error.value.rows == [11]
    result = evaluate(model, model, [batch([True, False, True])], numerics)
    assert result.top1 == 100.0 and result.unreadable == 1 and math.isfinite(result.loss)


def test_a_score_that_is_not_finite_is_neither_chosen_nor_an_improvement() -> None:
    """As of an evaluation none of whose pictures can be read, where the recipe lets that pass."""
    model, numerics = Answers([[1.0, 0.0], [0.0, 1.0]]), Numerics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "fp32", False)
    nothing, wrong = (evaluate(model, model, [batch([valid] * 2)], numerics) for valid in (False, True))
    wrong = replace(wrong, top1=0.0)
    assert not math.isfinite(nothing.loss)
    for results in ({"raw": wrong, "ema": nothing}, {"raw": nothing, "ema": wrong}):
        assert results[verdict(3, results).weights] is wrong
    for metric in ("val_top1", "val_loss", None):
        stop = Recipe(stop=Stop(patience=2, metric=metric))
        assert update_early_stopping(stop, EarlyStopping(), nothing, nothing.top1) == EarlyStopping(None, 1)
        first = update_early_stopping(stop, EarlyStopping(None, 1), wrong, wrong.top1)
        assert first.best is not None
        assert update_early_stopping(stop, first, nothing, nothing.top1) == EarlyStopping(first.best, 1)


@pytest.fixture(scope="module")
def finished(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> sw.Run:
    small = ["model.name=cifar_resnet18", "model.options={width: 4}", "image_size=8", "batch_size=8", "epochs=4st"]
    out = tmp_path_factory.mktemp("finite") / "run"
    quiet = sw.Execution(quiet=True, pages=False)
    return sw.train(picture_folder, "quick", overrides=small, out=out, execution=quiet, say=lambda text: None)


def test_weights_that_are_not_finite_are_neither_written_nor_loaded(finished: sw.Run, tmp_path: Path) -> None:
    bundle = finished.model
    with torch.no_grad():
        next(bundle.model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(BundleError, match=r"contain infinity or NaN, e\.g\. "):
        save_bundle(tmp_path / "model", bundle.model, bundle.spec, [])
    folder = Path(shutil.copytree(finished.path / "model", tmp_path / "spoilt"))
    tensors = load_file(folder / "weights.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = torch.inf
    save_file(tensors, folder / "weights.safetensors")
    content = json.loads((folder / "model.json").read_text())
    content["files"]["weights.safetensors"] = sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(content))
    for verify in (True, False):
        with pytest.raises(BundleError, match=name):
            load_bundle(folder, verify=verify)


def test_answers_that_are_not_finite_are_neither_written_nor_loaded(finished: sw.Run, tmp_path: Path) -> None:
    """Every weight is finite, and what comes out of them is not: NaN as recorded is no proof that a model answers as it did."""
    bundle = load_bundle(finished.path)
    with torch.no_grad():
        list(bundle.model.parameters())[-1].fill_(3e38)
        list(bundle.model.parameters())[-2].fill_(3e38)
    picture = (finished.path / "model" / "golden").iterdir().__next__()
    with pytest.raises(BundleError, match=r"contain infinity or NaN, e\.g\. the logits of golden/00"):
        save_bundle(tmp_path / "model", bundle.model, bundle.spec, [(picture.read_bytes(), picture.suffix)])
    assert not (tmp_path / "model").exists()
    for number in (torch.nan, torch.inf):
        folder = Path(shutil.copytree(finished.path / "model", tmp_path / f"spoilt{number}"))
        content = json.loads((folder / "model.json").read_text())
        golden = load_file(folder / "golden.safetensors")
        golden["logits"].fill_(number)
        save_file(golden, folder / "golden.safetensors", metadata={"classes": json.dumps(content["classes"])})
        content["files"]["golden.safetensors"] = sha256((folder / "golden.safetensors").read_bytes()).hexdigest()
        (folder / "model.json").write_text(json.dumps(content))
        with pytest.raises(BundleError, match="output has changed"):
            load_bundle(folder)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_predict_gives_an_error_in_place_of_a_class(finished: sw.Run, picture_folder: Path, number: float) -> None:
    bundle = load_bundle(finished.path)
    bundle.model.register_forward_hook(lambda module, given, out: out.index_fill(1, torch.tensor([1]), number))
    for prediction in bundle.predict(picture_folder / "down", topk=1):
        assert prediction.classes == () and prediction.error == "the network's output is not finite"
