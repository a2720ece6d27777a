"""Measures once, in a process of its own, what a run's network costs: ``python -m stagewright.preflight.one_measurement``.

In a fresh process nothing of another network is left: no memory that was kept, no switches, no compiled graphs. Its caller is
:mod:`stagewright.preflight.model_costs`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from stagewright.augment.custom import load_custom
from stagewright.data.account import Account
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import eval_view
from stagewright.data.batches.transfer import on_device
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import Dataset, open_images
from stagewright.data.sources.verify import verify_images
from stagewright.engine.build import build_state
from stagewright.engine.folding import folds_evaluations, network_pairs
from stagewright.engine.numerics import Numerics, numerics_of, prepare_torch
from stagewright.engine.state import TrainState
from stagewright.errors import CheckpointError, DataError, ModelError, StagewrightError
from stagewright.model.macs import count_macs, num_parameters
from stagewright.model.two_precisions import TwoPrecisions, margin_of
from stagewright.plan.cost import Costs
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.preflight.cost_probe import probe
from stagewright.rundir import checkpoint
from stagewright.rundir.costs import CostsFields
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest
from stagewright.rundir.summary import read_summary
from stagewright.storage.files import write_json
from stagewright.storage.json_text import parse_object
from stagewright.system.device import choose_device, computing_with, device_name
from stagewright.system.isolation import preserve_global_state
from stagewright.system.machine import OtherProcessLoad, cores
from stagewright.system.memory import out_of_memory
from stagewright.training.agreement import FEWEST_IMAGES
from stagewright.training.evaluator import network_inputs, prediction_network

BATCH = 64
"""Number of images of a batch in which the throughput is measured."""
_CYCLE = 16
"""Number of images of which one after the other is timed alone."""
_INFERENCE_SHARE = 0.2
"""Seconds of each measurement of inference, as a share of those of the training."""


def measure_once(
    run: RunDir, execution: Execution, seconds: float, *, counts: bool = True, trains: bool = True
) -> CostsFields:
    """Returns what the network of ``run`` costs on ``execution.device``, measured once: training by the probe for about
    ``seconds`` and its set-up, inference for about two fifths of that, each longer if one step takes long.

    Without ``counts`` the multiply-adds are not counted, without ``trains`` training is not measured. The time does not depend
    on the weights, so those at which the run began are not needed. Writes nothing but a temporary folder in the run's directory.
    Random states are restored. Errors are those of building the network.
    """
    plan, others = run.read_plan(), OtherProcessLoad()
    device, stage = choose_device(execution.device), _evaluated_stage(run, plan)
    with preserve_global_state(), computing_with(execution.threads):
        dataset, problem = _dataset(run, plan, everything=counts)
        found: dict[str, Any] = {"training_problem": problem}
        if dataset is not None and trains:
            found |= _training(run, plan, dataset, execution, seconds)
        prepare_torch(plan.recipe, device)
        state, _ = build_state(_with_random_weights(plan), device)
        found |= {"parameters": num_parameters(state.model), "image_size": eval_image_size(plan, stage)}
        if counts:
            found |= _macs(state, found["image_size"])
        inference = _Inference(run, plan, stage, state, numerics_of(plan, state.model), dataset)
        found |= inference.measured(max(_INFERENCE_SHARE * seconds, 0.01))
        threads, name = torch.get_num_threads(), device_name(device)
    return CostsFields(
        device=name,
        threads=threads,
        torch=torch.__version__,
        precision=plan.precision,
        rounds=1,
        others_cores=others.cores,
        **found,
    )


def _evaluated_stage(run: RunDir, plan: Plan) -> StagePlan:
    """Returns the stage of the weights that became the model, or of a run that has none the last one."""
    try:
        summary = read_summary(run)
    except CheckpointError:  # damaged
        return plan.stages[-1]
    selected = [one["step"] for one in summary.get("finalists") or () if one["coefficient"] == 1.0]
    chosen = summary.get("chosen")
    step = selected[0] if selected else plan.total_steps if chosen is None else chosen["step"]
    return plan.stage_before(min(step, plan.total_steps))


def _with_random_weights(plan: Plan) -> Plan:
    recipe = plan.recipe
    return plan.model_copy(update={"recipe": recipe.changed(model=recipe.model.model_copy(update={"weights": None}))})


def _dataset(run: RunDir, plan: Plan, *, everything: bool) -> tuple[Dataset | None, str | None]:
    """Returns the images of the run, or why they are not those with which it began; without ``everything`` their files are not
    compared."""
    try:
        manifest = readable_manifest(run)
        images = open_images(manifest)
        if everything:
            verify_images(manifest, workers=cores())
    except DataError as error:
        return None, error.given
    return Dataset(manifest, images, (), (), Account(len(manifest))), None


def _training(run: RunDir, plan: Plan, dataset: Dataset, execution: Execution, seconds: float) -> dict[str, Any]:
    """Returns the fields about training, measured by the probe."""
    try:
        costs = probe(_with_random_weights(plan), dataset, execution, run.root, seconds=seconds)
    except StagewrightError as error:
        return {"training_problem": error.given}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return {"training_problem": "there is too little memory for an update"}
    speed = images_per_second(plan, costs)
    gb = max(cost.of(stage).train_gb for stage, cost in zip(plan.stages, costs.stages, strict=True))
    return {
        "train_images_per_second": speed,
        "epoch_seconds": plan.dataset.num_train / speed,
        "train_gb": gb,
    }


def images_per_second(plan: Plan, costs: Costs) -> float:
    """Returns the images in all updates of ``plan`` by the seconds of these updates, and of the beginnings of stages, where
    features may be computed once."""
    images = seconds = 0.0
    for stage, cost in zip(plan.stages, costs.stages, strict=True):
        own = cost.of(stage)
        images += stage.num_steps * stage.batch_size
        seconds += stage.num_steps * own.step_seconds + own.entry_seconds
    return images / max(seconds, 1e-9)


def _macs(state: TrainState, image_size: int) -> dict[str, Any]:
    try:
        return {"macs": count_macs(state.model, image_size)}
    except ModelError as error:
        return {"macs_problem": error.given}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return {"macs_problem": "there is too little memory for one image"}


@dataclass
class _Inference:
    """The network as an evaluation of the run uses it, with weights and images of the run where it has them."""

    run: RunDir
    plan: Plan
    stage: StagePlan
    state: TrainState
    numerics: Numerics
    dataset: Dataset | None
    """None: the images are gone."""

    def measured(self, seconds: float) -> dict[str, Any]:
        """Returns the fields about inference, each measured for about ``seconds``."""
        plan, state = self.plan, self.state
        for name in {stage.augment.custom for stage in plan.stages if stage.augment.custom}:
            load_custom(name)
        trained = self._load_weights()
        pairs = network_pairs(plan, state) if folds_evaluations(plan, state) else {}
        state.model.eval()
        try:
            with torch.no_grad(), self.numerics.autocast(state.device):
                images, num_own = self._images()
                network = prediction_network(plan, state, pairs, self.stage)
                lacking = None
                if isinstance(network, TwoPrecisions) and 0 < num_own < FEWEST_IMAGES:
                    network = network.exact  # as the model of such a run predicts
                if isinstance(network, TwoPrecisions):
                    network.margin = margin_of(network.fast(images.bfloat16()).float(), network.exact(images).float())
                    lacking = None if trained and num_own else _UNKNOWN_SHARE
                alone = cycle(images[at : at + 1].clone(memory_format=torch.preserve_format) for at in range(_CYCLE))
                return {
                    "eval_precision": "bf16" if isinstance(network, TwoPrecisions) else plan.precision,
                    "latency_ms": 1000 * _median_seconds(network, alone, seconds),
                    "images_per_second": BATCH / _median_seconds(network, cycle([images]), seconds),
                    "inference_problem": lacking,
                }
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return {"inference_problem": f"there is too little memory for {BATCH} images"}

    def _load_weights(self) -> bool:
        """Gives the network the newest weights of the run; returns whether it has any."""
        try:
            newest, _ = checkpoint.newest(self.run.checkpoints, self.plan.digest)
        except StagewrightError:
            return False
        if newest is not None:
            self.state.model.load_state_dict(newest.tensors["model"])
        return newest is not None

    def _images(self) -> tuple[Tensor, int]:
        """Returns a batch (B, 3, S, S) of normalised images on the device, and how many are the run's: validation images, or of a
        run without them training images, as evaluations see them, some repeated where there are too few. 0: they are noise."""
        device, size = self.state.device, eval_image_size(self.plan, self.stage)
        if self.dataset is not None:
            manifest = self.dataset.manifest
            rows = manifest.rows("val") if len(manifest.rows("val")) else manifest.rows("train")
            rows = rows[:: max(1, len(rows) // BATCH)][:BATCH]
            specs = [eval_view(self.plan, manifest, self.stage, rows)]
            batches = load_batches(self.dataset.images, specs, workers=auto_workers(manifest))
            with closing(batches):
                read = list(network_inputs((on_device(batch, device) for batch in batches), self.numerics))
            if read and len(read[0]):
                return read[0][torch.arange(BATCH, device=device) % len(read[0])], len(read[0])
        noise = torch.from_numpy(np.random.default_rng(0).normal(size=(BATCH, 3, size, size)).astype(np.float32))
        layout = torch.channels_last if self.numerics.channels_last else torch.contiguous_format
        return noise.to(device, memory_format=layout), 0


_UNKNOWN_SHARE = (
    "measured without weights or pictures of the run: how many answers in bfloat16 are close, and computed again in float32, is "
    "not known"
)


def _median_seconds(network: Callable[[Tensor], Tensor], inputs: Iterator[Tensor], seconds: float) -> float:
    """Returns the median seconds of a call with the next one of ``inputs``, measured for about ``seconds``."""
    names = {"network": network, "inputs": inputs, "next": next}
    timer = Timer("network(next(inputs))", globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median


def main() -> None:
    """Carries out the request, a JSON file, and writes the result, or what went wrong, into another one beside it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary folders are removed
    request = parse_object(Path(sys.argv[1]).read_bytes())
    try:
        execution = Execution(**request["execution"])
        given = {name: request[name] for name in ("seconds", "counts", "trains")}
        found = measure_once(RunDir(Path(request["run"])), execution, **given)
        content: dict[str, Any] = {"costs": found.model_dump()}
    except StagewrightError as error:
        content = {"kind": type(error).__name__, "error": [error.given, error.allowed, error.remedy]}
    write_json(Path(sys.argv[1]).with_name("result.json"), content, durable=False)


if __name__ == "__main__":
    main()
