"""How many threads compute a run on a CPU: the same for any number of processes, as the last bits of sums depend on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from stagewright.api.run import Say
from stagewright.distributed.workers import THREADS_CHOSEN
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.system.device import choose_device, computing_with
from stagewright.system.machine import cores

_NAME = re.compile(r"CPU, ([0-9]{1,4}) threads?")


@contextmanager
def computing(execution: Execution, plan: Plan, say: Say, env: Mapping[str, Any] | None = None) -> Iterator[Execution]:
    """Context in which torch computes with the threads of :func:`with_threads`, whose result it gives."""
    execution = with_threads(execution, plan, say, env)
    with computing_with(execution.threads):
        yield execution


def with_threads(execution: Execution, plan: Plan, say: Say, env: Mapping[str, Any] | None = None) -> Execution:
    """Returns ``execution`` with the number of threads of a run on a CPU that several processes may carry out.

    It is this machine's cores divided by the recipe's ``spread``, or the number in ``env``, the env.json of a run that goes on.
    Unchanged where the user has given a number (``--threads``, OMP_NUM_THREADS), and for runs of one process.
    """
    own = "OMP_NUM_THREADS" in os.environ and THREADS_CHOSEN not in os.environ
    if execution.threads is not None or own or plan.spread == 1 or choose_device(execution.device).type != "cpu":
        return execution
    threads = max(1, cores() // plan.spread)
    recorded = _NAME.fullmatch(str((env or {}).get("device_name")))
    if recorded and 1 <= int(recorded[1]) <= cores():
        threads = int(recorded[1])
    if execution.processes == 1 and threads < torch.get_num_threads():
        say(
            f"Each process computes with {threads} of {cores()} cores, so that 1 to {plan.most_devices} processes give the same "
            f"bits; --threads {cores()} is faster with one, and gives bits of its own."
        )
    return replace(execution, threads=threads)
