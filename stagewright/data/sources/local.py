"""Lists the images of DATA on the local disk: a folder, a table or digits. Other forms are refused with an explanation."""

from __future__ import annotations

import itertools
import os

from stagewright.data.sources.builtin import TORCHVISION, digits_folder
from stagewright.data.sources.embedded import shards
from stagewright.data.sources.fetched import fetch, is_fetched, refuse_formats
from stagewright.data.sources.file_names import read_classes, read_groups
from stagewright.data.sources.folders import Listing, absolute_path, list_files, list_folder
from stagewright.data.sources.other_tasks import refuse_folder
from stagewright.data.sources.shard_names import names_shards
from stagewright.data.sources.tables import is_table, list_table
from stagewright.data.sources.tree import DiskTree, Tree
from stagewright.data.sources.val_is_test import with_val_as_test
from stagewright.data.sources.walk import is_folder, is_ignored
from stagewright.errors import DataError
from stagewright.recipe.name_pattern import NamePattern
from stagewright.recipe.recipe import Data, reading_fields
from stagewright.text import nearest, some

FORMS = (
    "a folder of class folders; a folder with train/, val/ and test/; a .csv, .tsv or .parquet, or a folder of Parquet files "
    "that contain pictures; digits; "
    f"torchvision:NAME ({', '.join(TORCHVISION)}); a NAME.pack (made by data pack); "
    "WebDataset's tar files (NAME.tar, NAME-{000..146}.tar); s3://... of any of these; hf:NAME"
)


def list_source(source: str, settings: Data, *, needs_train: bool = True) -> Listing:
    """Lists the files of ``source``: a folder, a table or digits, with the classes and groups that patterns read from names.
    DataError for anything else, and for settings of ``settings`` that it cannot follow. ``needs_train`` as for
    :func:`~stagewright.data.sources.folders.list_folder`."""
    return completed(source, _listed(source, settings, needs_train), settings)


def completed(source: str, listing: Listing, settings: Data) -> Listing:
    """Returns ``listing`` with the groups that a pattern reads from names, and with the parts that ``settings`` ask for."""
    if isinstance(settings.group, NamePattern):
        listing = read_groups(listing, settings.group)
    return with_val_as_test(source, listing, settings)


def _listed(source: str, settings: Data, needs_train: bool) -> Listing:
    if source == "digits":
        refuse_columns(source, "digits", settings)
        return list_folder(digits_folder())
    if names_shards(source):
        raise DataError(
            f"{source!r} consists of tar files, whose images are no files of their own",
            "a folder or a table of image files",
            "unpack them and point at the folder; train, plan, evaluate and data pack read the tar files as they are",
        )
    if is_fetched(source):
        return _listed(fetch(source, settings), settings, needs_train)
    if "://" in source:
        raise DataError(
            f"{source!r} is no address of an object store",
            FORMS,
            "download it (wget, huggingface-cli) and point at the folder",
        )
    path = absolute_path(source)
    refuse_formats(source, [path.name] if not path.is_dir() else _files_alone(DiskTree(path)))
    if os.path.isdir(path) and (files := shards(path)):
        return list_table(path, settings, files)
    if os.path.isdir(path):
        return list_tree(source, DiskTree(path), settings, needs_train)
    if is_table(path):
        return list_table(path, settings)
    if path.exists():
        raise DataError(f"{source!r} is neither a folder nor a table", FORMS, "point at the folder that contains it")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(
        f"there is no {source!r}{nearest(path.name, [*siblings, 'digits'])}",
        FORMS,
        "check the path; digits needs no files",
    )


def list_tree(source: str, tree: Tree, settings: Data, needs_train: bool) -> Listing:
    """Lists the files of the folder ``tree``, on the disk or in a store, with the classes that its folders or a pattern give;
    errors as for :func:`list_source`."""
    refuse_columns(source, "a folder", settings, patterns=True)
    refuse_folder(tree)
    if isinstance(settings.label, NamePattern):
        return read_classes(list_files(tree, needs_train=needs_train), settings.label)
    return list_folder(tree, needs_train=needs_train)


def _files_alone(tree: Tree) -> list[str]:
    """Returns the names of files in a folder that has no folders; [] if it has some."""
    seen = [entry for entry in itertools.islice(tree.scan(""), 1000) if not is_ignored(entry.name)]
    return [] if any(map(is_folder, seen)) else [entry.name for entry in seen]


def refuse_columns(source: str, what: str, settings: Data, *, patterns: bool = False) -> None:
    """DataError if ``settings`` name columns or the folder of a table, and ``source`` is ``what``, which has no columns; without
    ``patterns`` also if they read names.

    A setting without effect would let a user believe that, for example, groups are kept together.
    """
    given = {name: value for name in reading_fields() if (value := getattr(settings, name)) not in (None, "none")}
    read = [f"data.{name}={value}" for name, value in given.items() if isinstance(value, NamePattern)]
    if read and not patterns:
        raise DataError(
            f"{some(read)} with {source!r}, which is {what} and has its classes and groups already",
            "a pattern of names with a folder of files, or for groups with a table",
            "leave it out",
        )
    named = [f"data.{name}={value}" for name, value in given.items() if not isinstance(value, NamePattern)]
    if named:
        raise DataError(
            f"{some(named)} with {source!r}, which is {what} and has no columns",
            "these settings with a table (.csv, .tsv, .parquet) as DATA",
            "leave them out, or give a table with a row for each image"
            + (
                "; classes and groups in names of files: --set 'data.label=(?P<label>[^/]+)_\\d+'"
                if patterns and given.keys() & {"label", "group"}
                else ""
            ),
        )
