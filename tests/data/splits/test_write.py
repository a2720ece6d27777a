"""split: a written table reads back as the same data, a split of DATA is kept, and nothing is lost on errors."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from stagewright.cli.data_views import print_split
from stagewright.data.account import Account
from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.splits import links as links_module
from stagewright.data.splits.links import class_folders, file_names
from stagewright.data.splits.summary import SplitSummary
from stagewright.data.splits.tables import paths_from
from stagewright.data.splits.write import split
from stagewright.errors import DataError, StagewrightError, StorageError
from stagewright.recipe.recipe import Data


def draw(file: Path, value: int) -> Path:
    """Returns a different PNG image for each value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def fill(root: Path, **counts: int) -> Path:
    for at, (name, count) in enumerate(counts.items()):
        for picture in range(count):
            draw(root / name.replace("__", "/") / f"{picture}.png", 1000 * at + picture)
    return root


def write_csv(file: Path, rows: list[list[str]]) -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file


def grouped(root: Path, pictures: int = 40, groups: int = 10) -> Path:
    """Writes a table of two classes with a column ``site``; one image in 8 has no site."""
    fill(root / "pictures", a=pictures // 2, b=pictures // 2)
    rows = [["file", "species", "site"]]
    for at in range(pictures):
        rows.append([f"pictures/{'ab'[at % 2]}/{at // 2}.png", "ab"[at % 2], "" if at % 8 == 7 else f"s{at % groups}"])
    return write_csv(root / "table.csv", rows)


def contents(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Returns hash, class and part of every image, sorted."""
    names = [manifest.classes[label] for label in manifest.labels]
    return sorted(zip(manifest.hashes.to_pylist(), names, [SPLITS[part] for part in manifest.splits], strict=True))


def read(data: Path, **settings: Any) -> Manifest:
    return load_dataset(str(data), Data(**settings, split_seed=5)).manifest


def refused(source: Path | str, out: Path, settings: Data | None = None, **options: Any) -> StagewrightError:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(StagewrightError) as error:
        split(str(source), settings or Data(), out=out, **options)
    assert error.value.given and error.value.allowed and error.value.remedy
    assert sorted(out.parent.rglob("*")) == before  # an error leaves no files
    return error.value


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_reads_back_as_the_split_of_a_run(tmp_path: Path, suffix: str) -> None:
    root = fill(tmp_path / "photos", cat=40, dog=20)
    expected = load_dataset(str(root), Data(val=0.2, test=0.1, split_seed=3)).manifest
    summary = split(str(root), Data(val=0.2, test=0.1, split_seed=3), out=tmp_path / f"split{suffix}")
    table = tmp_path / f"split{suffix}"
    again = read(table)
    assert contents(again) == contents(expected)
    assert again.paths.to_pylist() == [f"photos/{path}" for path in expected.paths.to_pylist()]
    assert "split as given by DATA" in load_dataset(str(table), Data()).notes[2]
    assert summary.tables == (table,) and summary.parts == ("train", "val", "test")
    assert summary.pictures.tolist() == [[28, 14], [8, 4], [4, 2]] and summary.groups is None
    if suffix == ".csv":
        assert table.read_text().splitlines()[0] == "path,label,split,hash"
        assert table.read_text().splitlines()[1].startswith("photos/cat/0.png,cat,")
    else:
        assert pq.read_table(table).column_names == ["path", "label", "split", "hash"]


def test_groups_are_written_and_read_back(tmp_path: Path) -> None:
    source = grouped(tmp_path)
    expected = load_dataset(str(source), Data(group="site", split_seed=1)).manifest
    summary = split(str(source), Data(group="site", split_seed=1), out=tmp_path / "out" / "split.csv")
    again = read(summary.tables[0])
    assert again.groups is not None and expected.groups is not None
    assert contents(again) == contents(expected) and again.groups.to_pylist() == expected.groups.to_pylist()
    assert again.paths[0].as_py() == "../pictures/a/0.png"
    assert any(note.startswith(f"the paths lead out of {tmp_path}/out to ..") for note in summary.notes)
    named = [expected.groups.filter(pa.array(expected.splits == part)).drop_null() for part in range(3)]
    assert summary.groups == tuple(len(groups.unique()) for groups in named)
    assert "has no column 'sight'" in refused(source, tmp_path / "no.csv", Data(group="sight")).given


def test_folders_reached_by_links(tmp_path: Path) -> None:
    """The relative paths must be valid in the folders that the links point to."""
    root = fill(tmp_path / "disk" / "deep" / "photos", a=8, b=8)
    (tmp_path / "photos").symlink_to(root)
    (tmp_path / "here" / "real").mkdir(parents=True)
    (tmp_path / "tables").symlink_to(tmp_path / "here" / "real")
    expected = contents(load_dataset(str(root), Data()).manifest)
    for source, out in (
        (tmp_path / "photos", tmp_path / "a.csv"),
        (tmp_path / "photos", tmp_path / "tables" / "b.csv"),
    ):
        assert contents(read(split(str(source), Data(), out=out).tables[0])) == expected
    assert contents(read(tmp_path / "here" / "real" / "b.csv")) == expected
    links = tmp_path / "tables" / "links"
    split(str(tmp_path / "photos"), Data(), out=tmp_path / "tables" / "c.csv", links=links)
    assert contents(read(links)) == expected


def test_paths_without_a_common_folder_are_absolute(tmp_path: Path) -> None:
    manifest = load_dataset(str(fill(tmp_path, a=2, b=2)), Data()).manifest
    paths, notes = paths_from(Path("/nowhere/tables"), manifest)
    assert paths[0] == f"{os.path.realpath(tmp_path)}/a/0.png"
    assert notes[0].startswith("the paths are absolute, because /nowhere/tables and the pictures in ")


def test_unusual_names_are_written_or_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", **{'a,"b"': 4, "ünï": 4, "007": 4})
    draw(root / "007" / "odd\nname, with;all 'quotes'.png", 9999)
    table = split(str(root), Data(), out=tmp_path / "t.csv").tables[0]
    assert contents(read(table)) == contents(load_dataset(str(root), Data()).manifest)
    draw(tmp_path / "end.png", 9998).rename(root / "007" / "end.png ")
    error = refused(root, tmp_path / "other.csv")
    assert error.given == "1 picture cannot be stored in a table exactly as named, e.g. 'photos/007/end.png '"
    (root / "007" / "end.png ").unlink()
    draw(root / "cat " / "1.png", 1)
    draw(root / "cat " / "2.png", 2)
    assert "2 pictures cannot be stored in a table" in refused(root, tmp_path / "other.csv").given


def test_names_that_a_spreadsheet_takes_for_formulas(tmp_path: Path) -> None:
    """Situation 113, attack M3: the table has none, and reads back as the same classes and files."""
    root = fill(tmp_path / "photos", **{"=cmd|'x'!A0": 4, "@SUM": 4, "-1": 4})
    table = split(str(root), Data(), out=root / "t.csv").tables[0]
    cells = [cell for line in csv.reader(table.read_text("utf-8").splitlines()) for cell in line]
    assert {cell for cell in cells if cell[:1] in tuple("=+@-")} == {"-1"}
    assert "'@SUM" in cells and any(cell.startswith("./=cmd|'x'!A0/") for cell in cells)
    assert contents(read(table)) == contents(load_dataset(str(root), Data()).manifest)


def test_existing_files_are_not_replaced(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", a=6, b=6)
    out = tmp_path / "t.csv"
    split(str(root), Data(), out=out)
    old = out.read_bytes()
    assert refused(root, out).given == f"{out} exists already"
    assert out.read_bytes() == old
    split(str(root), Data(split_seed=1), out=out, overwrite=True)
    assert out.read_bytes() != old
    (tmp_path / "k-fold2of3.csv").write_text("mine")
    assert "k-fold2of3.csv exists already" in refused(root, tmp_path / "k.csv", folds=3).given
    assert refused(out, out, overwrite=True).given == f"{out} is DATA itself"
    assert refused(root, tmp_path / "t.txt").allowed == "a name that ends in .csv or .parquet"
    assert "are not files" in refused("torchvision:CIFAR10", tmp_path / "c.csv").given
    assert "nothing to train on" in refused(root, tmp_path / "c.csv", Data(val=0.5, test=0.5)).given
    assert "no share for val" in refused(root, tmp_path / "c.csv", Data(val=0.0, test=0.0)).given


def test_a_failure_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "photos", a=6, b=6)
    out = split(str(root), Data(), out=tmp_path / "t.csv").tables[0]
    old = out.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = refused(root, out, overwrite=True)
    assert isinstance(error, StorageError) and "No space left on device" in error.given
    assert out.read_bytes() == old
    monkeypatch.undo()
    monkeypatch.setattr(os, "symlink", full)
    error = refused(root, out, overwrite=True, links=tmp_path / "links")
    assert isinstance(error, StorageError) and "the links in" in error.given and out.read_bytes() == old


def test_a_split_in_data_is_kept(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", train__a=6, train__b=6, valid__a=3, valid__b=2, test__a=2)
    kept = contents(load_dataset(str(root), Data()).manifest)
    table = split(str(root), Data(), out=tmp_path / "kept.csv").tables[0]
    assert contents(read(table)) == kept
    for data in (root, table):
        error = refused(data, tmp_path / "no.csv", Data(val=0.2, test=0.1))
        assert error.given == (
            f"'{data}' contains a split already (train 12, val 5, test 2), "
            "and a share for val and a share for test would change it"
        )
        assert "--anew" in error.remedy
        assert "and 3 folds would change it" in refused(data, tmp_path / "no.csv", folds=3).given
    made = split(str(root), Data(val=0.2, test=0.0, split_seed=7), out=tmp_path / "anew.csv", anew=True)
    assert made.pictures.sum(1).tolist() == [15, 4] and contents(read(made.tables[0])) != kept
    assert "the split that DATA contains (train 12, val 5, test 2) is ignored" in made.notes
    from_table = split(str(table), Data(val=0.2, test=0.0, split_seed=7), out=tmp_path / "table.csv", anew=True)
    assert contents(read(from_table.tables[0])) == contents(read(made.tables[0]))
    flat = split(
        str(root), Data(val=0.2, test=0.0, split_seed=7), out=tmp_path / "folds.csv", anew=True, links=tmp_path / "l"
    )
    assert contents(read(tmp_path / "l")) == contents(read(flat.tables[0]))


def test_an_invalid_split_can_be_replaced(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", train__a=6, train__b=6, val__a=3, val__c=4)
    assert "val has 1 class without a picture in train" in refused(root, tmp_path / "t.csv").given
    assert split(str(root), Data(), out=tmp_path / "t.csv", anew=True).classes == ("a", "b", "c")
    rows = [[f"{at}.png", "ab"[at % 2], "tarin" if at == 3 else "train"] for at in range(8)]
    for at in range(8):
        draw(tmp_path / f"{at}.png", at)
    table = write_csv(tmp_path / "in.csv", [["path", "label", "split"], *rows])
    assert "has values other than train, val and test" in refused(table, tmp_path / "u.csv").given
    assert split(str(table), Data(), out=tmp_path / "u.csv", anew=True).pictures.sum() == 8


def test_a_test_part_in_data_is_kept(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", train__a=20, train__b=20, test__a=5, test__b=5)
    assert "a share for test would change it" in refused(root, tmp_path / "no.csv", Data(test=0.1)).given
    summary = split(str(root), Data(val=0.25), out=tmp_path / "t.csv")
    assert summary.pictures.tolist() == [[15, 15], [5, 5], [5, 5]]
    folds = split(str(root), Data(), out=tmp_path / "f.csv", folds=4)
    assert folds.parts == ("fold 1", "fold 2", "fold 3", "fold 4", "test")
    assert folds.pictures.tolist() == [[5, 5]] * 5
    for table in folds.tables[1:]:
        manifest = read(table)
        assert all("/test/" in path for path in manifest.paths.take(manifest.rows("test")).to_pylist())


def test_a_note_reports_a_missing_val_part(tmp_path: Path) -> None:
    summary = split(str(fill(tmp_path / "p", a=10, b=10)), Data(val=0.0, test=0.2), out=tmp_path / "t.csv")
    assert summary.parts == ("train", "test")
    assert any(note.startswith("there is no val part") for note in summary.notes)
    parts = Counter(part for _, _, part in contents(read(summary.tables[0], val=0.0)))
    assert parts == {"train": 16, "test": 4}


def test_every_picture_validates_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", a=31, b=22, c=7)
    shutil.copy(root / "a" / "3.png", root / "b" / "copy.png")
    summary = split(str(root), Data(test=0.1, split_seed=2), out=tmp_path / "k.csv", folds=5)
    names = [f"k-fold{k}of5.csv" for k in range(1, 6)]
    assert [table.name for table in summary.tables] == ["k.csv", *names]
    manifests = [read(table) for table in summary.tables[1:]]
    validates: Counter[str] = Counter()
    for manifest in manifests:
        assert len(manifest) == 61
        validates.update(manifest.paths.take(manifest.rows("val")).to_pylist())
    tests = {tuple(manifest.rows("test").tolist()) for manifest in manifests}
    assert len(tests) == 1 and len(tested := tests.pop()) == 6
    assert set(validates.values()) == {1} and len(validates) == 61 - len(tested)
    with summary.tables[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "fold", "split", "hash"]
    for at, row in enumerate(rows):
        folds = [str(k) for k, manifest in enumerate(manifests, 1) if SPLITS[manifest.splits[at]] == "val"]
        assert folds == ([row["fold"]] if row["fold"] else []) and row["split"] == ("train" if folds else "test")
    assert len({row["fold"] for row in rows if row["path"] in ("photos/a/3.png", "photos/b/copy.png")}) == 1
    totals = summary.pictures[:5].sum(1)
    assert np.ptp(totals) <= 2 and summary.pictures.sum() == 61


def test_folds_keep_groups_together(tmp_path: Path) -> None:
    summary = split(str(grouped(tmp_path)), Data(group="site"), out=tmp_path / "k.parquet", folds=3)
    folds = pq.read_table(summary.tables[0])
    assert folds.column_names == ["path", "label", "fold", "group", "hash"]
    assert folds["fold"].type == pa.int16() and set(folds["fold"].to_pylist()) == {1, 2, 3}
    pairs = set(zip(folds["group"].to_pylist(), folds["fold"].to_pylist(), strict=True))
    assert len([group for group, _ in pairs if group]) == 10 == len({group for group, _ in pairs if group})
    assert not any(note.startswith("split ") for note in summary.notes)
    for fold, table in enumerate(summary.tables[1:], 1):
        manifest = read(table, group="group")
        assert (np.array(folds["fold"].to_pylist()) == fold).tolist() == (manifest.splits == 1).tolist()
    assert summary.groups is not None and sum(summary.groups) == 10


def test_impossible_folds(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", a=5, b=5)
    out = tmp_path / "t.csv"
    assert refused(root, out, folds=1).given == "1 fold"
    assert refused(root, out, folds=101).allowed == "2 to 100 folds"
    assert refused(root, out, folds=11).given == "10 different pictures cannot give 11 folds"
    assert refused(root, out, Data(val=0.2), folds=3).given == "a share of 0.2 for val, and 3 folds"
    draw(root / "rare" / "1.png", 77)
    assert refused(root, out, folds=2).given.endswith("nothing to train on when its fold validates: 'rare'")
    assert (
        refused(grouped(tmp_path / "g"), tmp_path / "g" / "k.csv", folds=16).given == "15 groups cannot give 16 folds"
    )


@pytest.mark.parametrize("mode", ["symlink", "hardlink", "copy"])
def test_links_read_back(tmp_path: Path, mode: Any) -> None:
    root = fill(tmp_path / "photos", **{"a/x": 6, "a/y": 6, "b": 8})  # x and y have files of the same names
    summary = split(str(root), Data(), out=tmp_path / "t.csv", links=tmp_path / "deep" / "links", mode=mode)
    links = tmp_path / "deep" / "links"
    assert summary.links == links and contents(read(links)) == contents(read(summary.tables[0]))
    assert any(
        note == "links: 12 files renamed, because other files of the class have the same name" for note in summary.notes
    )
    file = next(file for file in sorted(links.rglob("*.png")))
    if mode == "symlink":
        assert os.readlink(file).startswith("../../../../photos/")
        (tmp_path / "moved").mkdir()
        for name in ("deep", "photos"):
            (tmp_path / name).rename(tmp_path / "moved" / name)
        assert len(read(tmp_path / "moved" / "deep" / "links")) == 20
    else:
        assert not file.is_symlink() and (file.stat().st_nlink == 2) == (mode == "hardlink")
    assert sorted(
        entry.name for entry in (tmp_path / "moved" / "deep" / "links" if mode == "symlink" else links).iterdir()
    ) == [
        "test",
        "train",
        "val",
    ]


def test_links_of_folds(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", a=9, b=9)
    (tmp_path / "links").mkdir()  # an empty folder is treated like one that does not exist
    summary = split(str(root), Data(), out=tmp_path / "t.csv", folds=3, links=tmp_path / "links")
    assert sorted(entry.name for entry in (tmp_path / "links").iterdir()) == ["fold1", "fold2", "fold3"]
    for fold, table in enumerate(summary.tables[1:], 1):
        assert contents(read(tmp_path / "links" / f"fold{fold}")) == contents(read(table))


def test_class_names_that_are_invalid_folder_names(tmp_path: Path) -> None:
    classes = ["a/b", "a_b", "..", ".hidden", "lost+found", "x" * 300, "train", "plain"]
    rows = [["path", "label"]]
    for at, name in enumerate(classes):
        rows += [
            [str(draw(tmp_path / "p" / f"{at}-{k}.png", 10 * at + k).relative_to(tmp_path)), name] for k in range(4)
        ]
    table = write_csv(tmp_path / "t.csv", rows)
    summary = split(str(table), Data(), out=tmp_path / "s.csv", links=tmp_path.parent / f"{tmp_path.name}-links")
    assert summary.links is not None
    again, names = read(summary.links), dict(zip(summary.classes, class_folders(summary.classes), strict=True))
    assert names["a_b"] == "a_b" and names["plain"] == "plain" and names["train"] == "train"
    assert names[".."] == "_.." and names[".hidden"] == "_.hidden" and names["lost+found"] == "_lost+found"
    assert names["a/b"].startswith("a_b-") and len(names["x" * 300]) == 255
    expected = [(content, names[name], part) for content, name, part in contents(read(summary.tables[0]))]
    assert contents(again) == sorted(expected)
    assert any(
        note.startswith("links: 5 classes renamed, because the class name cannot be used as a folder name")
        for note in summary.notes
    )


def test_file_names_do_not_clash() -> None:
    paths = ["s1/i.jpg", "s2/i.jpg", "s3/I.JPG", "s1/j.jpg", "s4/.k.jpg", f"s1/{'é' * 120}.png", f"s2/{'é' * 120}.png"]
    names = file_names(paths, [0] * 7)
    assert names[3] == "j.jpg" and names[4] == "_.k.jpg"
    assert len({name.casefold() for name in names}) == 7
    assert names[0].startswith("i-") and names[0].endswith(".jpg") and names[2].endswith(".JPG")
    assert all(len(name.encode()) <= 255 for name in names) and names[5].endswith(".png")
    assert len({name.casefold() for name in file_names(["s/x.png", "t/X.png"], [0, 0])}) == 2
    assert file_names(paths[::-1], [0] * 7) == names[::-1]  # independent of the order
    assert file_names(paths, [0, 1, 2, 0, 0, 0, 1])[:3] == ["i.jpg", "i.jpg", "I.JPG"]  # other classes, other folders


def test_links_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = fill(tmp_path / "photos", a=6, b=6), tmp_path / "t.csv"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert refused(root, out, links=tmp_path / "full").given == f"the folder {tmp_path}/full is not empty"
    assert refused(root, out, links=tmp_path / "full" / "file").given == f"{tmp_path}/full/file is a file"
    assert "the folder of the pictures" in refused(root, out, links=root / "split").given
    table = write_csv(
        tmp_path / "in.csv", [["path", "label"], *([f"photos/{c}/{k}.png", c] for c in "ab" for k in range(6))]
    )
    assert "the folder of the pictures" in refused(table, out, links=tmp_path / "links").given

    def elsewhere(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(links_module.os, "link", elsewhere)
    error = refused(root, out, links=tmp_path / "links", mode="hardlink")
    assert isinstance(error, DataError) and "another file system" in error.given


def shown(summary: SplitSummary) -> str:
    stream = io.StringIO()
    print_split(summary, Console(file=stream, width=80))
    return stream.getvalue()


def test_what_is_printed(tmp_path: Path) -> None:
    summary = split(str(grouped(tmp_path)), Data(), out=tmp_path / "k.csv", folds=3)
    lines = shown(summary).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in reversed(lines) if line.split()}
    assert cells["class"] == ["pictures", "fold", "1", "fold", "2", "fold", "3"]
    assert cells["a"] == ["20", *map(str, summary.pictures[:, 0])]
    assert cells["all"] == ["40", *map(str, summary.pictures.sum(1))]
    assert summary.groups is not None and cells["groups"] == [*map(str, summary.groups)]
    assert cells["Train"][-1] == str(tmp_path / "k-fold1of3.csv")
    plain = summary.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["parts"][1]["classes"] == {"a": summary.pictures[1, 0], "b": summary.pictures[1, 1]}
    assert plain["folds"] == 3 and plain["pictures"] == 40 and len(plain["tables"]) == 4


def test_many_classes_and_folds_fit_a_screen() -> None:
    pictures = np.arange(1, 12001).reshape(12, 1000)
    summary = SplitSummary(
        source="photos",
        seed=0,
        classes=tuple(f"a class with rather a long name {at}" for at in range(1000)),
        num_folds=12,
        parts=tuple(f"fold {k}" for k in range(1, 13)),
        pictures=pictures,
        groups=tuple(range(12)),
        excluded=0,
        account=Account(78_006_000),
        tables=(Path("t.csv"), Path("t-fold1of12.csv")),
        links=None,
        notes=(),
    )
    lines = shown(summary).splitlines()
    assert len(lines) < 30 and max(map(len, lines)) <= 80
    assert any("986 more" in line for line in lines) and any("1,000 to 12,000" in line for line in lines)
    assert any(line.split()[:1] == ["groups"] and "0 to 11" in line for line in lines)
    distance = summary.class_distance()
    own = pictures[0] / pictures[0].sum() - pictures.sum(0) / pictures.sum()
    assert distance[0] == pytest.approx(own[own > 0].sum())
