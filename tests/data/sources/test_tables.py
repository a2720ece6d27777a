"""Tables: columns found or named, classes as labels or one-hot, and every row accounted for."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagewright.data.account import Omission, by_reason
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folder_names import PART_WORDS
from stagewright.data.sources.folders import UNDECIDED, Listing
from stagewright.data.sources.table_text import read_text
from stagewright.data.sources.tables import list_table
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        (tmp_path / f"{name}.jpg").touch()
    return tmp_path


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def classes(listing: Listing) -> dict[str, str]:
    return dict(zip(listing.paths.to_pylist(), listing.labels.to_pylist(), strict=True))


def refused(file: Path, settings: Data | None = None) -> DataError:
    with pytest.raises(DataError) as error:
        list_table(file, settings or Data())
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def test_label_column(folder: Path) -> None:
    listing = list_table(table(folder, "id,Species,note\nb, 007 ,x\na.jpg,7,\n"), Data())
    assert classes(listing) == {"a.jpg": "7", "b.jpg": "007"}
    assert listing.root == str(folder)
    assert listing.parts.tolist() == [UNDECIDED] * 2
    assert listing.groups is None and listing.excluded == ()
    assert listing.notes == (
        "t.csv: paths from column 'id', classes from column 'Species'",
        "1 file named without an extension in the table, e.g. b is b.jpg",
    )


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("file,label\na.jpg,x\nb.jpg,y\n", Data()),
        ("\ufefffile;label\r\na.jpg;x\r\nb.jpg;y\r\n", Data()),
        ("label\tfile\nx\ta.jpg\ny\tb.jpg\n", Data()),
        ('file,label\n"a.jpg","x"\n"b.jpg","y"\n', Data()),
        ("wo,was,label\na.jpg,x,1\nb.jpg,y,1\n", Data(path="wo", label="was")),
        ("Image Path,CLASS\na.jpg,x\nb.jpg,y\n", Data()),
        ("id,filepath,class\n9,a.jpg,x\n8,b.jpg,y\n", Data()),
        ("name,x,y\na.jpg,1,0\nb.jpg,0,1\n", Data()),
        ("name,x,y\na.jpg,1.0,0.0\nb.jpg,0.0,1.0\n", Data()),
        ("name,x,y\na.jpg,True,False\nb.jpg,False,True\n", Data()),
    ],
)
def test_ways_to_write_the_same(folder: Path, text: str, settings: Data) -> None:
    assert classes(list_table(table(folder, text), settings)) == {"a.jpg": "x", "b.jpg": "y"}


def test_parquet(folder: Path) -> None:
    columns = {
        "path": pa.array(["a.jpg", "b.jpg", "c.jpg"]),
        "label": pa.array(["x", "y", None]).dictionary_encode(),
        "site": pa.array([1, 2, 3]),
        "box": pa.array([[1], [2], [3]]),
    }
    pq.write_table(pa.table(columns), folder / "t.parquet")
    listing = list_table(folder / "t.parquet", Data())
    assert classes(listing) == {"a.jpg": "x", "b.jpg": "y"}
    assert listing.groups == pa.array(["1", "2"]) and listing.group_name == "site"
    assert [(item.path, item.reason) for item in listing.excluded] == [("c.jpg", "no class in column 'label'")]
    one_hot = {"path": pa.array(["a.jpg", "b.jpg"]), "x": pa.array([1.0, 0.0]), "y": pa.array([False, True])}
    pq.write_table(pa.table(one_hot), folder / "t.parquet")
    assert classes(list_table(folder / "t.parquet", Data())) == {"a.jpg": "x", "b.jpg": "y"}


def test_one_hot_rows_with_none_or_several(folder: Path) -> None:
    rows = "a,1,0,0\nb,0,1,0\nc,0,0,0\nd,1,1,0\ne,0,0,1\nf,1,0,0\n"
    listing = list_table(table(folder, "id,hog,bird,blank\n" + rows), Data())
    assert classes(listing) == {"a.jpg": "hog", "b.jpg": "bird", "e.jpg": "blank", "f.jpg": "hog"}
    assert [(item.path, item.reason) for item in listing.excluded] == [
        ("c", "no class: none of the one-hot columns is 1"),
        ("d", "several classes: hog, bird"),
    ]
    assert listing.notes[0] == "t.csv: paths from column 'id', classes from the one-hot columns hog, bird, blank"
    assert not any("left out" in note for note in listing.notes), "the account says it, once"


def test_columns_of_flags_are_not_classes(folder: Path) -> None:
    error = refused(table(folder, "id,night,rain\na,1,1\nb,0,0\nc,1,1\nd,1,0\n"))
    assert "several labels of one image: 2 of 4 rows have a 1 in several of the columns night, rain" in error.given
    error = refused(table(folder, "id,night,rain\na,0,0\nb,0,0\nc,0,0\nd,1,0\n"))
    assert error.given == "the columns night, rain have values 0 and 1, but only 1 of 4 rows have exactly one 1 in them"
    assert error.remedy == "name the column of classes: --set data.label=NAME"


@pytest.mark.parametrize(("asked", "found"), [(None, "site"), ("camera", "camera"), ("none", None), ("SITE", "site")])
def test_groups(folder: Path, asked: str | None, found: str | None) -> None:
    file = table(folder, "id,label,camera,site\na,x,1,p\nb,y,2,q\nc,x,2,\n")
    listing = list_table(file, Data(group=asked))
    assert listing.group_name == (found or "")
    expected = {"site": ["p", "q", None], "camera": ["1", "2", "2"], None: None}[found]
    assert (listing.groups.to_pylist() if listing.groups is not None else None) == expected


def test_split_column(folder: Path) -> None:
    file = table(folder, "id,label,split\na,x,Train\nb,y,training\nc,x,VALID\nd,y,test\n")
    listing = list_table(file, Data())
    assert listing.parts.tolist() == [TRAIN, TRAIN, VAL, TEST]
    assert listing.notes[0].endswith("train, val and test from column 'split'")
    assert list_table(file, Data(split="none")).parts.tolist() == [UNDECIDED] * 4


def test_split_column_with_other_words(folder: Path) -> None:
    file = table(folder, "id,label,split\na,x,train\nb,y,spare\nc,y,spare\nd,y,\n")
    error = refused(file)
    assert (
        error.given
        == f"column 'split' of {file} has values other than train, val and test: 'spare' (2 rows), '' (1 row)"
    )
    assert error.allowed == ", ".join(PART_WORDS)
    assert error.remedy == "correct the values, or let stagewright make the split: --set data.split=none"
    # A column of a name that means other things as well is not taken for a split unless its words are.
    assert list_table(table(folder, "id,label,set\na,x,1\nb,y,2\n"), Data()).parts.tolist() == [UNDECIDED] * 2
    assert list_table(table(folder, "id,label,set\na,x,train\nb,y,val\n"), Data()).parts.tolist() == [TRAIN, VAL]


def test_images_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tables").mkdir()
    file = table(folder / "tables", "id,label\na,x\nb,y\n")
    for images in ("..", str(folder)):
        listing = list_table(file, Data(images=images))
        assert classes(listing) == {"a.jpg": "x", "b.jpg": "y"}
        assert Path(listing.root).samefile(folder)
    monkeypatch.chdir(folder.parent)
    assert len(list_table(file, Data(images=folder.name)).paths) == 2
    error = refused(file, Data(images="pictures"))
    assert error.given == f"there is no folder 'pictures' for the pictures of {file}"
    assert error.remedy == "correct data.images"


def test_files_in_several_rows(folder: Path) -> None:
    rows = "a.jpg,x\na.jpg,x\na,x\nb.jpg,x\nb.jpg,y\nc.jpg,y\n"
    listing = list_table(table(folder, "file,label\n" + rows), Data())
    assert classes(listing) == {"a.jpg": "x", "c.jpg": "y"}
    assert "1 file in several rows of the same class: each is used once" in listing.notes
    assert [item.reason for item in listing.excluded] == ["several classes for one file: x, y"] * 2


def test_rows_without_path_class_or_file(folder: Path) -> None:
    listing = list_table(table(folder, "file,label\na.jpg,x\n,x\nb.jpg,\nc.jpg,y\ngone.jpg,z\n"), Data())
    assert classes(listing) == {"a.jpg": "x", "c.jpg": "y"}
    assert [(item.path, item.reason) for item in listing.excluded] == [
        ("row 2", "no path in column 'file'"),
        ("b.jpg", "no class in column 'label'"),
        ("gone.jpg", "there is no such file"),
    ]
    assert "left out 1 class of the table without a picture: z" in listing.notes


@pytest.mark.parametrize(
    ("text", "settings", "given", "allowed", "remedy"),
    [
        (
            "id,breeed\na,x\n",
            Data(),
            "FILE has no column of classes, nor one-hot columns of 0 and 1, that is recognized by its name; "
            "its columns are id, breeed; did you mean 'breed'?",
            "a column named label, labels, class",
            "name the column: --set data.label=NAME (the first row of a CSV must have the column names)",
        ),
        (
            "a.jpg,x\nb.jpg,y\n",
            Data(),
            "FILE has no column of paths that is recognized",
            "a column named path",
            "name the column",
        ),
        (
            "id,label\na,x\n",
            Data(label="lable"),
            "FILE has no column 'lable'; did you mean 'label'?",
            "its columns: id, label",
            "correct data.label, or leave it out to use the usual column names",
        ),
        (
            "id,label\na,x\n",
            Data(group="sight"),
            "FILE has no column 'sight'",
            "its columns: id, label",
            "correct data.group",
        ),
        ("id,label\na,x\n", Data(path="none"), "FILE has no column 'none'", "its columns", "correct data.path"),
        (
            "id,label\nx1,p\nx2,q\n",
            Data(),
            "none of the 2 rows of FILE leads to a file with a class in FOLDER: x1 (there is no such file), x2 (",
            "paths relative to the folder of the table, or to data.images",
            "set the folder of the pictures: --set data.images=FOLDER",
        ),
        (
            "id,label\na,x\na,y\n,x\n",
            Data(),
            "none of the 3 rows of FILE leads to a file with a class in FOLDER: a (several classes for one file: x, y), a",
            "paths relative to the folder of the table, or to data.images; a class in every row",
            "set the folder of the pictures",
        ),
        ("id,label\n", Data(), "FILE has no rows", "one row for each picture", "check how it was written"),
        ("", Data(), "FILE cannot be read as a table: Empty CSV file", "a CSV in UTF-8", "open it in a text editor"),
        (
            "id,label\na,x,y\n",
            Data(),
            "FILE cannot be read as a table: CSV parse error",
            "a CSV in UTF-8",
            "open it in",
        ),
        ("id,id,label\na,b,x\n", Data(), "FILE has several columns named 'id'", "each name once", "rename one"),
    ],
)
def test_what_is_refused(folder: Path, text: str, settings: Data, given: str, allowed: str, remedy: str) -> None:
    file = table(folder, text)
    error = refused(file, settings)
    assert error.given.replace(str(file), "FILE").replace(str(folder), "FOLDER").startswith(given)
    assert error.allowed.startswith(allowed)
    assert error.remedy.startswith(remedy)


def test_files_that_are_no_tables(folder: Path) -> None:
    (folder / "t.csv").write_bytes("id,label\na,größe\n".encode("latin-1"))
    assert "cannot be read as a table" in refused(folder / "t.csv").given
    (folder / "t.csv").write_bytes(b"path,lab\xff\xfeel\na.jpg,cat\n")  # found by the fuzzer
    assert "cannot be read as a table" in refused(folder / "t.csv").given
    text = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\5\0\0\0\12\0\0\0"), pa.py_buffer(b"a.jpg\xffbbbb"))
    pq.write_table(pa.table({"path": text, "label": ["cat", "dog"]}), folder / "t.parquet")
    assert "cannot be read as a table" in refused(folder / "t.parquet").given
    (folder / "t.parquet").write_bytes(b"PAR1 but no more")
    assert "cannot be read as a table" in refused(folder / "t.parquet").given


def test_read_text_trims_and_keeps_text(folder: Path) -> None:
    read = read_text(table(folder, 'a , b\n 01 ,"x\ny"\n1e3,\n'))
    assert read.to_pydict() == {"a": ["01", "1e3"], "b": ["x\ny", ""]}


def test_breeds(shared_data: Path, tmp_path: Path) -> None:
    """The real traps: a folder that is not named, five wrong extensions, 10,000 rows and 50 breeds without a file."""
    with zipfile.ZipFile(shared_data / "breeds-csv.zip") as archive:
        for name in archive.namelist():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(archive.read(name) if name.endswith(".csv") else b"")
    listing = list_table(tmp_path / "breeds-csv" / "labels.csv", Data())
    assert len(listing.paths) == 1000
    assert len(set(listing.labels.to_pylist())) == 5
    assert len(listing.excluded) == 10_000
    text = "\n".join(listing.notes)
    assert "5 files with another extension than in the table, e.g. Cat1018.jpg is train/Cat1018.png" in text
    assert "1,000 files in another folder than in the table, e.g. Cat1.jpg is train/Cat1.jpg" in text
    assert by_reason((item.path, item.reason) for item in listing.excluded) == (
        Omission("there is no such file", 10_000, "Cat1251.jpg"),
    )
    assert "left out 50 classes of the table without a picture: Applehead Siamese, Balinese" in text


def test_camera_traps(shared_data: Path, tmp_path: Path) -> None:
    with (
        (shared_data / "camera-traps-features.csv").open() as features,
        (shared_data / "camera-traps-labels.csv").open() as labels,
    ):
        joined = [[*a, *b[1:]] for a, b in zip(csv.reader(features), csv.reader(labels), strict=True)]
    (tmp_path / "train_features").mkdir()
    for row in joined[1::10]:
        (tmp_path / row[1]).touch()
    with (tmp_path / "traps.csv").open("w", newline="") as file:
        csv.writer(file).writerows([joined[0], *joined[1::10]])
    listing = list_table(tmp_path / "traps.csv", Data())
    assert len(listing.paths) == len(joined[1::10]) == 382
    assert listing.group_name == "site"
    assert sorted(set(listing.labels.to_pylist())) == sorted(joined[0][3:])
    assert len(listing.notes) == 1
    row = joined[1]
    assert classes(listing)[row[1]] == joined[0][3 + row[3:].index("1.0")]


@pytest.mark.parametrize(
    ("columns", "candidates"),
    [
        ({"artist": "ab", "is_train": "01", "is_valid": "10"}, "'artist'"),
        ({"diagnosis": "mn", "sex_male": "01", "sex_female": "10"}, "'diagnosis'"),
        (
            {"species_of_bird": "xy", "owl": "01", "tit": "10"},
            "'species_of_bird', or the columns of 0 and 1 (owl, tit)",
        ),
    ],
)
def test_flags_are_no_classes_beside_a_column_of_text(tmp_path: Path, columns: dict[str, str], candidates: str) -> None:
    rows = [f"{at}.png," + ",".join(values[at % 2] for values in columns.values()) for at in range(8)]
    for at in range(8):
        (tmp_path / f"{at}.png").touch()
    (tmp_path / "l.csv").write_text("filepath," + ",".join(columns) + "\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError) as error:
        list_table(tmp_path / "l.csv", Data())
    assert f"they may be in {candidates}" in error.value.given
    name = next(iter(columns))
    assert f"--set data.label='{name}'" in error.value.remedy
    assert set(list_table(tmp_path / "l.csv", Data(label=name)).labels.to_pylist()) == set(columns[name])


def test_one_hot_columns_beside_ids_and_numbers_are_classes(tmp_path: Path) -> None:
    for at in range(8):
        (tmp_path / f"{at}.png").touch()
    rows = "".join(f"{at}.png,p{at},{at * 0.5},{at % 2},{1 - at % 2},1\n" for at in range(8))
    (tmp_path / "l.csv").write_text("filename,image_id,score,owl,tit,is_public\n" + rows)
    assert set(list_table(tmp_path / "l.csv", Data()).labels.to_pylist()) == {"owl", "tit"}
