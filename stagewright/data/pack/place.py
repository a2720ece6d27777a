"""Where a pack is made and how it gets its name: it is there as a whole, or not at all.

A pack is made in the folder ``.NAME.unfinished`` beside its place, in which an interrupted call continues, and is then renamed.
An earlier pack stays at the place until then. A mount point cannot be renamed: there the pack is made in its place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from stagewright.data.pack.format import HEAD, INDEX, UNFINISHED, Head, unfinished_folder
from stagewright.data.pack.writer import write_head
from stagewright.errors import DataError
from stagewright.storage.folders import replace_folder
from stagewright.text import some


def real_place(folder: Path) -> Path:
    """Returns ``folder``, or where it leads to if it is a link: the pack belongs on that disk."""
    return Path(os.path.realpath(folder)) if folder.is_symlink() else folder


def check_place(folder: Path, source: Path) -> None:
    """DataError if ``folder`` cannot become a pack of ``source``: inside of it, a file, or a folder with other files."""
    if source.is_dir() and folder.is_relative_to(source):
        raise DataError(
            f"{folder} is inside the folder of the pictures",
            f"a folder outside {source}, because the files of the pack would count as data",
            "choose another folder with --out",
        )
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise DataError(
            f"{folder} is a file or a broken link",
            "a new folder, or a pack",
            "choose another folder with --out",
        )
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    # Only temporary files: a process was killed before it had finished the first part of a pack that was made in its place.
    if names and not names & {HEAD, UNFINISHED} and not all(map(_is_temporary, names)):
        raise DataError(
            f"{folder} contains other files: {some(sorted(names), 3)}",
            "a new or empty folder, or a pack of the same pictures",
            "choose another folder with --out",
        )


def _is_temporary(name: str) -> bool:
    return name.startswith((".part-", f".{UNFINISHED}."))


def workplace(folder: Path) -> Path:
    """Returns the folder in which the pack ``folder`` is made, and makes it."""
    place = folder if os.path.ismount(folder) else unfinished_folder(folder)
    place.mkdir(parents=True, exist_ok=True)
    return place


@contextmanager
def locked(place: Path, folder: Path) -> Iterator[None]:
    """Locks the workplace ``place`` of the pack ``folder`` for this process; the system releases the lock even if the process is
    killed. At the end an empty workplace is removed.

    Raises DataError if another process holds the lock.
    """
    descriptor = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another process is packing into {folder}", "one process per pack", "wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            if place != folder:
                with suppress(OSError):  # it holds what an interrupted call continues, or has become the pack
                    place.rmdir()
    finally:
        os.close(descriptor)


def clear(folder: Path) -> None:
    """Removes the files of a pack, the heads last, so that the rest of an interrupted removal is still recognised as a pack."""
    parts = sorted(path.name for path in folder.iterdir() if path.match("part-*.arrow") or path.match(".part-*.arrow"))
    parts += sorted(path.name for path in folder.glob("records-*.parquet"))
    for name in (*parts, INDEX, UNFINISHED, HEAD):
        (folder / name).unlink(missing_ok=True)


def take_parts(folder: Path, head: Head, place: Path) -> None:
    """Begins the pack in ``place`` with the parts of the one in ``folder``, whose ``head`` describes the same pack."""
    for part in head.parts:
        with suppress(FileNotFoundError):
            try:
                os.link(folder / part.file, place / part.file)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                shutil.copyfile(folder / part.file, place / part.file)
    write_head(place / UNFINISHED, replace(head, index_crc32=0))


def put_in_place(place: Path, folder: Path) -> None:
    """Renames the finished pack in ``place`` to ``folder``; an earlier pack there is removed."""
    if place != folder:
        replace_folder(place, folder)
