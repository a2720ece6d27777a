"""Writes a run's report again, with what only a network can add: what its stages were fed, and saliency maps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stagewright.api.load_bundle import load_bundle
from stagewright.data.dataset import open_images
from stagewright.engine.saliency import saliency
from stagewright.errors import CheckpointError, RecipeError, StagewrightError
from stagewright.report import results
from stagewright.report.examples import most_confident_errors
from stagewright.report.gallery import CONFIDENT, MOST_BYTES
from stagewright.report.read import RunRecord, read_run
from stagewright.report.write import write
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device
from stagewright.training.fed_record import record_fed

_BATCH = 8


def write_report(run: str | Path, *, saliency_maps: bool = False, picture_bytes: float = MOST_BYTES) -> Path:
    """Writes plots and ``report.html`` of ``run`` and returns the page's path.

    What a stage was fed is made again if the run has not recorded it and its images are still there. With ``saliency_maps``,
    the most confident errors get maps of what spoke for the wrong class. ``picture_bytes`` is the most that all pictures
    together take in the page. CheckpointError if it is not a run, or if maps are asked for before it has finished;
    ModelError if its network has no map.
    """
    if not picture_bytes >= 0:
        raise RecipeError(f"{picture_bytes / 1e6:g} MB of pictures", "0 or more", "give a larger number")
    run = user_path(run)
    record = read_run(run)
    with suppress(StagewrightError, OSError):  # the page does without what cannot be read or written
        _record_missing(run, record)
    heat = _heat(record) if saliency_maps else None
    return write(run, picture_bytes=picture_bytes, heat=heat)


def _record_missing(run: Path, record: RunRecord) -> None:
    """Records what the stages that have begun were fed, where that is missing."""
    folder = RunDir(run)
    begun = [at for at, stage in enumerate(record.stages) if stage["first_step"] < record.step and at not in record.fed]
    if not begun:
        return
    plan, manifest = folder.read_plan(), readable_manifest(folder)
    images = open_images(manifest)
    for at in begun:
        record_fed(folder, plan, manifest, images, plan.stages[at])


def _heat(record: RunRecord) -> dict[str, NDArray[np.uint8]]:
    """Returns the most confident errors by path, each with the map of what spoke for the predicted class over it."""
    predictions = results.shown_split(record)
    if record.status != "finished" or predictions is None or predictions.paths is None:
        raise CheckpointError(
            f"--saliency for {record.path}, which has no predictions of a finished model yet",
            "a finished run",
            "finish the run first, or leave out --saliency",
        )
    bundle = load_bundle(record.path, device=str(choose_device("auto")))
    manifest = readable_manifest(RunDir(record.path))
    images, device = open_images(manifest), next(bundle.model.parameters()).device
    rows = {path: row for row, path in enumerate(manifest.paths.to_pylist())}
    found: dict[str, NDArray[np.uint8]] = {}
    places = most_confident_errors(predictions, CONFIDENT).tolist()
    for start in range(0, len(places), _BATCH):
        seen = []
        for at in places[start : start + _BATCH]:
            with suppress(OSError, ValueError, KeyError):  # gone or damaged since: the page says so
                path = predictions.paths[at]
                seen.append((path, bundle.preprocessing.view(images.load(rows[path])), int(predictions.predicted[at])))
        if not seen:
            continue
        paths, views, classes = zip(*seen, strict=True)
        maps = saliency(bundle.model, bundle.preprocessing.batch(views, device), torch.tensor(classes, device=device))
        found |= {path: _over(view, heat) for path, view, heat in zip(paths, views, maps.cpu().numpy(), strict=True)}
    return found


def _over(view: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns ``view`` in grey, uint8 (S, S, 3), with ``heat`` (S, S) in [0, 1] over it from yellow to red."""
    grey = view.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colour = np.stack([np.full_like(heat, 255.0), 220.0 * (1 - heat), np.zeros_like(heat)], axis=2)
    return (grey + 0.75 * heat[..., None] * (colour - grey)).round().astype(np.uint8)
