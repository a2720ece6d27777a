"""The images of an evaluation: how DATA is read, and which class of the model each of its classes is.

The rules of an evaluation are here: DATA needs no train part and no second class, a table is read as the run's own table was,
and a class that the model does not know is an error unless the caller says what it is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from stagewright.bundle.bundle import Bundle
from stagewright.data.dataset import Dataset, load_for_evaluation
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.pack.remote import is_pack_source
from stagewright.data.sources.folders import TABLES, absolute_path
from stagewright.data.sources.scan import Progress
from stagewright.data.sources.table_text import column_names
from stagewright.data.sources.tables import is_table
from stagewright.data.sources.walk import is_ignored
from stagewright.errors import BundleError, DataError, RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.fields import Data, reading_fields
from stagewright.recipe.holds import fields_for
from stagewright.recipe.name_pattern import NamePattern
from stagewright.system.machine import cores
from stagewright.text import counted, near_names, nearest, some

Rows = NDArray[np.int64]
ClassMap = Mapping[str, str | None]
"""The model's class of classes of DATA; None leaves the images of a class out."""


def load_labelled(
    bundle: Bundle | None, data: str, overrides: Sequence[str], progress: Progress | None = None
) -> tuple[Dataset, list[str]]:
    """Returns the images of DATA ``data`` as they are, and notes on how they were read.

    ``overrides`` are ``data.FIELD=VALUE``. What they do not set, and a table can follow, is as in the training of ``bundle``,
    if there is one.
    RecipeError for a field that only a training uses, DataError as for
    :func:`~stagewright.data.dataset.load_for_evaluation`.
    """
    asked = recipes.data_settings(overrides)
    refuse_training_fields(asked)
    inherited = {} if bundle is None else as_in_training(bundle, data, asked)
    dataset = load_for_evaluation(data, asked.model_copy(update=inherited), workers=cores(), progress=progress)
    notes = list(dataset.notes)
    if inherited:
        notes.insert(0, inherited_note(inherited))
    return dataset, notes


def inherited_note(inherited: Mapping[str, str | NamePattern]) -> str:
    """A note on settings that :func:`as_in_training` has returned."""
    said = ", ".join(f"data.{name}={value}" for name, value in inherited.items())
    return f"read as in the training: {said} (--set data.FIELD=VALUE reads it in another way)"


def refuse_training_fields(asked: Data) -> None:
    """RecipeError if fields are set that only a training uses, such as the shares of the split."""
    useless = sorted(asked.model_fields_set & fields_for(Data, "training"))
    if useless:
        allowed = ", ".join(f"data.{name}" for name in Data.model_fields if name not in fields_for(Data, "training"))
        raise RecipeError(
            f"--set {', '.join(f'data.{name}' for name in useless)} has no effect here: only a training uses it",
            allowed,
            "leave it out; --split evaluates one part of DATA",
        )


def as_in_training(bundle: Bundle, data: str, asked: Data) -> dict[str, str | NamePattern]:
    """Returns the settings of the training's table, or of the names of its files, that ``data`` can follow and ``asked`` does not
    set."""
    own, place = _training_settings(bundle), absolute_path(data)
    own = {name: value for name, value in own.items() if name not in asked.model_fields_set}
    read = {name: value for name, value in own.items() if isinstance(value, NamePattern)}
    if "label" in read and os.path.isdir(place) and not is_pack_source(data) and not _has_folders(place):
        return {**read}
    free = {name: value for name, value in own.items() if isinstance(value, str)}
    if is_pack_source(data):  # it has the columns that it was made with
        return {name: value for name, value in free.items() if value == "none"}
    if not free or not is_table(place):
        return {}
    names = {name.casefold() for name in column_names(place)}
    beside = absolute_path(str(bundle.spec.training.get("data", ""))).parent == place.parent
    followed = {name: value for name, value in free.items() if value == "none" or value.casefold() in names}
    followed.pop("images", None)
    # A folder relative to the current one belongs to the training's table: for a table elsewhere it has other images.
    if "images" in free and (beside or os.path.isdir(place.parent / free["images"])):
        followed["images"] = free["images"]
    return {**followed}


def _has_folders(place: Path) -> bool:
    """Whether the folder ``place`` has folders, which may be classes."""
    with os.scandir(place) as entries:
        return any(entry.is_dir() and not is_ignored(entry.name) for entry in entries)


def _training_settings(bundle: Bundle) -> dict[str, str | NamePattern]:
    """Returns the settings for tables and names that were not left at their defaults when ``bundle`` was trained."""
    recorded = bundle.spec.training.get("read_as") or {}
    try:
        settings = Data.model_validate(recorded)
    except ValidationError as error:
        raise BundleError(
            f"{bundle.folder / 'model.json'} is damaged: training.read_as: {error.errors()[0]['msg']}",
            "the file as stagewright has written it",
            "copy the folder again from where it was made",
        ) from None
    return {name: value for name in reading_fields() if (value := getattr(settings, name)) is not None}


def rows_of(manifest: Manifest, split: str | None, what: str) -> Rows:
    """Returns the rows of ``split``, or all rows if it is None; DataError if there are none. ``what`` names the images."""
    if split is None:
        return np.arange(len(manifest))
    rows = manifest.rows(split) if split in SPLITS else np.empty(0, np.int64)
    if not len(rows):
        sizes = {name: len(manifest.rows(name)) for name in SPLITS}
        allowed = ", ".join(f"{name} ({counted(count, 'picture')})" for name, count in sizes.items() if count)
        raise DataError(
            f"--split {split}: {what} no {split} pictures",
            allowed,
            "name another split" + ("" if what.startswith("this run") else ", or leave it out to evaluate all of DATA"),
        )
    return rows


@dataclass(frozen=True)
class _MatchedClasses:
    """The images of an evaluation, with the model's classes."""

    rows: Rows
    """(M,): the rows of the manifest, without those of dropped classes."""
    labels: NDArray[np.int64]
    """(M,): index of the model's class."""
    dropped: dict[str, int]
    """Number of images of each class that was dropped."""
    absent: list[str]
    """Classes of the model without an image."""


def match_classes(
    manifest: Manifest, rows: Rows, classes: Sequence[str], given: ClassMap, source: str
) -> _MatchedClasses:
    """Returns ``rows`` of ``manifest`` with the model's ``classes``, by name or as ``given``.

    DataError lists every class that is neither, with the model's classes that are left over and near names; also for a name in
    ``given`` that ``source`` or the model does not have, and if no image is left.
    """
    _check_names(manifest.classes, classes, given, source)
    known = {name: at for at, name in enumerate(classes)}
    targets = [given.get(name, name) for name in manifest.classes]
    sizes = np.bincount(manifest.labels[rows], minlength=len(targets))
    present = [at for at in range(len(targets)) if sizes[at]]
    absent = [name for name in classes if name not in {targets[at] for at in present}]
    foreign = {
        manifest.classes[at]: int(sizes[at]) for at in present if targets[at] is not None and targets[at] not in known
    }
    if foreign:
        raise _unknown_classes(foreign, absent, classes, source)
    index = np.array([-1 if name is None else known.get(name, -1) for name in targets], np.int64)
    labels = index[manifest.labels[rows]]
    kept = labels >= 0
    if not kept.any():
        raise DataError(
            f"all {counted(len(rows), 'picture')} of {source!r} belong to classes that are dropped",
            "a class that is not dropped",
            "drop fewer classes",
        )
    dropped = {manifest.classes[at]: int(sizes[at]) for at in present if targets[at] is None}
    return _MatchedClasses(rows[kept], labels[kept], dropped, absent)


def _check_names(theirs: Sequence[str], ours: Sequence[str], given: ClassMap, source: str) -> None:
    for wrong, known, owner in (
        ([name for name in given if name not in theirs], theirs, repr(source)),
        ([name for name in given.values() if name is not None and name not in ours], ours, "the model"),
    ):
        if wrong:
            near = [f"{name!r}{hint}" for name in wrong if (hint := nearest(name, known))]
            raise DataError(
                f"classes to map or to drop that {owner} does not have: {some(map(repr, wrong))}",
                f"its classes: {some(known, 20)}",
                "; ".join(near) or "correct the name",
            )


def _unknown_classes(
    foreign: Mapping[str, int], absent: Sequence[str], classes: Sequence[str], source: str
) -> DataError:
    named = some((f"{name!r} ({counted(count, 'picture')})" for name, count in foreign.items()), 20)
    over = f"; the model's classes without a picture there: {some(map(repr, absent), 20)}" if absent else ""
    near = near_names(foreign, absent or classes)
    flags = " ".join(f"--map {shlex.quote(f'{theirs}={ours}')}" for theirs, ours in near.items())
    rest = [name for name in foreign if name not in near]
    remedies = [f"near names: {flags}"] if near else []
    if rest:
        first = shlex.quote(rest[0])
        remedies.append(
            f"--map THEIRS=OURS says which class {some(map(repr, rest), 5)} is; --drop-class {first} leaves it out"
        )
    if absolute_path(source).suffix.lower() in TABLES:
        remedies.append("if another column holds the classes: --set data.label=NAME")
    return DataError(
        f"{counted(len(foreign), 'class')} of {source!r} {'is' if len(foreign) == 1 else 'are'} not among the model's "
        f"{len(classes)}: {named}{over}",
        f"the model's classes: {some(classes, 20)}",
        "; ".join(remedies),
    )
