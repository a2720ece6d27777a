"""Copies of folders in the bucket of a test's object store."""

from __future__ import annotations

from pathlib import Path

import obstore

from stagewright.storage.objects import open_store


def upload_folder(folder: Path, url: str) -> str:
    """Uploads all files below ``folder``, hidden ones too, and returns ``url``."""
    store = open_store(url)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            obstore.put(store, file.relative_to(folder).as_posix(), file)
    return url
