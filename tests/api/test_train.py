"""Training as a user sees it: directories, forks, stops, messages, files."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from stopping import StopAtEvaluation, last_checkpoint

import stagewright as sw
from stagewright.engine.state import Score
from stagewright.errors import CheckpointError, Diverged, RecipeError, StorageError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir import checkpoint
from stagewright.rundir.event_kinds import BadImages, Event, Notice, Resumed, Started
from stagewright.rundir.events import read_events
from stagewright.rundir.summary import ChosenSummary
from stagewright.system.signals import EXIT_STOPPED
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True)
SMALL = [
    *("model.options={width: 4}", "image_size=16", "batch_size=16", "eval.every=1ep", "epochs=2ep"),
    *("data.val=0.2", "data.test=0.2"),
]


def silent(text: str) -> None: ...


def small(data: Path, out: Path, *overrides: str, **more: Any) -> sw.Run:
    more = {"execution": QUIET, "say": silent, **more}
    return sw.train(data, "quick", overrides=[*SMALL, *overrides], out=out, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> sw.Run:
    return small(picture_folder, tmp_path_factory.mktemp("finished") / "run")


def chosen(run: sw.Run) -> ChosenSummary:
    found = run.summary["chosen"]
    assert found is not None
    return found


def test_a_run_directory_holds_what_it_should(finished: sw.Run) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {
        *("recipe.yaml", "plan.json", "manifest.parquet", "env.json", "events.jsonl", "metrics.csv", "steps.csv"),
        *("timing.csv", "log.txt", "summary.json", "weights.json", "checkpoints", "evaluations", "model"),
    }
    summary = finished.summary
    assert summary["status"] == "finished" and summary["step"] == summary["total_steps"]
    assert all(top1 is not None and 0 <= top1 <= 100 for top1 in summary["top1"].values())
    assert set(summary["candidates"]) == {"raw", "ema"} and chosen(finished)["weights"] in ("raw", "ema")
    assert summary["train_seconds"] > 0 and summary["restarts"] == 0 and summary["unreadable"] == 0
    env = json.loads((finished.path / "env.json").read_text())
    assert env["torch"] == torch.__version__.split("+")[0] or env["torch"] == torch.__version__
    recipe = recipes.load(str(finished.path / "recipe.yaml"))
    assert recipe.image_size == 16
    assert {"best.json", "last.json"} <= {path.name for path in (finished.path / "checkpoints").iterdir()}
    assert not any(path.is_symlink() for path in finished.path.rglob("*")), (
        "links are lost in zip files and object stores"
    )


def test_the_summary_agrees_with_the_predictions(finished: sw.Run) -> None:
    for split in ("val", "test"):
        table = pq.read_table(finished.path / "evaluations" / f"{split}.parquet").to_pydict()
        right = [a == b for a, b in zip(table["label"], table["predicted"], strict=True)]
        assert finished.summary["top1"][split] == pytest.approx(100 * sum(right) / len(right))


def test_the_bundle_answers_as_the_evaluation_did(finished: sw.Run) -> None:
    manifest = pq.read_table(finished.path / "manifest.parquet")
    table = pq.read_table(finished.path / "evaluations" / "test.parquet").to_pydict()
    root = json.loads(manifest.schema.metadata[b"stagewright.manifest"])["root"]
    answers = list(finished.model.predict([Path(root, path) for path in table["path"]], topk=1))
    names = finished.model.classes
    assert [answer.classes[0][0] for answer in answers] == [names[at] for at in table["predicted"]]
    assert [answer.classes[0][1] for answer in answers] == pytest.approx(table["probability"], abs=1e-4)


def test_a_run_never_writes_into_another(finished: sw.Run, picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"already holds a run[\s\S]*new or empty folder[\s\S]*stagewright resume"
    ):
        small(picture_folder, finished.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is not empty"):
        small(picture_folder, tmp_path / "full")


def test_names_are_numbered(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quick-7").mkdir(parents=True)
    run = sw.train(picture_folder, "quick", overrides=[*SMALL, "epochs=2st"], execution=QUIET, say=silent)
    assert run.path == Path("runs/quick-8")


def test_resuming_what_is_no_run(tmp_path: Path, finished: sw.Run) -> None:
    with pytest.raises(
        CheckpointError, match=r"nothing is not a run directory \(there is no such folder\)[\s\S]*train printed"
    ):
        sw.resume(tmp_path / "nothing", execution=QUIET, say=silent)


def test_a_finished_run_is_left_as_it_is(finished: sw.Run) -> None:
    before = (finished.path / "summary.json").read_bytes()
    assert sw.resume(finished.path, execution=QUIET, say=silent).finished
    assert (finished.path / "summary.json").read_bytes() == before


def test_resume_auto_goes_on_with_the_same_plan(picture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = small(picture_folder, out, observers=[StopAtEvaluation()])
    assert not stopped.finished and stopped.summary["status"] == "stopped"
    again = small(picture_folder, out, resume=True)
    assert again.path == out and again.finished and again.summary["restarts"] == 1


def test_a_changed_plan_forks(picture_folder: Path, finished: sw.Run, tmp_path: Path) -> None:
    parent = tmp_path / "run"
    shutil.copytree(finished.path, parent, symlinks=True)
    said: list[str] = []
    forked = small(picture_folder, parent, "seed=9", resume=True, say=said.append)
    assert forked.path == tmp_path / "run-1" and forked.summary["parent"] == str(parent)
    assert any("seed" in line and "forks to" in line for line in said)
    on = sw.resume(parent, overrides=["epochs=1ep"], execution=QUIET, say=said.append)
    assert on.path == tmp_path / "run-2" and on.summary["parent"] == str(parent)
    notices = [one.event.text for one in read_events(on.path / "events.jsonl") if isinstance(one.event, Notice)]
    assert any("parameters loaded (100.0 %" in text for text in notices), notices
    assert last_checkpoint(parent / "checkpoints").step == finished.summary["step"], "the parent is untouched"


def test_saving_more_often_is_no_other_plan(picture_folder: Path, tmp_path: Path) -> None:
    stopped = small(picture_folder, tmp_path / "run", observers=[StopAtEvaluation()])
    run = sw.resume(
        stopped.path, overrides=["checkpoints.every=1st", "checkpoints.keep=9"], execution=QUIET, say=silent
    )
    assert run.path == stopped.path and run.finished
    assert len(list((run.path / "checkpoints").glob("step_*"))) > 3


def test_threads_are_set_recorded_and_given_back(picture_folder: Path, tmp_path: Path) -> None:
    before, found = torch.get_num_threads(), list[int]()

    def threads(count: int | None) -> Execution:
        return replace(QUIET, threads=count)

    class Threads(StopAtEvaluation):
        def see(self, event: Event) -> None:
            found.append(torch.get_num_threads())
            super().see(event)

    run = small(picture_folder, tmp_path / "run", execution=threads(before + 1), observers=[Threads()])
    assert set(found) == {before + 1} and torch.get_num_threads() == before
    assert json.loads((run.path / "env.json").read_text())["device_name"] == f"CPU, {before + 1} threads"
    sw.resume(run.path, execution=threads(before + 2), observers=[Threads()], say=silent)
    sw.resume(run.path, execution=threads(before + 1), say=silent)
    events = [one.event for one in read_events(run.path / "events.jsonl")]
    assert [one.device_name for one in events if isinstance(one, Started | Resumed)] == [
        f"CPU, {before + more} threads" for more in (1, 2, 1)
    ]
    changed = [one.text for one in events if isinstance(one, Notice) and "last bits" in one.text]
    assert changed == [
        f"the run computes on CPU, {before + 2} threads now and began on CPU, {before + 1} threads: sums may differ in their "
        "last bits"
    ]
    with pytest.raises(RecipeError, match="--threads 0"):
        threads(0)


def test_a_checkpoint_of_another_plan_is_refused(finished: sw.Run, picture_folder: Path, tmp_path: Path) -> None:
    other = small(picture_folder, tmp_path / "other", "seed=3", observers=[StopAtEvaluation()])
    shutil.rmtree(other.path / "checkpoints")
    shutil.copytree(finished.path / "checkpoints", other.path / "checkpoints", symlinks=True)
    with pytest.raises(CheckpointError, match=r"belongs to the plan[\s\S]*fork"):
        sw.resume(other.path, execution=QUIET, say=silent)


def test_a_full_disk_is_noticed_before_the_first_step(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # pyright: ignore
    with pytest.raises(StorageError, match=r"free in[\s\S]*GB, for the checkpoints[\s\S]*--out"):
        small(picture_folder, tmp_path / "run")


def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third checkpoint on, every write fails, also those of logs: the message must be that of the checkpoint."""
    from stagewright.storage.append_file import AppendFile

    full = False
    save, append = torch.save, AppendFile.append

    def no_room(*arguments: Any, **options: Any) -> None:
        nonlocal full
        if (tmp_path / "run" / "checkpoints" / "step_000002").exists():
            full = True
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    def no_room_either(self: AppendFile, data: bytes) -> None:
        if full:
            raise StorageError("the log is full too")
        append(self, data)

    monkeypatch.setattr(torch, "save", no_room)
    monkeypatch.setattr(AppendFile, "append", no_room_either)
    with pytest.raises(StorageError, match=r"step 3 could not be written[\s\S]*last valid checkpoint is step_000002"):
        small(picture_folder, tmp_path / "run", "checkpoints.every=1st", "eval.every=9ep")
    monkeypatch.undo()
    run = sw.resume(tmp_path / "run", execution=QUIET, say=silent)
    assert run.finished and run.summary["restarts"] == 1


def test_a_place_that_cannot_be_written(picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be created or written[\s\S]*--out"):
        small(picture_folder, tmp_path / "file" / "run")


def test_a_failed_set_up_leaves_no_directory(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(sw.StagewrightError, match=r"no.pth"):
        small(picture_folder, tmp_path / "run", "model.weights=no.pth")
    assert not (tmp_path / "run").exists()


def test_a_process_killed_before_the_plan_was_written_does_not_block_the_next(
    picture_folder: Path, tmp_path: Path, finished: sw.Run
) -> None:
    """A job that is restarted with the same command must not be refused because of its own unfinished set-up."""
    (tmp_path / "run").mkdir()
    for name in ("manifest.parquet", "recipe.yaml"):
        shutil.copy(finished.path / name, tmp_path / "run" / name)
    (tmp_path / "run" / ".env.json.77.tmp").write_text("{")
    (tmp_path / "run" / ".lock").write_text("77 beginning")  # what the killed process wrote first
    assert small(picture_folder, tmp_path / "run", "epochs=2st", resume=True).finished


def test_unknown_device(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--device cuda:77[\s\S]*auto, cpu"):
        small(picture_folder, tmp_path / "run", execution=Execution(device="cuda:77"))


def test_divergence_is_named_and_the_checkpoint_stands(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Diverged,
        match=r"going back 5 times: step \d+ .*loss nan[\s\S]*finite[\s\S]*stagewright resume .* --set lr.peak",
    ):
        small(
            picture_folder, tmp_path / "run", "lr.peak=1e30", "epochs=40st", "checkpoints.every=1st", "eval.every=40st"
        )
    summary = sw.Run(tmp_path / "run").summary
    assert summary["status"] == "failed" and "Diverged" in str(summary["error"])
    last = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert all(torch.isfinite(tensor).all() for tensor in last.tensors["model"].values())


def test_a_picture_that_breaks_later_is_masked_counted_and_named(picture_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(picture_folder, data)
    broken: list[Path] = []

    class Vandal:
        def see(self, event: Event) -> None:
            if isinstance(event, Started):
                train = sorted(path for path in data.rglob("*.png"))
                for path in train[::10]:
                    path.write_bytes(path.read_bytes()[:40])
                    broken.append(path)

        def close(self) -> None: ...

    run = small(data, tmp_path / "run", "data.max_unreadable=0.5", observers=[Vandal()])
    events = [one.event for one in read_events(run.path / "events.jsonl") if isinstance(one.event, BadImages)]
    assert run.finished and events and run.summary["unreadable"] > 0
    named = {path for event in events for path in event.paths}
    assert named and named <= {str(path.relative_to(data)) for path in broken}


def test_an_observer_that_throws_is_switched_off_and_changes_nothing(
    finished: sw.Run, picture_folder: Path, tmp_path: Path
) -> None:
    class Broken:
        calls = 0

        def see(self, event: Event) -> None:
            self.calls += 1
            object.__setattr__(event, "step", -1)
            raise RuntimeError("no network")

        def close(self) -> None: ...

    broken = Broken()
    run = small(picture_folder, tmp_path / "run", observers=[broken])
    assert broken.calls == 1
    assert (run.path / "steps.csv").read_bytes() == (finished.path / "steps.csv").read_bytes()
    assert "no network" in (run.path / "events.jsonl").read_text()


def test_without_validation_pictures_the_last_averaged_weights_are_taken(picture_folder: Path, tmp_path: Path) -> None:
    run = small(picture_folder, tmp_path / "run", "data.val=0")
    summary = run.summary
    assert run.finished and summary["top1"]["val"] is None and summary["top1"]["test"] is not None
    assert chosen(run)["weights"] == "ema" and chosen(run)["step"] == summary["total_steps"]


def test_last_weights_where_the_recipe_wants_them(picture_folder: Path, tmp_path: Path) -> None:
    run = small(picture_folder, tmp_path / "run", "eval.select=last")
    assert chosen(run)["step"] == run.summary["total_steps"]


def _metrics(run: sw.Run) -> list[dict[str, str]]:
    return list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))


def test_folded_evaluations_change_results_by_rounding_only(
    finished: sw.Run, picture_folder: Path, tmp_path: Path
) -> None:
    run = small(picture_folder, tmp_path / "run", "eval.fold=false")
    assert (run.path / "steps.csv").read_bytes() == (finished.path / "steps.csv").read_bytes()
    plain, folded = ([float(row["val_loss"]) for row in _metrics(one)] for one in (run, finished))
    assert plain == pytest.approx(folded, rel=1e-4) and plain != folded
    assert (run.model.spec.fold, finished.model.spec.fold) == (False, True)


def test_damaged_best_checkpoint_falls_back_to_the_last(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best weights are in an earlier checkpoint, which is damaged when the run ends: a model is written nevertheless."""

    def best_is_damaged(session: Session) -> Score:
        (session.run.checkpoints / "step_000001" / "state.pt").write_bytes(b"")
        return Score(1, "raw", 100.0)

    monkeypatch.setattr("stagewright.training.finish.select_weights", best_is_damaged)
    run = small(picture_folder, tmp_path / "run", "checkpoints.every=1st", "checkpoints.keep=99")
    assert run.finished and chosen(run)["step"] == run.summary["total_steps"]
    notices = [one.event.text for one in read_events(run.path / "events.jsonl") if isinstance(one.event, Notice)]
    assert any("best weights (step 1) are lost" in text for text in notices)
    assert run.model.classes == ("across", "down", "slanted")


def test_best_weights_come_from_their_own_checkpoint(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagewright.training.finish.select_weights", lambda session: Score(2, "raw", 100.0))
    run = small(picture_folder, tmp_path / "run", "checkpoints.every=1st", "checkpoints.keep=99")
    saved = checkpoint.load(run.path / "checkpoints" / "step_000002").tensors["model"]
    model = run.model.model.state_dict()
    assert chosen(run)["step"] == 2 and all(torch.equal(model[name], saved[name]) for name in model)


Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path, picture_folder: Path) -> Iterator[Launch]:
    """Starts the command line in a new process."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stagewright.cli.main", *words]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=tmp_path))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_ends_with_75_and_a_checkpoint(
    launch: Launch, picture_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    flags = [word for override in [*SMALL, "epochs=4000st"] for word in ("--set", override)]
    process = launch("train", str(picture_folder), "--out", str(out), "--no-pages", *flags)
    wait_for(lambda: (out / "steps.csv").exists() and (out / "steps.csv").stat().st_size > 300)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, printed
    assert "stagewright resume" in printed
    last = last_checkpoint(out / "checkpoints")
    rows = (out / "steps.csv").read_text().splitlines()
    assert last.step == int(rows[-1].split(",")[0]), "nothing that was trained is lost"
    assert sw.Run(out).summary["status"] == "stopped"


def test_a_signal_during_set_up_ends_with_75(launch: Launch, picture_folder: Path, tmp_path: Path) -> None:
    process = launch("train", str(picture_folder), "--out", str(tmp_path / "run"), "--no-pages")
    wait_for(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text())
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode in (EXIT_STOPPED, 128 + signal.SIGTERM, -signal.SIGTERM), printed
    assert "Traceback" not in printed
