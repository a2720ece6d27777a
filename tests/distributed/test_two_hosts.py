"""Two hosts, as far as the network goes: two network namespaces with a cable between them, which is pulled in mid-training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_runs import QUIET, recipe, unequal, write_pictures, write_recipe

import stagewright

pytestmark = pytest.mark.long
TIMEOUT = 5
PORT = 29400


class Hosts:
    """Namespaces ``a`` and ``b``; the address of the first is :attr:`leader`."""

    def __init__(self) -> None:
        self.names = [f"sw-{os.getpid()}-{letter}" for letter in "ab"]
        self._cables = [f"sw{os.getpid() % 10**9}{letter}" for letter in "ab"]
        third = os.getpid() % 250
        self._addresses = [f"10.231.{third}.{last}" for last in (1, 2)]
        self.leader = self._addresses[0]

    def build(self) -> str:
        """Returns why there are none, or an empty text."""
        if shutil.which("ip") is None:
            return "needs the command ip (iproute2)"
        one, other = self._cables
        commands = [["netns", "add", name] for name in self.names]
        commands += [["link", "add", one, "type", "veth", "peer", "name", other]]
        for name, cable, address in zip(self.names, self._cables, self._addresses, strict=True):
            commands += [["link", "set", cable, "netns", name], ["-n", name, "link", "set", "lo", "up"]]
            commands += [["-n", name, "address", "add", f"{address}/24", "dev", cable]]
            commands += [["-n", name, "link", "set", cable, "up"]]
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, text=True)
            if done.returncode:
                return f"needs the right to make network namespaces: ip {' '.join(command)}: {done.stderr.strip()}"
        return ""

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def set_cable(self, state: str) -> None:
        command = ["ip", "-n", self.names[1], "link", "set", self._cables[1], state]
        subprocess.run(command, check=True)

    def start(self, host: int, arguments: list[str | Path]) -> subprocess.Popen[str]:
        """Starts ``stagewright ARGUMENTS`` on a host."""
        root = Path(stagewright.__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": self._cables[host]}
        command = ["ip", "netns", "exec", self.names[host], sys.executable, "-m", "stagewright", *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    hosts = Hosts()
    try:
        if why := hosts.build():
            pytest.skip(why)
        yield hosts
    finally:
        hosts.remove()


def test_a_cable_that_is_pulled(hosts: Hosts, tmp_path: Path) -> None:
    """Both hosts end soon and name each other; once the cable is back, a resume gives the bits of a run on one host."""
    pictures = write_pictures(tmp_path / "stripes")
    fields = recipe(stages=[{"epochs": "150st"}], lr=0.05, batch_size=16, spread=2, checkpoints={"every": "5st"})
    plan, run = write_recipe(tmp_path / "recipe.yaml", {**fields, "eval": {"every": "50st"}}), tmp_path / "run"
    several = ["--nproc", "1", "--nnodes", "2", "--rdzv", f"{hosts.leader}:{PORT}", "--rank-timeout", str(TIMEOUT)]
    options = ["--recipe", plan, *QUIET]
    started = [hosts.start(host, ["train", pictures, "--out", run, *options, *several]) for host in (0, 1)]
    try:
        _await(run / "checkpoints" / "step_000005", started)
        hosts.set_cable("down")
        pulled = time.monotonic()
        texts = [one.communicate(timeout=120)[1] for one in started]
        took = time.monotonic() - pulled
        assert [one.returncode for one in started] == [69, 69], texts
        assert took < TIMEOUT + 25, texts
        assert texts[0].count("rank 1 (") == 1 and "has been silent since" in texts[0], texts
        assert "rank 0 (" in texts[1] or f"store at {hosts.leader}:" in texts[1], texts
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        assert "rank 1 (" in events[-1]["reason"]
        hosts.set_cable("up")
        started = [hosts.start(host, ["resume", run, *QUIET, *several]) for host in (0, 1)]
        texts = [one.communicate(timeout=120)[1] for one in started]
        assert [one.returncode for one in started] == [0, 0], texts
    finally:
        for one in started:
            one.kill()
            one.communicate()
    alone = hosts.start(0, ["train", pictures, "--out", tmp_path / "alone", *options])
    assert (alone.communicate(timeout=120), alone.returncode)[1] == 0
    assert unequal(tmp_path / "alone", run) == []


def _await(path: Path, started: list[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end and all(one.poll() is None for one in started), [one.poll() for one in started]
        time.sleep(0.01)
