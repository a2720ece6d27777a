"""data.val_is_test: the published validation part as the test part, in every form of DATA."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.splits.write import split
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data

CHOSEN = Data(val_is_test=True, val=0.2, test=0.4)


@pytest.fixture
def published(picture_folder: Path, tmp_path: Path) -> Path:
    """Class folders in train/ (15 pictures each) and val/ (5 each)."""
    for name in ("across", "down", "slanted"):
        for at in range(20):
            part = tmp_path / "set" / ("train" if at < 15 else "val") / name
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture_folder / name / f"{at:02d}.png", part)
    return tmp_path / "set"


def parts(manifest: Manifest) -> dict[str, set[str]]:
    return {part: set(manifest.hashes.take(manifest.rows(part)).to_pylist()) for part in ("train", "val", "test")}


def test_the_val_part_becomes_the_test_part_and_val_is_from_train(published: Path) -> None:
    usual, chosen = parts(load_dataset(str(published), Data()).manifest), load_dataset(str(published), CHOSEN)
    found = parts(chosen.manifest)
    assert found["test"] == usual["val"] and not usual["test"]
    assert found["train"] | found["val"] == usual["train"] and len(found["val"]) == 9
    assert any("data.val_is_test" in note for note in chosen.notes) and chosen.unused == {"test"}


def test_tables_and_packs_say_the_same(published: Path, tmp_path: Path) -> None:
    expected = parts(load_dataset(str(published), CHOSEN).manifest)
    table = split(str(published), Data(), out=tmp_path / "set.csv").tables[0]
    assert parts(load_dataset(str(table), CHOSEN).manifest) == expected
    made = pack(str(published), tmp_path / "set.pack", Data(), size=16)
    packed = load_dataset(str(made.folder), CHOSEN).manifest
    assert parts(packed) == expected
    written = split(str(published), Data(val_is_test=True, val=0.2), out=tmp_path / "new.csv")
    assert np.array_equal(written.pictures.sum(axis=1), [36, 9, 15])


def test_without_a_val_part_or_with_a_test_part_it_is_refused(published: Path, picture_folder: Path) -> None:
    with pytest.raises(DataError, match="has no validation part"):
        load_dataset(str(picture_folder), CHOSEN)
    shutil.copytree(published / "val", published / "test")
    with pytest.raises(DataError, match="has a test part already") as error:
        load_dataset(str(published), CHOSEN)
    assert "train and val, and no test" in error.value.allowed
