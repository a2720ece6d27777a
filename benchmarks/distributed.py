"""Updates/s of lanes: against the code before lanes, torch's DistributedDataParallel, another sum, and on a slow link.

    python benchmarks/distributed.py --out benchmarks/results/distributed-cpu.json       # as root also the slow links
    python benchmarks/distributed.py --only ranks lanes --networks resnet18

Cases, each with both networks and one thread a process:

- ``earlier``: one process, one lane: a whole run (loader, logs, loop) against that of the code of ``--earlier``, from
  ``git archive``.
- ``ranks``: two processes, two lanes: gradients summed in the order of the tree (ordered), by all-reduce, and DDP around the same
  model with the same batches, optimizer and clipping; DDP as it is, and with ``gradient_as_bucket_view``.
- ``loader``: the same, each way with batches from a loader of one thread, which starts with each block.
- ``link``: the same as ``ranks``, each process in a network namespace of its own behind ``tc tbf``. Root only.
- ``lanes``: one process, one lane against 8 lanes of an eighth of the batch.

The ways take turns in blocks of updates; a ratio is that of two blocks of one round. In ``ranks``, ``loader`` and ``link`` all
ways live in the same two processes, which first compare their weights after one update. But for ``loader``, batches are loaded
before. Not in these figures: heartbeat and agreement, which only a whole run has.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from distributed_worker import NETWORKS, Rates

ROOT = Path(__file__).resolve().parent.parent
RATIOS = {
    "earlier": [("now", "earlier")],
    "ranks": [("ordered", "ddp"), ("ordered", "ddp views"), ("ordered", "all_reduce"), ("all_reduce", "ddp views")],
    "lanes": [("8 lanes", "1 lane")],
}
RATIOS["link"] = RATIOS["loader"] = RATIOS["ranks"]


def worker(words: Sequence[object], prefix: Sequence[str] = (), **env: object) -> subprocess.Popen[str]:
    """Starts a worker with one thread."""
    # Without launchers' variables, of which this process may have some.
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "SLURM_PROCID")}
    variables = {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, **env}
    return subprocess.Popen(
        [*prefix, sys.executable, str(Path(__file__).with_name("distributed_worker.py")), *map(str, words)],
        env={**clean, **{name: str(value) for name, value in variables.items()}},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def ended(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Context manager at whose end the processes have ended."""
    try:
        yield
    finally:
        for one in processes:
            if sys.exc_info()[0] is not None:
                one.kill()
            one.communicate()


def answer(process: subprocess.Popen[str]) -> Any:
    """The next line of ``process``."""
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise SystemExit(f"a worker has ended with {process.wait()}; its message stands above")
    return json.loads(line)


def against_earlier(asked: argparse.Namespace, network: str, tree: Path) -> dict[str, Any]:
    """Rates of the loop of this code and of that in ``tree``, each in a process of its own."""
    rates: Rates = {"now": [], "earlier": []}
    for _ in range(asked.starts):
        words = ("loop", network, asked.updates)
        trees = {"now": ROOT, "earlier": tree}
        processes = {name: worker(words, PYTHONPATH=own) for name, own in trees.items()}
        with ended(list(processes.values())):
            for name, process in processes.items():
                if not Path(answer(process)).is_relative_to(trees[name]):
                    raise SystemExit(f"the worker of {name} has imported another package than that in {trees[name]}")
            for number in range(asked.rounds):
                for name in list(processes)[:: 1 if number % 2 == 0 else -1]:
                    stdin = processes[name].stdin
                    assert stdin is not None
                    stdin.write("go\n")
                    stdin.flush()
                    rates[name].append(answer(processes[name]))
    return {"rates": rates}


def in_processes(
    asked: argparse.Namespace, network: str, case: str, hosts: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """Rates of the ways of ``case``, in as many processes as there are ``hosts``; each is a prefix, an address, an interface."""
    found: dict[str, Any] = {"rates": {}, "difference": 0.0, "moved": 0.0}
    updates, rounds = (asked.link_updates, asked.link_rounds) if case == "link" else (asked.updates, asked.rounds)
    for _ in range(asked.starts):
        processes = []
        size = len(hosts)
        port = free_port()
        for rank, (prefix, _, interface) in enumerate(hosts):
            env = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": hosts[0][1], "MASTER_PORT": port}
            local = {"LOCAL_RANK": 0 if case == "link" else rank, "LOCAL_WORLD_SIZE": 1 if case == "link" else size}
            own = {**env, **local, "GLOO_SOCKET_IFNAME": interface} if size > 1 else {}
            processes.append(worker((case, network, updates, rounds), shlex.split(prefix), **own))
        with ended(processes):
            result = answer(processes[0])
        for name, values in result["rates"].items():
            found["rates"].setdefault(name, []).extend(values)
        for name in ("difference", "moved"):
            found[name] = max(found[name], result[name])
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def linked(rate: str) -> Iterator[list[tuple[str, str, str]]]:
    """Context manager of two network namespaces, joined by a link that sends at most ``rate`` in each direction."""
    names = [f"lanes-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            system("ip", "netns", "add", name)
        peer = ["peer", "name", "link1", "netns", names[1]]
        system("ip", "link", "add", "link0", "netns", names[0], "type", "veth", *peer)
        for at, name in enumerate(names):
            system("ip", "-n", name, "addr", "add", f"10.199.0.{at + 1}/24", "dev", f"link{at}")
            system("ip", "-n", name, "link", "set", "lo", "up")
            system("ip", "-n", name, "link", "set", f"link{at}", "up")
            shaped = ["tbf", "rate", rate, "burst", "256kb", "latency", "100ms"]
            system("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", f"link{at}", "root", *shaped)
        own_name = "unshare --uts sh -c 'hostname $0 && exec \"$@\"'"  # two hosts have two names
        yield [
            (f"ip netns exec {name} {own_name} {name}", f"10.199.0.{at + 1}", f"link{at}")
            for at, name in enumerate(names)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def system(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")


def earlier_tree(commit: str, folder: Path) -> Path:
    """The code of ``commit``, unpacked, with this tree's native module (of memory's images nothing is decoded)."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "stagewright"], capture_output=True, check=False
    )
    if packed.returncode:
        raise SystemExit(f"--earlier {commit}: {packed.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    for file in (ROOT / "stagewright" / "data" / "images").glob("_native*.so"):
        shutil.copy2(file, folder / "stagewright" / "data" / "images")
    return folder


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What was found, by case and network, and what was left out and why."""
    found: dict[str, Any] = {}
    left_out: list[str] = []
    tools = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    why = "needs root" if os.geteuid() != 0 else f"needs {' and '.join(tools)}" if tools else ""
    local = [("", "127.0.0.1", "lo")] * 2
    for case in asked.only:
        if case == "link" and why:
            left_out.append(f"link: {why}")
            print(f"left out: {left_out[-1]}")
            continue
        for network in asked.networks:
            with ExitStack() as open_places:
                if case == "earlier":
                    folder = open_places.enter_context(tempfile.TemporaryDirectory(prefix="stagewright-earlier-"))
                    tree = earlier_tree(asked.earlier, Path(folder))
                    show(found, f"earlier, {network}", against_earlier(asked, network, tree))
                elif case != "link":
                    show(
                        found,
                        f"{case}, {network}",
                        in_processes(asked, network, case, local[: 1 + (case in ("ranks", "loader"))]),
                    )
            for rate in asked.links if case == "link" else ():
                with linked(rate) as hosts:
                    show(found, f"link, {network}, {rate}", in_processes(asked, network, "link", hosts))
    return found, left_out


def show(found: dict[str, Any], name: str, result: dict[str, Any]) -> None:
    """Prints medians and ratios of ``result``, and keeps it."""
    rates: Rates = result["rates"]
    moved, difference = result.get("moved"), result.get("difference")
    print(
        name
        if moved is None
        else f"{name}; after one update weights have moved by {moved:.1e}, differ by {difference:.1e}"
    )
    for way, values in rates.items():
        print(f"  {way:12} {statistics.median(values):8.3f} updates/s  ({min(values):.3f} to {max(values):.3f})")
    result["ratios"] = {}
    for one, other in RATIOS[name.split(",")[0]]:
        ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        result["ratios"][f"{one} / {other}"] = [round(ratio, 4) for ratio in ratios]
        print(f"  {one} / {other}: {middle:.3f} (half of the rounds from {low:.3f} to {high:.3f})", flush=True)
    found[name] = result


def main() -> None:
    """Parses, measures, prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(RATIOS), default=["earlier", "ranks", "loader", "lanes", "link"]
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument(
        "--earlier", default="b00f50a", help="the commit of ``earlier``; default: the last one before lanes"
    )
    parser.add_argument("--starts", type=int, default=2, help="how often the processes are started anew")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each start")
    parser.add_argument("--updates", type=int, default=10, help="updates of a block")
    parser.add_argument("--links", nargs="+", default=["1gbit", "100mbit"], help="speeds, as tc writes them")
    parser.add_argument("--link-rounds", type=int, default=3)
    parser.add_argument("--link-updates", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and namespaces are removed
    sys.path.insert(0, str(ROOT))  # an installed package may be that of another tree, and its commit would be recorded
    from stagewright.rundir.environment import environment
    from stagewright.system.machine import OtherProcessLoad

    others = OtherProcessLoad()
    found, left_out = measured(asked)
    load = others.cores
    print(f"other processes used {load:.2f} cores" if load is not None else "what other processes used is not known")
    if asked.out:
        command = ["python", "benchmarks/distributed.py", *sys.argv[1:]]
        env = environment("memory", command, "cpu", "CPU, 1 thread a process")
        del env["cwd"]  # a path of this machine
        arguments = {name: value for name, value in vars(asked).items() if name != "out"}
        facts = {"cores_of_others": load, "left_out": left_out, "arguments": arguments, **env}
        asked.out.write_text(json.dumps({"cases": found, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
