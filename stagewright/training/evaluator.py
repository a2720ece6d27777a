"""Evaluates raw and averaged weights during a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stagewright.data.batches.batch import Batch
from stagewright.data.batches.specs import BatchSpec, eval_specs, eval_view, recalibration_specs
from stagewright.data.sources.verify import images_gone
from stagewright.distributed.deal import Deal
from stagewright.engine.evaluate import Evaluation, Extras, evaluate
from stagewright.engine.folding import predicts_in_bfloat16
from stagewright.engine.frozen_features import Features
from stagewright.engine.numerics import Numerics
from stagewright.engine.state import Score, TrainState
from stagewright.errors import Interrupted, NotFinite
from stagewright.measures.metrics import Metric, goodness, keeps_probabilities, needs_probabilities
from stagewright.measures.overview import metric_value
from stagewright.model.average import has_batch_norm, recalibrate
from stagewright.model.fold import folded_copy
from stagewright.model.groups import modes_kept
from stagewright.model.two_precisions import TwoPrecisions, bfloat16_copy, margin_of
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.rundir.event_kinds import EndedEarly, Evaluated, Evaluating, MemoryUse, Notice
from stagewright.system.memory import memory_in_use, out_of_memory
from stagewright.training.early_stopping import reason_to_end, update_early_stopping
from stagewright.training.kept_batches import KeptBatches
from stagewright.training.session import Session

_SWA_RECALIBRATION = 4096
_MARGIN_IMAGES = 64
"""About how many images say how much the two precisions differ."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a session's weights on the splits of its data set."""

    session: Session
    kept: KeptBatches | None = None
    """Batches of earlier evaluations of the same images, which are not read again; None: they are read each time."""
    exact: bool = False
    """Whether all is computed in float32, whatever ``eval.precision`` says: for results that are published."""

    def evaluate(self) -> Evaluated:
        """Evaluates raw and averaged weights on the validation split, updates the scores of the state and writes the result, the
        event that it returns.

        Raises ``Interrupted`` if a stop was requested, and ``NotFinite`` if outputs of the model are not finite; neither changes
        the state.
        """
        self.session.recorder.fetch()
        state, stage = self.session.state, self.session.plan.stage_before(self.session.state.step)
        before, points = state.seconds["eval"], {"at the end of the epoch": memory_in_use(state.device)}
        self.session.enter(stage)  # in a resumed run, the pending evaluation may belong to the stage before
        with self.session.clock.phase("eval"):
            results = self._score(stage)
        assert state.latest is not None
        state.evaluated_step = state.step
        state.early_stopping = update_early_stopping(
            self.session.plan.recipe, state.early_stopping, results[state.latest.weights], state.latest.metric
        )
        written = self.session.recorder.write_evaluation(state, stage, results, state.seconds["eval"] - before)
        points["after its evaluation"] = memory_in_use(state.device)
        peak = self.session.peak_gb()
        self.session.recorder.log.emit(
            MemoryUse(step=state.step, stage=self.session.stage_name, peak_gb=peak, points=points)
        )
        reason = reason_to_end(self.session.plan, state)
        if reason is not None and state.step < self.session.plan.total_steps:
            self.session.recorder.log.emit(EndedEarly(step=state.step, reason=reason))
        return written

    def score_present_step(self) -> None:
        """Evaluates raw and averaged weights of the present step, unless that is done, so that a finish can choose them.

        Only scores in memory change: for the run's record, this step has no evaluation. Raises as :meth:`evaluate`.
        """
        state, stage = self.session.state, self.session.plan.stage_before(self.session.state.step)
        if state.evaluated_step < state.step and len(self.session.manifest.rows("val")):
            self.session.enter(stage)
            self._score(stage)

    def _score(self, stage: StagePlan) -> dict[str, Evaluation]:
        """Evaluates raw and averaged weights, updates the latest and the best score; returns the results by kind of weights."""
        state = self.session.state
        results = {"raw": self.evaluate_split("val", stage, self.session.features.current)}
        if stage.average.kind != "none" and state.average.tensors:
            # If the frozen body is the same in both, the cached features are valid for the averaged weights too.
            features = self.session.features.current if self._averages_the_upper_part_alone() else None
            with state.average.swapped_in(state.model):
                self.recalibrate(stage)
                results[stage.average.kind] = self.evaluate_split("val", stage, features)
        metric = self.session.plan.recipe.eval.metric
        state.latest = verdict(state.step, results, metric)
        if state.best is None or is_better(metric, state.latest, state.best):
            state.best = state.latest
        return results

    def _averages_the_upper_part_alone(self) -> bool:
        """Returns whether the averaged body equals the model's bit for bit, so that the cached features are valid for it."""
        model, features = self.session.state.model, self.session.features.current
        if features is None:
            return False
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        averaged = self.session.state.average.tensors
        return all(name in features.inside or torch.equal(averaged[name], tensor) for name, tensor in own.items())

    def evaluate_split(
        self, split: str, stage: StagePlan, features: Features | None = None, extras: Extras | None = None
    ) -> Evaluation:
        """Evaluates the model's present weights on a split, with the image size and micro-batch size of ``stage``.

        ``features`` are cached features of its present body; None: evaluates on images. ``extras`` are by default what
        ``eval.metric`` needs; the probabilities of all classes are left out where they are too many
        (:func:`stagewright.measures.metrics.keeps_probabilities`). If memory is too small, it tries again with half the
        micro-batch size.
        """
        total, plan = len(self.session.manifest.rows(split)), self.session.plan
        extras = extras or Extras(probabilities=needs_probabilities(plan.recipe.eval.metric))
        if not keeps_probabilities(total, len(plan.dataset.classes)):
            extras = replace(extras, probabilities=False)
        kept = None if features is None else self.session.features.of(split, stage, self.session.manifest)
        network = self.network(stage) if features is None else features.upper
        if isinstance(network, TwoPrecisions):
            network = self._with_margin(network, split, stage)
        while True:
            most = self.session.micro_batch_size(stage)
            specs = list(
                eval_specs(self.session.plan, self.session.manifest, stage, split, most=most, unread=kept is not None)
            )
            deal = Deal(self.session.ranks.world, [len(one.rows) for one in specs])
            try:
                with (self.kept or self.session.batches).load(deal.own(specs)) as batches:
                    result = evaluate(
                        self.session.state.model,
                        network,
                        batches if kept is None else map(kept.replace_images, batches),
                        self.session.numerics,
                        inputs=None if features is None else self._features_input(kept is not None),
                        extras=extras,
                        deal=deal if self.session.ranks.several else None,
                        stop=self.session.ranks.stops,
                        progress=lambda done: self._tell_progress(done, total),
                    )
                if self.session.reading.is_gone(result.unreadable, total):
                    rows = self.session.manifest.rows(split)[~result.predictions.readable]
                    bad = [(int(row), "unreadable") for row in rows]
                    raise images_gone(self.session.manifest, bad, len(bad), total, f"the {split} part")
                return result
            except NotFinite as error:
                names = [self.session.manifest.paths[row].as_py() for row in error.rows]
                raise NotFinite(error.rows, error.total, names) from None
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or most == 1 or self.session.ranks.several:
                    raise
            self.session.state.guard.micro_batch_size = most // 2
            text = f"out of memory in the evaluation with {most} pictures at a time: {most // 2} from here on"
            self.session.recorder.log.emit(Notice(step=self.session.state.step, text=text))

    def _tell_progress(self, done: int, total: int) -> None:
        ranks, step = self.session.ranks, self.session.state.step
        ranks.at("evaluation", step, f"{done} pictures")
        self.session.recorder.log.emit(Evaluating(step=step, done=min(total, done * ranks.world.size), total=total))

    def _features_input(self, stored: bool) -> Callable[[Batch], Tensor]:
        """Returns what makes features of a batch: nothing is to be done if they are stored."""
        numerics, features = self.session.numerics, self.session.features
        return numerics.network_input if stored else lambda batch: features.computed(batch).images

    def network(self, stage: StagePlan) -> Callable[[Tensor], Tensor]:
        """Returns the network for the present weights: the model, or on CPUs a copy of it with its batch norms folded, perhaps in
        bfloat16."""
        return prediction_network(self.session.plan, self.session.state, self.session.pairs, stage, exact=self.exact)

    def _with_margin(self, network: TwoPrecisions, split: str, stage: StagePlan) -> nn.Module:
        """Returns ``network`` with a margin by images from all over ``split``: the first ones are often of one class, whose
        logits may differ less between the precisions. For few images, which gain nothing, it is the network in float32."""
        session, rows = self.session, self.session.manifest.rows(split)
        if len(rows) < 4 * _MARGIN_IMAGES:
            return network.exact
        rows, most = rows[:: max(1, len(rows) // _MARGIN_IMAGES)], session.micro_batch_size(stage)
        specs = [
            eval_view(session.plan, session.manifest, stage, rows[at : at + most]) for at in range(0, len(rows), most)
        ]
        fast, exact = both_precisions(session, network, specs)
        network.margin = margin_of(fast, exact) if len(fast) else None
        return network

    def recalibrate(self, stage: StagePlan) -> None:
        """Re-estimates the batch-norm statistics of the averaged weights in the model, if the recipe requests it."""
        count = recalibrated_images(stage, self.session.state.model)
        if not count:
            return
        session = self.session
        specs = session.ranks.in_turn(recalibration_specs(session.plan, session.manifest, stage, count))
        with session.batches.load(specs) as batches:
            own = network_inputs(map(session.masked, batches), session.numerics)
            recalibrate(session.state.model, own, session.ranks.all_rows)


def prediction_network(
    plan: Plan, state: TrainState, pairs: Mapping[str, str], stage: StagePlan, *, exact: bool = False
) -> Callable[[Tensor], Tensor]:
    """Returns the network for the present weights of ``state``, as an evaluation after ``stage`` uses it: the model, or on CPUs a
    copy of it with ``pairs`` of its batch norms folded, in bfloat16 where the plan says so and not ``exact``."""
    folded = folded_copy(state.model, pairs) if pairs else state.forward
    if exact or not (isinstance(folded, nn.Module) and predicts_in_bfloat16(plan, state)):
        return folded
    size = eval_image_size(plan, stage)
    fast = bfloat16_copy(folded, torch.zeros(2, 3, size, size))
    return folded if fast is None else TwoPrecisions(folded, fast)


@torch.no_grad()
def both_precisions(session: Session, network: TwoPrecisions, specs: Sequence[BatchSpec]) -> tuple[Tensor, Tensor]:
    """Returns the logits (B, K) of the readable images of ``specs`` in bfloat16 and in float32. Raises ``Interrupted`` if a stop
    was requested."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    with modes_kept(session.state.model), session.batches.load(specs) as batches:
        session.state.model.eval()
        for images in network_inputs(map(session.ranks.read_by_all, batches), session.numerics):
            if session.ranks.stops():
                raise Interrupted
            found[0].append(network.fast(images.bfloat16()).float())
            found[1].append(network.exact(images).float())
    return (torch.cat(found[0]), torch.cat(found[1])) if found[0] else (torch.empty(0, 0), torch.empty(0, 0))


def network_inputs(batches: Iterable[Batch], numerics: Numerics) -> Iterator[Tensor]:
    """Yields the normalised readable images of ``batches``, which are on the device of the network."""
    for batch in batches:
        with numerics.autocast(batch.valid.device):
            yield numerics.network_input(batch)[batch.valid]


def recalibrated_images(stage: StagePlan, model: nn.Module) -> int:
    """Returns the number of training images for re-estimating the batch-norm statistics of averaged weights; 0: none."""
    requested = stage.average.recalibrate
    if stage.norm == "frozen":
        return 0
    count = requested if requested is not None else (_SWA_RECALIBRATION if stage.average.kind == "swa" else 0)
    return count if has_batch_norm(model) else 0


def verdict(step: int, results: dict[str, Evaluation], metric: Metric = "top1") -> Score:
    """Returns the score of the better of raw and averaged weights by ``metric``, at a tie of the averaged ones.

    Averaged weights vary less between steps. Results with a NaN loss, which means that no image could be read, rank last.
    """
    scores = {kind: score_of(step, kind, result, metric) for kind, result in results.items()}

    def rank(kind: str) -> tuple[bool, float, bool]:
        return math.isfinite(results[kind].loss), goodness(metric, scores[kind].metric), kind != "raw"

    return scores[max(results, key=rank)]


def score_of(step: int, weights: str, result: Evaluation, metric: Metric) -> Score:
    """Returns the score of ``weights`` after ``step`` updates, with the value of ``metric`` where that is not top-1."""
    if metric == "top1":
        return Score(step, weights, result.top1)
    return Score(step, weights, result.top1, metric_value(metric, result.answers()))


def is_better(metric: Metric, score: Score, other: Score) -> bool:
    """Returns whether ``score`` has a better value of ``metric``; not at a tie."""
    return goodness(metric, score.metric) > goodness(metric, other.metric)
