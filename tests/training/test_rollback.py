"""A run recovers from injected faults, and in the same way, bit for bit, if it is stopped after every step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from picture_folders import write_stripes
from PIL import Image
from stopping import begin, stop_after
from torch import Tensor, nn

from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.data.batches.batch import Batch, masked
from stagewright.errors import Diverged, ModelError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import StagePlan
from stagewright.recipe import recipes
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import EndedEarly, Evaluated, Event, Finished, RolledBack, Suspected
from stagewright.rundir.events import live_events, read_events
from stagewright.training.evaluator import Evaluator
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
Arm = Callable[[Session], AfterUpdate | None]
Make = Callable[..., RunDir]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of stripes, and one white image among the training images."""
    folder = tmp_path_factory.mktemp("recovery")
    write_stripes(folder)
    Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).save(folder / "train" / "down" / "white.png")
    return folder


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Make:
    def made(**fields: Any) -> RunDir:
        plain = {
            "model": {"name": "cifar_resnet18", "options": {"width": 4}},
            "image_size": 16,
            "batch_size": 8,
            "epochs": "24st",
            "lr": {"schedule": "constant", "peak": 0.02},
            "augment": {"crop": "pad"},
            "average": {"kind": "ema", "half_life": "4st"},
            "eval": {"every": "6st"},
            "checkpoints": {"every": "9st", "keep": 1},
            "guard": {"window": 4, "lr_factor_windows": 2},
        }
        return begin(tmp_path_factory.mktemp("run") / "r", pictures, recipes.from_dict({**plain, **fields}))

    return made


def go(run: RunDir, *arms: Arm) -> bool:
    def arm(session: Session) -> AfterUpdate:
        hooks = [hook for one in arms if (hook := one(session)) is not None]

        def after_update(stage: StagePlan, batch: Batch) -> None:
            for hook in hooks:
                hook(stage, batch)

        return after_update

    return resume(run.root, execution=QUIET, say=lambda text: None, arm=arm).finished


def stopped_everywhere(run: RunDir, *arms: Arm, most: int = 200) -> None:
    """Resumes the run again and again, each time for one update, until it finishes."""
    for _ in range(most):
        before = last_step(run)
        if go(run, *arms, stop_after(before + 1)):
            return
    raise AssertionError("it never finished")


def last_step(run: RunDir) -> int:
    path = checkpoint.pointed(run.checkpoints, "last")
    return int(path.name.removeprefix("step_")) if path else 0


E = TypeVar("E", bound=Event)


def events(run: RunDir, kind: type[E]) -> list[E]:
    return [event for event in live_events(run.events) if isinstance(event, kind)]


def finite(run: RunDir) -> bool:
    rows = run.steps.read_text().splitlines()[1:]
    losses = [float(row.split(",")[5]) for row in rows]
    return sum(not np.isfinite(loss) for loss in losses) == 0


def poison(session: Session) -> None:
    """The white image makes the network's output infinite."""

    def spoil(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        white = (given[0] > 2.2).all(dim=1).float().mean(dim=(1, 2)) > 0.5
        return (torch.where(white[:, None, None, None], torch.full_like(given[0], torch.inf), given[0]),)

    session.state.model.register_forward_pre_hook(spoil)


def test_a_poisoned_picture_is_named_and_left_out(make: Make) -> None:
    run = make()
    assert go(run, poison)
    (suspect,) = events(run, Suspected)
    assert suspect.guilty and suspect.paths == ("train/down/white.png",)
    assert "left out from now on" in suspect.verdict
    (back,) = events(run, RolledBack)
    assert back.fault == "not finite" and back.step <= back.at - 1 < back.found
    assert finite(run)
    assert json.loads(run.summary.read_text())["guard"]["masked"] == ["train/down/white.png"]


def test_a_picture_that_is_left_out_is_left_out_of_everything(make: Make) -> None:
    """Batch-norm statistics are also estimated from training images, and features of a frozen body are computed for all."""
    assert go(run := make(average={"kind": "swa", "every": "2st"}), poison)
    assert len(events(run, RolledBack)) == 1 and len(events(run, Suspected)) == 1
    assert all(math.isfinite(one.results["swa"].loss) for one in events(run, Evaluated))
    assert json.loads(run.summary.read_text())["guard"]["masked"] == ["train/down/white.png"]
    batch = Batch(0, torch.full((2, 4), torch.inf), torch.zeros(2).long(), torch.ones(2).bool(), (), rows=np.arange(2))
    out = masked(batch, [1])
    assert out.images.tolist() == [[math.inf] * 4, [0.0] * 4] and out.valid.tolist() == [True, False]


def test_stopped_after_every_step_it_recovers_alike(make: Make) -> None:
    unbroken, run = make(), make()
    assert go(unbroken, poison)
    stopped_everywhere(run, poison)
    assert differences(unbroken, run) == []


def test_weights_that_turn_into_nothing_are_brought_back(make: Make) -> None:
    run = make()
    spoilt: list[int] = []

    def spoil(session: Session) -> AfterUpdate:
        def spoil_once(stage: StagePlan, batch: Batch) -> None:
            if session.state.step == 13 and not spoilt:
                spoilt.append(batch.step)
                with torch.no_grad():
                    next(session.state.model.parameters()).fill_(torch.nan)

        return spoil_once

    assert go(run, spoil)
    (back,) = events(run, RolledBack)
    assert (back.step, back.at) == (12, 14)
    (suspect,) = events(run, Suspected)
    assert not suspect.guilty and len(suspect.paths) == 8 and "no single picture causes it" in suspect.verdict
    rows = [row.split(",") for row in run.steps.read_text().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(range(1, 25))
    assert [float(row[3]) for row in rows[12:20]] == pytest.approx([0.004] * 8)  # times 0.2 for two windows
    assert [int(row[0]) for row in rows if not np.isfinite(float(row[5]))] == [
        13,
        14,
    ]  # update 13 may have corrupted the weights
    assert events(run, Finished)


EXPLODING: dict[str, Any] = {
    "stages": [
        {"name": "calm", "epochs": "8st"},
        {"name": "wild", "epochs": "16st", "lr": {"schedule": "constant", "peak": 40.0}},
    ],
    "guard": {"window": 4, "lr_factor": 0.01, "lr_factor_windows": 4},
    "average": "none",
}


def test_an_exploding_learning_rate_is_eased(make: Make) -> None:
    unbroken, run = make(**EXPLODING), make(**EXPLODING)
    assert go(unbroken)
    backs = [one for one in read_events(unbroken.events) if isinstance(one.event, RolledBack)]
    assert 1 <= len(backs) <= 5
    lines = unbroken.steps.read_text().splitlines()[1:]
    assert [float(line.split(",")[3]) for line in lines][-1] < 40.0
    stopped_everywhere(run)
    assert differences(unbroken, run) == []


@pytest.mark.parametrize("spoilt_after", [4, 5, 6, 8])
def test_an_update_that_spoils_the_weights_is_gone_back_behind(make: Make, spoilt_after: int) -> None:
    """The loss of the last update is finite. At the end of a window (4, 8), the snapshot would be spoilt too; after step 6, the
    evaluation detects it, and must not become a score (situation 073). The second time, the lower learning rate avoids it."""

    def spoil(session: Session) -> None:
        def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            if session.state.step == spoilt_after - 1 and session.state.guard.lr_factor(spoilt_after - 1) == 1.0:
                with torch.no_grad():
                    next(session.state.model.parameters()).fill_(torch.nan)

        session.state.optimizer.register_step_post_hook(after)

    unbroken, run = make(), make()
    assert go(unbroken, spoil)
    (back,) = events(unbroken, RolledBack)
    assert back.step < spoilt_after and back.fault == "not finite"
    assert (spoilt_after == 6) == ("after it, no output of the network is finite" in back.reason)
    scores = [result for event in events(unbroken, Evaluated) for result in event.results.values()]
    assert scores and all(math.isfinite(result.loss) for result in scores)
    stopped_everywhere(run, spoil)
    assert differences(unbroken, run) == []


def spoil_after(step: int, *, eased: bool = True) -> Arm:
    """Makes the update that ends at ``step`` set the weights to NaN although its loss is finite.

    After the guard has reduced the learning rate, it does so only if ``eased``.
    """

    def arm(session: Session) -> None:
        def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            done = session.state.step
            if done + 1 == step and (eased or session.state.guard.lr_factor(done) == 1.0):
                with torch.no_grad():
                    list(session.state.model.parameters())[-1].fill_(
                        torch.nan
                    )  # a parameter of the head, which trains in every stage

        session.state.optimizer.register_step_post_hook(after)

    return arm


def test_an_update_that_always_spoils_the_weights_is_left_out(make: Make) -> None:
    """It would happen again with a lower learning rate: the update itself is left out, not only the one whose loss showed it."""
    unbroken, run = make(epochs="13st"), make(epochs="13st")
    assert go(unbroken, spoil_after(8))
    assert len(events(unbroken, RolledBack)) == 1
    assert json.loads(unbroken.summary.read_text())["guard"]["left_out_steps"] == [8, 9]
    stopped_everywhere(run, spoil_after(8))
    assert differences(unbroken, run) == []


def test_a_run_that_gives_up_leaves_no_checkpoint_of_spoilt_weights(make: Make) -> None:
    """Step 9 is saved, but not evaluated: the error message would suggest to fork from its checkpoint."""
    run = make(guard="none")
    with pytest.raises(Diverged, match=r"step 10 .*loss nan"):
        go(run, spoil_after(9))
    assert checkpoint.steps(run.checkpoints)
    for step in checkpoint.steps(run.checkpoints):
        tensors = checkpoint.load(run.checkpoints / checkpoint.name_of(step)).tensors["model"]
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    with pytest.raises(Diverged):
        go(run, spoil_after(9))
    assert go(run)  # this run is not disturbed


def test_pictures_of_another_stage_are_looked_at(make: Make) -> None:
    """The first update of a stage spoils the weights, so that the run goes back to the stage before. The images are checked
    there, although one of the two stages trains on features."""
    head = {"train": "head", "augment": {"crop": "none", "flip": 0.0}, "mix": "none", "average": "none"}
    features, pictures = {"epochs": "7st", **head}, {"epochs": "7st", "data_fraction": 0.5}
    for stages in ([pictures, features], [features, pictures]):
        run = make(stages=stages, eval={"every": "14st"}, checkpoints={"every": "14st"})
        assert go(run, spoil_after(8))
        (suspect,) = events(run, Suspected)
        assert (suspect.step, suspect.update, suspect.guilty) == (4, 9, False) and len(suspect.rows) == 8


def test_a_kill_before_the_state_gone_back_to_is_saved_leaves_a_checkpoint(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only checkpoint is of an abandoned step: it is removed only after the new one was written."""

    class Killed(BaseException): ...

    unbroken, run = make(), make()
    assert go(unbroken, spoil_after(10, eased=False))
    write = checkpoint._write  # pyright: ignore[reportPrivateUsage]

    def killed(folder: Path, step: int, *rest: Any) -> Path:
        if step == 8:
            raise Killed
        return write(folder, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "_write", killed)
        patch.setattr(Evaluator, "evaluate", lambda evaluator: None)  # so that step 9 is saved first
        go(run, spoil_after(10, eased=False))
    assert go(run, spoil_after(10, eased=False))
    assert differences(unbroken, run) == []


def test_it_gives_up_in_the_end_and_says_what_to_do(make: Make) -> None:
    hopeless = {**EXPLODING, "guard": {"window": 4, "lr_factor": 0.9, "rollbacks": 2}}
    run = make(**hopeless)
    with pytest.raises(Diverged, match=r"after going back 2 times(.|\n)*lr\.peak"):
        go(run)
    assert json.loads(run.summary.read_text())["status"] == "failed"
    for path in run.checkpoints.glob("step_*"):  # the checkpoint on the disk is sound
        tensors = checkpoint.load(path).tensors["model"]
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    with pytest.raises(Diverged, match=r"training diverges: step"):
        go(make(lr={"schedule": "constant", "peak": 1e30}, guard="none"))


def test_memory_that_runs_out_makes_micro_batches(make: Make) -> None:
    def starve(session: Session) -> None:
        def refuse(module: nn.Module, given: tuple[Tensor]) -> None:
            if len(given[0]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

        session.state.model.register_forward_pre_hook(refuse)

    unbroken, run = make(), make()
    assert go(unbroken, starve)
    backs = events(unbroken, RolledBack)
    assert [event.fault for event in backs] == ["memory", "memory"]
    assert "2 at a time from there on" in backs[-1].remedy
    assert json.loads(unbroken.summary.read_text())["guard"]["micro_batch_size"] == 2
    stopped_everywhere(run, starve)
    assert differences(unbroken, run) == []

    def starve_all(session: Session) -> None:
        def refuse(module: nn.Module, given: tuple[Tensor]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        session.state.model.register_forward_pre_hook(refuse)

    with pytest.raises(ModelError, match="with one picture of 16 x 16 pixels at a time"):
        go(make(), starve_all)


def test_an_evaluation_that_needs_too_much_memory_takes_fewer_at_a_time(make: Make) -> None:
    def starve(session: Session) -> None:
        def refuse(module: nn.Module, given: tuple[Tensor]) -> None:
            if len(given[0]) > 4 and not module.training:
                raise torch.OutOfMemoryError("CUDA out of memory")

        session.state.model.register_forward_pre_hook(refuse)

    run = make()
    assert go(run, starve)
    assert "out of memory in the evaluation with 8 pictures at a time" in run.events.read_text()


HEALTHY: list[dict[str, Any]] = [
    {"lr": {"schedule": "one_cycle", "peak": 0.3}},
    {"optimizer": {"name": "adamw"}, "lr": {"schedule": "cosine", "peak": 0.01}},
    {"mix": {"mixup": 1.0, "cutmix": 1.0}, "lr": {"schedule": "linear", "peak": 0.1}},
    {"precision": "bf16", "lr": {"schedule": "constant", "peak": 0.05}},
    {
        "stages": [
            {"epochs": "60st", "image_size": 8, "mix": {"mixup": 1.0}},
            {"epochs": "50st", "train": "head", "lr": 0.02},
            {"epochs": "50st", "mix": "none", "lr_scale": 0.3, "average": {"kind": "swa", "every": "4st"}},
        ],
        "average": "none",
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("fields", HEALTHY, ids=["one_cycle", "adamw", "mixed", "bf16", "stages"])
def test_healthy_runs_are_left_alone(make: Make, fields: dict[str, Any], seed: int) -> None:
    """Twenty runs of ten windows each, with small batches and high learning rates, whose losses are noisy."""
    long = {"epochs": "160st", "eval": {"every": "80st"}, "checkpoints": {"every": "80st"}, "seed": seed, "guard": {}}
    run = make(**{**long, **fields})
    assert go(run)
    assert not {"rolled_back", "suspect"} & {one.event.kind for one in read_events(run.events)}


def test_early_stopping_ends_a_run_that_no_longer_improves(make: Make) -> None:
    fields: dict[str, Any] = {
        "epochs": "400st",
        "eval": {"every": "4st"},
        "stop": {"patience": 3, "metric": "val_top1", "min_delta": 60.0},
    }
    unbroken, run = make(**fields), make(**fields)
    assert go(unbroken)
    (ended,) = events(unbroken, EndedEarly)
    assert ended.step == 16 and "val_top1 has not improved" in ended.reason and "3 evaluations" in ended.reason
    summary = json.loads(unbroken.summary.read_text())
    assert summary["status"] == "finished" and summary["step"] == 16 and summary["ended_early"]
    stopped_everywhere(run)
    assert differences(unbroken, run) == []
    assert go(make(**{**fields, "stop": {"patience": 3, "metric": "val_loss", "min_delta": 99.0}}))
