"""Finds the image files that a user names: files, folders, globs and tables of paths."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stagewright.data.account import Omission, by_reason, not_a_picture
from stagewright.data.images.decode import identified, image_extensions
from stagewright.data.pack.reader import is_pack
from stagewright.data.sources.embedded import parquet_files, unpack
from stagewright.data.sources.tables import is_table, list_paths
from stagewright.data.sources.walk import left_out_of, walk, written_out
from stagewright.errors import DataError
from stagewright.recipe.fields import Data
from stagewright.storage.files import user_path
from stagewright.storage.objects import is_remote
from stagewright.text import some


@dataclass(frozen=True)
class Inputs:
    """The image files that a user has named."""

    paths: list[Path]
    left_out: tuple[Omission, ...]
    """What else is in the folders and tables that the user has named, by reason."""
    notes: tuple[str, ...] = ()
    """How tables were read."""


def expand_inputs(inputs: Iterable[str | Path], settings: Callable[[Path], Data] = lambda path: Data()) -> Inputs:
    """Returns the files that ``inputs`` name: files themselves, all images in folders and their subfolders, matches of globs
    (also with ``**``), and the files in the rows of tables (.csv, .tsv, .parquet), of which ``settings`` says how each is read.

    A Parquet file that contains images, or a folder of such files, stands for its images, unpacked into the cache.
    They are in the order of ``inputs``; the files of a folder or glob are sorted; each file occurs once. Folders are searched as
    for training (:func:`~stagewright.data.sources.walk.walk`: links are followed, hidden and foreign folders are ignored), and
    files without the extension of an image are used if they begin like one; named files and matches of globs are always used.
    DataError for a path that does not exist, a glob without matches, a folder without images, a table without files and a pack.
    """
    found: list[Path] = []
    left_out: list[Omission] = []
    notes: list[str] = []
    for item in inputs:
        if is_remote(str(item)):
            raise DataError(
                f"{item} is in an object store",
                "pictures, folders of pictures, globs and tables of paths on the disk",
                f"stagewright evaluate RUN {item} scores the pictures of a pack there",
            )
        path = user_path(item)
        files = parquet_files(path)
        read_as = settings(path) if files or is_table(path) else Data()
        if files and (unpacked := unpack(files, read_as.path)) is not None:
            found += sorted(Path(unpacked.root).glob("*/*"))
        elif is_table(path):
            table = list_paths(path, read_as)
            found += table.files
            left_out += table.left_out
            notes += table.notes
        elif os.path.isdir(path) and is_pack(path):
            raise DataError(
                f"{str(item)!r} is a pack, whose pictures have no files of their own",
                "pictures, folders of pictures, globs and tables of paths",
                "name the pictures from which it was made; stagewright evaluate RUN PACK scores those of the pack",
            )
        elif os.path.isdir(path):
            found += _pictures_below(path, left_out)
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(str(path)):
            found += _matches(str(path), left_out)
        else:
            raise DataError(
                f"{str(item)!r}: there is no such file or folder",
                "pictures, folders of pictures, globs such as 'photos/*.jpg', and tables of paths (.csv, .tsv, .parquet)",
                "check the path; relative paths start in the current folder",
            )
    return Inputs(list(dict.fromkeys(found)), tuple(left_out), tuple(notes))


def _pictures_below(folder: Path, left_out: list[Omission]) -> list[Path]:
    """Returns the images below ``folder``, sorted; adds to ``left_out`` what else is there."""
    found = walk(str(folder), any_name=True)
    files: list[Path] = []
    others: list[str] = []
    for name in found.files:
        if _may_be_image(folder / name):
            files.append(folder / name)
        else:
            others.append(name)
    omissions = (
        *left_out_of([found]),
        *by_reason((written_out(name), not_a_picture(name)) for name in others),
    )
    # A folder that cannot be opened becomes an input that cannot be read, so that it is not left out silently.
    files += [folder / one.path for one in found.excluded]
    if not files:
        reasons = some((f"{one.count:,} {one.reason}" for one in omissions), 5)
        raise DataError(
            f"the folder {str(folder)!r} contains no pictures{f'; left out: {reasons}' if reasons else ''}",
            "files in any format that Pillow reads, at any depth, with any extension",
            "check the path, or name the files one by one",
        )
    left_out += omissions
    return sorted(files)


def _may_be_image(path: Path) -> bool:
    """Whether the file has the extension of an image, or begins like one. True too if it cannot be opened, so that it is
    reported."""
    if path.suffix.lower() in image_extensions():
        return True
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) or identified(str(path))
    except OSError:
        return True


def _matches(pattern: str, left_out: list[Omission]) -> list[Path]:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(
            f"the glob {pattern!r} matches nothing",
            "patterns with *, ?, [...] and **, relative to the current folder",
            "test the pattern with ls",
        )
    return [file for path in paths for file in (_pictures_below(path, left_out) if path.is_dir() else [path])]
