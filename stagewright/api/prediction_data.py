"""The pictures of a prediction: what a user names, and how tables among it are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from stagewright.api.evaluation_data import as_in_training, inherited_note
from stagewright.api.seen import refuse_closed_hashes
from stagewright.bundle.bundle import Bundle
from stagewright.bundle.inputs import Inputs, expand_inputs
from stagewright.data.sources.scan import digest_of
from stagewright.data.sources.tables import is_table
from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.fields import Data
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import is_closed
from stagewright.storage.files import read_file, user_path
from stagewright.text import some

_OF_TABLES = ("path", "images")
_USED = (*_OF_TABLES, "max_pixels")


def find_pictures(bundle: Bundle, images: Sequence[str], overrides: Sequence[str]) -> tuple[Inputs, int]:
    """Returns the files that ``images`` name, and the most pixels of one that is read.

    ``overrides`` are ``data.FIELD=VALUE``. What they do not set, and a table among ``images`` can follow, is as in the training
    of ``bundle``. RecipeError for a field without an effect, DataError as for
    :func:`~stagewright.bundle.inputs.expand_inputs`, and for test images of the run that it leaves closed
    (``train --hold-test``).
    """
    asked = recipes.data_settings(overrides)
    tables = any(is_table(user_path(image)) for image in images)
    useless = sorted(asked.model_fields_set - set(_USED if tables else ("max_pixels",)))
    if useless:
        no_table = not tables and set(useless) <= set(_OF_TABLES)
        raise RecipeError(
            f"--set {some(f'data.{name}' for name in useless)} has no effect here: "
            + (
                "none of the pictures comes from a table" if no_table else "a prediction uses neither classes nor parts"
            ),
            some(f"data.{name}" for name in _USED),
            "name a table of paths, or leave it out" if no_table else "leave it out",
        )
    notes: list[str] = []

    def settings(path: Path) -> Data:
        free = as_in_training(bundle, str(path), asked)
        inherited = {name: value for name, value in free.items() if name in _OF_TABLES}
        if inherited:
            notes.append(inherited_note(inherited))
        return asked.model_copy(update=inherited)

    found = expand_inputs(images, settings)
    _refuse_closed(RunDir(bundle.folder.parent), found.paths)
    return replace(found, notes=(*notes, *found.notes)), asked.max_pixels


def _refuse_closed(run: RunDir, paths: Sequence[Path]) -> None:
    """DataError if files are of the test part of ``run`` that this leaves closed; for other runs, nothing is read."""
    if not run.manifest.is_file() or not is_closed(run):
        return
    hashes: list[str | None] = []
    for path in paths:
        try:
            hashes.append(digest_of(read_file(path)).hex())
        except OSError:  # the prediction says so
            hashes.append(None)
    refuse_closed_hashes(run, pa.array(hashes, pa.string()), "what is to be predicted")
