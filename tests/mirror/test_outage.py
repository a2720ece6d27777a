"""Outages: the training goes on, what is missing is told and queued, and it is there at the end, or the end says what is
not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from commands import typed
from mirror_runs import lacks, mirror_recipe, same_results, start, until
from object_server import ObjectServer
from rank_runs import QUIET, Parent

from stagewright.mirror.names import complete_steps
from stagewright.mirror.record import read_record
from stagewright.mirror.remote import names_in
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Notice
from stagewright.rundir.events import read_events
from stagewright.rundir.summary import read_summary
from stagewright.storage.objects import TIMEOUT, open_store
from stagewright.system.signals import EXIT_LOST, EXIT_STOPPED

FAULTS = ("slow", "reset", "stall", "expired", "error", "key", "forbidden", "bucket")


@pytest.mark.parametrize(
    ("kinds", "seconds", "steps"),
    [(("slow", "stall"), 0.0, 70), pytest.param(FAULTS, 20.0, 3000, marks=pytest.mark.long)],
)
def test_training_goes_on_through_outages_and_all_is_there_at_the_end(
    kinds: tuple[str, ...],
    seconds: float,
    steps: int,
    bucket: str,
    object_server: ObjectServer,
    parent: Parent,
    pictures: Path,
    tmp_path: Path,
) -> None:
    recipe, url, out = (
        mirror_recipe(tmp_path, steps, saves="4st", eval={"every": f"{steps * 2}st"}),
        f"{bucket}/run",
        tmp_path / "run",
    )
    command = ("train", pictures, "-r", recipe, "--out", out, "--mirror", url, *QUIET)
    ranks = parent.start(command, 1, environments=[{TIMEOUT: "0.5"}])
    until(lambda: complete_steps(names_in(open_store(url), url)), what="the first upload")
    for kind in kinds:
        object_server.requests(clear=True)
        before, began = saved_step(out), time.monotonic()
        with object_server.fault(kind):
            until(lambda before=before: saved_step(out) >= min(before + 8, 2 * steps), what=f"steps during {kind}")
            until(
                lambda: any(one["status"] not in (200, 204) for one in object_server.requests()), what=f"{kind} is met"
            )
            until(lambda: (record := read_record(out)) is not None and record.error, what=f"{kind} is told")
            until(lambda began=began: time.monotonic() > began + seconds, seconds + 1)
        until(
            lambda: (record := read_record(out)) is not None and not record.error,
            60,
            f"the mirror recovers from {kind}",
        )
    assert ranks.wait(200) == [0], ranks.said(0)
    assert lacks(out) == [] and complete_steps(names_in(open_store(url), url))[0] == 2 * steps
    texts = [one.event.text for one in read_events(out / "events.jsonl") if isinstance(one.event, Notice)]
    told = [text for text in texts if "the mirror cannot be written, the training goes on" in text]
    assert len(told) == len(kinds)
    assert sum("the mirror is written again, after" in text for text in texts) >= len(kinds) - 1  # the last at the end
    for kind, reason in (
        ("slow", "asks to slow down"),
        ("expired", "the credentials have expired"),
        ("bucket", "no such bucket"),
    ):
        assert any(reason in text for text in told) == (kind in kinds), told


def saved_step(out: Path) -> int:
    return max(checkpoint.steps(out / "checkpoints"), default=0)


@pytest.fixture
def command(pictures: Path, tmp_path: Path, bucket: str) -> tuple[str | Path, ...]:
    recipe = mirror_recipe(tmp_path, 3, saves="3st", spread=1)
    return ("train", pictures, "-r", recipe, "--out", tmp_path / "run", "--mirror", f"{bucket}/run", *QUIET)


def test_a_model_that_is_not_in_the_mirror_at_the_end(
    command: tuple[str | Path, ...],
    bucket: str,
    object_server: ObjectServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 69, what is missing, and what to do; a resume then uploads it, without training again."""
    out, url = tmp_path / "run", f"{bucket}/run"
    with object_server.fault("slow", method="PUT", path="/run/(?!owner|trial)"):
        code, _, said = typed(capsys, monkeypatch, *command, "--mirror-wait", "1s")
    assert code == EXIT_LOST and "lacks the trained model" in said and "asks to slow down" in said, said
    assert f"stagewright resume {out} uploads it" in said
    assert {"step_000006", "model/model.json", "plan.json"} <= set(lacks(out)) and (
        out / "model" / "model.json"
    ).is_file()
    record = read_record(out)
    assert record is not None and record.waiting[-1] == 6 and record.url == url
    before = (out / "model" / "weights.safetensors").stat().st_mtime_ns
    code, said, _ = typed(capsys, monkeypatch, "resume", out)  # it knows its mirror
    assert (
        code == 0 and "is finished; there is nothing left to do" in said and f"The mirror {url} has all of it" in said
    )
    assert lacks(out) == [] and (out / "model" / "weights.safetensors").stat().st_mtime_ns == before
    assert "model/model.json" in names_in(open_store(url), url)


def test_something_else_that_is_missing_at_the_end_is_a_warning(
    command: tuple[str | Path, ...],
    object_server: ObjectServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with object_server.fault("forbidden", method="PUT", path="/run/checkpoints/step"):
        code, _, _ = typed(capsys, monkeypatch, *command, "--mirror-wait", "1s")
    assert code == 0 and "step_000006: " in caplog.text and "no rights (access denied)" in caplog.text
    assert lacks(tmp_path / "run") == ["step_000003", "step_000006"]
    assert read_summary(RunDir(tmp_path / "run"))["status"] == "finished"


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_that_is_stopped_uploads_its_last_checkpoint_before_it_ends(
    size: int, bucket: str, parent: Parent, pictures: Path, tmp_path: Path
) -> None:
    recipe, url, out = mirror_recipe(tmp_path, 60, saves="500st"), f"{bucket}/run", tmp_path / "run"
    ranks = start(parent, pictures, recipe, out, url, size)
    until(
        lambda: (out / "steps.csv").exists() and (out / "steps.csv").read_text().count("\n") > 3, what="the first steps"
    )
    for rank in range(size):
        os.kill(ranks.pid(rank), signal.SIGTERM)
    assert ranks.wait(60) == [EXIT_STOPPED] * size, ranks.said(0)
    step = saved_step(out)
    assert 0 < step < 120 and complete_steps(names_in(open_store(url), url))[0] == step and lacks(out) == []


def test_the_mirror_changes_nothing(
    command: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same plan, the same bits; the URL is execution."""
    assert typed(capsys, monkeypatch, *command)[0] == 0
    plain = [word for word in command if word != "--mirror" and not str(word).startswith("s3:")]
    assert typed(capsys, monkeypatch, *plain, "--out", tmp_path / "plain")[0] == 2, "--out twice"
    plain[plain.index("--out") + 1] = tmp_path / "plain"
    assert typed(capsys, monkeypatch, *plain)[0] == 0
    assert same_results(tmp_path / "run", tmp_path / "plain") == []
    assert RunDir(tmp_path / "run").read_plan().digest == RunDir(tmp_path / "plain").read_plan().digest
    assert not (tmp_path / "plain" / "mirror.json").exists()


def test_a_checkpoint_that_is_being_uploaded_is_not_pruned(
    command: tuple[str | Path, ...],
    object_server: ObjectServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An upload that hangs from the first checkpoint to the end of the run; the disk keeps one checkpoint, and this one."""
    mirror_recipe(tmp_path, 3, saves="1st", spread=1, checkpoints={"every": "1st", "keep": 1}, eval={"every": "6st"})
    with object_server.fault("stall", method="PUT", path="step_000001/state"):
        code, _, said = typed(capsys, monkeypatch, *command, "--mirror-wait", "0s")
    assert code == EXIT_LOST and "step_000001" in said
    kept = checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert 1 in kept and 2 not in kept and kept[-1] == 6
