"""The finish of a run that first trains only the head: what is compared, what is chosen, and that it can be repeated."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stopping import begin, stop_after
from torch.nn.functional import cross_entropy

from stagewright.api.evaluate import evaluate
from stagewright.api.resume_check import differences
from stagewright.api.run import Run
from stagewright.api.train import resume
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.load_times import LoadTimes
from stagewright.plan.execution import Execution
from stagewright.plan.plan import HEAD_GRID
from stagewright.recipe import recipes
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluating, Event, Finished, Notice
from stagewright.rundir.event_text import sentence
from stagewright.rundir.events import read_events
from stagewright.training import head_comparison
from stagewright.training.batches import Batches
from stagewright.training.head_comparison import mixed
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
HEAD_STEP, LAST_STEP = 6, 18
STAGES = [
    {"name": "head", "epochs": f"{HEAD_STEP}st", "train": "head"},
    {"name": "all", "epochs": f"{LAST_STEP - HEAD_STEP}st", "train": "all"},
]


def begun(folder: Path, pictures: Path, **fields: Any) -> RunDir:
    plain = {
        "model": {"name": "cifar_resnet18", "options": {"width": 4}},
        "image_size": 16,
        "batch_size": 8,
        "data": {"val": 0.3, "test": 0.3},
        "lr": {"schedule": "constant", "peak": 0.02},
        "augment": {"crop": "none", "flip": 0},
        "average": {"kind": "ema", "half_life": "2st"},
        "eval": {"every": "3st", "select": "last"},
        "checkpoints": {"every": "3st", "keep": 1},
        "stages": STAGES,
    }
    return begin(folder, pictures, recipes.from_dict({**plain, **fields}))


def go(run: RunDir, **more: Any) -> Run:
    return resume(run.root, execution=QUIET, say=lambda text: None, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begun(tmp_path_factory.mktemp("finished") / "r", picture_folder)
    assert go(run).finished
    return run


def summary(run: RunDir) -> dict[str, Any]:
    return json.loads(run.summary.read_text())


def weights(run: RunDir) -> bytes:
    return (run.bundle / "weights.safetensors").read_bytes()


def test_all_mixtures_are_compared_and_a_clearly_lower_loss_wins(finished: RunDir) -> None:
    found = summary(finished)
    rows = found["finalists"]
    assert [row["coefficient"] for row in rows] == list(HEAD_GRID)
    kind = rows[-1]["weights"]
    assert [row["weights"] for row in rows[:2]] == ["head", f"0.25 {kind} + 0.75 head"] and kind in ("raw", "ema")
    assert [row["step"] for row in rows] == [HEAD_STEP, *[LAST_STEP] * 4]
    best = next(row for row in rows if row["weights"] == found["chosen"]["weights"])
    assert best["loss"] <= rows[-1]["loss"]
    assert {name: found["chosen"][name] for name in ("weights", "step")} == {
        name: best[name] for name in ("weights", "step")
    }
    assert found["loss"]["val"] >= best["loss"] and found["top1"]["val"] == best["top1"]
    (event,) = (one.event for one in read_events(finished.events) if isinstance(one.event, Finished))
    assert event.chosen.weights == best["weights"] and event.against_head is not None
    assert json.loads((finished.bundle / "model.json").read_text())["training"]["weights"] == best["weights"]
    assert best["weights"] in (finished.bundle / "README.md").read_text()


def test_the_bundle_has_the_weights_that_the_summary_names(finished: RunDir) -> None:
    """Made here from the two checkpoints, as WiSE-FT defines it."""
    found = summary(finished)
    chosen = next(row for row in found["finalists"] if row["weights"] == found["chosen"]["weights"])
    ends = []
    for step in (HEAD_STEP, LAST_STEP):
        tensors = checkpoint.load(finished.checkpoints / checkpoint.name_of(step)).tensors
        ends.append(tensors["model"] if tensors["latest"]["weights"] == "raw" else tensors["average"])
    for name, tensor in Run(finished.root).model.model.state_dict().items():
        if tensor.is_floating_point():
            share = chosen["coefficient"]
            assert torch.allclose(tensor, (1 - share) * ends[0][name] + share * ends[1][name], atol=1e-6), name


def test_the_difference_is_that_of_the_same_pictures(finished: RunDir) -> None:
    found = summary(finished)
    top1 = {row["coefficient"]: row["top1"] for row in found["finalists"]}
    chosen = next(row for row in found["finalists"] if row["weights"] == found["chosen"]["weights"])
    difference = found["against_head"]["val"]
    assert difference["points"] == pytest.approx(chosen["top1"] - top1[0.0])
    assert difference["low"] <= difference["points"] <= difference["high"]
    for split in ("val", "test"):
        table = pq.read_table(finished.evaluations / f"{split}.parquet")
        assert found["against_head"][split]["images"] == len(table)


def test_the_chosen_weights_answer_the_test_images(finished: RunDir) -> None:
    """The head's answers to them come in between; the predictions and the model must be those of the chosen weights."""
    table = pq.read_table(finished.evaluations / "test.parquet").to_pydict()
    right = sum(a == b for a, b in zip(table["label"], table["predicted"], strict=True))
    assert summary(finished)["top1"]["test"] == pytest.approx(100 * right / len(table["label"]))
    assert evaluate(finished.root, split="test").top1 == pytest.approx(summary(finished)["top1"]["test"])


def test_it_can_be_switched_off(picture_folder: Path, tmp_path: Path) -> None:
    slow = {
        **STAGES[0],
        "lr": {"schedule": "constant", "peak": 1e-6},
    }  # so that the head's weights are not the best ones
    evaluation = {"every": "3st", "select": "last"}
    on = begun(tmp_path / "on", picture_folder, stages=[slow, STAGES[1]], eval=evaluation)
    off = begun(tmp_path / "off", picture_folder, stages=[slow, STAGES[1]], eval={**evaluation, "consider_head": False})
    assert go(on).finished and go(off).finished
    found = summary(off)
    assert found["finalists"] == [] and found["against_head"] is None and found["chosen"]["step"] == LAST_STEP
    assert found["chosen"]["weights"] == summary(on)["finalists"][-1]["weights"]
    assert HEAD_STEP in checkpoint.steps(on.checkpoints) and HEAD_STEP not in checkpoint.steps(off.checkpoints)


@pytest.mark.parametrize(
    "fields",
    [
        {"stages": [{"name": "all", "epochs": "6st"}]},
        {"stages": [{"epochs": "3st", "train": "head"}, {"epochs": "3st", "train": "head"}]},
        {"data": {"val": 0.0, "test": 0.3}},
    ],
    ids=["no head", "only the head", "no validation images"],
)
def test_where_there_is_nothing_to_compare(picture_folder: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    run = begun(tmp_path / "r", picture_folder, **fields)
    assert go(run).finished
    assert summary(run)["finalists"] == [] and summary(run)["against_head"] is None


def test_each_later_checkpoint_protects_the_heads(finished: RunDir) -> None:
    assert HEAD_STEP in checkpoint.steps(finished.checkpoints) and len(checkpoint.steps(finished.checkpoints)) <= 3
    meta = json.loads((finished.checkpoints / checkpoint.name_of(LAST_STEP) / "meta.json").read_text())
    assert HEAD_STEP in meta["protect"]


@pytest.mark.parametrize("missing", [True, False])
def test_a_lost_head_is_said_and_left_out(picture_folder: Path, tmp_path: Path, missing: bool) -> None:
    run = begun(tmp_path / "r", picture_folder)

    def lose(session: Session) -> AfterUpdate:
        def after(*_: object) -> None:
            if session.state.step == LAST_STEP:
                state = run.checkpoints / checkpoint.name_of(HEAD_STEP) / checkpoint.STATE
                state.unlink() if missing else state.write_bytes(b"damaged")

        return after

    assert go(run, arm=lose).finished
    found = summary(run)
    assert found["finalists"] == [] and found["chosen"]["step"] == LAST_STEP
    notices = [one.event.text for one in read_events(run.events) if isinstance(one.event, Notice)]
    assert any(f"the head alone (step {HEAD_STEP}) are lost" in text for text in notices)


class _StopInFinish:
    """Asks for a stop, as Ctrl-C does, in the evaluation of a given number after the last one of the training."""

    def __init__(self, run: RunDir, number: int) -> None:
        self.run, self.number, self.begun = run, number, 0

    def see(self, event: Event) -> None:
        last = self.run.checkpoints / checkpoint.name_of(LAST_STEP)
        if isinstance(event, Evaluating) and last.is_dir() and event.done <= 8:  # its first batch
            self.begun += 1
            if self.begun == self.number:
                os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None: ...


@pytest.mark.parametrize("number", [1, 3, 6, 7])
def test_a_stop_in_the_finish_changes_nothing(
    picture_folder: Path, tmp_path: Path, finished: RunDir, number: int
) -> None:
    """While the selected weights, a mixture, the test images, or the head's answers to them are evaluated."""
    run = begun(tmp_path / "r", picture_folder)
    assert not go(run, observers=[_StopInFinish(run, number)]).finished
    assert not run.bundle.exists()
    assert go(run).finished
    assert weights(run) == weights(finished)
    assert summary(run)["finalists"] == summary(finished)["finalists"]
    assert summary(run)["against_head"] == summary(finished)["against_head"]
    assert differences(finished, run) == []


def test_a_run_that_is_stopped_after_each_update(picture_folder: Path, tmp_path: Path, finished: RunDir) -> None:
    run = begun(tmp_path / "r", picture_folder)
    for step in range(1, LAST_STEP + 1):
        if go(run, arm=stop_after(step)).finished:
            break
    assert go(run).finished and weights(run) == weights(finished)
    assert differences(finished, run) == []


def test_a_rollback_to_before_the_heads_end(picture_folder: Path, tmp_path: Path) -> None:
    """Its checkpoint is set aside with the others, and the run saves it again."""
    run = begun(tmp_path / "r", picture_folder, guard={"window": 4}, checkpoints={"every": "2st", "keep": 9})
    broken = False

    def spoil(session: Session) -> AfterUpdate:
        def after(*_: object) -> None:
            nonlocal broken
            if session.state.step == HEAD_STEP + 1 and not broken:
                broken = True
                with torch.no_grad():
                    next(session.state.model.parameters()).fill_(torch.nan)

        return after

    assert go(run, arm=spoil).finished and broken
    assert any(one.event.kind == "rolled_back" for one in read_events(run.events))
    assert HEAD_STEP in checkpoint.steps(run.checkpoints) and len(summary(run)["finalists"]) == len(HEAD_GRID)


def test_the_head_wins_where_more_training_has_done_harm(picture_folder: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "r", picture_folder, average="none")

    def harm(session: Session) -> AfterUpdate:
        def after(*_: object) -> None:
            if session.state.step == LAST_STEP:
                with torch.no_grad():
                    session.state.model.get_submodule("fc").weight.mul_(-20.0)  # pyright: ignore

        return after

    assert go(run, arm=harm).finished
    found = summary(run)
    assert found["chosen"]["weights"] == "head" and found["chosen"]["stage"] == "head"
    assert found["chosen"]["step"] == HEAD_STEP
    none = dict.fromkeys(("points", "low", "high", "gained", "lost"), 0)
    assert {name: found["against_head"]["test"][name] for name in none} == none
    (event,) = (one.event for one in read_events(run.events) if isinstance(one.event, Finished))
    assert "the head alone is chosen" in str(sentence(event))


def test_what_the_heads_stages_select_is_the_head_alone(picture_folder: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "r", picture_folder, stop={"patience": 1, "min_delta": 100.0}, eval={"every": "2st"})
    assert go(run).finished
    assert summary(run)["step"] < HEAD_STEP and summary(run)["finalists"] == []


def test_images_are_read_once_in_the_finish(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: RunDir
) -> None:
    run, read, load = begun(tmp_path / "r", picture_folder), [0], Batches.load

    def counted(batches: Batches, specs: Iterable[BatchSpec], times: LoadTimes | None = None) -> Any:
        specs = list(specs)
        read[0] += sum(len(spec.rows) for spec in specs if batches.state.step == LAST_STEP)
        return load(batches, specs, times)

    monkeypatch.setattr(Batches, "load", counted)
    assert go(run).finished and weights(run) == weights(finished)
    val, test = (len(pq.read_table(run.evaluations / f"{split}.parquet")) for split in ("val", "test"))
    assert read[0] == 2 * val + val + test  # raw and averaged weights at the last step, then the finish


def test_the_ends_of_a_mixture_are_exact() -> None:
    alone = {"w": torch.tensor([0.1, 3.0]), "n": torch.tensor(4)}
    selected = {"w": torch.tensor([0.3, 1e-8]), "n": torch.tensor(9)}
    assert all(torch.equal(mixed(alone, selected, 0.0)[name], alone[name]) for name in alone)
    assert all(torch.equal(mixed(alone, selected, 1.0)[name], selected[name]) for name in alone)
    half = mixed(alone, selected, 0.5)
    assert torch.allclose(half["w"], torch.tensor([0.2, 1.5])) and half["n"] == 9


def test_ties_and_losses_that_are_not_finite() -> None:
    best = head_comparison._best  # pyright: ignore[reportPrivateUsage]
    noise = np.random.default_rng(0).normal(0, 1, 100)
    nan = np.full(100, np.nan)
    same = {0.0: (noise, 50.0), 0.5: (noise, 50.0), 1.0: (noise, 50.0)}
    assert best(same) == 1.0
    lower = (noise - 0.1, 50.0)  # lower on each image
    assert best({**same, 0.0: lower, 0.5: lower}) == 0.5
    assert best({**same, 0.5: (noise - 0.1, 49.0)}) == 1.0  # of fewer right answers
    assert best({**same, 0.0: (noise[::-1] - 0.1, 50.0)}) == 1.0  # lower, but by less than its standard error of 0.14
    assert best({**same, 0.0: (noise[::-1] - 0.2, 50.0)}) == 0.0
    assert best({0.0: (nan, 0.0), 0.5: (noise + 1, 50.0), 1.0: (noise, 50.0)}) == 1.0
    assert best({0.0: (noise, 50.0), 1.0: (nan, 0.0)}) == 1.0


def test_label_smoothing_does_not_decide() -> None:
    """Half as sure logits have another loss, but not another one at the temperature that suits them."""
    sure, labels = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4
    sure[torch.arange(50), labels] += 6
    found = []
    for logits in (sure, sure / 2):
        losses = [
            cross_entropy(logits / one, labels, reduction="none")
            for one in head_comparison._TEMPERATURES  # pyright: ignore
        ]
        found.append(min(one.mean().item() for one in losses))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
