"""predict on tables of paths: which column, which folder, and which settings have an effect."""

from __future__ import annotations

from pathlib import Path

import pytest

import stagewright as sw
from stagewright.api.prediction_data import find_pictures
from stagewright.bundle.bundle import Bundle
from stagewright.data.pack.build import pack
from stagewright.errors import DataError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.recipe.recipe import Data

SETTINGS = ["model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=1ep"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Bundle:
    """Trained with a table whose columns and folder have unusual names."""
    place = tmp_path_factory.mktemp("predict")
    rows = [f"{path.relative_to(picture_folder)},{path.parent.name}" for path in sorted(picture_folder.glob("*/*.png"))]
    table = place / "train.csv"
    table.write_text("\n".join(["photo,kind", *rows]))
    settings = [*SETTINGS, "data.path=photo", "data.label=kind", f"data.images={picture_folder}"]
    quiet = Execution(device="cpu", pages=False, quiet=True)
    return sw.train(table, "quick", overrides=settings, out=place / "run", execution=quiet, say=lambda text: None).model


def test_a_table_is_read_as_in_the_training(bundle: Bundle, picture_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text("number,photo\n1,down/03.png\n2,across/01.png\n3,down/03.png\n4,gone.png\n5,\n")
    found, _ = find_pictures(bundle, [str(table)], [])
    assert found.paths == [picture_folder / "down" / "03.png", picture_folder / "across" / "01.png"]
    assert {(one.reason, one.example) for one in found.left_out} == {
        ("there is no such file", "gone.png"),
        ("no path in column 'photo'", "row 5"),
    }
    assert f"read as in the training: data.path=photo, data.images={picture_folder}" in found.notes[0]
    assert [answer.path for answer in bundle.predict(found)] == [str(path) for path in found.paths]


def test_the_columns_can_be_named(bundle: Bundle, picture_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "other.tsv"
    table.write_text(f"which\twhere\na\t{picture_folder}/down/00.png\n")
    with pytest.raises(DataError, match=r"no column of paths[\s\S]*data\.path=NAME"):
        find_pictures(bundle, [str(table)], [])
    found, max_pixels = find_pictures(bundle, [str(table)], ["data.path=where", "data.max_pixels=100"])
    assert found.paths == [picture_folder / "down" / "00.png"] and max_pixels == 100
    (table := tmp_path / "paths.csv").write_text("path\nnowhere.png\n")
    with pytest.raises(DataError, match=r"none of the 1 rows of .*paths.csv leads to a file in"):
        find_pictures(bundle, [str(table)], [])


def test_python_takes_a_table_as_a_path(bundle: Bundle, picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path\n{picture_folder}/down/00.png\n{picture_folder}/across/00.png\n")
    assert len(list(bundle.predict(tmp_path / "list.csv"))) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.path=photo"], r"data\.path has no effect here: none of the pictures comes from a table"),
        (["data.label=kind"], r"data\.label has no effect here: a prediction uses neither classes nor parts"),
        (["data.val=0.5"], r"data\.val has no effect"),
        (["batch_size=2"], r"only fields of data"),
    ],
)
def test_a_setting_without_effect_is_refused(
    bundle: Bundle, picture_folder: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        find_pictures(bundle, [str(picture_folder)], overrides)


def test_a_pack_is_refused_by_name(bundle: Bundle, picture_folder: Path, tmp_path: Path) -> None:
    made = pack(str(picture_folder), tmp_path / "pictures.pack", Data(), workers=1)
    with pytest.raises(DataError, match=r"is a pack[\s\S]*stagewright evaluate RUN PACK"):
        find_pictures(bundle, [str(made.folder)], [])
