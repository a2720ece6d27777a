"""Logs in checkpoints: whatever happens to the logs between a stop and a resume, they end as in an uninterrupted run."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stopping import stop_after

import stagewright as sw
from stagewright.api.resume_check import differences
from stagewright.api.train import resume, train
from stagewright.errors import CheckpointError, RecipeError, Unreadable
from stagewright.rundir import checkpoint, checkpoint_files
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Notice, Resumed
from stagewright.rundir.events import comparable, live_events, read_events
from stagewright.rundir.logs import set_results_aside
from stagewright.storage import files

QUIET = sw.Execution(quiet=True, pages=False, keep_decoded=True)
SMALL = (
    *("model.name=cifar_resnet18", "model.options={width: 4}", "image_size=8", "batch_size=8", "epochs=12st"),
    *("eval.every=3st", "checkpoints.every=4st", "checkpoints.keep=2", "guard={window: 4}"),
)


def go_on(root: Path, **options: object) -> sw.Run:
    return resume(root, execution=QUIET, say=lambda text: None, **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def unbroken(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("logs") / "unbroken"
    train(picture_folder, "quick", overrides=SMALL, out=out, execution=QUIET, say=lambda text: None)
    return RunDir(out)


@pytest.fixture(scope="module")
def begun(unbroken: RunDir, picture_folder: Path) -> Path:
    """The same run, stopped after 9 of 12 steps by a process that had written more than its checkpoint contains."""
    out = unbroken.root.with_name("begun")
    shutil.copytree(unbroken.root, out)
    for name in ("events.jsonl", "steps.csv", "metrics.csv", "timing.csv", "summary.json"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoints")
    shutil.rmtree(out / "model")
    go_on(out, arm=stop_after(9))
    saved = checkpoint.load(out / "checkpoints" / "step_000009")
    assert saved.meta["logs"]["steps.csv"]["bytes"] == (out / "steps.csv").stat().st_size
    return out


@pytest.fixture
def stopped(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\n", 0, len(data) // 2) + 1  # in the first letter of a line: the step, or the brace of an event
    data[at] ^= 2
    path.write_bytes(data)


def without_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "was missing and is restored"),
    "empty": (lambda path: path.write_bytes(b""), "ends at line 0 of"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), "ends at line|was changed in line"),
    "flipped": (flip, "was changed in line"),
    "a line gone": (without_a_line, "was changed in line 3 of"),
    "CRLF": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
        r"Windows line ends \(CRLF\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_log_is_restored_and_said(stopped: Path, unbroken: RunDir, kind: str) -> None:
    """The guard decides on these rows, and metrics.csv sums them up (attack H6, M1, situation 062)."""
    damage, said = DAMAGE[kind]
    kept = set()  # a file that is a part of the checkpoint's copy need not be kept
    for name in ("steps.csv", "metrics.csv", "events.jsonl"):
        sound = (stopped / name).read_bytes()
        damage(stopped / name)
        if kind != "missing" and not sound.startswith((stopped / name).read_bytes()):
            kept.add(name)
    assert go_on(stopped).finished
    assert differences(unbroken, RunDir(stopped)) == []
    notices = "\n".join(
        one.event.text for one in read_events(stopped / "events.jsonl") if isinstance(one.event, Notice)
    )
    for name in ("steps.csv", "metrics.csv", "events.jsonl"):
        if kind != "a line gone":
            assert [line for line in notices.splitlines() if line.startswith(name)], notices
        assert (stopped / f"{name}.damaged-1").exists() == (name in kept)
    assert re.search(said, notices), notices


def test_what_a_lost_process_wrote_behind_the_checkpoint_is_cut_to_the_byte(stopped: Path, unbroken: RunDir) -> None:
    """Also a row whose step is smaller than the checkpoint's because of a flipped bit."""
    with (stopped / "steps.csv").open("a") as file:
        file.write("3,0,0.5,0.1,0.9,9.9,0.0,1.0\n10,0,0.5")
    assert go_on(stopped).finished
    assert differences(unbroken, RunDir(stopped)) == []
    assert not list(stopped.glob("*.damaged-*"))


def test_images_that_only_a_lost_process_could_not_read_do_not_count(stopped: Path) -> None:
    line = {
        "kind": "bad_image",
        "step": 11,
        "rows": [3],
        "paths": ["a.jpg"],
        "reasons": ["Permission denied"],
        "clock": {},
    }
    with (stopped / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert go_on(stopped).finished
    assert json.loads((stopped / "summary.json").read_text())["unreadable"] == 0


@pytest.mark.parametrize("name", ["summary.json", "env.json", "timing.csv"])
@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff\x00"])
def test_derived_files_that_are_damaged_are_written_again(
    stopped: Path, unbroken: RunDir, begun: Path, name: str, content: bytes
) -> None:
    (stopped / name).write_bytes(content)
    assert go_on(stopped).finished
    assert differences(unbroken, RunDir(stopped)) == []
    if name == "env.json":
        assert json.loads((stopped / name).read_text()) == json.loads((begun / name).read_text())


def test_a_fork_needs_no_env(stopped: Path) -> None:
    """Situation 064."""
    (stopped / "env.json").write_text("{")
    fork = go_on(stopped, overrides=["lr.peak=0.001"])
    assert fork.finished and fork.path != stopped


def test_a_run_without_its_checkpoints_does_not_go_on(stopped: Path, unbroken: RunDir) -> None:
    """Copies that omit large files (situation 060)."""
    shutil.rmtree(stopped / "checkpoints")
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(CheckpointError, match=r"step_000009 was the last one saved[\s\S]*--from-start"):
        go_on(stopped)
    after = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file() and path.name != ".lock"}
    assert {**after, "summary.json": b""} == {**before, "summary.json": b""}
    (stopped / "events.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"steps\.csv contains steps"):
        go_on(stopped)
    shutil.copy(unbroken.events, stopped / "events.jsonl")
    done = go_on(stopped, from_start=True)
    assert done.finished and differences(unbroken, RunDir(stopped)) == []
    assert (stopped / "before-1" / "steps.csv").read_bytes() == before["steps.csv"]


def test_damaged_checkpoints_alone_do_not_start_a_run_over(stopped: Path) -> None:
    for path in (stopped / "checkpoints").glob("step_*"):
        os.truncate(path / "state.pt", 100)
    with pytest.raises(CheckpointError, match=r"has 100 bytes instead of[\s\S]*--from-start"):
        go_on(stopped)
    assert len(list((stopped / "checkpoints").glob("step_*"))) >= 2


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_by_itself(
    picture_folder: Path, tmp_path: Path, unbroken: RunDir, stopped: Path
) -> None:
    shutil.rmtree(stopped / "checkpoints")
    lines = [
        line for line in (stopped / "events.jsonl").read_bytes().splitlines(keepends=True) if b'"saved"' not in line
    ]
    (stopped / "events.jsonl").write_bytes(b"".join(lines))
    (stopped / "metrics.csv").write_bytes(b"\xff no header\r\n")
    assert go_on(stopped).finished
    assert differences(unbroken, RunDir(stopped)) == []


@pytest.mark.parametrize("override", ["data.val=0.4", "data.group=site", "name=other", "description=text"])
def test_settings_that_a_begun_run_cannot_follow_are_refused(stopped: Path, override: str) -> None:
    """Situation 061: such overrides were accepted and ignored."""
    before = sorted(stopped.parent.iterdir())
    for others in ((), ("lr.peak=0.001",)):
        with pytest.raises(RecipeError, match=rf"--set {override.split('=')[0]} cannot change in a run that has begun"):
            go_on(stopped, overrides=[override, *others])
    assert sorted(stopped.parent.iterdir()) == before
    assert go_on(stopped, overrides=["checkpoints.every=2st"], arm=stop_after(10)).path == stopped


@pytest.mark.parametrize(
    ("what", "code"),
    [
        *(("state.pt", code) for code in (errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ENOMEM)),
        *((what, errno.EIO) for what in ("meta.json", "plan.json", "manifest.parquet", "steps.csv", "events.jsonl")),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(
    stopped: Path, unbroken: RunDir, monkeypatch: pytest.MonkeyPatch, code: int, what: str
) -> None:
    """Nothing is changed, and when the storage is available again the run resumes from its newest checkpoint (attack C3)."""
    real = {name: getattr(os, name) for name in ("open", "stat")}
    failures = [10**9]

    def failing_open(path: str, *rest: object, **options: object) -> int:
        if str(path).endswith(what) and failures[0] > 0:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), str(path))
        return real["open"](path, *rest, **options)

    sha256 = checkpoint_files.sha256_of

    def failing_hash(path: Path) -> str:
        if path.name == what and failures[0] > 0:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), str(path))
        return sha256(path)

    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    before = {str(path): path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing_open)
        patch.setattr(checkpoint_files, "sha256_of", failing_hash)
        with pytest.raises(Unreadable, match=f"cannot be read: {os.strerror(code)}, 4 attempts"):
            go_on(stopped)
        after = {str(path): path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
        assert {name for name in before | after if before.get(name) != after.get(name)} <= {
            str(stopped / "summary.json")
        }
        failures[0] = 2  # the storage is available again during the retries
        assert not go_on(stopped, arm=stop_after(10)).finished
    resumed = [one.event for one in read_events(stopped / "events.jsonl") if isinstance(one.event, Resumed)]
    assert resumed[-1].step == 9 and resumed[-1].rejected == ()


def test_too_little_memory_is_not_damage(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **options: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(Unreadable, match="Cannot allocate memory"):
            go_on(stopped)
    assert go_on(stopped).finished


def test_a_manifest_of_another_run_is_refused(stopped: Path, picture_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    overrides = [*SMALL, "data.val=0.3", "epochs=2st"]
    train(picture_folder, "quick", overrides=overrides, out=other, execution=QUIET, say=lambda text: None)
    shutil.copy(other / "manifest.parquet", stopped / "manifest.parquet")
    with pytest.raises(sw.StagewrightError, match=r"manifest\.parquet"):
        go_on(stopped)


def test_a_copied_run_is_a_run(stopped: Path, unbroken: RunDir, tmp_path: Path) -> None:
    """cp -rL, zip and object stores follow or drop links (situation 059): there are none."""
    copied = Path(shutil.copytree(stopped, tmp_path / "copied", symlinks=False))
    assert go_on(copied).finished
    assert differences(unbroken, RunDir(copied)) == []
    assert comparable(live_events(copied / "events.jsonl")) == comparable(live_events(unbroken.events))


def test_results_of_an_earlier_step_are_set_aside_also_after_a_kill_in_between(tmp_path: Path) -> None:
    """The evaluations go first; the same step makes the same results again, which take the place of those."""
    run = RunDir(tmp_path)
    assert set_results_aside(run, 7) is None and not run.interim.exists()
    for text in ("first", "second"):
        for folder in (run.evaluations, run.bundle):
            folder.mkdir()
            (folder / "file").write_text(text)
        if text == "second":  # killed after the first rename
            shutil.rmtree(run.interim / "step_000007" / "evaluations")
            run.evaluations.rename(run.interim / "step_000007" / "evaluations")
        assert set_results_aside(run, 7) == run.interim / "step_000007"
        kept = {path.parent.name: path.read_text() for path in run.interim.rglob("file")}
        assert kept == {"evaluations": text, "model": text}
        assert not run.bundle.exists() and not run.evaluations.exists()
