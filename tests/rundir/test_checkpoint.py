"""Checkpoints: exact bits, and nothing lost by a kill, a full disk or damage."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stagewright.errors import CheckpointError, StorageError
from stagewright.rundir import checkpoint_files
from stagewright.rundir.checkpoint import Rejected, load, newest, point, pointed, save
from stagewright.storage.files import check_room
from stagewright.storage.lock import lock
from stagewright.system.memory import num_bytes

META = {"plan_digest": "plan-a", "versions": {"torch": "2.15"}}


def put(folder: Path, *steps: int, keep: int = 100, protect: tuple[int, ...] = ()) -> None:
    for step in steps:
        save(folder, step, {"step": torch.tensor(step)}, META, keep=keep, protect=protect)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_name(step: int) -> str:
    return f"step_{step:06d}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.stride() != b.stride():
        return False
    return a.contiguous().reshape(-1).view(torch.uint8).equal(b.contiguous().reshape(-1).view(torch.uint8))


DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int8, torch.uint8, torch.int32, torch.int64),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_pattern_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    """Random bits contain NaNs with payloads, denormals, infinities and negative zeros."""
    bits = torch.randint(0, 256, (4096, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    values = bits.reshape(-1).view(dtype)
    save(tmp_path, 1, {"values": values}, META, keep=1)
    assert same_bits(load(tmp_path / "step_000001").tensors["values"], values)


def test_every_shape_of_state_survives(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {
        "model": {"weight": images, "flag": torch.tensor(True), "flags": torch.tensor([True, False])},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp": torch.randn(4, 6)[:, ::2]}, 1: {}}},
        "empty": [torch.empty(0), torch.empty(0, 3, dtype=torch.int64)],
        "betas": (0.9, 0.999),
        "seconds": 1.1,
        "huge": 2**80,
        "limits": [math.inf, -math.inf, -0.0],
        "best": None,
        "name": "größe \N{SNOWMAN}",
        "done": False,
    }
    save(tmp_path, 7, tensors, META, keep=1)
    back = load(tmp_path / "step_000007")
    assert back.step == 7
    assert back.meta == META
    assert back.tensors["model"].keys() == tensors["model"].keys()
    assert all(same_bits(back.tensors["model"][name], tensors["model"][name]) for name in tensors["model"])
    state = back.tensors["optimizer"]["state"]
    assert state.keys() == {0, 1}
    assert state[0]["step"].shape == ()
    assert state[0]["exp"].equal(tensors["optimizer"]["state"][0]["exp"])
    assert all(same_bits(a, b) for a, b in zip(back.tensors["empty"], tensors["empty"], strict=True))
    rest = [key for key in tensors if key not in ("model", "optimizer", "empty")]
    assert {key: back.tensors[key] for key in rest} == {key: tensors[key] for key in rest}
    assert math.copysign(1, back.tensors["limits"][2]) == -1


def test_a_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    whole = torch.randn(1_000_000)
    path = save(tmp_path, 1, {"part": whole[10:20], "weight": torch.nn.Parameter(whole[:5])}, META, keep=1)
    assert (path / "state.pt").stat().st_size < 10_000
    back = load(path).tensors
    assert back["part"].equal(whole[10:20])
    assert not back["weight"].requires_grad


def test_what_is_no_tensor_state_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]\[2\] is a Path|PosixPath; a state holds tensors"):
        save(tmp_path / "new", 1, {"a": [0, {2: tmp_path}]}, META, keep=1)
    for meta, keep in (({}, 1), (META, 0), ({**META, "sha256": ""}, 1)):
        with pytest.raises(ValueError, match=r"keep is 1 or more, .*; meta has plan_digest and none of"):
            save(tmp_path / "new", 1, {}, meta, keep=keep)
    assert not (tmp_path / "new").exists()


def test_meta_json_is_for_people_too(tmp_path: Path) -> None:
    path = save(tmp_path, 500, {"a": torch.zeros(3)}, META, keep=1, protect=[400])
    meta = json.loads((path / "meta.json").read_text())
    assert path.name == "step_000500"
    assert meta["plan_digest"] == "plan-a"
    assert meta["step"] == 500
    assert meta["protect"] == [400]
    assert meta["bytes"] == (path / "state.pt").stat().st_size
    assert len(meta["sha256"]) == 64


def test_newest_is_by_number(tmp_path: Path) -> None:
    put(tmp_path, 2, 999_999, 1_000_000)
    found, rejected = newest(tmp_path, "plan-a")
    assert found is not None
    assert found.step == 1_000_000
    assert rejected == []
    put(tmp_path, 1_000_001, keep=2)
    assert names(tmp_path) == ["step_1000000", "step_1000001"]


def test_nothing_there(tmp_path: Path) -> None:
    assert newest(tmp_path / "none", "plan-a") == (None, [])
    (tmp_path / "step_abc").mkdir()
    (tmp_path / "step_7").mkdir()
    (tmp_path / "step_000009").touch()
    assert newest(tmp_path, "plan-a") == (None, [])


def truncate(path: Path) -> None:
    os.truncate(path / "state.pt", (path / "state.pt").stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def edit_meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        meta = json.loads((path / "meta.json").read_text())
        change(meta)
        (path / "meta.json").write_text(json.dumps(meta))

    return edit


def forge(path: Path) -> None:
    """A state with correct checksums that is pickled code instead of tensors, as in an attack."""
    torch.save({"step": os.getcwd}, path / "state.pt")
    meta = json.loads((path / "meta.json").read_text())
    del meta["seal"]
    meta |= {"sha256": checkpoint_files.sha256_of(path / "state.pt"), "bytes": (path / "state.pt").stat().st_size}
    (path / "meta.json").write_text(json.dumps({**meta, "seal": checkpoint_files.seal_of(meta)}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "state.pt has .* bytes instead of"),
    "flipped bit": (flip, "state.pt is damaged: its SHA-256 is not the one recorded"),
    "emptied": (lambda path: os.truncate(path / "state.pt", 0), "state.pt has 0 bytes instead of"),
    "state missing": (lambda path: (path / "state.pt").unlink(), "state.pt is missing"),
    "state a folder": (
        lambda path: ((path / "state.pt").unlink(), (path / "state.pt").mkdir()),
        "state.pt has .* bytes instead of",
    ),
    "meta missing": (lambda path: (path / "meta.json").unlink(), "meta.json is missing"),
    "meta torn": (lambda path: os.truncate(path / "meta.json", 40), "meta.json is damaged"),
    "meta empty": (lambda path: os.truncate(path / "meta.json", 0), "meta.json is damaged"),
    "meta binary": (lambda path: (path / "meta.json").write_bytes(b"\xff\x00"), "meta.json is damaged"),
    "meta a list": (lambda path: (path / "meta.json").write_text("[1]"), "meta.json is damaged"),
    "meta flipped": (edit_meta(lambda meta: meta.update(plan_digest="plan-b")), "its checksum is wrong"),
    "no seal": (edit_meta(lambda meta: meta.pop("seal")), "meta.json is damaged"),
    "of the future": (edit_meta(lambda meta: meta.update(format=2)), "format 2 is not the format 1 that this version"),
    "not loadable": (forge, "state.pt does not load: "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_one_before_taken(tmp_path: Path, kind: str) -> None:
    put(tmp_path, 5, 10)
    damage, reason = DAMAGE[kind]
    damage(tmp_path / "step_000010")
    found, rejected = newest(tmp_path, "plan-a")
    assert found is not None
    assert found.step == 5
    assert found.tensors["step"].item() == 5
    assert [one.name for one in rejected] == ["step_000010"]
    with pytest.raises(CheckpointError, match=f"step_000010: .*{reason}") as error:
        load(tmp_path / "step_000010")
    assert "state.pt and meta.json that were saved together" in error.value.allowed
    assert "stagewright resume" in error.value.remedy
    # The next save moves it to rejected/, whatever its step.
    put(tmp_path, 10 if kind in ("truncated", "meta torn") else 11, keep=2)
    found, rejected = newest(tmp_path, "plan-a")
    assert found is not None
    assert found.step >= 10
    assert rejected == []
    assert (tmp_path / "step_000005").exists()
    assert names(tmp_path / "rejected") == ["step_000010"]


def test_all_damaged(tmp_path: Path) -> None:
    put(tmp_path, 5, 10)
    flip(tmp_path / "step_000005")
    truncate(tmp_path / "step_000010")
    found, rejected = newest(tmp_path, "plan-a")
    assert found is None
    assert [one.name for one in rejected] == ["step_000010", "step_000005"]
    assert isinstance(rejected[0], Rejected)


def test_another_plans_checkpoint_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 5)
    with pytest.raises(CheckpointError) as error:
        newest(tmp_path, "plan-b")
    assert "belongs to the plan plan-a, not to plan-b" in error.value.given
    assert "the plan that the run was started with" in error.value.allowed
    assert "fork" in error.value.remedy


def test_only_the_newest_few_rejected_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        put(tmp_path, 5)
        put(tmp_path, step)
        flip(tmp_path / step_name(step))
        put(tmp_path, step)
    assert names(tmp_path / "rejected") == ["step_000030", "step_000040"]


def test_a_future_that_did_not_happen_does_not_count(tmp_path: Path) -> None:
    """Resumed at 5 because 10 was damaged; checkpoints after the step saved now belong to an abandoned branch of training."""
    put(tmp_path, 5, 10, 15)
    put(tmp_path, 8, keep=3)
    assert names(tmp_path) == ["rejected", "step_000005", "step_000008"]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    put(tmp_path, 5, 10)
    save(tmp_path, 10, {"step": torch.tensor(-1)}, META, keep=2)
    assert names(tmp_path) == ["step_000005", "step_000010"]
    assert load(tmp_path / "step_000010").tensors["step"].item() == -1


def test_pruning_keeps_the_newest_best_last_and_protected(tmp_path: Path) -> None:
    put(tmp_path, *range(1, 7))
    point(tmp_path, "best", 2)
    point(tmp_path, "last", 6)
    put(tmp_path, 7, keep=2, protect=(4,))
    assert names(tmp_path) == ["best.json", "last.json", *map(step_name, (2, 4, 6, 7))]
    point(tmp_path, "best", 7)
    point(tmp_path, "last", 7)
    put(tmp_path, 8, keep=1)
    assert names(tmp_path) == ["best.json", "last.json", *map(step_name, (7, 8))]


def test_what_a_kept_state_refers_to_is_kept_as_long(tmp_path: Path) -> None:
    """The state of step 2 was saved when step 1 was the best; if 3 breaks, a run resumed at 2 needs 1 again."""
    put(tmp_path, 1)
    put(tmp_path, 2, keep=2, protect=(1,))
    put(tmp_path, 3, keep=2, protect=(3,))
    assert names(tmp_path) == [*map(step_name, (1, 2, 3))]
    put(tmp_path, 4, keep=2, protect=(3,))
    assert names(tmp_path) == [*map(step_name, (3, 4))]


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1, 2, 3, 4)
    flip(tmp_path / "step_000003")
    (tmp_path / "step_000004" / "meta.json").unlink()
    put(tmp_path, 5, keep=3)
    assert names(tmp_path) == ["rejected", *map(step_name, (1, 2, 5))]


def test_verified_files_are_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    sha256 = checkpoint_files.sha256_of
    monkeypatch.setattr(checkpoint_files, "sha256_of", lambda path: hashed.append(path) or sha256(path))
    put(tmp_path, 1, 2, 3, keep=3)
    assert len(hashed) == 3


def test_best_and_last_are_small_files_that_any_copy_keeps(tmp_path: Path) -> None:
    put(tmp_path, 1, 2)
    point(tmp_path, "best", 1)
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 1, "checkpoint": "step_000001"}
    point(tmp_path, "best", 2)
    assert pointed(tmp_path, "best") == tmp_path / "step_000002"
    with pytest.raises(CheckpointError, match="best: no checkpoint step_000009 in") as error:
        point(tmp_path, "best", 9)
    assert error.value.allowed == "step_000002, step_000001"
    assert "save this checkpoint first" in error.value.remedy
    assert pointed(tmp_path, "last") is None
    for damaged in ("", "{", "[]", '{"step": "x"}', '{"step": 77}'):
        (tmp_path / "last.json").write_text(damaged)
        assert pointed(tmp_path, "last") is None


def test_links_of_before_that_a_copy_turned_into_folders_are_left_alone(tmp_path: Path) -> None:
    """Links become folders in copies by scp -r, cp -rL, zip and object stores (situation 059)."""
    put(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step_000001", tmp_path / "best")
    (tmp_path / "last").symlink_to("step_000002")
    point(tmp_path, "best", 1)
    point(tmp_path, "last", 2)
    put(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["best", "best.json", "last.json", *map(step_name, (1, 2, 3))]
    assert newest(tmp_path, "plan-a")[0] is not None


def test_leftovers_of_killed_processes_go_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_000003").mkdir()
    (tmp_path / ".tmp-step_000003" / "state.pt").write_bytes(b"half")
    (tmp_path / ".tmp-best").symlink_to("step_000003")  # written by older versions
    put(tmp_path, 4)
    assert names(tmp_path) == ["step_000004"]


def fail_with(number: int, first: int = 0, times: int = 1_000_000, real: Callable[..., Any] | None = None) -> Any:
    """Returns a function that raises OSError at calls ``first .. first + times - 1`` and calls ``real`` at all others."""
    calls = iter(range(10_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if first <= next(calls) < first + times:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs) if real else None

    return call


@pytest.mark.parametrize("at", range(4))
def test_a_full_disk_makes_room_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    put(tmp_path, 1, 2, 3)
    flip(tmp_path / "step_000003")
    put(tmp_path, 3)
    point(tmp_path, "best", 1)
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC, first=at, times=1, real=os.fsync))
    put(tmp_path, 4, keep=3)
    assert names(tmp_path) == ["best.json", *map(step_name, (1, 3, 4))]
    assert newest(tmp_path, "plan-a")[1] == []


@pytest.mark.parametrize("call", ["fsync", "mkdir"])
def test_a_disk_that_stays_full_names_the_last_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    put(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(errno.ENOSPC))
        with pytest.raises(StorageError) as error:
            put(tmp_path, 3)
    assert "checkpoint of step 3 could not be written" in error.value.given
    assert "No space left on device" in error.value.given
    assert "GB free" in error.value.allowed
    assert "the last valid checkpoint is step_000002" in error.value.remedy
    assert names(tmp_path) == ["step_000002"]
    put(tmp_path, 3)
    assert load(tmp_path / "step_000003").step == 3


def test_the_first_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(StorageError, match="there is no earlier checkpoint"):
        put(tmp_path, 3)
    assert names(tmp_path) == []


def test_what_reads_back_wrong_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    monkeypatch.setattr(checkpoint_files, "sha256_of", lambda path: "0" * 64)
    with pytest.raises(StorageError, match="SHA-256 is not the one recorded"):
        put(tmp_path, 2)
    assert names(tmp_path) == ["step_000001"]


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    put(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, 2)
    assert names(tmp_path) == ["step_000001"]


def test_room(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match=f"GB are free in {tmp_path}") as error:
        check_room(tmp_path / "not" / "yet", 10**18)
    assert error.value.allowed == "at least 1e+09 GB, for the checkpoints and files of the run"
    assert "--out" in error.value.remedy


def test_num_bytes() -> None:
    state = {"a": [torch.zeros(3, 5), (torch.zeros(7, dtype=torch.int64), 3, "x", None)], "b": torch.tensor(True)}
    assert num_bytes(state) == 60 + 56 + 1


def test_one_process_in_a_run_directory(tmp_path: Path) -> None:
    with lock(tmp_path):
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}") as error, lock(tmp_path):
            pass
        assert error.value.allowed == "one process in a run directory"
        assert "stop it" in error.value.remedy
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fcntl.flock", fail_with(errno.ENOLCK))
    with lock(tmp_path):
        assert "does not support locks" in caplog.text


KILLS = """
import json, os, resource, shutil, signal, sys
from pathlib import Path
import torch
from stagewright.rundir import checkpoint
from stagewright.rundir.checkpoint import load
from stagewright.rundir.checkpoint import newest
from stagewright.rundir.checkpoint import point
from stagewright.rundir.checkpoint import pointed
from stagewright.rundir.checkpoint import save
from stagewright.errors import CheckpointError
from stagewright.errors import StorageError
from stagewright.system.memory import num_bytes
from stagewright.storage.hashed import HashedFile
from stagewright.storage.lock import lock

META = {"plan_digest": "p"}
base, work = Path(sys.argv[1]) / "base", Path(sys.argv[1]) / "work"
OLD, NEW = torch.arange(1000.0), torch.arange(1000.0) + 0.5


def put(step, values=OLD):
    save(work, step, {"values": values, "step": step}, META, keep=1)


def child(deed):
    pid = os.fork()
    if pid == 0:
        try:
            deed()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def killed_at(moment, deed):
    calls = iter(range(10**6))

    def lethal(function):
        def call(*args, **kwargs):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    def run():
        for name in ("replace", "fsync", "mkdir", "rmdir", "unlink", "symlink", "utime"):
            setattr(os, name, lethal(getattr(os, name)))
        HashedFile.write = lethal(HashedFile.write)
        deed()

    status = child(run)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0


def every_moment(prepare, deed, check):
    for moment in range(1000):
        shutil.rmtree(work, ignore_errors=True)
        prepare()
        killed = killed_at(moment, deed)
        found, rejected = newest(work, "p")
        assert found is not None and rejected == [], (moment, rejected)
        assert all(load(path) for path in work.glob("step_*")), moment
        check(found, killed)
        assert load(pointed(work, "best")).step == 1, moment
        put(9)
        assert load(pointed(work, "best")).step == 1, moment
        left = {path.name for path in work.iterdir()}
        assert left == {"best.json", "last.json", "step_000001", "step_000009", pointed(work, "last").name}, (moment, left)
        if not killed:
            return moment


def several():
    for step in (1, 2, 3):
        save(work, step, {"values": OLD, "step": step}, META, keep=9)
    point(work, "best", 1)
    point(work, "last", 3)


def next_step():
    put(4, NEW)
    point(work, "last", 4)


def check_next(found, killed):
    assert found.step in ((3, 4) if killed else (4,)), found.step
    assert found.tensors["values"].equal(OLD if found.step == 3 else NEW)


def check_again(found, killed):
    assert found.step == 3
    values = found.tensors["values"]
    assert values.equal(NEW) or (killed and values.equal(OLD))


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        put(4, torch.zeros(100_000))
    except StorageError as error:
        Path(sys.argv[1], "message").write_text(str(error))
    else:
        raise AssertionError("it took 400 kB on a disk of 20")
    assert newest(work, "p")[0].step == 3


def damaged():
    several()
    with open(work / "step_000003" / "state.pt", "r+b") as file:
        file.write(b"0000")


def check_damaged(found, killed):
    assert found.step in ((2, 3) if killed else (3,))


def mends():
    put(3)


moments = {"next": every_moment(several, next_step, check_next)}
moments["again"] = every_moment(several, lambda: put(3, NEW), check_again)
shutil.rmtree(work)
several()
assert child(full_disk) == 0
run_dir = Path(sys.argv[1]) / "locked"
run_dir.mkdir()

def hold():
    lock(run_dir).__enter__()
    os.kill(os.getpid(), signal.SIGKILL)

assert os.WTERMSIG(child(hold)) == signal.SIGKILL
with lock(run_dir):
    pass
# The damaged newest is rejected until it is set aside, so this one checks for itself.
count = 0
for moment in range(1000):
    shutil.rmtree(work)
    damaged()
    killed = killed_at(moment, mends)
    found, rejected = newest(work, "p")
    check_damaged(found, killed)
    if not killed:
        moments["mend"] = moment
        break
print(json.dumps(moments))
"""


def test_killed_at_every_moment_of_a_save(tmp_path: Path) -> None:
    """Sends SIGKILL before every system call that changes the disk, in forks of a process that has imported torch.

    At any moment: the newest checkpoint is valid and is the old or the new one, nothing is rejected, and the next save cleans
    up. Also tests a disk that is really full (RLIMIT_FSIZE), and a lock whose holder is killed.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    moments = json.loads(done.stdout)
    assert min(moments.values()) > 10, moments
    message = (tmp_path / "message").read_text()
    assert "File too large" in message
    assert "checkpoint is step_000003" in message
