"""Locking and creating a run directory: which process gets it, what is refused, and what is removed (only own files)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stagewright.errors import CheckpointError, StagewrightError, StorageError
from stagewright.rundir.claim import claimed, claimed_next, held, next_free, refuse_used
from stagewright.storage.lock import is_held, lock


def everything(folder: Path) -> dict[str, bytes | None]:
    """Returns {path: content} of all files below ``folder``; None as the content of folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    "names", [[".git/HEAD", ".env"], [".hidden"], ["notes.txt"], ["recipe.yaml", "manifest.parquet"]]
)
def test_a_folder_that_holds_anything_is_refused_and_left_as_it_is(tmp_path: Path, names: list[str]) -> None:
    """Also a recipe.yaml of the user: only .lock can show that a killed process left a file (attack C1)."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=r"is not empty: it holds .*\n.*hidden"), claimed(tmp_path):
        pass
    with pytest.raises(CheckpointError, match="is not empty"):
        refuse_used(tmp_path)
    assert everything(tmp_path) == before


def test_another_programs_lock_file_is_content(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("yarn lockfile v1")
    with pytest.raises(CheckpointError, match=r"is not empty: it holds \.lock"), claimed(tmp_path):
        pass
    assert everything(tmp_path) == {".lock": b"yarn lockfile v1"}


@pytest.mark.parametrize("made_before", [False, True])
def test_a_set_up_that_fails_removes_what_it_wrote_and_nothing_else(tmp_path: Path, made_before: bool) -> None:
    root = tmp_path / "run"
    if made_before:
        root.mkdir()

    def fail() -> None:
        with claimed(root) as run:
            for path in (run.manifest, run.recipe, run.env, run.plan, run.log):
                path.write_text("{}")
            (root / "lr-find").mkdir()
            (root / "lr-find" / "lr-find.csv").write_text("")
            (root / "notes.txt").write_text("mine")  # another process writes here in the meantime
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert everything(root) == {"notes.txt": b"mine"}


def test_a_folder_of_ones_own_is_removed_with_the_set_up(tmp_path: Path) -> None:
    def fail(root: Path) -> None:
        with claimed(root) as run:
            run.plan.write_text("{}")
            raise ValueError

    for root, left in ((tmp_path / "new", False), (tmp_path / "old", True)):
        if left:
            root.mkdir()
        with pytest.raises(ValueError):
            fail(root)
        assert root.exists() == left and (not left or everything(root) == {})


def test_what_a_killed_process_left_is_known_by_the_lock_and_written_over(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal; from pathlib import Path; from stagewright.rundir.claim import claimed\n"
        "with claimed(Path(sys.argv[1])) as run:\n"
        "    run.manifest.write_text('half'); (run.root / '.env.json.77.tmp').write_text('{')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, str(root)])
    assert done.returncode == -9 and (root / "manifest.parquet").exists()
    with claimed(root) as run:
        assert not run.manifest.exists() and not (root / ".env.json.77.tmp").exists()
    (root / "photo.jpg").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds photo\.jpg"), claimed(root):
        pass


def test_of_two_that_want_one_directory_one_is_told_who_has_it(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with claimed(root) as run:
        run.manifest.write_text("mine")
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}"), claimed(root):
            pass
        run.plan.write_text("{}")
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}"), claimed(root):
            pass
        with pytest.raises(CheckpointError, match="is in use by"), held(root):
            pass
        assert is_held(root)
        assert {"manifest.parquet", "plan.json"} <= set(everything(root)), (
            "the process that was refused removed nothing"
        )
    assert not is_held(root)
    with pytest.raises(CheckpointError, match="already holds a run"), claimed(root):
        pass


def test_however_slow_the_storage_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes check the folder before either writes (attack C5, situation 066)."""
    both, outcomes = threading.Barrier(2), []
    listdir = os.listdir

    def together(path: str | os.PathLike[str]) -> list[str]:
        found = listdir(path)
        if not both.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.5)
        return found

    monkeypatch.setattr(os, "listdir", together)

    def go(content: str) -> None:
        try:
            with claimed(tmp_path / "run") as run:
                run.recipe.write_text(content)
                run.plan.write_text(content)
                outcomes.append(content)
                both.abort()
                done.wait(5)
        except StagewrightError as error:
            outcomes.append(type(error).__name__)
            done.set()

    done = threading.Event()
    threads = [threading.Thread(target=go, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = next(one for one in outcomes if one in "ab")
    assert sorted(outcomes) == sorted([winner, "CheckpointError"])
    assert (tmp_path / "run" / "plan.json").read_text() == winner


def test_ten_at_once_get_ten_numbers(tmp_path: Path) -> None:
    got, ready, done = [], threading.Barrier(10), threading.Barrier(10)

    def go() -> None:
        ready.wait()
        with claimed_next(tmp_path / "runs", "quick [lr 0.1]") as run:
            run.plan.write_text("{}")
            got.append(run.root.name)
            done.wait()

    threads = [threading.Thread(target=go) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=lambda name: (len(name), name)) == [f"quick [lr 0.1]-{number}" for number in range(1, 11)]
    assert next_free(tmp_path / "runs", "quick [lr 0.1]").name == "quick [lr 0.1]-11", (
        "brackets in a name are not a pattern (situation 065)"
    )


@pytest.mark.parametrize("kind", ["file", "dangling link", "below a file"])
def test_places_that_cannot_be_a_folder(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_text("precious")
    root = place / "run" if kind == "below a file" else place
    with pytest.raises((CheckpointError, StorageError), match="--out"), claimed(root):
        pass
    assert kind == "dangling link" or place.read_text() == "precious"


def test_a_run_that_is_taken_up_is_rid_of_what_killed_processes_left(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with claimed(root) as run:
        run.plan.write_text("{}")
    leftovers = [
        ".manifest.parquet.77.part",
        ".summary.json.77.tmp",
        "lr-find/.lr-find.csv.77.tmp",
        "plots/.loss.png.9.tmp",
    ]
    leftovers += ["checkpoints/.tmp-step_000007/state.pt", ".model.new/model.json"]
    mine = ["notes.txt", ".mine", "model/model.json"]
    for name in (*leftovers, *mine):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    with held(root):
        there = set(everything(root))
        assert not there & set(leftovers) and set(mine) <= there


def test_a_lock_that_was_removed_is_taken_again_unless_another_has_it(tmp_path: Path) -> None:
    with lock(tmp_path) as own:
        own.check()
        (tmp_path / ".lock").unlink()
        own.check()
        assert is_held(tmp_path)
        (tmp_path / ".lock").unlink()
        with lock(tmp_path), pytest.raises(StorageError, match="another process writes in this folder"):
            own.check()


def test_a_directory_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with claimed(root) as run:
        run.plan.write_text("{}")
        os.rename(root, tmp_path / "moved")
        with pytest.raises(StorageError, match="it was moved or deleted while it was in use"):
            run.check_held()
        os.rename(tmp_path / "moved", root)
        run.check_held()
    assert json.loads((root / "plan.json").read_text()) == {}


@pytest.mark.parametrize("name", ["log.txt", "steps.csv", "summary.json", "model", "interim", ".lock"])
def test_a_run_whose_files_are_links_is_refused(tmp_path: Path, name: str) -> None:
    """A run from someone else would have files outside of it written (attack L3)."""
    root, mine = tmp_path / "run", tmp_path / "mine"
    root.mkdir()
    (root / "plan.json").write_text("{}")
    mine.write_text("mine")
    (root / name).symlink_to(mine)
    with pytest.raises(CheckpointError, match=r"is a link to .*mine"), held(root):
        pass
    assert mine.read_text() == "mine"


def test_only_unfinished_checkpoints_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "plan.json").write_text("{}")
    (root / "checkpoints").mkdir()
    for name in (".tmp-step_000003", ".tmp-mine", "step_000002"):
        (root / "checkpoints" / name).mkdir()
    with held(root):
        pass
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == [".tmp-mine", "step_000002"]
