"""What the processes of a world tell each other, and what is said when they do not find each other."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import free_port, run_sizes, start_worlds

from stagewright.distributed.members import Member
from stagewright.distributed.world import World, join_world, own_device
from stagewright.errors import WorldError


def test_messages_of_three_processes(tmp_path: Path) -> None:
    (ranks,) = run_sizes(tmp_path / "ranks", "messages", [3]).values()
    assert [own.pop("place") for own in ranks] == [[rank, 3, rank, 3, rank == 0, "cpu"] for rank in range(3)]
    assert all(own == ranks[0] for own in ranks)
    found = ranks[0]
    assert found["told"] == {"from": 0, "pair": [1, None]}
    assert found["told nothing"] is None
    assert found["gathered"] == ["rank 0", "rank 1", "rank 2"]
    assert found["bytes"] == [0, 5, 10]
    assert found["arrays"] == [(np.arange(3 * rank).reshape(rank, 3) / 7).tolist() for rank in range(3)]
    assert found["names"] == [["", "ü"], ["a", "ü"], ["aa", "ü"]]
    assert found["large"] == [3 * 2**20 + rank for rank in range(3)]
    assert found["file"] == hashlib.sha256(bytes([0]) * (3 * 2**20)).hexdigest()
    assert found["empty"] == 0
    assert found["largest"] == [2, 0, 7]
    kind, text = found["error"]
    assert kind == "WorldError"
    assert "threads: 0 on ranks 0-1; 1 on rank 2" in text
    assert "first: y on rank 0; nothing on ranks 1-2" in text
    assert "torch" not in text.split("allowed")[0] and "only" not in text.split("allowed")[0]


def test_alone_every_method_returns_at_once() -> None:
    world = World.alone("cpu")
    assert world.tell({"a": (1, 2)}) == {"a": [1, 2]}
    assert world.tell_bytes(b"abc") == b"abc"
    assert world.gather(5) == [5]
    assert world.largest([1, -2]) == (1, -2)
    assert [one.tolist() for one in world.gather_arrays(np.array([1, 2]))] == [[1, 2]]
    world.barrier()
    world.require_equal({"torch": "2"})
    assert world.is_first and not torch.distributed.is_initialized()
    with pytest.raises(TypeError, match="object"):
        world.gather_arrays(np.array([object()]))


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with join_world("cpu") as world:
        assert world.size == 1 and world.device == torch.device("cpu")


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, port: int) -> None:
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_an_unreachable_rendezvous_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    as_rank(monkeypatch, 1, 2, port)
    with (
        pytest.raises(WorldError, match=rf"rendezvous at 127\.0\.0\.1:{port} cannot be reached within 1 s \(Conn"),
        join_world("cpu", timeout=1),
    ):
        pass


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        as_rank(monkeypatch, 0, 2, port)
        with pytest.raises(WorldError, match=f"port {port} of 127.0.0.1 is taken"), join_world("cpu", timeout=1):
            pass


def test_processes_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    as_rank(monkeypatch, 0, 4, port)
    with (
        pytest.raises(WorldError, match=rf"3 processes of 4 did not come to 127\.0\.0\.1:{port} within 1 s: ranks 1-3"),
        join_world("cpu", timeout=1),
    ):
        pass


def test_a_store_that_outlives_a_start_does_not_confuse_the_next(tmp_path: Path) -> None:
    """As a launcher's store, which still has the keys of the start before: other ranks, other process numbers."""
    (ranks,) = run_sizes(tmp_path / "ranks", "joined_twice", [3]).values()
    first, second = zip(*(own for own in ranks), strict=True)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_two_processes_with_one_rank_are_refused(tmp_path: Path) -> None:
    with start_worlds(tmp_path / "ranks", "one_rank_twice", 3, {"world": {}}) as worlds:
        ranks = worlds["world"]
        codes = ranks.wait()
        assert codes.count(2) >= 1
        texts = [ranks.said(rank) for rank in range(3)]
        assert any("are rank 1 of 2" in text for text in texts)


def test_a_process_that_ends_while_the_others_connect_is_a_lost_one(tmp_path: Path) -> None:
    """Not a wrong network: the run can be started again as it is."""
    with start_worlds(tmp_path / "ranks", "lost_while_connecting", 3, {"world": {}}) as worlds:
        ranks = worlds["world"]
        assert ranks.wait() == [0, 9, 0]
        for rank in (0, 2):
            assert ranks.result(rank).startswith("rank 1 (")
            assert "ended while the processes connected to each other; start again" in ranks.result(rank)


def test_devices_of_a_host() -> None:
    """Of a host with two CUDA devices, as far as the choice goes."""
    two = [Member("a", 1, "", "cuda"), Member("a", 2, "", "cuda")]
    asked = torch.device("cuda")
    assert own_device(asked, 1, two, 2) == torch.device("cuda:1")
    assert own_device(torch.device("cuda:0"), 1, two, 2) == torch.device("cuda:0")
    assert own_device(torch.device("cpu"), 1, two, 2) == torch.device("cpu")
    with pytest.raises(WorldError, match="process 3 of this host"):
        own_device(asked, 2, two, 2)
    hidden = [Member("a", 1, "", "cuda", "GPU-1"), Member("a", 2, "", "cuda", "GPU-2")]
    assert own_device(asked, 1, hidden, 1) == torch.device("cuda:0")
