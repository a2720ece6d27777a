"""The end of a run: selects the final weights, evaluates them, writes predictions, Bundle and summary.

All results are a function of the last state, so this can be interrupted and repeated with the same result. The state may be that
of any checkpoint: a run can be finished before its plan is carried out, and resumed later, because nothing of the state and of
the logs that a resume reads is changed here.
"""

from __future__ import annotations

import io
from pathlib import Path

from stagewright.bundle.bundle import BundleSpec, save_bundle
from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.memory_cache import CachedImages
from stagewright.engine.evaluate import Extras
from stagewright.engine.state import Score
from stagewright.errors import CheckpointError, Interrupted, NotFinite
from stagewright.plan.plan import Plan, StagePlan
from stagewright.rundir import checkpoint
from stagewright.rundir.event_kinds import ChosenWeights, Finished, InterimFinished, Notice
from stagewright.rundir.initial_weights import read_weights, weights_sentence
from stagewright.rundir.summary import write_summary
from stagewright.text import done_text
from stagewright.training.agreement import Agreement, measure_agreement
from stagewright.training.evaluator import Evaluator
from stagewright.training.head_comparison import compare_with_head
from stagewright.training.kept_batches import KeptBatches
from stagewright.training.model_spec import model_spec
from stagewright.training.predictions_file import about_predictions, write_predictions
from stagewright.training.session import Session
from stagewright.training.summary import Final, score_range, summarise

_GOLDEN_SAMPLES = 16
_GOLDEN_BYTES = 2_000_000  # larger image files are not used, to keep the Bundle small


def finish(session: Session) -> bool:
    """Selects, evaluates and writes the final model; returns False if a stop was requested, after which it can be repeated.

    Before the end of the plan, the weights of the present step are candidates too, and all that is written says how much of the
    plan was done.
    """
    state, log = session.state, session.recorder.log
    evaluator = Evaluator(session, KeptBatches(session.batches), exact=True)
    interim = not session.is_finished
    try:
        with session.clock.phase("eval"):
            if interim:
                _score_present_step(session)
            score = select_weights(session)
            score, stage = load_selected_weights(session, score)
            comparison = compare_with_head(session, evaluator, score, stage)
            score = score if comparison is None else comparison.chosen
            results = {} if comparison is None else {"val": comparison.result}
            for split in ("val", "test"):
                if split not in results and len(session.manifest.rows(split)):
                    results[split] = evaluator.evaluate_split(split, stage, extras=Extras(probabilities=True))
            against_head = None if comparison is None else comparison.against_head(results)
            agreement = measure_agreement(Evaluator(session), stage)
    except Interrupted:
        return False
    with session.clock.phase("checkpoint"):
        session.run.check_held()
        top1 = {split: result.top1 for split, result in results.items()}
        stopped_at = done_text(state.step, session.plan.total_steps) if interim else None
        spec = bundle_spec(session, score, stage, top1, agreement, stopped_at)
        chosen = ChosenWeights(step=score.step, weights=score.weights)
        about = about_predictions(session.plan, chosen, spec.preprocessing)
        for split, result in results.items():
            write_predictions(session.run, session.manifest, split, result, about)
        write_bundle(session, spec)
    final = Final(score, results, [] if comparison is None else comparison.finalists(), against_head, interim)
    log.emit(_event(session, final))
    session.recorder.sync()
    write_summary(session.run, summarise(session, "finished", final=final))
    return True


def _event(session: Session, final: Final) -> Finished | InterimFinished:
    state, top1 = session.state, {split: result.top1 for split, result in final.results.items()}
    times = session.batches.train_times
    chosen = ChosenWeights(step=final.score.step, weights=final.score.weights)
    ranges = {split: score_range(session.manifest, split, result) for split, result in final.results.items()}
    held = True if session.manifest.num_closed else None
    if final.interim:
        return InterimFinished(
            step=state.step,
            total_steps=session.plan.total_steps,
            chosen=chosen,
            val_top1=top1.get("val"),
            test_top1=top1.get("test"),
            against_head=final.against_head,
            ranges=ranges,
            test_held=held,
        )
    return Finished(
        step=state.step,
        chosen=chosen,
        val_top1=top1.get("val"),
        test_top1=top1.get("test"),
        against_head=final.against_head,
        ranges=ranges,
        test_held=held,
        loading=times.verdict(state.seconds["train"] - session.trained_before) if times.images else None,
    )


def _score_present_step(session: Session) -> None:
    """Makes the weights of the present step candidates; a notice says so if they cannot be the best, with outputs that are not
    finite."""
    try:
        Evaluator(session).score_present_step()
    except NotFinite as error:
        if session.state.best is None or session.plan.recipe.eval.select == "last":
            raise
        text = f"the weights of step {session.state.step:,} cannot become the model: {error.given}"
        session.recorder.log.emit(Notice(step=session.state.step, text=text))


def select_weights(session: Session) -> Score:
    """Returns the score of the final weights: the best or the last by ``eval.select``, compared on validation images only."""
    state = session.state
    return selected(session.plan, state.step, state.best, state.latest, averaged=bool(state.average.tensors))


def selected(plan: Plan, step: int, best: Score | None, latest: Score | None, *, averaged: bool) -> Score:
    """Returns the score of the weights that ``eval.select`` selects in the state of ``step``: the ``best`` or the ``latest``.

    ``averaged`` says whether the state has averaged weights. Weights without a score, as there are no validation images, or no
    evaluation of this step yet, are the averaged ones of the step if there are any; their top-1 is NaN.
    """
    last = plan.recipe.eval.select == "last"
    chosen = latest if last else best
    if chosen is None or (last and chosen.step != step):
        kind = plan.stage_before(step).average.kind
        return Score(step, kind if kind != "none" and averaged else "raw", float("nan"))
    return chosen


def load_selected_weights(session: Session, score: Score) -> tuple[Score, StagePlan]:
    """Loads the selected weights into the model, from memory or from the checkpoint of their step; returns score and stage.

    If that checkpoint is damaged, the last weights are used instead, and a notice is logged.
    """
    state = session.state
    if score.step != state.step and state.latest is not None:
        try:
            tensors = checkpoint.load(session.run.checkpoints / checkpoint.name_of(score.step)).tensors
        except CheckpointError as error:
            text = f"the best weights (step {score.step}) are lost, so the last ones are used instead: {error.given}"
            session.recorder.log.emit(Notice(step=state.step, text=text))
            score = state.latest
        else:
            state.model.load_state_dict(tensors["model"])
            state.average.load(tensors["average"], state.device)
    stage = session.plan.stage_before(score.step)
    session.enter(stage)
    if score.weights != "raw":
        state.average.copy_to(state.model)
        Evaluator(session).recalibrate(stage)
    return score, stage


def bundle_spec(
    session: Session,
    score: Score,
    stage: StagePlan,
    top1: dict[str, float],
    agreement: Agreement | None = None,
    stopped_at: str | None = None,
) -> BundleSpec:
    """Returns the specification of the trained model's Bundle.

    ``agreement`` is how far predictions in bfloat16 agree with float32; other arguments as for
    :func:`stagewright.training.model_spec.model_spec`.
    """
    plan, manifest, numerics = session.plan, session.manifest, session.numerics
    weights = read_weights(session.run)
    told = {
        "close_margin": None if agreement is None else agreement.margin,
        "expected": session.run.read_env().get("expected"),
        "trained_from": None if weights is None else weights_sentence(weights),
    }
    return model_spec(plan, manifest, numerics, score, stage, top1=top1, stopped_at=stopped_at, **told)


def write_bundle(session: Session, spec: BundleSpec) -> None:
    """Writes the trained model, with classes and preprocessing, as a Bundle to ``model/``."""
    save_bundle(session.run.bundle, session.state.model, spec, golden_samples(session))


def golden_samples(session: Session) -> list[tuple[bytes, str]]:
    """Returns up to 16 readable images, spread over the test (else validation, else training) split; a test part that is closed
    counts as none.

    Each is (file bytes, extension). The Bundle stores their predictions, to detect later that a model gives other results.
    """
    manifest = session.manifest
    rows = next(rows for split in ("test", "val", "train") if len(rows := manifest.rows(split)))
    samples: list[tuple[bytes, str]] = []
    # Candidates are spread evenly over the split, which is sorted by class; twice as many, because some may not be usable.
    for row in rows[:: max(1, len(rows) // (2 * _GOLDEN_SAMPLES))]:
        try:
            data, extension = _original(session.images, int(row), manifest.paths[int(row)].as_py())
            picture = session.images.load(int(row))
        except (OSError, ValueError):
            continue
        # A bundle is read with the default limit, even if the recipe allows larger images.
        if len(data) <= _GOLDEN_BYTES and picture.width * picture.height <= MOST_PIXELS:
            samples.append((data, extension))
        if len(samples) == _GOLDEN_SAMPLES:
            break
    return samples


def _original(images: Images, row: int, path: str) -> tuple[bytes, str]:
    files = images.images if isinstance(images, CachedImages) else images
    if isinstance(files, FileImages):
        return files.read(row), Path(path).suffix.lower() or ".img"
    buffer = io.BytesIO()
    images.load(row).save(buffer, format="PNG")
    return buffer.getvalue(), ".png"
