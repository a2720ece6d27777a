"""Who takes part in a run of several processes. Pure, without torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """What every rank knows of one rank."""

    host: str
    pid: int
    namespace: str
    """Identifies the process numbers that ``pid`` is one of: the host's, or a container's."""
    device: str = "cpu"
    """The kind of device that it computes on: ``cpu`` or ``cuda``."""
    gpu: str = ""
    """Identifies the only CUDA device that the process sees; empty if it sees none or several."""

    @classmethod
    def this(cls, device: str = "cpu", gpu: str = "") -> Member:
        """Returns the member that this process is."""
        try:
            namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            namespace = ""
        return cls(socket.gethostname(), os.getpid(), namespace, device, gpu)

    def has_ended(self, this: Member) -> bool:
        """Whether this member is a process of the host of ``this`` that has ended; a zombie has."""
        if not self.namespace or (self.host, self.namespace) != (this.host, this.namespace):
            return False
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
        except FileNotFoundError:
            return True
        except OSError:
            return False


def ranks_text(ranks: Sequence[int]) -> str:
    """Returns ``rank 2``, or ``ranks 0, 2, 5-7``, of sorted ranks."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {text}"
