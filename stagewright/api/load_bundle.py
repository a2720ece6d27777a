"""The public function ``load_bundle``: loads a model from a Bundle or a run, also from a run that has not finished."""

from __future__ import annotations

import logging
import os
from typing import Literal

import torch

from stagewright.bundle import bundle
from stagewright.bundle.bundle import Bundle
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import user_path
from stagewright.storage.folders import old_folder
from stagewright.training.checkpoint_model import load_checkpoint_model

_log = logging.getLogger(__name__)


def load_bundle(
    folder_or_run: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    verify: bool = True,
    precision: Literal["auto", "fp32"] = "auto",
) -> Bundle:
    """Loads and checks the Bundle in a folder, or in ``model/`` of a run's directory.

    Every file's SHA-256 is compared with the one in ``model.json``; with ``verify`` the golden samples are run on ``device``
    and compared. With ``precision`` auto, a Bundle that allows it predicts in bfloat16 on a CPU that is faster in it, and again
    in float32 where two classes are close. BundleError names a missing or damaged file, or the sample whose output differs and by
    how much.

    Of a run that has not finished, and may be going on, the checkpointed weights are loaded that its recipe selects; a warning in
    the log, which Python prints on the standard error by default, says in one line which they are. CheckpointError if there are
    none yet.
    """
    place = user_path(folder_or_run)
    run = RunDir(place)
    if (run.root / "plan.json").is_file() and not _has_bundle(run):
        found, text = load_checkpoint_model(run, torch.device(device))
        _log.warning("%s", text)
        return found
    return bundle.load_bundle(place, device, verify, precision)


def _has_bundle(run: RunDir) -> bool:
    return any((folder / "model.json").is_file() for folder in (run.bundle, old_folder(run.bundle)))
