"""Replaces a folder by a finished one: its name always leads to the old or to the new content, or for a moment to none."""

from __future__ import annotations

import shutil
from pathlib import Path

from stagewright.storage.files import sync_directory


def old_folder(folder: Path) -> Path:
    """Returns the temporary name of the earlier ``folder`` while a new one replaces it."""
    return folder.with_name(f".{folder.name}.old")


def replace_folder(fresh: Path, folder: Path) -> None:
    """Renames ``fresh``, beside it, to ``folder``; an earlier folder there is removed. After a crash between the two renames
    both are there, the earlier one as :func:`old_folder`."""
    old = old_folder(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    sync_directory(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
