"""Fixtures of runs with mirrors: pictures, and the process that forks ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_runs import Parent, parent_of_ranks, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("mirrored-pictures"))


@pytest.fixture
def parent(bucket: str, tmp_path: Path) -> Iterator[Parent]:
    """The parent of ranks, with the environment by which they find the server."""
    with parent_of_ranks(tmp_path) as parent:
        yield parent
