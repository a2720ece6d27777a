"""Fixtures for all tests."""

from __future__ import annotations

import os

# Before anything imports torch: test processes run side by side, and their threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No run of a test asks the metadata service of the machine on which the tests run.
os.environ["STAGEWRIGHT_NOTICES"] = "off"

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from object_server import ObjectServer, start_object_server
from PIL import Image

# No deadlines: an example's time depends on what else the machine does.
settings.register_profile("stagewright", deadline=None)
settings.load_profile("stagewright")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures beside the checkout; a stranger's clone has none."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "needs the real pictures in ../shared/data, which lie beside the checkout on the project's machines"
        )
    return folder


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 20 small pictures each, of different sizes, that a network can tell apart: stripes by angle."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for label, name in enumerate(("across", "down", "slanted")):
        (folder / name).mkdir()
        for at in range(20):
            height, width = random.integers(20, 40, 2)
            y, x = np.mgrid[:height, :width]
            wave = np.sin((x, y, (x + y) / 1.4)[label] * random.uniform(0.5, 0.9) + random.uniform(0, 6))
            pixels = 128 + 70 * wave[..., None] + random.normal(0, 25, (height, width, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{at:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Takes back what a test's command sets in the environment, as PYTHONSAFEPATH, which the programs of later tests would
    inherit."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, so that they neither see nor fill the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEWRIGHT_CACHE", str(folder))
        patch.delenv("STAGEWRIGHT_DATA", raising=False)
        patch.setenv("STAGEWRIGHT_OFFLINE", "1")  # whether a host answers must not decide what a test does
        yield folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """The directory of a finished run of two epochs on the picture folder, for reading only; its model is often wrong."""
    import stagewright as sw

    small = (
        "model.options={width: 4}",
        "image_size=16",
        "batch_size=16",
        "epochs=2ep",
        "data.val=0.2",
        "data.test=0.2",
    )
    quiet = sw.Execution(device="cpu", workers=0, pages=False, quiet=True)
    out = tmp_path_factory.mktemp("small") / "run"
    return sw.train(picture_folder, "quick", overrides=small, out=out, execution=quiet, say=lambda text: None).path


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A server of the S3 protocol in a process of its own, which meets requests with faults on command."""
    with start_object_server(tmp_path_factory.mktemp("object-server") / "log") as server:
        yield server


@pytest.fixture
def bucket(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket, with the environment by which this process and its children find the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in object_server.environment().items():
        monkeypatch.setenv(name, value)
    yield object_server.new_bucket()
    object_server.lift()
