"""weights.json of real runs: what it says is what was loaded; it is written before the first update and not changed later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import crash_after, stop_after
from torchvision.models import mobilenet_v3_small

import stagewright as sw
from stagewright.api.diff import diff
from stagewright.bundle.bundle import load_bundle
from stagewright.engine.build import build_state
from stagewright.engine.initial_weights import InitialWeights
from stagewright.model.zoo import create_model
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.report.write import write
from stagewright.rundir.directory import RunDir
from stagewright.rundir.initial_weights import read_weights, weights_sentence
from stagewright.system.device import choose_device

QUIET = sw.Execution(device="cpu", workers=0, pages=False, quiet=True)
SMALL = (
    *("model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=2ep", "data.val=0.2", "data.test=0.2"),
    "checkpoints.every=4st",
)


def silent(text: str) -> None: ...


def small(data: Path, out: Path, *overrides: str, **more: Any) -> sw.Run:
    return sw.train(data, "quick", overrides=[*SMALL, *overrides], out=out, execution=QUIET, say=silent, **more)


def said(run: Path) -> str:
    found = read_weights(RunDir(run))
    assert found is not None
    return weights_sentence(found)


def built(tmp_path: Path, model: dict[str, Any], size: int, **fields: Any) -> InitialWeights:
    info = DatasetInfo(num_train=40, num_val=4, num_test=0, classes=("ant", "bee", "cat"), digest="d")
    plain = {"model": model, "image_size": size, "batch_size": 4, "epochs": "2st", **fields}
    _, facts = build_state(resolve(recipes.from_dict(plain), info), choose_device("cpu"))
    assert facts is not None
    run = RunDir(tmp_path)
    run.weights.write_text(json.dumps(facts.to_dict()))
    assert read_weights(run) is not None, "what is written passes the schema"
    return facts


def test_random_weights_and_where_it_is_said(small_run: Path, tmp_path: Path) -> None:
    content = json.loads((small_run / "weights.json").read_text())
    plan = json.loads((small_run / "plan.json").read_text())
    parameters = json.loads((small_run / "summary.json").read_text())["parameters"]
    assert content["origin"] == {"kind": "random"} and content["parameters"] == {"loaded": 0, "all": parameters}
    assert content["tensors"]["loaded"] == 0 and content["fresh"] == []
    assert [stage["parameters"] for stage in content["stages"]] == [parameters] * len(plan["stages"])
    sentence = f"random weights; all {plan['total_steps']} steps"
    assert said(small_run) == sentence
    assert f"| trained from | {sentence} |" in (small_run / "model" / "README.md").read_text()
    assert load_bundle(small_run).spec.training["trained_from"] == sentence
    copy = shutil.copytree(small_run, tmp_path / "run")
    assert f"<p>R{sentence[1:]}.</p>" in write(copy).read_text()
    (copy / "weights.json").unlink()
    assert "andom weights" not in write(copy).read_text()
    assert diff(small_run, copy).weights == () and diff(small_run, copy).unknown == ("initial weights",)


def test_a_kill_writes_it_again_and_a_resume_does_not(picture_folder: Path, tmp_path: Path) -> None:
    run = small(picture_folder, tmp_path / "whole").path
    begun = tmp_path / "begun"
    shutil.copytree(run, begun, ignore=lambda *_: ["checkpoints", "model", "evaluations", "events.jsonl", ".lock"])
    for name in ("weights.json", "steps.csv", "metrics.csv", "timing.csv", "summary.json", "log.txt"):
        (begun / name).unlink()
    with pytest.raises(RuntimeError, match="power cut"):
        sw.resume(begun, execution=QUIET, say=silent, arm=crash_after(2))
    written = (begun / "weights.json").read_bytes()
    assert written == (run / "weights.json").read_bytes()
    (begun / "weights.json").unlink()
    sw.resume(begun, execution=QUIET, say=silent, arm=stop_after(5))
    assert (begun / "weights.json").read_bytes() == written, "there was no checkpoint: it began again"
    marked = written.replace(b'"random"', b'"random" ')
    (begun / "weights.json").write_bytes(marked)
    assert sw.resume(begun, execution=QUIET, say=silent).finished
    assert (begun / "weights.json").read_bytes() == marked


def test_weights_of_a_run_and_of_a_fork(picture_folder: Path, small_run: Path, tmp_path: Path) -> None:
    summary = json.loads((small_run / "summary.json").read_text())
    chosen = summary["chosen"]
    tuned = small(picture_folder, tmp_path / "tuned", weights=small_run).path
    content = json.loads((tuned / "weights.json").read_text())
    assert content["origin"]["run"] == {
        "folder": str(small_run),
        "plan_digest": summary["plan_digest"],
        **{name: chosen[name] for name in ("step", "weights")},
    }
    assert content["head"] == "loaded" and content["head_rows"] == 3 and content["tensors"]["fresh"] == 0
    assert content["parameters"]["loaded"] == content["parameters"]["all"] == summary["parameters"]
    assert said(tuned).startswith(f"{chosen['weights']} weights of the run run at step {chosen['step']} (plan ")
    fields = {one.name: (one.one, one.other) for one in diff(small_run, tuned).weights}
    assert fields["origin"] == ("random weights", said(tuned).partition(";")[0])
    fork = sw.resume(tuned, overrides=["epochs=1ep"], execution=QUIET, say=silent).path
    content = json.loads((fork / "weights.json").read_text())
    last = json.loads((tuned / "summary.json").read_text())
    assert content["origin"]["kind"] == "run" and content["origin"]["run"] == {
        "folder": str(tuned),
        "plan_digest": last["plan_digest"],
        "step": last["step"],
        "weights": "raw",
    }


def test_a_file_with_another_head_and_other_positions(tmp_path: Path) -> None:
    """Four of the five facts of the account at once: loaded, resampled, fresh, skipped."""
    options = {"patch": 4, "depth": 2, "heads": 1, "width": 8}
    source = create_model("vit", 5, image_size=32, options=options)
    state = dict(source.state_dict())
    state["extra"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pth")
    facts = built(tmp_path, {"name": "vit", "options": options, "weights": str(tmp_path / "w.pth")}, 16)
    content = facts.to_dict()
    assert content["tensors"] == {
        "loaded": len(source.state_dict()) - 3,
        "resampled": 1,
        "fresh": 2,
        "fresh_in_head": 2,
        "skipped": 3,
    }
    assert content["resampled"] == [{"name": "pos_embed", "before": 65, "now": 17}]
    assert content["fresh"] == ["head.weight", "head.bias"] and content["head"] == "fresh"
    assert {one["name"] for one in content["skipped"]} == {"head.weight", "head.bias", "extra"}
    assert content["skipped"][-1]["reason"] == "not in the model"
    assert content["parameters"]["all"] - content["parameters"]["loaded"] == 3 * 8 + 3
    assert len(content["origin"]["sha256"]) == 64 and "run" not in content["origin"]
    lines = "\n".join(facts.lines())
    assert "positions resampled" in lines and "the head has 5 classes in the source, 3 here" in lines


def test_weights_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced by a network with random weights; everything else is real."""
    theirs = mobilenet_v3_small(weights=None)
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_a, **_k: theirs.state_dict())
    stages = [{"name": "a", "epochs": "6st", "train": "head"}, {"name": "b", "epochs": "12st", "train": "last:2"}]
    facts = built(tmp_path, {"name": "mobilenet_v3_small", "weights": "default"}, 64, stages=stages)
    content = facts.to_dict()
    assert content["origin"] == {
        **{"kind": "library", "library": "torchvision", "name": "mobilenet_v3_small.IMAGENET1K_V1"},
        "trained_on": "ImageNet",
    }
    assert content["tensors"]["fresh"] == content["tensors"]["skipped"] == 2
    assert content["stages"][0]["parameters"] == 3 * 1024 + 3 < content["stages"][1]["parameters"]
    assert said(tmp_path) == (
        "ImageNet weights mobilenet_v3_small.IMAGENET1K_V1; head fresh; head 6 steps, then head and last 2 blocks 12"
    )


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    state = dict(create_model("cifar_resnet18", 3, image_size=32, options={"width": 4}).state_dict())
    state |= {f"other.{at}": torch.zeros(1) for at in range(120)}
    torch.save(state, tmp_path / "w.pth")
    model = {"name": "cifar_resnet18", "options": {"width": 4}, "weights": str(tmp_path / "w.pth")}
    content = built(tmp_path, model, 32).to_dict()
    assert content["tensors"]["skipped"] == 120 and len(content["skipped"]) == 50
    assert content["head"] == "loaded" and content["tensors"]["fresh"] == 0
