"""optuna-dashboard shows a study while it runs, from the journal of one host."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from stagewright.study.ledger import Ledger
from stagewright.study.store import JOB, AfterDeath, open_store


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def fetched(url: str) -> Any:
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[optuna.Study, str]]:
    """A queue with a dashboard on its journal, and the dashboard's URL."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("needs optuna-dashboard, of the extra dev")
    ledger = Ledger(tmp_path)
    store = open_store(ledger, None, AfterDeath(ledger))
    queue = optuna.create_study(study_name="s", storage=store, direction="maximize")
    port = free_port()
    command = [Path(sys.executable).with_name("optuna-dashboard"), ledger.journal, "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*map(str, command), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield queue, f"http://127.0.0.1:{port}/api/studies"
    finally:
        process.kill()
        process.wait()


def test_the_dashboard_follows_the_journal(running: tuple[optuna.Study, str]) -> None:
    queue, url = running
    queue.enqueue_trial({"lr.peak": 0.1}, user_attrs={JOB: "0.1-s0"})
    trial = queue.ask()
    trial.suggest_float("lr.peak", 0.01, 1.0, log=True)
    trial.report(41.5, 300)
    [summary] = fetched(url)["study_summaries"]
    assert summary["study_name"] == "s"
    [shown] = fetched(f"{url}/{summary['study_id']}")["trials"]
    assert shown["state"] == "Running"
    assert shown["intermediate_values"] == [{"step": 300, "value": 41.5}]
    assert {"key": JOB, "value": "0.1-s0"} in [
        {**one, "value": one["value"].strip("'\"")} for one in shown["user_attrs"]
    ]
    queue.tell(trial, 62.5)
    until = time.monotonic() + 60  # it looks at the store every few seconds
    while True:
        [shown] = fetched(f"{url}/{summary['study_id']}")["trials"]
        if shown["state"] == "Complete" or time.monotonic() > until:
            break
        time.sleep(0.5)
    assert shown["state"] == "Complete" and shown["values"] == [62.5]
