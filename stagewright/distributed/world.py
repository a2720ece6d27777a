"""The processes (ranks) that carry out one run together, and what they tell each other.

What they tell is JSON or raw bytes. Nothing is pickled, because unpickling runs what another host sends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stagewright.distributed.environment import Place, read_place
from stagewright.distributed.members import Member, ranks_text
from stagewright.distributed.rendezvous import Rendezvous, meet
from stagewright.distributed.waits import Waits
from stagewright.errors import RankLost, WorldError
from stagewright.system.device import choose_device

COLLECTIVE_TIMEOUT = timedelta(hours=24)
"""How long one exchange may last. Others may wait for rank 0 for hours while it scans or probes; a process that is lost is
noticed by the heartbeat (:mod:`stagewright.distributed.heartbeat`)."""
CHUNK_BYTES = 64 * 2**20
_PATIENCE_SECONDS = 10.0
_PATIENCE_AFTER_ERROR_SECONDS = 5.0
"""How long the process that serves the store stays for the others, at the end and after an error."""


@dataclass(frozen=True, eq=False)
class World:
    """This process among the ``size`` processes of a run. In a world of one, every method returns at once.

    All ranks call the methods in the same order. What a method waits for is another process, see :attr:`waits`.
    """

    rank: int
    size: int
    local_rank: int
    """The position of this process among the processes of its host."""
    local_size: int
    device: torch.device
    host: str = field(default_factory=socket.gethostname)
    rendezvous: Rendezvous | None = None
    """None in a world of one."""
    control: dist.ProcessGroup | None = None
    """The gloo group of messages between CPUs; gradients have the default group."""
    waits: Waits = field(default_factory=Waits)

    @classmethod
    def alone(cls, device: str = "auto") -> World:
        """Returns the world of this process alone, on the device named ``device``. RecipeError if this machine lacks it."""
        return cls(rank=0, size=1, local_rank=0, local_size=1, device=choose_device(device))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and to the terminal."""
        return self.rank == 0

    @property
    def members(self) -> tuple[Member, ...]:
        """Host and process number of each rank."""
        return self.rendezvous.members if self.rendezvous else (Member.this(),)

    def tell(self, value: Any = None) -> Any:
        """Returns rank 0's ``value`` on every rank; what the others give is ignored. Values are those of JSON, so that a tuple
        comes back as a list."""
        return json.loads(self.tell_bytes(json.dumps(value).encode() if self.is_first else None))

    def tell_bytes(self, data: bytes | None = None) -> bytes | bytearray:
        """Returns rank 0's ``data`` on every rank, sent in parts of 64 MiB."""
        if self.size == 1:
            return data or b""
        with self.waits:
            total = torch.tensor([len(data or b"") if self.is_first else 0])
            dist.broadcast(total, src=0, group=self.control)
            received = bytearray(int(total))
            for begin in range(0, len(received), CHUNK_BYTES):
                end = min(begin + CHUNK_BYTES, len(received))
                if data is not None and self.is_first:
                    received[begin:end] = data[begin:end]
                part = torch.frombuffer(received, dtype=torch.uint8, offset=begin, count=end - begin)
                dist.broadcast(part, src=0, group=self.control)
        return received

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks on every rank, in rank order; values of JSON."""
        return [json.loads(text) for text in self.gather_bytes(json.dumps(value).encode())]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Returns the bytes of all ranks on every rank, in rank order; their lengths may differ."""
        if self.size == 1:
            return [data]
        with self.waits:
            lengths = torch.empty(self.size, dtype=torch.int64)
            dist.all_gather_into_tensor(lengths, torch.tensor([len(data)]), group=self.control)
            parts: list[list[bytes]] = [[] for _ in range(self.size)]
            step = max(1, CHUNK_BYTES // self.size)
            for begin in range(0, int(lengths.max()), step):
                width = min(step, int(lengths.max()) - begin)
                piece = torch.frombuffer(bytearray(data[begin : begin + width].ljust(width, b"\0")), dtype=torch.uint8)
                pieces = torch.empty((self.size, width), dtype=torch.uint8)
                dist.all_gather_into_tensor(pieces.view(-1), piece, group=self.control)
                for own, row, length in zip(parts, pieces.numpy(), lengths.tolist(), strict=True):
                    own.append(row[: max(0, length - begin)].tobytes())
        return [b"".join(own) for own in parts]

    def gather_arrays(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns the arrays of all ranks on every rank, in rank order; shapes may differ. TypeError for arrays of objects."""
        if array.dtype.hasobject:
            raise TypeError(f"an array of {array.dtype} has no bytes to send")
        if self.size == 1:
            return [array]
        kinds = self.gather([array.dtype.str, list(array.shape)])
        contents = self.gather_bytes(np.ascontiguousarray(array).tobytes())
        return [
            np.frombuffer(bytearray(content), dtype=np.dtype(dtype)).reshape(shape)
            for (dtype, shape), content in zip(kinds, contents, strict=True)
        ]

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Returns the rows of all ranks in rank order, (sum of counts, ...), on the device of ``rows``; rank r has
        ``counts[r]`` rows. The bits of the rows are kept."""
        if self.size == 1:
            return rows
        most = max(counts)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = rows.new_empty((self.size, *padded.shape))
        with self.waits:
            dist.all_gather_into_tensor(gathered.view(-1), padded.view(-1))
        return torch.cat([gathered[rank, :count] for rank, count in enumerate(counts)])

    def largest(self, word: Sequence[int]) -> tuple[int, ...]:
        """Returns the largest number of all ranks at each place of ``word``, whole numbers, on every rank."""
        if self.size == 1:
            return tuple(word)
        values = torch.tensor(list(word), dtype=torch.int64)
        with self.waits:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(values.tolist())

    def barrier(self) -> None:
        """Waits until all ranks have come here."""
        if self.size > 1:
            with self.waits:
                dist.all_reduce(torch.zeros(1), group=self.control)

    def require_equal(self, facts: Mapping[str, str]) -> None:
        """WorldError, on every rank, that names each of the ``facts`` that differs between the ranks."""
        by_rank: list[dict[str, str]] = self.gather(dict(facts))
        names = list(dict.fromkeys(name for own in by_rank for name in own))
        differing = []
        for name in names:
            values: dict[str, list[int]] = {}
            for rank, own in enumerate(by_rank):
                values.setdefault(own.get(name, "nothing"), []).append(rank)
            if len(values) > 1:
                sides = "; ".join(f"{value} on {ranks_text(ranks)}" for value, ranks in values.items())
                differing.append(f"{name}: {sides}")
        if differing:
            raise WorldError(
                f"the processes differ in {', and in '.join(differing)}",
                "the same on every process, because they compute one result together",
                "make them equal, and start all processes again",
            )


@contextmanager
def join_world(device: str = "auto", *, timeout: float = 60.0) -> Iterator[World]:
    """Context manager that joins the processes which torchrun or srun started, or gives the world of this process alone.

    ``device``: ``cpu``; ``auto`` or ``cuda`` for one CUDA device per process, by NCCL; a numbered device, such as ``cuda:0``,
    for one that all processes of the host share, by gloo. WorldError if the environment contradicts itself, if not all
    processes are there after ``timeout`` seconds, or if a host has too few devices.
    """
    place = read_place(os.environ)
    if place is None:
        yield World.alone(device)
        return
    kind = choose_device(device).type
    rendezvous = meet(place, Member.this(kind, _only_gpu(device)), timeout)
    world = _world_of(place, device, rendezvous)
    patience = _PATIENCE_AFTER_ERROR_SECONDS
    try:
        world = _begin_groups(world, _backend(device, world), timeout)
        yield world
        patience = _PATIENCE_SECONDS
    finally:
        rendezvous.leave(patience)
        # After an error NCCL may wait for a process that will not come.
        if dist.is_initialized() and (patience == _PATIENCE_SECONDS or dist.get_backend() == "gloo"):
            dist.destroy_process_group()


def _world_of(place: Place, device: str, rendezvous: Rendezvous) -> World:
    """Returns the world without its groups. WorldError if this host has too few CUDA devices."""
    hosts = [member.host for member in rendezvous.members]
    if len({member.device for member in rendezvous.members}) > 1:
        kinds = {
            kind: [r for r, one in enumerate(rendezvous.members) if one.device == kind] for kind in ("cpu", "cuda")
        }
        raise WorldError(
            f"--device {device} gives the CPU on {ranks_text(kinds['cpu'])} and CUDA on {ranks_text(kinds['cuda'])}",
            "one kind of device on all processes",
            "start with --device cpu, or only on hosts that have CUDA devices",
        )
    local_rank, local_size = place.local_rank, place.local_size
    if local_rank is None:
        local_rank = hosts[: place.rank].count(hosts[place.rank])
    if local_size is None:
        local_size = hosts.count(hosts[place.rank])
    return World(
        rank=place.rank,
        size=place.size,
        local_rank=local_rank,
        local_size=local_size,
        device=own_device(choose_device(device), local_rank, rendezvous.members, torch.cuda.device_count()),
        host=hosts[place.rank],
        rendezvous=rendezvous,
    )


def own_device(device: torch.device, local_rank: int, members: Sequence[Member], count: int) -> torch.device:
    """Returns the device of the process with ``local_rank``: a CUDA device of its own, unless ``device`` has a number.

    ``count``: the CUDA devices that this process sees. WorldError if they are too few.
    """
    if device.type != "cuda" or device.index is not None:
        return device
    gpus = [member.gpu for member in members]
    if all(gpus) and len(set(gpus)) == len(gpus):  # the launcher shows each process its own device only
        return torch.device("cuda:0")
    if local_rank >= count:
        raise WorldError(
            f"process {local_rank + 1} of this host needs a CUDA device of its own, and the host has {count}",
            f"at most {count} processes on this host",
            f"start {count} processes per host, or use --device cpu",
        )
    return torch.device(f"cuda:{local_rank}")


def _only_gpu(device: str) -> str:
    """Identifies the CUDA device of this process if it sees a single one and is to use it."""
    if device not in ("auto", "cuda") or torch.cuda.device_count() != 1:
        return ""
    return str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))


def _backend(device: str, world: World) -> str:
    """Returns ``nccl`` where every process has a CUDA device of its own; NCCL refuses to share one."""
    hosts = [member.host for member in world.members]
    shared = device.startswith("cuda:") and len(set(hosts)) < len(hosts)
    return "nccl" if world.device.type == "cuda" and not shared else "gloo"


def _begin_groups(world: World, backend: str, timeout: float) -> World:
    """Connects the ranks with each other. WorldError if a rank cannot reach another one."""
    assert world.rendezvous is not None
    own: dict[str, Any] = {"device_id": world.device} if backend == "nccl" else {}
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    limit = timedelta(seconds=timeout)
    try:
        with _stdout_to_stderr():
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
                    world.rendezvous.token, world.rendezvous.store
                ),
                rank=world.rank,
                world_size=world.size,
                timeout=limit,
                **own,
            )
            control = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError) as error:
        if (gone := _one_that_ended(world)) is not None:
            member = world.members[gone]
            raise RankLost(
                f"rank {gone} ({member.host}, pid {member.pid}) ended while the processes connected to each other; start again"
            ) from error
        raise WorldError(
            f"rank {world.rank} on {world.host} cannot connect to the other processes: {str(error).splitlines()[0]}",
            "every host reaches every other one, at any port",
            "name the network interface with GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME), or open the firewall",
        ) from error
    for group in (dist.group.WORLD, control):
        _set_timeout(group, COLLECTIVE_TIMEOUT)
    return replace(world, control=control)


def _one_that_ended(world: World) -> int | None:
    """Returns the rank of a process of this host that ends within a moment; None if all go on."""
    this = world.members[world.rank]
    for _ in range(20):
        for rank, member in enumerate(world.members):
            if rank != world.rank and member.has_ended(this):
                return rank
        time.sleep(0.05)
    return None


def _set_timeout(group: Any, timeout: timedelta) -> None:
    """Sets how long an exchange in ``group`` may last. The public name is younger than torch 2.11."""
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(timeout, group)
    else:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Context manager in which this process's standard output goes to standard error: some versions of gloo announce there
    that they are connected, and a program may read what we print."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
