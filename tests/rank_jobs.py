"""What the processes of :mod:`ranks` do. Each function gets the folder of its world, and returns JSON."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

import stagewright.distributed.world
from stagewright.data.batches.batch import Batch
from stagewright.distributed.exchange import OrderedSum
from stagewright.distributed.heartbeat import Heartbeat, explain_lost
from stagewright.distributed.reduce import LaneGradients
from stagewright.distributed.world import World, join_world
from stagewright.engine.frozen_features import Found
from stagewright.errors import RankLost, WorldError
from stagewright.system.signals import EXIT_LOST, StopSignal
from stagewright.training.ranks import Ranks

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small convolutional network with weights in the channels-last layout."""
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    return parts.to(dtype).to(memory_format=torch.channels_last)


def lane_loss(model: nn.Module, lane: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The loss of a lane's two random images."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(lane)).to(dtype)
    return (model(images).float() ** 2).mean()


def lane_gradients(model: nn.Module, lane: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The gradient of a lane, in the order of the parameters."""
    return list(torch.autograd.grad(lane_loss(model, lane, dtype), list(model.parameters())))


def sha(tensors: Iterable[Tensor | None]) -> str:
    """A digest of the bits of some tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(b"none" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def summed(
    world: World, lanes: int, dtype: str = "float32", hooks: str = "in order", steps: int = 2, collectives: bool = False
) -> list[str]:
    """Digests of the summed gradients of some updates. ``hooks``: ``in order``; ``shuffled``, when gradients come in another
    order than the buckets have; ``none``, when no hook fires. ``collectives``: exchanged as on CUDA."""
    model = network(DTYPES[dtype])
    parameters = list(model.parameters())
    order = [3, 0, 5, 2, 1, 4] if hooks == "shuffled" else range(len(parameters))
    gradients = LaneGradients([parameters[at] for at in order], lanes, world, bucket_bytes=500)
    if collectives:
        for bucket in gradients._buckets:
            if bucket.exchange is not None:
                bucket.exchange = OrderedSum(bucket.parameters, lanes, world, pairwise=False)
    found = []
    for step in range(steps):
        for lane in gradients.own:
            with gradients.lane():
                if hooks == "none":
                    for p, gradient in zip(
                        parameters, lane_gradients(model, 100 * step + lane, DTYPES[dtype]), strict=True
                    ):
                        p.grad = gradient if p.grad is None else p.grad.add_(gradient)
                else:
                    lane_loss(model, 100 * step + lane, DTYPES[dtype]).backward()
        gradients.finish()
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in parameters)
        found.append(sha(p.grad for p in parameters))
        with torch.no_grad():
            for p in parameters:
                assert p.grad is not None
                p -= 0.1 * p.grad
                p.grad = None
    found.append(sha(parameters))
    gradients.close()
    return found


def reduce_bits(folder: Path) -> dict[str, Any]:
    """Digests for each way to sum, and what is gathered."""
    with join_world("cpu") as world:
        found: dict[str, Any] = {}
        for lanes in (lanes for lanes in (7, 8) if lanes >= world.size):
            found[f"{lanes} lanes"] = summed(world, lanes)
            found[f"{lanes} lanes, hooks shuffled"] = summed(world, lanes, hooks="shuffled")
            found[f"{lanes} lanes, no hooks"] = summed(world, lanes, hooks="none")
            found[f"{lanes} lanes, collectives"] = summed(world, lanes, collectives=True)
            for dtype in ("float16", "bfloat16"):
                found[f"{lanes} lanes, {dtype}"] = summed(world, lanes, dtype=dtype, steps=1)
            gradients = LaneGradients([], lanes, world)
            rows = torch.tensor([[lane, lane / 3] for lane in gradients.own])
            found[f"{lanes} lanes, gathered"] = gradients.gather(rows).tolist()
            found[f"{lanes} lanes, partly"] = partly_given(world, lanes)
        return {"ordered": found, "unordered": unordered(world)}


def reduce_bits_on_hosts(folder: Path, ranks_each: int) -> dict[str, Any]:
    """Digests of sums where every ``ranks_each`` ranks count as one host, and which kind of exchange made them."""
    with join_world("cpu") as world:
        assert world.rendezvous is not None
        members = [replace(one, host=f"host {rank // ranks_each}") for rank, one in enumerate(world.members)]
        world = replace(
            world,
            local_rank=world.rank % ranks_each,
            local_size=ranks_each,
            rendezvous=replace(world.rendezvous, members=tuple(members)),
        )
        found: dict[str, Any] = {}
        for lanes in (7, 8)[world.size > 7 :]:
            kinds = {
                type(bucket.exchange).__name__
                for bucket in LaneGradients(list(network().parameters()), lanes, world)._buckets
            }
            found[f"{lanes} lanes"] = [sorted(kinds), summed(world, lanes), summed(world, lanes, hooks="shuffled")]
        return found


def partly_given(world: World, lanes: int) -> list[list[float]]:
    """The gradients of two parameters: one in every lane, one in lane 5 alone."""
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    gradients = LaneGradients([a, b], lanes, world)
    for lane in gradients.own:
        with gradients.lane():
            loss = (a * (lane + 1)).sum()
            (loss + b.sum() if lane == 5 else loss).backward()
    gradients.finish()
    return [[] if p.grad is None else p.grad.tolist() for p in (a, b)]


def unordered(world: World) -> list[list[float]]:
    """The largest relative difference from the exact sum, for all-reduce, and for all-reduce in bfloat16."""
    model, found = network(), []
    expected = sum_of([lane_gradients(model, lane) for lane in range(8)])
    for compress in (False, True):
        gradients = LaneGradients(
            list(model.parameters()), 8, world, ordered=False, compress=compress, bucket_bytes=500
        )
        for lane in gradients.own:
            with gradients.lane():
                lane_loss(model, lane).backward()
        gradients.finish()
        pairs = zip(model.parameters(), expected, strict=True)
        found.append([float((p.grad - e).abs().max() / e.abs().max()) for p, e in pairs if p.grad is not None])
        model.zero_grad(set_to_none=True)
        gradients.close()
    return found


def sum_of(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The sums in double precision, one per parameter."""
    return [torch.stack(list(one)).double().sum(0).float() for one in zip(*gradients, strict=True)]


def messages(folder: Path) -> dict[str, Any]:
    """What each rank receives from every method of the world."""
    stagewright.distributed.world.CHUNK_BYTES = 2**20
    with join_world("cpu") as world:
        array = np.arange(world.rank * 3, dtype=np.float64).reshape(world.rank, 3) / 7
        large = bytes([world.rank]) * (3 * 2**20 + world.rank)
        found: dict[str, Any] = {
            "place": [world.rank, world.size, world.local_rank, world.local_size, world.is_first, str(world.device)],
            "told": world.tell({"from": world.rank, "pair": (1, None)}),
            "told nothing": world.tell(),
            "gathered": world.gather(f"rank {world.rank}"),
            "bytes": [len(one) for one in world.gather_bytes(b"x" * (5 * world.rank))],
            "arrays": [one.tolist() for one in world.gather_arrays(array)],
            "names": [one.tolist() for one in world.gather_arrays(np.array(["a" * world.rank, "ü"]))],
            "large": [len(one) for one in world.gather_bytes(large)],
            "file": hashlib.sha256(world.tell_bytes(large if world.is_first else None)).hexdigest(),
            "empty": len(world.tell_bytes(b"")),
            "largest": world.largest([world.rank, -world.rank, 7]),
        }
        world.barrier()
        world.require_equal({"threads": "1"})
        try:
            world.require_equal(
                {"torch": "2", "threads": str(world.rank // 2), "only": "x"} | ({} if world.rank else {"first": "y"})
            )
        except Exception as error:
            found["error"] = [type(error).__name__, str(error)]
        return found


def joined_twice(folder: Path) -> list[str]:
    """The tokens of two worlds, one after the other, in the store of one launcher, which rank 0 plays."""
    port = int(os.environ["MASTER_PORT"])
    server = None
    if os.environ["RANK"] == "0":
        server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    found = []
    for _ in range(2):
        with join_world("cpu") as world:
            assert world.rendezvous is not None
            assert [member.pid for member in world.members] == world.gather(os.getpid())
            found.append(world.rendezvous.token)
    if server is not None:
        end = time.monotonic() + 20
        while server.add("ended", 0) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    else:
        TCPStore("127.0.0.1", port, is_master=False).add("ended", 1)
    return found


def one_rank_twice(folder: Path) -> None:
    """Both later processes believe that they are rank 1 of 2."""
    os.environ["WORLD_SIZE"] = "2"
    if os.environ["RANK"] == "2":
        os.environ["RANK"] = "1"
    try:
        with join_world("cpu", timeout=2) as world:
            world.barrier()
    except WorldError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def beating(folder: Path, what: str, at: int, timeout: float = 4.0) -> None:
    """Steps until rank ``at`` meets its fate ``what`` at step 60; ends as a training does."""
    lost = folder / f"{os.environ['RANK']}.lost"
    with join_world("cpu") as world:
        heartbeat = Heartbeat(world, beat=0.4, rank_timeout=timeout, on_lost=lambda text: lost.write_text(text))
        try:
            with heartbeat:
                for step in range(100 if what in FATES_THAT_END_WELL else 10**6):
                    heartbeat.at("train", step, note=f"image-{step}.jpg")
                    if step == 60 and world.rank == at:
                        meet_fate(what, folder, world, heartbeat)
                    if what == "apart" and step == 60:
                        world.barrier()
                    with world.waits:
                        torch.distributed.all_reduce(torch.ones(1))
                    time.sleep(0.02)
        except Exception as error:
            if line := explain_lost(error, heartbeat):
                print(line, file=sys.stderr, flush=True)
                sys.exit(EXIT_LOST)
            traceback.print_exc()
            sys.exit(1)


FATES_THAT_END_WELL = ("slow", "busy")


def meet_fate(what: str, folder: Path, world: World, heartbeat: Heartbeat) -> None:
    """What happens to one rank in the middle of its work."""
    if what == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "error":
        raise ValueError("a number is wrong")
    elif what == "read":
        os.mkfifo(folder / "pipe")
        heartbeat.alive(str(folder / "pipe"))
        (folder / "pipe").read_bytes()  # nobody writes
    elif what == "apart":
        with world.waits:
            torch.distributed.all_reduce(torch.ones(1))  # the others are at a barrier of another group
    elif what == "slow":
        for _ in range(60):
            heartbeat.alive()
            time.sleep(0.1)
    elif what == "busy":
        with heartbeat.busy():
            time.sleep(6)


def read_differently(folder: Path) -> list[Any]:
    """What each rank has of a batch of four images of which rank 1 alone could not read two, and of one that all could read."""
    with join_world("cpu") as world:
        ranks, found = Ranks(StopSignal(), world), []
        for bad in (((7, "gone"), (9, "cut")), ()):
            images, rows = torch.ones(4, 3, 2, 2, dtype=torch.uint8), np.array([5, 7, 8, 9])
            own = bad if world.rank == 1 else ()
            valid = torch.tensor([row not in dict(own) for row in rows.tolist()])
            batch = Batch(0, images, torch.zeros(4, dtype=torch.int64), valid, own, rows=rows)
            for one in (ranks.read_by_all(batch), ranks.with_all_bad_rows(batch)):
                found.append(
                    [one.valid.tolist(), [list(each) for each in one.bad_rows], one.images.flatten(1).amax(1).tolist()]
                )
        return found


def worked_in_turn(folder: Path, batches: int) -> list[Any]:
    """Numbers of the batches of three images that this rank works on; what all ranks then have of their features and of a
    tensor for each. The second image of every third batch is unreadable."""
    with join_world("cpu") as world:
        ranks, own = Ranks(StopSignal(), world), []

        def found(number: int) -> Found:
            own.append(number)
            rows = np.arange(3 * number, 3 * number + 3)
            bad = ((int(rows[1]), "cut"),) if number % 3 == 0 else ()
            return Found(rows, torch.from_numpy(rows / 7).float().reshape(3, 1, 1).expand(3, 2, 1), bad)

        features = list(ranks.all_found(map(found, ranks.in_turn(iter(range(batches)))), 3 * batches))
        tensors = ranks.all_rows(torch.tensor([number / 3]) for number in ranks.in_turn(iter(range(batches))))
        joined = torch.cat([one.features for one in features])
        bad = [list(each) for one in features for each in one.bad_rows]
        rows = np.concatenate([one.rows for one in features]).tolist()
        return [own, rows, joined.flatten().tolist(), bad, torch.cat(list(tensors)).tolist()]


def lost_while_connecting(folder: Path) -> str:
    """Rank 1 ends once all have met, before they connect to each other; the others return what they are told."""
    if os.environ["RANK"] == "1":
        stagewright.distributed.world._begin_groups = lambda *_: os._exit(9)
    try:
        with join_world("cpu", timeout=2):
            return "connected"
    except RankLost as lost:
        return str(lost)
