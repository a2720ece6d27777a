"""Fixtures of runs with mirrors: pictures, and the process that forks ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_server import ObjectServer
from rank_runs import Parent, parent_of_ranks, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("mirrored-pictures"))


@pytest.fixture(scope="session")
def parent(object_server: ObjectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """The process that forks ranks, with the environment by which they find the server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_server.environment().items():
            patch.setenv(name, value)
        with parent_of_ranks(tmp_path_factory.mktemp("ranks")) as parent:
            yield parent
