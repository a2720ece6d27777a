"""The temporary folder of a cost probe, on the disk of the run."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stagewright.storage.lock import is_held, lock

_PREFIX = ".stagewright-probe-"
_MIN_AGE_SECONDS = 60.0


@contextlib.contextmanager
def own_folder(there: Path) -> Iterator[Path]:
    """Context manager: a temporary folder in ``there``, locked so that other processes see that it is in use."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=there) as temporary, lock(Path(temporary)):
        yield Path(temporary)


def remove_leftovers(there: Path) -> None:
    """Removes folders of killed probes, which no process holds."""
    for folder in there.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            old_enough = time.time() - folder.stat().st_mtime > _MIN_AGE_SECONDS  # a newer one may not be locked yet
            if old_enough and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
