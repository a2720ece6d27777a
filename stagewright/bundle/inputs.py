"""Finds the image files that a user names: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from stagewright.data.images.decode import image_extensions
from stagewright.data.sources.embedded import parquet_files, unpack
from stagewright.data.sources.walk import walk
from stagewright.errors import DataError
from stagewright.storage.files import user_path


def expand_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """Returns the files that ``inputs`` name: files themselves, all images in folders and their subfolders, matches of globs
    (also with ``**``).

    A Parquet file that contains images, or a folder of such files, stands for its images, unpacked into the cache.
    They are in the order of ``inputs``; the files of a folder or glob are sorted; each file occurs once. Folders are searched as
    for training (:func:`~stagewright.data.sources.walk.walk`: links are followed, hidden and foreign folders are ignored), and
    only files with an extension that Pillow reads are used; named files and matches of globs are always used. DataError for a
    path that does not exist, a glob without matches and a folder without images.
    """
    found: list[Path] = []
    for item in inputs:
        path = user_path(item)
        if (files := parquet_files(path)) and (unpacked := unpack(files)) is not None:
            found += sorted(unpacked.root.glob("*/*"))
        elif os.path.isdir(path):
            found += _pictures_below(path)
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(str(path)):
            found += _matches(str(path))
        else:
            raise DataError(
                f"{str(item)!r}: there is no such file or folder",
                "pictures, folders of pictures, and globs such as 'photos/*.jpg'",
                "check the path; relative paths start in the current folder",
            )
    return list(dict.fromkeys(found))


def _pictures_below(folder: Path) -> list[Path]:
    found = walk(str(folder), any_name=True)
    files = [folder / name for name in found.files if Path(name).suffix.lower() in image_extensions()]
    # A folder that cannot be opened becomes an input that cannot be read, so that it is not left out silently.
    files += [folder / one.path for one in found.excluded]
    if not files:
        raise DataError(
            f"the folder {str(folder)!r} contains no pictures",
            "files with an extension that Pillow reads, such as .jpg, .png, .webp or .tif, at any depth",
            "name the files one by one if they have other extensions",
        )
    return sorted(files)


def _matches(pattern: str) -> list[Path]:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(
            f"the glob {pattern!r} matches nothing",
            "patterns with *, ?, [...] and **, relative to the current folder",
            "test the pattern with ls",
        )
    return [file for path in paths for file in (_pictures_below(path) if path.is_dir() else [path])]
