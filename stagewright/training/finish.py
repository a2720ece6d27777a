"""The end of a run, after its last step: selects the final weights, evaluates them, writes predictions, Bundle and summary.

All results are a function of the last state, so this can be interrupted and repeated with the same result.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.bundle.bundle import BundleSpec, Preprocessing, save_bundle
from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.memory_cache import CachedImages
from stagewright.engine.evaluate import Evaluation, Extras
from stagewright.engine.state import Score
from stagewright.errors import CheckpointError, Interrupted
from stagewright.plan.plan import StagePlan, eval_image_size
from stagewright.recipe.fields import Data
from stagewright.recipe.holds import fields_for
from stagewright.rundir import checkpoint
from stagewright.rundir.event_kinds import ChosenWeights, Finished, Notice
from stagewright.rundir.summary import write_summary
from stagewright.storage.files import make_folder, write_whole
from stagewright.training.evaluator import Evaluator
from stagewright.training.head_comparison import compare_with_head
from stagewright.training.kept_batches import KeptBatches
from stagewright.training.session import Session
from stagewright.training.summary import Final, summarise

_GOLDEN_SAMPLES = 16
_GOLDEN_BYTES = 2_000_000  # larger image files are not used, to keep the Bundle small


def finish(session: Session) -> bool:
    """Selects, evaluates and writes the final model; returns False if a stop was requested, after which it can be repeated."""
    state, log = session.state, session.recorder.log
    evaluator, score = Evaluator(session, KeptBatches(session.batches)), select_weights(session)
    try:
        with session.clock.phase("eval"):
            score, stage = load_selected_weights(session, score)
            comparison = compare_with_head(session, evaluator, score, stage)
            score = score if comparison is None else comparison.chosen
            results = {} if comparison is None else {"val": comparison.result}
            for split in ("val", "test"):
                if split not in results and len(session.manifest.rows(split)):
                    results[split] = evaluator.evaluate_split(split, stage, extras=Extras(probabilities=True))
            against_head = None if comparison is None else comparison.against_head(results)
    except Interrupted:
        return False
    with session.clock.phase("checkpoint"):
        session.run.check_held()
        for split, result in results.items():
            write_predictions(session, split, result)
        top1 = {split: result.top1 for split, result in results.items()}
        write_bundle(session, score, stage, top1)
    log.emit(
        Finished(
            step=state.step,
            chosen=ChosenWeights(step=score.step, weights=score.weights),
            val_top1=top1.get("val"),
            test_top1=top1.get("test"),
            against_head=against_head,
            loading=session.batches.train_times.verdict(state.seconds["train"] - session.trained_before),
        )
    )
    session.recorder.sync()
    final = Final(score, results, [] if comparison is None else comparison.finalists(), against_head)
    write_summary(session.run, summarise(session, "finished", final=final))
    return True


def select_weights(session: Session) -> Score:
    """Returns the score of the final weights: the best or the last by ``eval.select``, compared on validation images only."""
    state = session.state
    chosen = state.best if session.plan.recipe.eval.select == "best" else state.latest
    if chosen is None:  # no validation images, so there is no score
        kind = session.plan.stages[-1].average.kind
        return Score(state.step, kind if kind != "none" and state.average.tensors else "raw", float("nan"))
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


def write_predictions(session: Session, split: str, result: Evaluation) -> None:
    """Writes the predictions for each image of a split to ``evaluations/SPLIT.parquet``, with the probabilities of all classes in
    their order where these are not too many (:func:`stagewright.measures.metrics.keeps_probabilities`)."""
    manifest, answers = session.manifest, result.predictions
    rows = pa.array(manifest.rows(split))
    groups = manifest.groups.take(rows) if manifest.groups is not None else pa.nulls(len(rows), pa.string())
    table = pa.table(
        {
            "path": manifest.paths.take(rows),
            "label": pa.array(manifest.labels[rows.to_numpy()], pa.int32()),
            "predicted": pa.array(answers.predicted, pa.int32()),
            "probability": pa.array(answers.probability),
            "true_probability": pa.array(answers.true_probability),
            "group": groups,
            "readable": pa.array(answers.readable),
            "loss": pa.array(answers.losses),
        }
    )
    if answers.probabilities is not None:
        flat = pa.array(answers.probabilities.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, answers.probabilities.shape[1])
        table = table.append_column("probabilities", column)
    make_folder(session.run.evaluations)
    write_whole(session.run.evaluations / f"{split}.parquet", lambda file: pq.write_table(table, file))


def write_bundle(session: Session, score: Score, stage: StagePlan, top1: dict[str, float]) -> None:
    """Writes the trained model, with classes and preprocessing, as a Bundle to ``model/``."""
    plan, recipe = session.plan, session.plan.recipe
    spec = BundleSpec(
        model=recipe.model.name,
        options=dict(recipe.model.options),
        drop_path=recipe.model.drop_path,
        image_size=max(stage.image_size for stage in plan.stages),
        classes=plan.dataset.classes,
        preprocessing=Preprocessing(
            image_size=eval_image_size(plan, stage),
            crop=recipe.eval.crop,
            fit=recipe.eval.fit,
            interpolation=recipe.interpolation,
            mean=session.numerics.mean,
            std=session.numerics.std,
        ),
        training={
            "recipe": recipe.name,
            "data": session.manifest.source,
            "read_as": {name: getattr(recipe.data, name) for name in sorted(fields_for(Data, "table"))},
            "weights": score.weights,
            "step": score.step,
            "top1": top1,
            "images": {"train": plan.dataset.num_train, "val": plan.dataset.num_val, "test": plan.dataset.num_test},
            "plan_digest": plan.digest,
            "dataset_digest": plan.dataset.digest,
            "initial_weights": recipe.model.weights,
        },
        fold=recipe.eval.fold,
    )
    save_bundle(session.run.bundle, session.state.model, spec, golden_samples(session))


def golden_samples(session: Session) -> list[tuple[bytes, str]]:
    """Returns up to 16 readable images, spread over the test (else validation, else training) split.

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
