"""After the last step: choose the weights, evaluate them once more with every answer kept, write the bundle and summary.

Interruptible and repeatable: everything here is a function of the last state, and comes out the same when done again.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.bundle.bundle import BundleSpec, Preprocessing, save_bundle
from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.memory_cache import CachedImages
from stagewright.engine.evaluate import Evaluation
from stagewright.engine.state import Score
from stagewright.errors import CheckpointError, Interrupted
from stagewright.plan.plan import StagePlan, eval_image_size
from stagewright.rundir import checkpoint
from stagewright.rundir.event_kinds import ChosenWeights, Finished, Notice
from stagewright.rundir.summary import write_summary
from stagewright.storage.files import make_folder, write_whole
from stagewright.training.evaluator import Evaluator
from stagewright.training.session import Session
from stagewright.training.summary import summarise

_GOLDEN_SAMPLES = 16
_GOLDEN_BYTES = 2_000_000  # larger originals stay out: a bundle is for carrying around


def finish(session: Session) -> bool:
    """Chooses, evaluates and writes the model; False where a stop was asked for, to be done again then."""
    state, log = session.state, session.recorder.log
    evaluator, score = Evaluator(session), select_weights(session)
    try:
        with session.clock.phase("eval"):
            score, stage = load_selected_weights(session, score)
            results = {
                split: evaluator.evaluate_split(split, stage)
                for split in ("val", "test")
                if len(session.manifest.rows(split))
            }
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
            loading=session.batches.train_times.verdict(state.seconds["train"] - session.trained_before),
        )
    )
    session.recorder.sync()
    write_summary(session.run, summarise(session, "finished", score=score, results=results))
    return True


def select_weights(session: Session) -> Score:
    """The weights that become the model: best or last as the recipe says, judged on validation pictures alone."""
    state = session.state
    chosen = state.best if session.plan.recipe.eval.select == "best" else state.latest
    if chosen is None:  # no validation pictures, so nothing to judge by
        kind = session.plan.stages[-1].average.kind
        return Score(state.step, kind if kind != "none" and state.average.tensors else "raw", float("nan"))
    return chosen


def load_selected_weights(session: Session, score: Score) -> tuple[Score, StagePlan]:
    """Puts the chosen weights into the model, from memory or from the checkpoint of their step; returns the score and
    its stage. Where that checkpoint is damaged, the weights at hand take their place, and the log says so."""
    state = session.state
    if score.step != state.step and state.latest is not None:
        try:
            tensors = checkpoint.load(session.run.checkpoints / checkpoint.name_of(score.step)).tensors
        except CheckpointError as error:
            text = f"the best weights (step {score.step}) are lost, so the last take their place: {error.given}"
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
    """Every answer of the chosen weights on a split, in ``evaluations/SPLIT.parquet``."""
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
        }
    )
    make_folder(session.run.evaluations)
    write_whole(session.run.evaluations / f"{split}.parquet", lambda file: pq.write_table(table, file))


def write_bundle(session: Session, score: Score, stage: StagePlan, top1: dict[str, float]) -> None:
    """The trained model with all it needs to answer elsewhere, in ``model/``."""
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
            "weights": score.weights,
            "step": score.step,
            "top1": top1,
            "images": {"train": plan.dataset.num_train, "val": plan.dataset.num_val, "test": plan.dataset.num_test},
            "plan_digest": plan.digest,
            "dataset_digest": plan.dataset.digest,
            "initial_weights": recipe.model.weights,
        },
    )
    save_bundle(session.run.bundle, session.state.model, spec, golden_samples(session))


def golden_samples(session: Session) -> list[tuple[bytes, str]]:
    """Up to 16 readable evaluation pictures spread over the split, as file bytes and extension."""
    manifest = session.manifest
    rows = next(rows for split in ("test", "val", "train") if len(rows := manifest.rows(split)))
    samples: list[tuple[bytes, str]] = []
    # Candidates lie evenly over the split, which lists classes in turn; twice as many, as some may not serve.
    for row in rows[:: max(1, len(rows) // (2 * _GOLDEN_SAMPLES))]:
        try:
            data, extension = _original(session.images, int(row), manifest.paths[int(row)].as_py())
            session.images.load(int(row))
        except (OSError, ValueError):
            continue
        if len(data) <= _GOLDEN_BYTES:
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
