"""Never half visible: a reader that polls the mirror all the time sees only valid newest checkpoints, and none that goes
back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import obstore
import pytest
from mirror_runs import owned, run_directory, saved
from object_server import ObjectServer
from obstore.exceptions import BaseError

from stagewright.mirror import thread
from stagewright.mirror.names import LAST, complete_steps, meta_name, state_name
from stagewright.mirror.thread import Mirror
from stagewright.rundir.checkpoint_files import parse_meta
from stagewright.storage.objects import is_missing, is_passing, open_store


class Reader:
    """Polls last.json, the list, and the newest checkpoint, whole."""

    def __init__(self, store: Any) -> None:
        self.store, self.newest, self.polls, self.seen = store, -1, 0, set[int]()
        self.wrong: list[str] = []

    def poll(self) -> None:
        last = self._get(LAST)
        named = None if last is None else json.loads(last)["step"]
        newest = self._newest()
        if named is not None and (newest is None or named > newest):
            self.wrong.append(f"last.json names {named}, the newest of the list is {newest}")
        if newest is None:
            return
        if newest < self.newest:
            self.wrong.append(f"the newest went back from {self.newest} to {newest}")
        self.newest = newest
        if (why := self._invalid(newest)) is not None:
            again = self._newest()  # pruned between the list and the fetch is fine, if a newer one is there
            if again is None or again <= newest:
                self.wrong.append(f"{newest} is the newest, and {why}")
        else:
            self.seen.add(newest)
        self.polls += 1

    def _invalid(self, step: int) -> str | None:
        content = self._get(meta_name(step))
        if content is None:
            return "its meta.json is gone"
        meta = parse_meta(content)
        state = self._get(state_name(step, meta["sha256"]))
        if state is None:
            return "its state is missing"
        return None if hashlib.sha256(state).hexdigest() == meta["sha256"] else "its state is another one"

    def _newest(self) -> int | None:
        return max(
            complete_steps(self._patient(lambda: [one["path"] for part in obstore.list(self.store) for one in part])),
            default=None,
        )

    def _get(self, name: str) -> bytes | None:
        try:
            return self._patient(lambda: bytes(obstore.get(self.store, name).bytes()))
        except FileNotFoundError as error:
            assert is_missing(error)
            return None

    def _patient(self, do: Any) -> Any:
        while True:
            try:
                return do()
            except BaseError as error:
                assert is_passing(error), error


@pytest.mark.parametrize("saves", [40, pytest.param(200, marks=pytest.mark.long)])
def test_a_reader_never_sees_half_of_a_checkpoint(
    saves: int, bucket: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in five of the writer meets a fault, of six kinds."""
    monkeypatch.setattr(thread, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(thread, "LONGEST_RETRY", 0.1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here
    url, run = f"{bucket}/run", run_directory(tmp_path / "run")
    mirror = Mirror(run, owned(open_store(url), url), 2, lambda text: None)
    reader, ended = Reader(open_store(url)), threading.Event()

    def read() -> None:
        while not ended.is_set():
            reader.poll()
            time.sleep(0.01)

    polling = threading.Thread(target=read)
    with contextlib.ExitStack() as faults:
        for kind in ("reset", "error", "slow", "lost", "truncate", "forbidden"):
            faults.enter_context(object_server.fault(kind, method="PUT|POST|DELETE", share=1 / 30))
            faults.enter_context(object_server.fault(kind, method="GET", path="owner", share=1 / 30))
        mirror.start()
        polling.start()
        for step in range(1, saves + 1):
            saved(run, step, protect=[step // 10 * 10] if step >= 10 else [], spare=mirror.wanted())
            mirror.saved(step)
            patience = time.monotonic() + 0.1
            while mirror.progress() is not None and time.monotonic() < patience:
                time.sleep(0.002)
        lacks = mirror.settle(60, say=logging.getLogger().info, gives_up=lambda: False)
    ended.set()
    polling.join()
    mirror.close()
    assert reader.wrong == []
    assert lacks.nothing and complete_steps(_names(url))[0] == saves
    assert reader.polls > saves / 2 and len(reader.seen) > saves / 4, (reader.polls, reader.seen)
    assert any("the mirror cannot be written" in note for note in mirror.notes())


def _names(url: str) -> list[str]:
    return [one["path"] for part in obstore.list(open_store(url)) for one in part]
