"""Who owns a mirror: taking over, being fenced out, and all orders in which processes can meet at the record."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import ObjectServer
from obstore.store import MemoryStore

from stagewright.errors import CheckpointError, StorageError
from stagewright.mirror.names import OWNER
from stagewright.mirror.owner import (
    Fenced,
    Owner,
    Ownership,
    Seen,
    own_record,
    read_owner,
    take_over,
    write_owner,
)
from stagewright.storage.objects import TIMEOUT, open_store

URL = "memory:///"


def mine(plan: str = "plan") -> Owner:
    return own_record(plan, "run-1")


def take(store: object, plan: str = "plan") -> Ownership:
    return take_over(store, URL, mine(plan), conditional=True, pause=lambda seconds: None)  # type: ignore[arg-type]


def test_each_start_has_a_number_one_higher_and_fences_out_the_one_before() -> None:
    store = MemoryStore()
    first = take(store)
    first.look()
    second = take(store)
    assert (first.own.number, second.own.number) == (1, 2)
    second.look()
    with pytest.raises(Fenced, match=r"taken over by process \d+ on .* \(start 2, since 20"):
        first.look()


def test_a_mirror_of_another_plan_is_refused_by_name_and_digest() -> None:
    store = MemoryStore()
    take(store, "a" * 64)
    with pytest.raises(
        CheckpointError, match=r"mirror of the run 'run-1' with the plan aaaaaaaaaaaa, not of this plan, bbbb"
    ):
        take(store, "b" * 64)
    assert read_owner(store, URL)[0].number == 1  # type: ignore[index]


DAMAGE = [
    b"",
    b"{",
    b"[]",
    b'{"number": 1}',
    b'{"format": 1, "number": -1, "token": "", "plan_digest": "", "name": "", "host": "", "pid": 1, "since": ""}',
    b'{"format": 1, "number": "1", "token": "", "plan_digest": "", "name": "", "host": "", "pid": 1, "since": ""}',
    b'{"format": 2, "number": 1, "token": "", "plan_digest": "", "name": "", "host": "", "pid": 1, "since": ""}',
]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_record_of_a_stranger_is_refused(content: bytes) -> None:
    store = MemoryStore()
    obstore.put(store, OWNER, content)
    with pytest.raises(CheckpointError, match=r"owner\.json is damaged"):
        take(store)
    assert bytes(obstore.get(store, OWNER).bytes()) == content


def test_a_record_that_vanishes_is_not_another_owner() -> None:
    store = MemoryStore()
    first = take(store)
    obstore.delete(store, OWNER)
    with pytest.raises(FileNotFoundError):
        first.look()


@dataclass
class Process:
    """A process that takes over and then writes, one request at a time: read the record, write it, look, write, look, write
    ..."""

    store: MemoryStore
    seen: Seen | None = None
    has_read: bool = False
    owner: Ownership | None = None
    may_write: bool = False
    wrote: list[int] = field(default_factory=list)
    fenced: bool = False

    def step(self, record: list[int]) -> None:
        """Does its next request; a write appends its number to ``record``."""
        if self.fenced:
            return
        if self.owner is None:
            if not self.has_read:
                self.seen, self.has_read = read_owner(self.store, URL), True
            else:
                written = write_owner(self.store, mine(), self.seen)
                self.has_read = False
                if written is not None:
                    self.owner = Ownership(self.store, URL, written, True)
        elif not self.may_write:
            try:
                self.owner.look()
                self.may_write = True
            except Fenced as fenced:
                assert fenced.owner.number > self.owner.own.number
                self.fenced = True
        else:
            record.append(self.owner.own.number)
            self.may_write = False


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), min_size=10, max_size=80))
def test_all_orders_in_which_processes_meet(order: list[int]) -> None:
    """No two processes have the same number, the record's number never falls, and one that was taken over writes at most what
    it had begun: one write after the takeover."""
    store, record = MemoryStore(), list[int]()
    processes = [Process(store) for _ in range(4)]
    numbers, late = [0], dict[int, int]()
    for at in order:
        before = len(record)
        processes[at].step(record)
        now = read_owner(store, URL)
        numbers.append(0 if now is None else now[0].number)
        if len(record) > before and record[-1] < numbers[-1]:
            late[at] = late.get(at, 0) + 1
    assert numbers == sorted(numbers)
    owners = [process.owner.own.number for process in processes if process.owner is not None]
    assert len({*owners}) == len(owners)
    assert all(count <= 1 for count in late.values())
    for process in processes:  # whoever is not the newest finds out at its next look
        if process.owner is not None and not process.fenced and process.owner.own.number < numbers[-1]:
            with pytest.raises(Fenced):
                process.owner.look()


@pytest.mark.parametrize("present", [False, True])
def test_an_answer_that_is_lost_is_found_again(present: bool, bucket: str, object_server: ObjectServer) -> None:
    """The record was written, but the connection broke: the process must not take itself for another."""
    store = open_store(f"{bucket}/run")
    if present:
        take(store)
    with object_server.fault("lost", method="PUT", path=OWNER, times=1):
        taken = take(store)
    assert taken.own.number == 1 + present
    taken.look()


def test_a_store_that_does_not_answer_is_told(
    bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "0.2")
    store = open_store(f"{bucket}/run")
    with (
        object_server.fault("slow"),
        pytest.raises(StorageError, match=r"writing owner\.json failed: the store asks to slow"),
    ):
        take(store)


def test_the_record_is_json_that_people_can_read() -> None:
    store = MemoryStore()
    take(store)
    content = json.loads(bytes(obstore.get(store, OWNER).bytes()))
    assert {"format", "number", "token", "plan_digest", "name", "host", "pid", "since"} == content.keys()
