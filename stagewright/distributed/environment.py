"""Reads from the environment which process of how many this is, and where the processes meet: torchrun's names or SLURM's.

Pure: nothing is opened or connected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stagewright.errors import WorldError

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""SLURM numbers the steps of srun from 0; the batch script, an interactive shell and so on have numbers from here on."""


@dataclass(frozen=True)
class Place:
    """The position of this process in a run of several, as its launcher states it."""

    rank: int
    size: int
    host: str
    """The host of the rendezvous, a name or an address."""
    port: int
    local_rank: int | None = None
    """Position among the processes of this host, or None if the launcher does not state it."""
    local_size: int | None = None
    has_server: bool = False
    """Whether the launcher itself serves the rendezvous, so that rank 0 does not."""


def read_place(environment: Mapping[str, str]) -> Place | None:
    """Returns the place of this process, or None if it is alone. WorldError if the environment contradicts itself.

    torchrun's variables come first, because torchrun may be started by srun.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        place = _from_torchrun(environment)
    elif "SLURM_PROCID" in environment and _is_srun(environment):
        place = _from_slurm(environment)
    else:
        return None
    if place is not None and not 0 <= place.rank < place.size:
        raise WorldError(
            f"rank {place.rank} of {place.size} processes",
            f"ranks 0 to {place.size - 1}",
            "let torchrun, srun or --nproc set the variables, or correct them",
        )
    return place


def _from_torchrun(environment: Mapping[str, str]) -> Place | None:
    size = _whole(environment, "WORLD_SIZE")
    if size == 1:
        return None
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise WorldError(
            f"WORLD_SIZE={size} without {', '.join(missing)}",
            "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT together, as torchrun sets them",
            "start with torchrun or --nproc, or unset WORLD_SIZE and RANK for one process",
        )
    return Place(
        rank=_whole(environment, "RANK"),
        size=size,
        host=environment["MASTER_ADDR"],
        port=_port(environment),
        local_rank=_whole(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else None,
        local_size=_whole(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else None,
        has_server=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _is_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process. SLURM sets SLURM_PROCID in a batch script too, of which there is only one."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def _from_slurm(environment: Mapping[str, str]) -> Place | None:
    size = _whole(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    if size == 1:
        return None
    local_size = _slurm_local_size(environment)
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if local_size == size:
        hosts = "127.0.0.1"  # the name of a host need not have an address on the host itself
    if not (environment.get("MASTER_ADDR") or hosts):
        raise WorldError(
            f"SLURM_NTASKS={size} without SLURM_JOB_NODELIST",
            "the list of hosts, as srun sets it",
            "start with srun, or set MASTER_ADDR to the host of the first process",
        )
    return Place(
        rank=_whole(environment, "SLURM_PROCID"),
        size=size,
        host=environment.get("MASTER_ADDR") or first_host(hosts),
        port=_port(environment) if environment.get("MASTER_PORT") else _slurm_port(environment),
        local_rank=_whole(environment, "SLURM_LOCALID") if "SLURM_LOCALID" in environment else None,
        local_size=local_size,
    )


def _slurm_port(environment: Mapping[str, str]) -> int:
    """Returns a port that follows from the job's and the step's number, so that two of them on a host rarely share one."""
    job = environment.get("SLURM_JOB_ID", "0")
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", "0"))
    return 20_000 + (_number("SLURM_JOB_ID", job) + 7 * _number("SLURM_STEP_ID", step)) % 10_000


def _slurm_local_size(environment: Mapping[str, str]) -> int | None:
    """Returns the number of processes on this host, from a list such as ``2(x3),1`` (three hosts with 2, one with 1)."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if text:
        counts: list[int] = []
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
            counts += [int(count)] * int(times or 1)
        node = environment.get("SLURM_NODEID", "0")
        if node.isdecimal() and int(node) < len(counts):
            return counts[int(node)]
    return _whole(environment, "SLURM_NTASKS_PER_NODE") if "SLURM_NTASKS_PER_NODE" in environment else None


def first_host(hosts: str) -> str:
    """Returns the first host of SLURM's list: ``a01`` of ``a[01-03,7],b``."""
    return re.split(r",(?![^\[]*\])", re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", hosts))[0].strip()


def _port(environment: Mapping[str, str]) -> int:
    port = _whole(environment, "MASTER_PORT")
    if not 0 < port < 65536:
        raise WorldError(f"MASTER_PORT={port}", "a port, 1 to 65535", "choose a free port on the first host")
    return port


def _whole(environment: Mapping[str, str], name: str) -> int:
    """Returns the whole number in the variable ``name``. WorldError if it is missing or is none."""
    return _number(name, environment.get(name, ""))


def _number(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise WorldError(
            f"{name}={text}" if text else f"{name} is not set",
            "a whole number, from 0 up",
            "let torchrun, srun or --nproc set it, or correct it",
        )
    return int(text)
