"""Loads the model of a run that has not finished, from its checkpoints; reads only, also while the run goes on."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stagewright.bundle.bundle import Bundle, BundleSpec
from stagewright.bundle.network import Network
from stagewright.bundle.versions import library_versions
from stagewright.data.batches.batch import masked
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import recalibration_specs
from stagewright.data.batches.transfer import on_device
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import open_images
from stagewright.data.manifest import Manifest
from stagewright.data.sources.verify import images_gone
from stagewright.engine.build import build_model
from stagewright.engine.numerics import Numerics, numerics_of
from stagewright.engine.state import Score
from stagewright.errors import CheckpointError
from stagewright.model.average import WeightAverage, recalibrate
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.plan import Plan, StagePlan
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest
from stagewright.rundir.initial_weights import read_weights, weights_sentence
from stagewright.rundir.logs import no_checkpoint
from stagewright.text import done_text, percent_text
from stagewright.training.evaluator import network_inputs, recalibrated_images
from stagewright.training.finish import selected
from stagewright.training.model_spec import model_spec

_ATTEMPTS = 3


@dataclass(frozen=True)
class _Weights:
    """The weights that a run's rule selects of what is saved."""

    score: Score
    tensors: dict[str, Any]
    """State of the checkpoint of their step."""
    done: int
    """Step of the newest checkpoint."""


def load_checkpoint_model(run: RunDir, device: torch.device) -> tuple[Bundle, str]:
    """Returns the model with the checkpointed weights that the run's recipe selects, on ``device``, and a sentence that says
    which.

    These are the best of all that were evaluated, or those of the newest checkpoint (``eval.select``); unlike a finish, this
    evaluates nothing and does not compare them with the head alone. Averaged weights whose batch norms must be estimated again
    need training images. CheckpointError if there is no usable checkpoint, DataError if these images are gone.
    """
    plan, manifest = run.read_plan(), readable_manifest(run)
    found = _selected_weights(run, plan)
    score, stage = found.score, plan.stage_before(found.score.step)
    with torch.random.fork_rng(devices=[]):  # building draws random weights
        model, _ = build_model(plan, pretrained=False)
    model.load_state_dict(found.tensors["model"])
    model.to(device)
    numerics = numerics_of(plan, model)
    if score.weights != "raw":
        average = WeightAverage()
        average.load(found.tensors["average"], device)
        average.copy_to(model)
        _recalibrate(model, plan, manifest, stage, numerics, found.tensors["guard"]["masked"])
    done, known = done_text(found.done, plan.total_steps), math.isfinite(score.top1)
    top1 = {"val": score.top1} if known else {}
    weights = read_weights(run)
    trained_from = None if weights is None else weights_sentence(weights)
    spec = model_spec(plan, manifest, numerics, score, stage, top1=top1, stopped_at=done, trained_from=trained_from)
    text = f"{run.root} is at {done}: using the {score.weights} weights of step {score.step:,}"
    if known:
        text += f", val top-1 {percent_text(score.top1, 2)}"
    return _bundle(run, spec, model.eval()), text


def _bundle(run: RunDir, spec: BundleSpec, model: nn.Module) -> Bundle:
    network = Network(model, spec.preprocessing.image_size, spec.fold)
    return Bundle(run.bundle, spec, model, library_versions(), network)


def _selected_weights(run: RunDir, plan: Plan) -> _Weights:
    """Returns the selected weights; if their checkpoint is damaged, those of the newest one."""
    attempts = 0
    while True:
        newest, rejected = checkpoint.newest(run.checkpoints, plan.digest)
        if newest is None:
            raise no_checkpoint(run, rejected)
        state, attempts = newest.tensors, attempts + 1
        best, latest = (None if state[name] is None else Score(**state[name]) for name in ("best", "latest"))
        score = selected(plan, newest.step, best, latest, averaged=bool(state["average"]))
        if score.step == newest.step:
            return _Weights(score, state, newest.step)
        try:
            saved = checkpoint.load(run.checkpoints / checkpoint.name_of(score.step))
            return _Weights(score, saved.tensors, newest.step)
        except CheckpointError:
            # A run that goes on meanwhile may have found better ones and removed these.
            if attempts == _ATTEMPTS or checkpoint.steps(run.checkpoints)[-1:] == [newest.step]:
                score = selected(plan, newest.step, None, None, averaged=bool(state["average"]))
                return _Weights(score, state, newest.step)


def _recalibrate(
    model: nn.Module, plan: Plan, manifest: Manifest, stage: StagePlan, numerics: Numerics, left_out: list[int]
) -> None:
    """Re-estimates the batch-norm statistics of averaged weights as the run does, without the images ``left_out``."""
    count = recalibrated_images(stage, model)
    if not count:
        return
    apply_trainable(model, stage.train)
    set_train_mode(model, stage.norm)
    model.requires_grad_(True)
    device = next(model.parameters()).device
    specs = recalibration_specs(plan, manifest, stage, count)
    with closing(load_batches(open_images(manifest), specs, workers=auto_workers(manifest))) as batches:
        read = (masked(on_device(batch, device), left_out) for batch in batches)
        if not recalibrate(model, network_inputs(read, numerics)):
            rows = [(int(row), "unreadable") for row in manifest.rows("train")[:count]]
            raise images_gone(
                manifest, rows, len(rows), len(rows), "the train part, of which batch norms are estimated"
            )
