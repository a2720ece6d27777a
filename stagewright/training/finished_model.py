"""Evaluates the model of a finished run once more, as its finish has evaluated it: same network, batches and precision."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stagewright.engine.build import build_state
from stagewright.engine.evaluate import Evaluation, Extras
from stagewright.engine.numerics import numerics_of, prepare_torch
from stagewright.plan.plan import StagePlan
from stagewright.rundir.directory import RunDir
from stagewright.rundir.events import EventLog
from stagewright.system.device import choose_device
from stagewright.training.clock import Clock
from stagewright.training.evaluator import Evaluator
from stagewright.training.ranks import Ranks
from stagewright.training.recorder import Recorder
from stagewright.training.session import Session
from stagewright.training.setup import RunInputs


def evaluate_finished(
    inputs: RunInputs, tensors: Mapping[str, Tensor], split: str, stage: StagePlan, micro_batch_size: int | None
) -> Evaluation:
    """Returns the result on ``split`` of the model with ``tensors``, which ``stage`` evaluates as the finish of the run did.

    ``micro_batch_size`` is the one to which a lack of memory has reduced the run's, if it did. Nothing is written to the run:
    the logs of this evaluation go to a temporary folder. The bits are those of the finish on the same machine, device and number
    of threads. Raises ``Interrupted`` if a stop was requested, and ``NotFinite`` if outputs of the model are not finite.
    """
    plan, device = inputs.plan, choose_device(inputs.execution.device)
    prepare_torch(plan.recipe, device)
    state, _ = build_state(plan, device, finished=tensors)
    state.guard.micro_batch_size = micro_batch_size
    with tempfile.TemporaryDirectory(prefix="stagewright-evaluate-") as folder:
        scratch = RunDir(Path(folder))
        clock = Clock(state.seconds, "eval", torch.cuda.synchronize if device.type == "cuda" else lambda: None)
        log = EventLog(scratch.events, inputs.observers)
        recorder = Recorder(scratch, plan, inputs.manifest, log, clock, device)
        try:
            session = Session(
                plan,
                inputs.manifest,
                inputs.images,
                scratch,
                replace(inputs.execution, device=str(device)),
                numerics_of(plan, state.model, inputs.manifest),
                state,
                recorder,
                clock,
                inputs.stop,
                Ranks.alone(inputs.stop),
            )
            return Evaluator(session, exact=True).evaluate_split(split, stage, extras=Extras(probabilities=True))
        finally:
            recorder.close()
