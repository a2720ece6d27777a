"""The forecast for several devices against what is measured: one process, and two behind a link of 1 Gbit/s and of 100 Mbit/s.

    python benchmarks/forecast.py DATA --out benchmarks/results/forecast-cpu.json       # as root, with ip and tc

DATA is a folder of class folders. This machine stands for two hosts of one thread each, so that both halves are always at
work: the probe runs in both network namespaces at once, as do two trainings of one process each, and the training of two
processes. What ``plan --from probe.json --devices 1,2x1 --wire RATE`` says of a step is compared with the slope of
timing.csv. Each round measures all; ratios are predicted over measured. Each network is added to the file of ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed import free_port, linked

ROOT = Path(__file__).resolve().parent.parent
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"model": {"name": "resnet18"}, "image_size": 64, "batch_size": 32},
    "cifar_resnet18": {
        "model": {"name": "cifar_resnet18", "options": {"width": 16}},
        "image_size": 32,
        "batch_size": 64,
    },
}
WIRES = {"1gbit": "1G", "100mbit": "100M"}
STEPS = {
    "resnet18": {"alone": 40, "1gbit": 40, "100mbit": 12},
    "cifar_resnet18": {"alone": 120, "1gbit": 120, "100mbit": 60},
}
"""Enough for several rows of timing.csv, which gets one every two seconds."""
Host = tuple[str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=lambda text: Path(text).resolve())
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--links", nargs="+", choices=list(WIRES), default=list(WIRES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, help="also write the figures as JSON, with those of other networks that are there"
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and namespaces are removed
    sys.path.insert(0, str(ROOT))
    from stagewright.rundir.environment import environment
    from stagewright.system.machine import OtherProcessLoad

    others = OtherProcessLoad()
    with tempfile.TemporaryDirectory(prefix="stagewright-forecast-") as folder:
        for network in asked.networks:
            rounds: dict[str, list[dict[str, float]]] = {}
            cases: dict[str, dict[str, float]] = {}
            for number in range(asked.rounds):
                place = Path(folder) / f"{network}-{number}"
                place.mkdir()
                for case, row in one_round(asked, network, place).items():
                    rounds.setdefault(case, []).append(row)
                    print(f"{network}, {case}: {row}", flush=True)
                cases = {case: summed_up(rows) for case, rows in rounds.items()}
                command = (
                    f"python benchmarks/forecast.py {asked.data.name} --networks {network} --rounds {asked.rounds}"
                )
                env = environment(asked.data.name, command.split(), "cpu", "CPU, 1 thread a process")
                del env["cwd"]  # a path of this machine
                found = {"cases": cases, "rounds": rounds, "cores_of_others": others.cores, **env}
                if asked.out:
                    there = json.loads(asked.out.read_text()) if asked.out.exists() else {}
                    asked.out.write_text(json.dumps({**there, network: found}, indent=1) + "\n")
            print(json.dumps(cases, indent=1))
    print(f"other processes used {others.cores} cores")


def summed_up(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds."""
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {**found, "predicted / measured": round(found["predicted"] / found["measured"], 3)}


def one_round(asked: argparse.Namespace, network: str, place: Path) -> dict[str, dict[str, float]]:
    """Seconds of a step, predicted and measured, by case."""
    found: dict[str, dict[str, float]] = {}
    with linked("10gbit") as hosts:
        recipe = written(place, network, STEPS[network]["alone"])
        words = ["plan", asked.data, "-r", recipe, "--probe", "--probe-seconds", "20", "--json"]
        probes = both(hosts, place, [[*words], [*words]])
        (place / "probe.json").write_text(probes[0])
        runs = [["train", asked.data, "-r", recipe, "--out", place / f"alone-{at}"] for at in range(2)]
        both(hosts, place, runs)
        measured = statistics.mean(step_seconds(place / f"alone-{at}") for at in range(2))
        found["1"] = {"predicted": predicted(asked.data, place, recipe, "1", "10G"), "measured": measured}
    for link in asked.links:
        with linked(link) as hosts:
            recipe = written(place, network, STEPS[network][link])
            out, port = place / f"run-{link}", free_port()
            meeting = ["--nproc", "1", "--nnodes", "2", "--rdzv", f"{hosts[0][1]}:{port}", "--out", out]
            both(hosts, place, [["train", asked.data, "-r", recipe, *meeting]] * 2)
            prediction = predicted(asked.data, place, recipe, "2x1", WIRES[link])
            found[f"2x1, {link}"] = {"predicted": prediction, "measured": step_seconds(out)}
    return found


def written(place: Path, network: str, steps: int) -> Path:
    """A recipe of so many updates of two lanes."""
    target = place / f"{network}-{steps}.yaml"
    fields = {**NETWORKS[network], "epochs": f"{steps}st", "spread": 2, "lr": 0.01, "eval": {"every": f"{steps}st"}}
    target.write_text(json.dumps(fields))
    return target


def both(hosts: Sequence[Host], place: Path, commands: Sequence[Sequence[object]]) -> list[str]:
    """Carries out a command of stagewright on each host at once; returns what they print."""
    processes = []
    for (prefix, _, interface), words in zip(hosts, commands, strict=True):
        own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface, "PYTHONPATH": str(ROOT)}
        own |= {"STAGEWRIGHT_NOTICES": "off", "STAGEWRIGHT_CACHE": str(place / "cache")}
        more = ["--device", "cpu", "-j", "1", *(["-q", "--no-pages"] if words[0] == "train" else [])]
        command = [*shlex.split(prefix), sys.executable, "-m", "stagewright", *map(str, words), *more]
        processes.append(
            subprocess.Popen(command, cwd=place, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)
        )
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{commands[0][0]} has ended with {[process.returncode for process in processes]}")
    return printed


def predicted(data: Path, place: Path, recipe: Path, devices: str, wire: str) -> float:
    """Seconds of a step by ``plan --from``."""
    words = ["plan", data, "-r", recipe, "--from", place / "probe.json", "--devices", devices, "--wire", wire, "--json"]
    command = [sys.executable, "-m", "stagewright", *map(str, words), "--device", "cpu"]
    own = {"PYTHONPATH": str(ROOT), "STAGEWRIGHT_CACHE": str(place / "cache")}
    done = subprocess.run(command, cwd=place, env={**os.environ, **own}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["devices"][0]["stages"][0]["seconds"]


def step_seconds(run: Path) -> float:
    """Seconds of a step of ``run``, between the first and the last row of timing.csv."""
    with (run / "timing.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = rows[0], rows[-1]
    steps = int(last["step"]) - int(first["step"])
    return (float(last["train_seconds"]) - float(first["train_seconds"])) / steps


if __name__ == "__main__":
    main()
