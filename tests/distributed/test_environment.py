"""What launchers say in the environment."""

from __future__ import annotations

import pytest

from stagewright.distributed.environment import Place, first_host, read_place
from stagewright.errors import WorldError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_NODELIST": "gpu[03-05,9],cpu7",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
}


def test_torchrun() -> None:
    assert read_place(TORCHRUN) == Place(3, 4, "node-a", 29500, local_rank=1, local_size=2)
    agent = read_place({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert agent is not None and agent.has_server
    bare = read_place({name: value for name, value in TORCHRUN.items() if not name.startswith("LOCAL")})
    assert bare is not None and bare.local_rank is None and bare.local_size is None


def test_slurm() -> None:
    assert read_place(SLURM) == Place(5, 7, "gpu03", 23456, local_rank=1, local_size=2)
    last = read_place({**SLURM, "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"})
    assert last is not None and last.local_size == 1
    even = {name: value for name, value in SLURM.items() if name != "SLURM_TASKS_PER_NODE"}
    by_field = read_place({**even, "SLURM_NTASKS_PER_NODE": "4"})
    assert by_field is not None and by_field.local_size == 4
    chosen = read_place({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert chosen is not None and (chosen.host, chosen.port) == ("10.0.0.1", 4000)


def test_slurm_on_one_host_meets_on_the_loopback() -> None:
    place = read_place({**SLURM, "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": "7", "SLURM_JOB_NODELIST": "gpu03"})
    assert place is not None and place.host == "127.0.0.1"


def test_a_step_of_srun_has_its_own_tasks_and_hosts() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "gpu05", "SLURM_STEP_TASKS_PER_NODE": "2"}
    place = read_place({**SLURM, **step, "SLURM_PROCID": "1", "SLURM_NODEID": "0"})
    assert place is not None and place.size == 2 and place.local_size == 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"},
        {**SLURM, "SLURM_STEP_ID": "4294967291"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"},
    ],
)
def test_a_process_on_its_own(environment: dict[str, str]) -> None:
    """Also in a batch script of SLURM, which runs once whatever the number of tasks is."""
    assert read_place(environment) is None


def test_torchrun_inside_srun_comes_first() -> None:
    place = read_place({**SLURM, **TORCHRUN})
    assert place is not None and place.size == 4


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"RANK": "4"}, "rank 4 of 4"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": "one"}, "RANK=one"),
        ({"WORLD_SIZE": "0"}, "rank 3 of 0"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"MASTER_PORT": ""}, "without MASTER_PORT"),
        ({"MASTER_ADDR": "", "RANK": ""}, "without RANK, MASTER_ADDR"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, str], given: str) -> None:
    with pytest.raises(WorldError, match=given):
        read_place({**TORCHRUN, **change})


def test_slurm_without_hosts_is_refused() -> None:
    with pytest.raises(WorldError, match="SLURM_JOB_NODELIST"):
        read_place({**SLURM, "SLURM_JOB_NODELIST": ""})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("a[01-03,7],b", "a01"),
        ("b,a[01-03]", "b"),
        ("node", "node"),
        ("n[7,9-12]", "n7"),
        ("rack[1-2]n[03-04],x", "rack1n03"),
        ("gpu-a[1-2].site,z", "gpu-a1.site"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
