"""The number of threads of a run on a CPU is a function of its plan, not of the number of processes."""

from __future__ import annotations

import pytest

from stagewright.api import run_threads
from stagewright.api.run_threads import with_threads
from stagewright.distributed.workers import THREADS_CHOSEN
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_threads, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv(THREADS_CHOSEN, raising=False)
    monkeypatch.setattr(run_threads.torch, "get_num_threads", lambda: 8)


def plan(**fields: object) -> Plan:
    info = DatasetInfo(num_train=40, num_val=10, num_test=0, classes=("a", "b"), digest="")
    return resolve(recipes.from_dict({"image_size": 16, **fields}), info)


def threads(plan: Plan, processes: int = 1, said: list[str] | None = None, **env: object) -> int | None:
    execution = Execution(device="cpu", processes=processes)
    return with_threads(execution, plan, (said if said is not None else []).append, env).threads


@pytest.mark.parametrize(("spread", "expected"), [(1, None), (2, 4), (3, 2), (16, 1)])
def test_the_same_for_any_number_of_processes(spread: int, expected: int | None) -> None:
    in_lanes = plan(spread=spread, batch_size=32)
    assert [threads(in_lanes, processes) for processes in (1, 2, spread)] == [expected] * 3


def test_a_run_that_goes_on_keeps_its_number() -> None:
    in_lanes = plan(spread=4)
    assert threads(in_lanes, device_name="CPU, 6 threads") == 6
    assert threads(in_lanes, device_name="CPU, 1 thread") == 1
    assert threads(in_lanes, device_name="CPU, 64 threads") == 2  # more than this machine has
    assert threads(in_lanes, device_name="a GPU") == threads(in_lanes, device_name=None) == 2


def test_the_users_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Execution(device="cpu", threads=3)
    assert with_threads(given, plan(spread=4), print).threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(plan(spread=4)) is None
    monkeypatch.setenv(THREADS_CHOSEN, "1")  # the launcher's, which does not know the plan
    assert threads(plan(spread=4)) == 2


def test_what_one_process_loses_is_said() -> None:
    said: list[str] = []
    threads(plan(spread=2), said=said)
    assert said == [
        "Each process computes with 4 of 8 cores, so that 1 to 2 processes give the same bits; --threads 8 is faster with one, "
        "and gives bits of its own."
    ]
    threads(plan(spread=2), processes=2, said=said)
    assert len(said) == 1
