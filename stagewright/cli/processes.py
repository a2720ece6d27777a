"""The options of commands that several processes can carry out together, and their start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from stagewright.distributed.environment import read_place
from stagewright.plan.execution import Execution
from stagewright.system.signals import EXIT_STOPPED

if TYPE_CHECKING:  # torch comes with them
    from stagewright.api.ranks import Party
    from stagewright.api.run import Run

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
Compress = Annotated[
    str | None,
    typer.Option(
        "--compress", metavar="bf16", help="GPUs send gradients to each other in half the bytes; other bits then."
    ),
]
Options = Mapping[str, object]
GRACE, RANK_TIMEOUT = 110.0, 60.0


def launch_if_asked(
    where: tuple[str | None, str, str | None], ends: tuple[float, int], threads: int | None, device: str, alone: Options
) -> None:
    """Starts this command again as several processes if that was asked for, and ends with their exit code. Does nothing for one
    process, and in a process that is one of several already.

    ``where``: the options ``--nproc``, ``--nnodes`` and ``--rdzv``. ``ends``: ``--grace`` and ``--max-restarts``. ``alone`` are
    options, by flag, that several processes do not have: RecipeError if one is given.
    """
    nproc, nnodes, rdzv = where
    if started_as_rank():
        return _refuse(alone)
    one_host = nnodes == "1" and rdzv is None
    if (nproc is None and one_host) or ((count := _count(nproc, device)) == 1 and one_host):
        return None
    _refuse(alone)
    from stagewright.distributed.launcher import Launch, launch

    asked = Launch(count, nnodes, rdzv, *ends, threads=threads)
    raise typer.Exit(launch([sys.executable, "-m", "stagewright", *sys.argv[1:]], asked))


def compresses(compress: str | None) -> bool:
    """Returns whether ``--compress`` was given; RecipeError for anything but bf16."""
    from stagewright.errors import RecipeError

    if compress not in (None, "bf16"):
        raise RecipeError(f"--compress {compress}", "bf16", "write --compress bf16, or leave it out")
    return compress is not None


def started_as_rank() -> bool:
    """Returns whether this process is one of several of a run, by its environment."""
    return read_place(os.environ) is not None


def together(execution: Execution, rank_timeout: float, lead: Callable[[Execution, Party | None], Run]) -> Run:
    """Returns what ``lead`` returns, in a process that is alone or the first of several; the others follow it, and end here."""
    from stagewright.api.ranks import party

    done, ending = None, "nothing"
    with party(execution, rank_timeout) as own:
        if own is not None:
            execution = own.execution(execution)
        if own is None or own.world.is_first:
            done = lead(execution, own)
        else:
            ending = own.follow(execution)
    if done is None:
        raise typer.Exit(EXIT_STOPPED if ending == "stopped" else 0)
    return done


def _refuse(alone: Options) -> None:
    """Raises RecipeError for the first of the options ``alone`` that is given: several processes do not have it."""
    from stagewright.errors import RecipeError

    for flag, value in alone.items():
        if value is not None:
            given, allowed = f"{flag} with several processes", f"{flag} with one process"
            raise RecipeError(given, allowed, "leave it out, or start one process: no --nproc, torchrun or srun")


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
