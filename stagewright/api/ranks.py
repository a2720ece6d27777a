"""Several processes that carry out one run: the first one leads, the others are told all they need and follow.

The first process reads the data, makes the plan, and owns the run's directory, its files and the terminal. The others get plan,
manifest and checkpoint from it, keep a directory of their own in a temporary folder, where they write what nobody reads, and run
the same loop. When the last update is done they end; the first one finishes the run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from stagewright.api.carry_out import carry_out, own_manifest
from stagewright.bundle.versions import library_versions
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import open_images
from stagewright.data.manifest import Manifest
from stagewright.distributed.environment import read_place
from stagewright.distributed.heartbeat import Heartbeat, explain_lost
from stagewright.distributed.verdict import is_launched, leave_verdict
from stagewright.distributed.world import World, join_world
from stagewright.errors import RankLost
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.preflight.early_lanes import check_compress, check_processes
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import write_whole
from stagewright.system.device import choose_device, computing_with, device_name
from stagewright.system.signals import StopSignal
from stagewright.training.loop import run_plan
from stagewright.training.ranks import Ranks
from stagewright.training.setup import RunInputs

_LONGEST_PREPARATION = 24 * 3600.0
Ending = Literal["finished", "paused", "stopped", "nothing"]


@dataclass(eq=False)
class Party:
    """This process's part in a run of several processes."""

    world: World
    heartbeat: Heartbeat
    has_led: bool = False
    """Whether the first process has told the others what to do."""
    preparing: ExitStack = field(default_factory=ExitStack)
    """Closed when the loop begins; until then a process need not say how far it is: it scans, probes, builds the network."""
    ranks: Ranks | None = None
    lost: str = ""

    def execution(self, execution: Execution, manifest: Manifest | None = None) -> Execution:
        """Returns ``execution`` for this process: its device, and its share of the host's threads that load images."""
        world, workers = self.world, execution.workers
        if workers is None and manifest is not None:
            workers = max(1, auto_workers(manifest) // world.local_size)
        return replace(
            execution,
            device=str(world.device),
            processes=world.size,
            workers=workers,
            shared_pictures=execution.shared_pictures or world.local_size > 1,
        )

    def lead(self, inputs: RunInputs) -> RunInputs:
        """Tells the other processes what to carry out, and returns ``inputs`` for this one, the first. WorldError if there are
        more processes than lanes."""
        plan, run = inputs.plan, inputs.run
        restored, _ = checkpoint.newest(run.checkpoints, plan.digest)
        check_processes(plan.most_devices, self.world.size, None if restored is None else run.root)
        check_compress(inputs.execution.compress, plan.recipe, self.world.device)
        step = None if restored is None else restored.step
        del restored
        self.has_led = True
        told = {"plan": plan.to_json(), "env": run.read_env(), "hold": inputs.execution.hold_test}
        self.world.tell({**told, "threads": inputs.execution.threads})
        self.world.tell_bytes(run.manifest.read_bytes())
        ranks = self._ranks(inputs.stop)
        ranks.bring(run.checkpoints, step)
        self.world.require_equal(_facts(plan, inputs.execution))
        return replace(inputs, ranks=ranks, execution=self.execution(inputs.execution, inputs.manifest))

    def follow(self, execution: Execution) -> Ending:
        """Carries out, as one of the others, what the first process tells; returns how it ended."""
        told = self.world.tell()
        if told is None:
            return "nothing"
        with StopSignal() as stop, ExitStack() as holding:
            if execution.threads is None:
                execution = replace(execution, threads=told["threads"])
            holding.enter_context(computing_with(execution.threads))
            folder = holding.enter_context(tempfile.TemporaryDirectory(prefix=f"stagewright-rank-{self.world.rank}-"))
            run = RunDir.create(Path(folder) / "run")
            plan = Plan.from_json(told["plan"])
            write_whole(run.manifest, bytes(self.world.tell_bytes()))
            manifest = own_manifest(run, plan)
            run.write_start(plan, manifest, told["env"])
            ranks = self._ranks(stop)
            ranks.bring(run.checkpoints, None)
            self.world.require_equal(_facts(plan, execution))
            execution = replace(self.execution(execution, manifest), pages=False, quiet=True, hold_test=told["hold"])
            inputs = RunInputs(run, plan, manifest, open_images(manifest), execution, stop, _silent, ranks=ranks)
            status = carry_out(inputs, run_plan).summary.get("status")  # while the folder is there
        return "paused" if status == "paused" else "stopped" if status == "stopped" else "finished"

    def _ranks(self, stop: StopSignal) -> Ranks:
        self.ranks = Ranks(stop, self.world, self.heartbeat, preparing=self.preparing)
        return self.ranks

    def end(self, sentence: str) -> None:
        """Writes into the run's files that a process was lost, as ``sentence`` says; this one ends now."""
        self.lost = sentence
        if self.ranks is not None and self.ranks.on_lost is not None and self.world.is_first:
            self.ranks.on_lost(sentence)


def led(party: Party | None, inputs: RunInputs) -> RunInputs:
    """Returns ``inputs`` for this process, the first of ``party``, after telling the others; unchanged where it is alone."""
    return inputs if party is None else party.lead(inputs)


@contextmanager
def party(execution: Execution, rank_timeout: float = 60.0) -> Iterator[Party | None]:
    """Context of this process's part in a run of several, as torchrun, srun or ``--nproc`` started it; None if it is alone.

    WorldError if the processes do not find each other. An error in the context of one process ends the others.
    """
    if read_place(os.environ) is None:
        yield None
        return
    told: list[Party] = []
    launched = is_launched()  # the launcher prints what all processes say once
    with (
        join_world(execution.device) as world,
        Heartbeat(
            world,
            rank_timeout=rank_timeout,
            on_lost=lambda sentence: [one.end(sentence) for one in told],
            say=(lambda sentence: None) if launched else _to_stderr,
            exit_process=lambda code: os._exit(leave_verdict(code, told[0].lost if told else "")),
        ) as heartbeat,
    ):
        if world.size == 1:
            yield None
            return
        own = Party(world, heartbeat)
        told.append(own)
        own.preparing.enter_context(heartbeat.busy(_LONGEST_PREPARATION))
        try:
            yield own
            if world.is_first and not own.has_led:
                world.tell(None)
        except RankLost:
            raise
        except Exception as error:
            if (sentence := explain_lost(error, heartbeat)) is None:
                raise
            raise RankLost(sentence) from error


def _facts(plan: Plan, execution: Execution) -> dict[str, str]:
    """Returns what must be equal in all processes, since the bits depend on it."""
    versions = library_versions()
    return {
        "plan": plan.digest[:12],
        "threads": str(torch.get_num_threads()),
        "device": device_name(choose_device(execution.device)),
        "torch": str(versions["torch"]),
        "stagewright": str(versions["stagewright"]),
    }


def _silent(text: str) -> None: ...


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
