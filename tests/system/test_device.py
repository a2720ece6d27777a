"""What a training needs to know of its machine."""

from __future__ import annotations

import os

import pytest

from stagewright.errors import StorageError
from stagewright.system.device import require_known_processor


def test_without_proc_a_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_known_processor()
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/cpuinfo")
    with pytest.raises(StorageError, match="torch does not know this processor"):
        require_known_processor()
