"""Compares the selected weights at the end of a run with those of the head alone, and with mixtures of both.

A run that first trains only the head and then more is not always better for it. The mixtures are those of WiSE-FT (Wortsman et
al., arXiv:2109.01903): theta = (1 - a) * head alone + a * selected weights, for parameters and buffers alike.

The validation loss decides, after each has got the temperature that suits it best (Guo et al., arXiv:1706.04599): label smoothing
makes weights less sure than they are right, which says nothing about their answers. Only a loss that is lower by more than its
standard error, paired by image, displaces the selected weights, and only if ``eval.metric`` is not worse: a few validation images
cannot tell such neighbours apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stagewright.engine.evaluate import Evaluation, Extras
from stagewright.engine.state import Score
from stagewright.errors import CheckpointError, NotFinite
from stagewright.measures.metrics import goodness
from stagewright.model.average import WeightAverage, copy_tensors, named_tensors
from stagewright.plan.plan import HEAD_GRID, StagePlan
from stagewright.rundir import checkpoint
from stagewright.rundir.event_kinds import AgainstHead, Notice
from stagewright.rundir.summary import FinalistSummary
from stagewright.training.evaluator import Evaluator, score_of
from stagewright.training.paired import paired_difference
from stagewright.training.session import Session

HEAD = "head"
"""The kind of weights that only the head's stages have trained."""

_TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-6, 9))
"""0.35 to 4, each 1.19 times the one before."""
_EXTRAS = Extras(_TEMPERATURES, probabilities=True)

_Tensors = dict[str, Tensor]


@dataclass(eq=False)
class _HeadComparison:
    """The selected weights, the head alone, and what their mixtures reach on the validation images."""

    session: Session
    evaluator: Evaluator
    stage: StagePlan
    """The stage of the selected weights; all are evaluated as they are, on the same images."""
    selected: Score
    head_step: int
    ends: tuple[_Tensors, _Tensors]
    """Tensors of the head alone and of the selected weights."""
    results: dict[float, Evaluation | None] = field(default_factory=dict[float, Evaluation | None])
    """By coefficient; None where outputs are not finite."""
    coefficient: float = 1.0
    """Share of the selected weights in the chosen ones."""

    @property
    def result(self) -> Evaluation:
        """The chosen weights on the validation images."""
        result = self.results[self.coefficient]
        assert result is not None  # such weights are never chosen
        return result

    @property
    def chosen(self) -> Score:
        """The score of the chosen weights."""
        return self._score(self.coefficient, self.result)

    def evaluate(self) -> None:
        """Evaluates all on the validation images, chooses, and loads the chosen weights into the model.

        Raises ``Interrupted`` if a stop was requested, and ``NotFinite`` if outputs of the selected weights are not finite.
        """
        for coefficient in reversed(HEAD_GRID):
            self._load(coefficient)
            try:
                result = self.evaluator.evaluate_split("val", self.stage, extras=_EXTRAS)
                self.results[coefficient] = result
            except NotFinite:
                if coefficient == 1.0:
                    raise
                self.results[coefficient] = None
        metric, found = self.session.plan.recipe.eval.metric, dict[float, tuple[NDArray[np.float64], float]]()
        for at, one in self.results.items():
            if one is not None:
                found[at] = _calibrated(one), goodness(metric, self._score(at, one).metric)
        self.coefficient = _best(found)
        self._load(self.coefficient)

    def against_head(self, results: Mapping[str, Evaluation]) -> dict[str, AgainstHead]:
        """Returns how the chosen weights, with ``results`` by split, differ from the head alone on the same images.

        Evaluates the head alone on the test images; the model has the chosen weights again afterwards. Without a split whose
        outputs are not finite. Raises ``Interrupted`` if a stop was requested.
        """
        found: dict[str, AgainstHead] = {}
        for split, result in results.items():
            if self.coefficient == 0.0:  # the same weights, of which no other choice of images would tell a difference
                found[split] = AgainstHead(points=0.0, low=0.0, high=0.0, gained=0, lost=0, images=result.images)
                continue
            alone = self._alone(split)
            if alone is None:
                continue
            labels = self.session.manifest.labels[self.session.manifest.rows(split)]
            read = result.predictions.readable & alone.predictions.readable
            own, other = (one.predictions.predicted[read] == labels[read] for one in (result, alone))
            difference = paired_difference(own, other)
            if difference is not None:
                found[split] = difference
        return found

    def finalists(self) -> list[FinalistSummary]:
        """Returns all that were compared, by rising coefficient, for the summary."""
        found: list[FinalistSummary] = []
        for coefficient in HEAD_GRID:
            result = self.results[coefficient]
            step, weights = self._named(coefficient)
            loss, top1 = (None, None) if result is None else (float(_calibrated(result).mean()), result.top1)
            if loss is not None and not math.isfinite(loss):
                loss = top1 = None
            found.append({"weights": weights, "step": step, "coefficient": coefficient, "loss": loss, "top1": top1})
        return found

    def _score(self, coefficient: float, result: Evaluation) -> Score:
        step, weights = self._named(coefficient)
        return score_of(step, weights, result, self.session.plan.recipe.eval.metric)

    def _alone(self, split: str) -> Evaluation | None:
        """The head alone on a split; None if outputs are not finite."""
        if split == "val":
            return self.results[0.0]
        self._load(0.0)
        try:
            return self.evaluator.evaluate_split(split, self.stage)
        except NotFinite:
            return None
        finally:
            self._load(self.coefficient)

    def _named(self, coefficient: float) -> tuple[int, str]:
        """Step and kind of the weights of ``coefficient``."""
        if coefficient == 0.0:
            return self.head_step, HEAD
        if coefficient == 1.0:
            return self.selected.step, self.selected.weights
        return self.selected.step, f"{coefficient:g} {self.selected.weights} + {1 - coefficient:g} {HEAD}"

    def _load(self, coefficient: float) -> None:
        copy_tensors(mixed(*self.ends, coefficient), named_tensors(self.session.state.model))


def compare_with_head(session: Session, evaluator: Evaluator, score: Score, stage: StagePlan) -> _HeadComparison | None:
    """Compares the selected weights, which the model has, with the head alone; the model then has the chosen weights.

    ``score`` and ``stage`` are those of the selected weights. None if there is nothing to compare: no stage trains more than
    the head, the selected weights come from the head's stages themselves, there are no validation images, the recipe does not
    want it, or the head's checkpoint is lost, which a notice says.
    """
    head = session.plan.head_stage
    if head is None or not session.plan.compares_head or score.step <= head.end_step:
        return None
    model = session.state.model
    own = _copied(model)
    try:
        alone = _head_alone(session, evaluator, head)
    except CheckpointError as error:
        text = f"the weights of the head alone (step {head.end_step}) are lost and not compared: {error.given}"
        session.recorder.log.emit(Notice(step=session.state.step, text=text))
        return None
    finally:
        session.enter(stage)
        copy_tensors(own, named_tensors(model))
    comparison = _HeadComparison(session, evaluator, stage, score, head.end_step, (alone, own))
    comparison.evaluate()
    return comparison


def mixed(alone: Mapping[str, Tensor], selected: Mapping[str, Tensor], coefficient: float) -> dict[str, Tensor]:
    """Returns (1 - ``coefficient``) * ``alone`` + ``coefficient`` * ``selected``, by name; 0 and 1 give the ends bit for bit.

    Integer tensors, such as batch norm's count of batches, are those of ``selected``, except at 0.
    """
    if coefficient in (0.0, 1.0):
        return dict(selected if coefficient else alone)
    return {
        name: torch.lerp(alone[name], one, coefficient) if one.is_floating_point() else one
        for name, one in selected.items()
    }


def _head_alone(session: Session, evaluator: Evaluator, head: StagePlan) -> _Tensors:
    """Returns the tensors of the head alone, raw or averaged as its stage's last evaluation chose; changes the model.

    CheckpointError if its checkpoint is missing or damaged.
    """
    state, place = session.state, session.run.checkpoints / checkpoint.name_of(head.end_step)
    saved = checkpoint.load(place).tensors
    latest = saved["latest"]
    if latest is None or latest["step"] != head.end_step:
        raise CheckpointError(f"{place} has no evaluation of its step", "the checkpoint that the run saved", "none")
    state.model.load_state_dict(saved["model"])
    session.enter(head)
    if latest["weights"] != "raw":
        average = WeightAverage()  # the state's own may be that of the selected weights
        average.load(saved["average"], state.device)
        average.copy_to(state.model)
        evaluator.recalibrate(head)
    return _copied(state.model)


def _calibrated(result: Evaluation) -> NDArray[np.float64]:
    """Returns the loss of each readable image at the temperature with the lowest mean; empty if none could be read."""
    losses = result.predictions.tempered_losses[:, result.predictions.readable]
    return losses[losses.mean(axis=1).argmin()] if losses.size else losses[0]


def _best(found: Mapping[float, tuple[NDArray[np.float64], float]]) -> float:
    """Returns the coefficient with the lowest mean loss among those that beat 1: with a mean loss that is lower by more than the
    standard error of the difference, and a metric that is not worse. 1 if there is none.

    ``found`` has by coefficient the losses (N,), and the metric as a number that is higher for better weights.
    """
    selected, metric = found[1.0]
    gains = {1.0: 0.0}
    for at, (losses, own) in found.items():
        gain = selected - losses
        if len(gain) > 1 and own >= metric and gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)):
            gains[at] = float(gain.mean())
    return max(gains, key=lambda at: (gains[at], at))


def _copied(model: nn.Module) -> _Tensors:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
