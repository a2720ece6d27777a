"""torch's elastic agent by its interface for extensions (``SimpleElasticAgent``), with workers of our own.

torch's local agent ends all workers as soon as one fails, by SIGTERM and 30 s later by SIGKILL, and its exit code does not say
how they ended. Here the agent gathers the hosts and numbers the ranks; :class:`stagewright.distributed.workers.Crew` does the
rest.
"""

from __future__ import annotations

import os
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.events.api import Event, EventSource

from stagewright.distributed.gathering import Gathering
from stagewright.distributed.workers import Crew, StopRequests, say
from stagewright.system.signals import EXIT_LOST

_OTHERS_END = 60.0
"""Seconds that the leading launcher keeps its stores for hosts that have not ended: all ranks end with the same step."""
_OTHERS_NOTICE = 10.0
"""The same after a loss: the other hosts' ranks, whose connections broke, read there who it was; but a host may be gone."""


def run_agent(
    command: list[str], nproc: int, gathering: Gathering, crew: Crew, requests: StopRequests, restarts: tuple[int, int]
) -> int:
    """Gathers the hosts, runs ``nproc`` workers on this one, and returns this host's exit code.

    ``restarts``: how many there have been, and how many there may be. WorldError if the hosts do not come together; 69
    if one is lost then.
    """
    spec = WorkerSpec(
        role="worker",
        local_world_size=nproc,
        rdzv_handler=gathering,
        entrypoint=command[0],
        args=tuple(command[1:]),
        max_restarts=0,
        monitor_interval=0.01,
    )
    try:
        _Agent(spec, gathering, crew, requests, restarts).run()
    except DistError:
        say("the connection to another host's launcher was lost while the ranks were numbered")
        return EXIT_LOST
    return crew.code


class _Agent(SimpleElasticAgent):
    """An agent whose workers are a :class:`Crew`. torch's releases give the methods below different arguments."""

    def __init__(
        self, spec: WorkerSpec, gathering: Gathering, crew: Crew, requests: StopRequests, restarts: tuple[int, int]
    ) -> None:
        super().__init__(spec)
        self._gathering, self._crew, self._requests, self._restarts = gathering, crew, requests, restarts

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        spec = worker_group.spec
        for_all = {
            "MASTER_ADDR": worker_group.master_addr,
            "MASTER_PORT": worker_group.master_port,
            "GROUP_RANK": worker_group.group_rank,
            "GROUP_WORLD_SIZE": worker_group.group_world_size,
            "LOCAL_WORLD_SIZE": spec.local_world_size,
            "ROLE_NAME": spec.role,
            "TORCHELASTIC_RESTART_COUNT": self._restarts[0],
            "TORCHELASTIC_MAX_RESTARTS": self._restarts[1],
            "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": spec.rdzv_handler.use_agent_store,
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", 1),
        }
        environments = []
        for worker in worker_group.workers:
            own = {
                "RANK": worker.global_rank,
                "LOCAL_RANK": worker.local_rank,
                "WORLD_SIZE": worker.world_size,
                "ROLE_RANK": worker.role_rank,
                "ROLE_WORLD_SIZE": worker.role_world_size,
            }
            environments.append({name: str(value) for name, value in {**for_all, **own}.items()})
        return dict(enumerate(self._crew.start(environments)))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Waits for the end of all workers. Only a lost one is a failure for the agent."""
        code = self._crew.wait()
        if code == EXIT_LOST:
            self._leave(_OTHERS_NOTICE)
        codes = {worker.global_rank: code for worker in worker_group.workers}
        return RunResult(WorkerState.FAILED if code == EXIT_LOST else WorkerState.SUCCEEDED, return_values=codes)

    def _exit_barrier(self) -> None:
        """Waits for the other hosts after an end without loss. Unlike torch's it waits in steps, so that signals are heard."""
        self._leave(_OTHERS_END)

    def _leave(self, seconds: float) -> None:
        interrupts = self._requests.interrupts
        self._gathering.leave(seconds, lambda: self._requests.interrupts == interrupts)

    def _stop_workers(self, *given: Any, **named: Any) -> None:
        self._crew.kill()

    def _shutdown(self, *given: Any, **named: Any) -> None:
        self._crew.kill()

    def _construct_event(self, *given: Any, **named: Any) -> Event:
        """An event for torch's log of events, which is off. torch's own asks the name service for this host's name each time,
        which takes many seconds where that does not answer."""
        return Event(name="", source=EventSource.AGENT)
