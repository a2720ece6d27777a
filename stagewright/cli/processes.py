"""The options of commands that several processes can carry out together, and their start."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from stagewright.system.signals import EXIT_STOPPED

Nproc = Annotated[
    str | None,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Processes on this machine that carry out the run together, each with a device; auto: one for each GPU.",
    ),
]
Nnodes = Annotated[
    str, typer.Option("--nnodes", metavar="A[:B]", help="Number of machines; A:B: at least A and at most B of them.")
]
Rdzv = Annotated[
    str | None,
    typer.Option("--rdzv", metavar="HOST:PORT", help="With several machines: where they meet, the same on each."),
]
Grace = Annotated[
    float, typer.Option("--grace", help="Seconds that processes get to save and end after a signal, or after a loss.")
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="How often all processes are started again after one was lost.")
]
RankTimeout = Annotated[
    float,
    typer.Option("--rank-timeout", help="Seconds without progress after which a process counts as lost."),
]
GRACE, RANK_TIMEOUT = 110.0, 60.0


def launch_if_asked(
    nproc: str | None,
    nnodes: str,
    rdzv: str | None,
    grace: float,
    max_restarts: int,
    threads: int | None,
    device: str,
    alone_only: Mapping[str, Any],
) -> None:
    """Starts this command again as several processes if that was asked for, and ends with their exit code. Does nothing for one
    process, and in a process that is one of several already. ``alone_only``: flags and values that only one process supports;
    RecipeError if one is set."""
    from stagewright.distributed.environment import read_place

    if (nproc is None and nnodes == "1" and rdzv is None) or read_place(os.environ) is not None:
        return
    count = _count(nproc, device)
    if count == 1 and nnodes == "1" and rdzv is None:
        return
    if any(alone_only.values()):
        from stagewright.api.ranks import refuse_alone_only

        refuse_alone_only(alone_only)
    from stagewright.distributed.launcher import Launch, launch

    asked = Launch(count, nnodes, rdzv, grace=grace, max_restarts=max_restarts, threads=threads)
    raise typer.Exit(launch([sys.executable, "-m", "stagewright", *sys.argv[1:]], asked))


def ending_code(ending: str) -> int:
    """Returns the exit code of a process that has followed the first one, whose part ended as ``ending``."""
    return EXIT_STOPPED if ending == "stopped" else 0


def _count(nproc: str | None, device: str) -> int:
    from stagewright.errors import WorldError

    if nproc is None:
        return 1
    if nproc != "auto" and not (nproc.isascii() and nproc.isdecimal() and int(nproc) > 0):
        raise WorldError(f"--nproc {nproc}", "a number of processes, 1 or more, or auto", "--nproc 2, or --nproc auto")
    import torch

    from stagewright.system.device import choose_device

    on_gpus = choose_device(device).type == "cuda"
    gpus = torch.cuda.device_count() if on_gpus else 0
    if nproc == "auto":
        return max(1, gpus)
    if on_gpus and int(nproc) > gpus and ":" not in device:
        raise WorldError(
            f"--nproc {nproc}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}",
            f"--nproc 1 to {gpus}: each process has a GPU of its own",
            f"--nproc {gpus}, or --device cpu",
        )
    return int(nproc)
