"""The processes (ranks) that carry out one run together."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import torch

from stagewright.system.device import choose_device


@dataclass(frozen=True, eq=False)
class World:
    """This process among the ``size`` processes of a run. In a world of one, every method returns at once."""

    rank: int
    size: int
    local_rank: int
    """The position of this process among the processes of its host."""
    local_size: int
    device: torch.device
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def alone(cls, device: str = "auto") -> World:
        """Returns the world of this process alone, on the device named ``device``. RecipeError if this machine lacks it."""
        return cls(rank=0, size=1, local_rank=0, local_size=1, device=choose_device(device))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and to the terminal."""
        return self.rank == 0
