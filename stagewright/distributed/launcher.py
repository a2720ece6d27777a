"""The launcher: runs a command as several worker processes, on one host or as one of several hosts, and gives one exit code.

The workers are ranks of one run. They leave their codes as verdicts (:mod:`stagewright.distributed.verdict`), and the launcher
ends with 0 (finished), 2 (bad input), 75 (stopped, saved), 69 (a rank or host was lost: start again, nothing is damaged), or 1.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.distributed.workers import Crew, StopRequests, say, signal_name
from stagewright.errors import Cancelled, WorldError
from stagewright.system.machine import cores
from stagewright.system.notices import watching
from stagewright.system.signals import EXIT_LOST


@dataclass(frozen=True)
class Launch:
    """How many workers are started, and how long they are waited for."""

    nproc: int
    """Workers on this host."""
    nnodes: str = "1"
    """Number of hosts: ``A``, or ``A:B`` for at least A and at most B."""
    rdzv: str | None = None
    """``HOST:PORT`` where the hosts meet; the launcher on that host listens there, and rank 0 is its first worker. None with one
    host only."""
    grace: float = 110.0
    """Seconds that workers get to end by themselves after a signal, or after one of them has failed. More than the time in
    which a rank notices by itself that another one is lost."""
    max_restarts: int = 0
    """How often all workers are started again after one was lost."""
    threads: int | None = None
    """OMP_NUM_THREADS of each worker, unless the environment has one; None: this host's cores over ``nproc``, at least 1."""
    reach: float = 60.0
    """Seconds until the other hosts' meeting place must answer."""
    gather: float = 600.0
    """Seconds until enough hosts must have come to it."""


def launch(command: Sequence[str], launch: Launch) -> int:
    """Runs ``command`` as ``launch.nproc`` workers on this host, and returns the exit code.

    The workers get RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as with torchrun. The first of
    SIGTERM, SIGINT, SIGHUP and SIGUSR1 to this process is passed on to each of them once; a second SIGINT kills them (130). A
    notice that this machine will be taken away (:mod:`stagewright.system.notices`) counts as SIGTERM.
    WorldError for values that are not allowed, a port that is taken, and a meeting place that is not reached.
    """
    hosts, endpoint = _hosts(launch.nnodes), None if launch.rdzv is None else _endpoint(launch.rdzv)
    _check(launch, hosts)
    try:
        with (
            StopRequests() as requests,
            watching(requests.heed),
            tempfile.TemporaryDirectory(prefix="stagewright-launch-") as folder,
        ):
            return _run(list(command), launch, (hosts, endpoint), Path(folder), requests)
    except Cancelled as cancelled:
        say(f"stopped by {signal_name(cancelled.number)} while no workers ran; nothing was lost")
        return 128 + cancelled.number


def _run(
    command: list[str],
    launch: Launch,
    meeting: tuple[tuple[int, int], tuple[str, int] | None],
    folder: Path,
    requests: StopRequests,
) -> int:
    # For torch and for the workers, which inherit it: torch's own warnings about lost connections come with C++ tracebacks.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch takes seconds to import, and wrong values are told before
    from stagewright.distributed.elastic import run_agent
    from stagewright.distributed.gathering import Gathering

    gathering = Gathering(*meeting, launch.reach, launch.gather)
    threads = launch.threads or max(1, cores() // launch.nproc)
    try:
        for restarts in range(launch.max_restarts + 1):
            crew = Crew(command, folder / str(restarts), launch.grace, threads, requests)
            try:
                code = run_agent(command, launch.nproc, gathering, crew, requests, (restarts, launch.max_restarts))
            except WorldError as error:
                if restarts == 0:
                    raise
                say(f"error: {error}")
                return EXIT_LOST
            if code != EXIT_LOST:
                return code
            requests.expect_none()
            if requests.number is not None:
                return code
            if restarts < launch.max_restarts:
                say(f"a rank was lost: all are started again (restart {restarts + 1} of {launch.max_restarts})")
        return EXIT_LOST
    finally:
        gathering.shutdown()


def _hosts(text: str) -> tuple[int, int]:
    """Returns the least and the largest number of hosts that ``text`` (``A`` or ``A:B``) names."""
    match = re.fullmatch(r"([0-9]{1,6})(?::([0-9]{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise WorldError(
            f"--nnodes {text}",
            "the number of hosts, 1 or more, or A:B for at least A and at most B of them, A <= B",
            "--nnodes 2, or --nnodes 1:4",
        )
    return least, most


def _endpoint(text: str) -> tuple[str, int]:
    """Returns the host and the port that ``text`` (``HOST:PORT``; an IPv6 address in brackets) names."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", text)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise WorldError(
            f"--rdzv {text}",
            "HOST:PORT, the name or address of the host that leads, and a port of it from 1 to 65535",
            "--rdzv node0:29400",
        )
    return match[1] or match[2], int(match[3])


def _check(launch: Launch, hosts: tuple[int, int]) -> None:
    """Raises WorldError for values that are not allowed."""
    if launch.nproc < 1:
        raise WorldError(f"--nproc {launch.nproc}", "1 process or more", "--nproc 2, or --nproc auto")
    if launch.rdzv is None and hosts != (1, 1):
        raise WorldError(
            f"--nnodes {launch.nnodes} without --rdzv",
            "with several hosts, HOST:PORT of one of them, where they meet",
            "--rdzv node0:29400 on every host",
        )
    if launch.threads is not None and launch.threads < 1:
        raise WorldError(f"{launch.threads} threads", "1 thread or more for each process", "--threads 1")
    if launch.max_restarts < 0:
        raise WorldError(f"--max-restarts {launch.max_restarts}", "0 or more", "--max-restarts 3")
    for name, seconds in (("grace", launch.grace), ("reach", launch.reach), ("gather", launch.gather)):
        if not 0 < seconds < float("inf"):
            raise WorldError(f"{name} {seconds:g}", "a number of seconds above 0", "leave it out for the default")
