"""What is uploaded, in which order, and what of it another process or a reader can see."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from mirror_runs import PLAN, owned, run_directory, saved
from object_server import ObjectServer

from stagewright.errors import CheckpointError
from stagewright.mirror import uploads as module
from stagewright.mirror.names import LAST, complete_steps, meta_name
from stagewright.mirror.owner import Fenced
from stagewright.mirror.remote import names_in, restore
from stagewright.mirror.uploads import Interrupted, Uploads
from stagewright.rundir import checkpoint
from stagewright.rundir.checkpoint_files import META, STATE
from stagewright.rundir.directory import RunDir
from stagewright.storage.objects import open_store

BIG = 5_000_000
"""Numbers of a state of 20 MB, which is uploaded in parts."""


class Set:
    """A run with its uploads to a mirror in ``bucket``."""

    def __init__(self, bucket: str, root: Path, *, keep: int = 2, run: RunDir | None = None) -> None:
        self.url, self.notes = f"{bucket}/run", list[str]()
        self.store = open_store(self.url)
        self.run = run or run_directory(root)
        self.uploads = Uploads(self.run, owned(self.store, self.url), keep, self.notes.append)

    def save(self, step: int, **more: Any) -> None:
        saved(self.run, step, spare=self.uploads.wanted(), **more)
        self.uploads.saved(step)

    def steps(self) -> list[int]:
        return complete_steps(names_in(self.store, self.url))

    def last(self) -> dict[str, Any]:
        return json.loads(bytes(obstore.get(self.store, LAST).bytes()))


@pytest.fixture
def make(bucket: str, tmp_path: Path) -> Callable[..., Set]:
    def make(**more: Any) -> Set:
        return Set(bucket, tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **more)

    return make


def put_names(server: ObjectServer) -> list[str]:
    """Which objects were written, deleted (-) and, of owner.json, read (?), in order."""
    found = []
    for one in server.requests():
        name = one["path"].partition("/run/")[2]
        if one["method"] == "PUT" and "partNumber" not in one["query"]:
            found.append(name)
        if one["method"] == "GET" and name == "owner.json":
            found.append("?")
        found += [f"-{key.partition('run/')[2]}" for key in one["keys"]]
        if one["method"] == "POST" and "uploadId" in one["query"]:
            found.append(name)
    return found


@pytest.mark.parametrize("size", [100, BIG])
def test_state_then_meta_then_last_each_after_a_look_at_the_owner(
    size: int, make: Callable[..., Set], object_server: ObjectServer
) -> None:
    one = make()
    one.uploads.work()
    object_server.requests(clear=True)
    one.save(3, size=size)
    one.uploads.work()
    names = [name for name in put_names(object_server) if name == "?" or name.startswith("checkpoints")]
    sha = json.loads((one.run.checkpoints / "step_000003" / META).read_bytes())["sha256"]
    state = f"checkpoints/step_000003/state-{sha[:16]}.pt"
    assert [name for name in names if name != "?"] == [state, meta_name(3), LAST]
    for name in (meta_name(3), LAST):
        assert names[names.index(name) - 1] == "?", names
    if size == BIG:
        assert sum("partNumber" in sent["query"] for sent in object_server.requests()) == 3
    assert one.last()["step"] == 3
    content = bytes(obstore.get(one.store, state).bytes())
    assert content == (one.run.checkpoints / "step_000003" / STATE).read_bytes()


def test_the_plan_comes_after_the_files_of_the_start_and_before_every_checkpoint(
    make: Callable[..., Set], object_server: ObjectServer
) -> None:
    one = make()
    one.save(1)
    object_server.requests(clear=True)
    one.uploads.work()
    names = [name for name in put_names(object_server) if name != "?"]
    assert names.index("manifest.parquet") < names.index("plan.json") < names.index(meta_name(1))


def test_small_files_are_uploaded_when_they_change_but_not_all_the_time(
    make: Callable[..., Set], object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    one.uploads.work()
    object_server.requests(clear=True)
    one.uploads.work()
    assert [name for name in put_names(object_server) if name != "?"] == []
    with one.run.steps.open("a") as file:
        file.write("1\n")
    one.uploads.work()
    assert "steps.csv" not in put_names(object_server), "30 s are not over"
    assert one.uploads.missing_files() == ["steps.csv"]
    monkeypatch.setattr(module, "SMALL_SECONDS", 0.0)
    one.uploads.work()
    assert put_names(object_server).count("steps.csv") == 1 and one.uploads.missing_files() == []
    one.run.steps.unlink()
    one.uploads.work(everything=True)
    assert "steps.csv" not in names_in(one.store, one.url)


def test_of_waiting_checkpoints_the_newest_and_the_best_survive_and_the_log_says_so(make: Callable[..., Set]) -> None:
    one = make(keep=1)
    for step in range(1, 8):
        one.save(step, protect=[3] if step >= 3 else [], keep=1)
    assert one.uploads.missing_steps() == [3, 7] == one.uploads.wanted()
    assert one.notes[0] == "the mirror is behind: step_000001 will not be uploaded, step_000002 takes its place"
    assert [note for note in one.notes if "step_000003 will" in note] == []
    one.uploads.work()
    assert one.steps() == [7, 3] and one.last()["step"] == 7


def test_local_pruning_spares_what_is_to_be_uploaded(make: Callable[..., Set]) -> None:
    one = make()
    one.save(1, keep=1)
    inside, go_on = threading.Event(), threading.Event()

    def slow(path: Path, size: int, look: Any = lambda part: None) -> Any:
        inside.set()
        go_on.wait(20)
        return usual(path, size, look)

    usual, one.uploads._parts = one.uploads._parts, slow  # type: ignore[method-assign]
    thread = threading.Thread(target=one.uploads.work)
    thread.start()
    assert inside.wait(20)
    for step in (2, 3, 4):
        one.save(step, keep=1)
    assert checkpoint.steps(one.run.checkpoints) == [1, 3, 4], "1 is being uploaded, and 3 waited when 4 was saved"
    go_on.set()
    thread.join()
    assert one.steps()[0] == 4


def test_the_mirror_is_pruned_by_the_local_rule_and_meta_goes_first(
    make: Callable[..., Set], object_server: ObjectServer
) -> None:
    one = make(keep=2)
    object_server.requests(clear=True)
    for step in range(1, 6):
        one.save(step, protect=[2] if step >= 2 else [])
        one.uploads.work()
    assert one.steps() == [5, 4, 2]
    deleted = [name for name in put_names(object_server) if name.startswith("-checkpoints")]
    assert len(deleted) == 4 and [name.endswith(META) for name in deleted] == [True, False] * 2
    assert checkpoint.steps(one.run.checkpoints) == [2, 4, 5]


def test_a_run_that_goes_back_takes_its_later_checkpoints_away(make: Callable[..., Set]) -> None:
    one = make()
    for step in (4, 8):
        one.save(step)
        one.uploads.work()
    one.save(6)
    one.uploads.work()
    assert one.steps() == [6, 4] and one.last()["step"] == 6


def test_a_new_start_uploads_what_is_missing_and_only_that(
    make: Callable[..., Set], object_server: ObjectServer
) -> None:
    one = make()
    one.save(1, size=BIG)
    one.uploads.work()
    one.save(2, size=BIG)
    again = make(run=one.run)
    object_server.requests(clear=True)
    again.uploads.work(everything=True)
    sent = [name for name in put_names(object_server) if "state" in name]
    assert len(sent) == 1 and "step_000002" in sent[0] and again.steps() == [2, 1]


@pytest.mark.parametrize("fault", ["reset", "error", "slow"])
def test_an_upload_in_parts_that_fails_shows_nothing_and_is_done_again(
    fault: str, make: Callable[..., Set], object_server: ObjectServer
) -> None:
    one = make()
    one.uploads.work()
    one.save(1, size=BIG)
    with object_server.fault(fault, method="PUT", path="partNumber=2"), pytest.raises(Exception):  # noqa: B017
        one.uploads.work()
    assert one.steps() == [] and one.uploads.missing_steps() == [1]
    one.uploads.work()
    assert one.steps() == [1]


def test_an_upload_that_is_given_up_shows_nothing(make: Callable[..., Set], object_server: ObjectServer) -> None:
    one = make()
    one.uploads.work()
    one.save(1, size=BIG)
    one.uploads.ends.set()
    with pytest.raises(Exception) as caught:
        one.uploads.work()
    assert isinstance(caught.value, Interrupted) or "Interrupted" in str(caught.value)
    assert one.steps() == []


def test_a_state_that_the_disk_has_spoiled_is_not_uploaded(make: Callable[..., Set]) -> None:
    one = make()
    one.save(1)
    path = one.run.checkpoints / "step_000001" / STATE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    one.uploads.work()
    assert one.steps() == [] and "step_000001 is not uploaded: state.pt is damaged" in one.notes[-1]
    assert not [name for name in names_in(one.store, one.url) if "state" in name]


@pytest.mark.parametrize("name", ["meta", "last"])
def test_an_answer_that_is_lost_is_not_another_process(
    name: str, make: Callable[..., Set], object_server: ObjectServer
) -> None:
    one = make()
    one.uploads.work()
    one.save(1)
    with (
        object_server.fault("lost", method="PUT", path=f"{name}.json", times=1),
        pytest.raises(Exception, match="HTTP"),
    ):
        one.uploads.work()
    one.uploads.work()
    assert one.steps() == [1] and one.last()["step"] == 1


def test_a_process_that_was_taken_over_uploads_nothing_more(
    make: Callable[..., Set], bucket: str, tmp_path: Path
) -> None:
    one = make()
    one.save(1)
    one.uploads.work()
    other = Set(bucket, tmp_path / "other")
    other.uploads.work()
    before = names_in(one.store, one.url)
    one.save(2)
    with pytest.raises(Fenced):
        one.uploads.work(everything=True)
    assert names_in(one.store, one.url) == before


def test_a_process_that_sleeps_between_its_look_and_its_write_spoils_nothing(
    make: Callable[..., Set], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hardest moment: it was the owner when it looked, and another one has taken over and gone on before it writes."""
    for sleeps_before in ("checkpoints/step_000002/state", meta_name(2), LAST):
        one, other = make(), None
        one.save(1)
        one.uploads.work()
        one.save(2)
        put = obstore.put

        def sleepy(store: Any, name: str, *rest: Any, sleeps_before: str = sleeps_before, **more: Any) -> Any:
            nonlocal other
            if name.startswith(sleeps_before) and other is None:
                other = make()
                other.uploads.work()
                for step in (2, 3):  # the same steps, but other times in the state: other bytes
                    saved(other.run, step, size=99)
                    other.uploads.saved(step)
                    other.uploads.work()
            return put(store, name, *rest, **more)  # noqa: B023

        with monkeypatch.context() as patch, pytest.raises(Fenced):
            patch.setattr(obstore, "put", sleepy)
            one.uploads.work()
        assert other is not None and other.last()["step"] == 3 and other.steps() == [3, 2]
        for step in (3, 2):
            fresh = run_directory(tmp_path / f"fresh-{step}-{sleeps_before.replace('/', '-')}")
            assert restore(other.store, other.url, fresh, PLAN).step == step
            obstore.delete(other.store, meta_name(step))
        for name in names_in(other.store, other.url):
            obstore.delete(other.store, name)


def test_a_late_state_of_a_process_that_was_taken_over_stays_until_it_cannot_matter(
    make: Callable[..., Set], object_server: ObjectServer
) -> None:
    """Its meta.json may still come; a state that is removed before would make it an invalid newest one."""
    one = make()
    late = "checkpoints/step_000009/state-0123456789abcdef.pt"
    obstore.put(one.store, late, b"late")
    one.save(1)
    one.uploads.work()
    assert late in names_in(one.store, one.url)
    for step in (10, 11):
        one.save(step)
        one.uploads.work()
    assert late not in names_in(one.store, one.url)


def test_a_checkpoint_of_another_plan_is_refused(make: Callable[..., Set], tmp_path: Path) -> None:
    one = make()
    one.save(1)
    one.uploads.work()
    with pytest.raises(CheckpointError, match="belongs to the plan"):
        restore(one.store, one.url, run_directory(tmp_path / "fresh"), "q" * 64)


def test_damaged_checkpoints_are_passed_over_and_named(make: Callable[..., Set], tmp_path: Path) -> None:
    one = make(keep=4)
    for step in (1, 2, 3, 4):
        one.save(step, keep=4)
        one.uploads.work()
    parts = {
        step: [name for name in names_in(one.store, one.url) if f"step_00000{step}/" in name] for step in (2, 3, 4)
    }
    obstore.put(one.store, next(name for name in parts[4] if "state" in name), b"cut")
    obstore.put(one.store, meta_name(3), b"{}")
    state = next(name for name in parts[2] if "state" in name)
    content = bytes(obstore.get(one.store, state).bytes())
    obstore.put(one.store, state, content[:-1] + bytes([content[-1] ^ 1]))
    fresh = run_directory(tmp_path / "fresh")
    found = restore(one.store, one.url, fresh, PLAN)
    assert found.step == 1 and checkpoint.steps(fresh.checkpoints) == [1]
    reasons = [(rejected.name, rejected.reason) for rejected in found.rejected]
    assert [name for name, _ in reasons] == ["step_000004", "step_000003", "step_000002"]
    assert "has 3 bytes instead of" in reasons[0][1] and "SHA-256" in reasons[2][1]
    again = make(run=fresh)  # whoever goes on from there replaces them
    again.save(2)
    again.uploads.work()
    assert again.steps() == [2, 1] and again.last()["step"] == 2
    assert restore(again.store, again.url, run_directory(tmp_path / "third"), PLAN).step == 2


def test_the_newest_of_disk_and_mirror_counts(make: Callable[..., Set], tmp_path: Path) -> None:
    one = make()
    for step in (2, 4):
        one.save(step)
        one.uploads.work()
    older, newer = run_directory(tmp_path / "older"), run_directory(tmp_path / "newer")
    saved(older, 3)
    saved(newer, 5)
    assert restore(one.store, one.url, older, PLAN).step == 4 and checkpoint.steps(older.checkpoints) == [3, 4]
    assert restore(one.store, one.url, newer, PLAN).step is None and checkpoint.steps(newer.checkpoints) == [5]


def test_uploads_take_no_time_from_who_saves(make: Callable[..., Set], object_server: ObjectServer) -> None:
    """`saved` only notes it: no request is made in the caller's thread."""
    one = make()
    object_server.requests(clear=True)
    began = time.monotonic()
    with object_server.fault("stall"):
        one.save(1)
    assert time.monotonic() - began < 5 and object_server.num_requests() == 0


def test_nothing_is_removed_before_something_was_added(make: Callable[..., Set], tmp_path: Path) -> None:
    """A process that goes on from an older checkpoint, as it could not read the newest, must not be the one that removes it."""
    one = make(keep=1)
    for step in (2, 4):
        one.save(step, protect=[2])
        one.uploads.work()
    older = run_directory(tmp_path / "older")
    saved(older, 2, protect=[2])
    again = make(run=older, keep=1)
    again.uploads.work(everything=True)
    assert again.steps() == [4, 2]
    again.save(3)
    again.uploads.work()
    assert again.steps() == [3] and again.last()["step"] == 3
