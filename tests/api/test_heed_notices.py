"""Runs on machines that are taken away: stopped and saved in time, and gone on with elsewhere with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from metadata_service import metadata_service
from mirror_runs import mirror_recipe
from rank_runs import QUIET, unequal, write_pictures

import stagewright
from stagewright.system.notices import slow_save

ROOT = Path(stagewright.__file__).parent.parent


def stagewright_command(*words: str | Path, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name != "STAGEWRIGHT_NOTICES"}
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "stagewright", *map(str, words)],
        env={**clean, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def reasons(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["reason"] for event in events if event["kind"] == "stopped"]


def notices(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["kind"] == "notice"]


@pytest.mark.long
def test_a_notice_stops_a_run_saved(tmp_path: Path) -> None:
    data, recipe = write_pictures(tmp_path / "stripes"), mirror_recipe(tmp_path, steps=40, saves="100st")
    run, whole = tmp_path / "run", tmp_path / "whole"
    train = ("train", data, "-r", recipe, *QUIET, "--out")
    with metadata_service("AWS", (run / "steps.csv").exists, seconds=90) as host:
        first = stagewright_command(*train, run, AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{host}")
        said = first.communicate(timeout=120)[1]
    assert first.returncode == 75, said
    (reason,) = reasons(run)
    assert reason.startswith("AWS takes this machine away in ") and reason.endswith(" s (terminate)")
    assert list((run / "checkpoints").glob("step_*")) and not (run / "model").exists()
    for words in (("resume", run, *QUIET), (*train, whole)):
        other = stagewright_command(*words, STAGEWRIGHT_NOTICES="off")
        assert other.communicate(timeout=120) and other.returncode == 0
    assert unequal(whole, run) == []


@pytest.mark.long
def test_a_save_that_takes_longer_than_the_notice_is_told(tmp_path: Path) -> None:
    """At the first save; in a run that goes on, at its start, by how long it took before."""
    data, recipe = write_pictures(tmp_path / "stripes"), mirror_recipe(tmp_path, steps=4)
    with metadata_service("Google Cloud", lambda: False) as host:
        for words in (
            ("train", data, "-r", recipe, "--out", tmp_path / "run", "--until", "6st"),
            ("resume", tmp_path / "run"),
        ):
            code = (
                "import time; from stagewright.system import notices; notices.SECONDS['Google Cloud'] = 1e-4\n"
                "import sys; sys.argv[0] = 'stagewright'; from stagewright.cli.main import main; main()"
            )
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, (*words, *QUIET))],
                env={**os.environ, "STAGEWRIGHT_NOTICES": "on", "GCE_METADATA_HOST": host, "PYTHONPATH": str(ROOT)}
                | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"},
            )
            assert process.wait(120) == 0
    told = [text for text in notices(tmp_path / "run") if text.startswith("saving a checkpoint takes ")]
    assert len(told) >= 2 and "this machine is taken away 0 s after its notice" in told[0]


def test_the_sentence_says_what_to_do() -> None:
    assert "--save-minutes" in slow_save(200.0, 120.0) and "takes 200 s" in slow_save(200.0, 120.0)


@pytest.mark.long
def test_at_the_address_that_the_services_have(tmp_path: Path) -> None:
    """In a network namespace whose loopback has 169.254.169.254, with a service of each provider in turn."""
    name = f"sw-notice-{os.getpid()}"
    for words in (["netns", "add", name], ["-n", name, "link", "set", "lo", "up"]):
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to make network namespaces: {done.stderr.strip()}")
    prefix = ["ip", "netns", "exec", name]
    data, recipe = write_pictures(tmp_path / "stripes"), mirror_recipe(tmp_path, steps=200, saves="400st")
    try:
        subprocess.run(["ip", "-n", name, "addr", "add", "169.254.169.254/32", "dev", "lo"], check=True)
        for provider in ("AWS", "Google Cloud", "Azure"):
            run = tmp_path / provider
            script = [sys.executable, ROOT / "tests" / "metadata_service.py", provider, "169.254.169.254", "80"]
            service = subprocess.Popen([*prefix, *map(str, script), str(run / "steps.csv")])
            try:
                time.sleep(1)
                process = stagewright_command("train", data, "-r", recipe, "--out", run, *QUIET, prefix=prefix)
                assert process.communicate(timeout=120) and process.returncode == 75
                assert reasons(run)[0].startswith(f"{provider} takes this machine away in ")
            finally:
                service.kill()
                service.wait()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
