"""Measures how fast several processes of this machine send to each other what gradients are, and whether all get the same bits.

As a module it is one of the processes: it is started by :func:`measure_interconnect`, with the variables of torchrun.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from stagewright.system.children import module_command

BYTES = 25 << 20
"""What is sent at once: as much as a bucket of gradients."""
_FOLDER = "STAGEWRIGHT_DOCTOR_FOLDER"
_LONGEST = 60.0


@dataclass(frozen=True)
class _Interconnect:
    """What was measured."""

    ranks: int
    backend: str
    all_reduce: float
    """Bytes a second that each process sends in an all-reduce of :data:`BYTES`."""
    all_to_all: float
    """Likewise in an all-to-all; 0 if the backend has none."""
    same_bits: bool
    """Whether all processes had the same bits after both."""


def measure_interconnect(ranks: int, device: str, *, seconds: float = 5.0) -> _Interconnect:
    """Returns the rates between ``ranks`` processes on ``device`` (``cpu`` or ``cuda``), measured for ``seconds``, half of them
    each. RuntimeError with what a process said if one has failed."""
    with tempfile.TemporaryDirectory(prefix="stagewright-doctor-") as folder:
        words = module_command("stagewright.preflight.interconnect", [device, str(seconds)])
        common = {**os.environ, "OMP_NUM_THREADS": "1", _FOLDER: folder, "WORLD_SIZE": str(ranks)}
        pipe = subprocess.PIPE
        processes = [
            subprocess.Popen(words, env={**common, "RANK": str(rank)}, stdout=pipe, stderr=pipe, text=True)
            for rank in range(ranks)
        ]
        try:
            said = [one.communicate(timeout=_LONGEST + seconds) for one in processes]
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{ranks} processes did not reach each other in {_LONGEST:g} s") from None
        finally:
            for one in processes:
                if one.poll() is None:
                    one.kill()
                    one.communicate()
        for one, (_, errors) in zip(processes, said, strict=True):
            if one.returncode:
                raise RuntimeError(errors.strip().splitlines()[-1] if errors.strip() else f"exit code {one.returncode}")
        return _Interconnect(**json.loads(said[0][0].splitlines()[-1]))


def _main(device: str, seconds: float) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if device == "cuda" else "gloo"
    where = torch.device(device, rank) if device == "cuda" else torch.device(device)
    meeting = Path(os.environ[_FOLDER]) / "store"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(rank)
    length = BYTES // 4 // size * size
    own = torch.randn(length, generator=generator).to(where)
    received, total = torch.empty_like(own), own.clone()

    def reduce() -> None:
        total.copy_(own)
        dist.all_reduce(total)

    def exchange() -> None:
        dist.all_to_all_single(received, own)

    reduced = _calls_per_second(reduce, where, seconds / 2)
    exchanged = _calls_per_second(exchange, where, seconds / 2)
    # Each chunk added in the order of the ranks by its owner, and given to all: what the lanes' exchange does.
    chunk = received.view(size, -1).sum(0)
    ordered = torch.empty_like(own)
    dist.all_gather_into_tensor(ordered, chunk)
    digests: list[str | None] = [None] * size
    content = total.cpu().numpy().tobytes() + ordered.cpu().numpy().tobytes()
    dist.all_gather_object(digests, hashlib.sha256(content).hexdigest())
    if rank == 0:
        sent = length * 4 * (size - 1) / size
        found = _Interconnect(size, backend, 2 * sent * reduced, sent * exchanged, len(set(digests)) == 1)
        print(json.dumps(asdict(found)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _calls_per_second(call: Callable[[], None], where: torch.device, seconds: float) -> float:
    """Returns how often a second all processes carry out ``call``; they agree on when to end."""
    call()
    done, began, ends = 0, time.perf_counter(), torch.zeros(1, device=where)
    while True:
        call()
        done += 1
        ends.fill_(float(time.perf_counter() - began > seconds))
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        if ends.item():
            return done / (time.perf_counter() - began)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
