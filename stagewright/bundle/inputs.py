"""The images that a person names: files, folders, patterns and tables."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from stagewright.data.images.decode import picture_extensions
from stagewright.errors import DataError
from stagewright.storage.files import user_path


def expand_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """The files that ``inputs`` mean: files as they are, folders with all pictures below them, globs (``**`` too).

    In the order given, what a folder or glob holds sorted, each file once. In folders, files count whose extension is
    that of a format that Pillow reads and whose path below the folder has no hidden part; named and globbed files always
    do. DataError for a path that does not exist, a glob that matches nothing and a folder without pictures.
    """
    found: list[Path] = []
    for item in inputs:
        path = user_path(item)
        if os.path.isdir(path):
            found += _pictures_below(path)
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(str(path)):
            found += _matches(str(path))
        else:
            raise DataError(
                f"{str(item)!r}: there is no such file or folder",
                "pictures, folders of pictures, and globs such as 'photos/*.jpg'",
                "check the path; relative paths start at the current directory",
            )
    return list(dict.fromkeys(found))


def _there(ask: Callable[[Path], bool], path: Path) -> bool:
    try:
        return ask(path)
    except (OSError, ValueError):  # names too long, or with a zero byte in them
        return False


def _pictures_below(folder: Path) -> list[Path]:
    extensions = picture_extensions()
    files = [path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise DataError(
            f"the folder {str(folder)!r} holds no pictures",
            "files with an extension that Pillow reads, such as .jpg, .png, .webp or .tif, at any depth",
            "name files one by one if their extensions are unusual",
        )
    return sorted(shown)


def _matches(pattern: str) -> list[Path]:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(
            f"the glob {pattern!r} matches nothing",
            "patterns with *, ?, [...] and **, relative to the current directory",
            "try it with ls",
        )
    return [file for path in paths for file in (_pictures_below(path) if path.is_dir() else [path])]
