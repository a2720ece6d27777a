"""Writes the predictions of the final weights for each image of a split: ``evaluations/val.parquet`` and ``test.parquet``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.bundle.preprocessing import Preprocessing
from stagewright.data.manifest import Manifest
from stagewright.engine.evaluate import Evaluation
from stagewright.plan.plan import Plan
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_parts import ChosenWeights
from stagewright.storage.files import make_folder, write_whole

KEY = b"stagewright.predictions"
"""The metadata of the schema that says, as JSON, what answered which images: :func:`about_predictions`."""


def about_predictions(plan: Plan, chosen: ChosenWeights, view: Preprocessing) -> dict[str, object]:
    """Returns what predictions come from, for :data:`KEY`: ``dataset_digest``, ``plan_digest``, ``step`` and ``weights``, the
    ``view`` (size, crop, fit, interpolation, mean and standard deviation, as in the Bundle), and the ``precision`` of the
    network: fp32, or that of the training where it is another."""
    return {
        "dataset_digest": plan.dataset.digest,
        "plan_digest": plan.digest,
        "step": chosen.step,
        "weights": chosen.weights,
        "view": asdict(view),
        "precision": plan.precision,
    }


def write_predictions(
    run: RunDir, manifest: Manifest, split: str, result: Evaluation, about: Mapping[str, object]
) -> None:
    """Writes the predictions for each image of a split to ``evaluations/SPLIT.parquet``, with ``about`` as metadata.

    ``rank`` is the place of the right class among all classes by probability, 1 where it is the answer, null for images that
    cannot be read; of equal probabilities the lower class stands first, for the answer too. The probabilities of all classes, in
    their order, are there where these are not too many (:func:`stagewright.measures.metrics.keeps_probabilities`).
    """
    answers = result.predictions
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
            "rank": pa.array(answers.ranks + 1, pa.int32(), mask=~answers.readable),
        },
        metadata={KEY: json.dumps(about).encode()},
    )
    if answers.probabilities is not None:
        flat = pa.array(answers.probabilities.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, answers.probabilities.shape[1])
        table = table.append_column("probabilities", column)
    make_folder(run.evaluations)
    write_whole(run.evaluations / f"{split}.parquet", lambda file: pq.write_table(table, file))
