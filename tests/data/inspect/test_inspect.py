"""inspect: each planted fault is found with exactly its files, clean data gives no finding, and all outputs work."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from stagewright.cli import main
from stagewright.cli.data_views import print_inspection
from stagewright.data.dataset import load_dataset
from stagewright.data.inspect import page as page_module
from stagewright.data.inspect.evidence import Finding
from stagewright.data.inspect.inspect import Inspection, inspect
from stagewright.data.inspect.page import _MOST_BYTES, page, write_page
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Returns a synthetic photo: blobs of colour at every scale, different for each seed."""
    random = np.random.default_rng(seed)
    picture = np.full((size[1], size[0], 3), 128.0)
    for cells in (2, 3, 5, 9, 17):
        noise = random.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
        picture += np.stack([np.asarray(layer) for layer in layers], axis=-1) * 90 / cells**0.5
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def make(root: Path, classes: dict[str, int], first: int = 0) -> Path:
    """Writes folders (``train/cat`` or ``cat``) with the given number of JPEGs ``00.jpg``, ... each, all different."""
    seed = first
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for at in range(count):
            scene(seed).save(root / name / f"{at:02d}.jpg", quality=92)
            seed += 1
    return root


@pytest.fixture(scope="module")
def clean_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = {"train/cat": 20, "train/dog": 20, "val/cat": 5, "val/dog": 5}
    return make(tmp_path_factory.mktemp("clean") / "split", classes)


@pytest.fixture
def split(clean_split: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean_split, tmp_path / "split")
    return tmp_path / "split"


@pytest.fixture
def flat(clean_split: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean_split / "train", tmp_path / "flat")
    for name in ("cat", "dog"):  # so that train has 20 of each class
        for at in range(10):
            scene(1000 + at + 50 * (name == "dog")).save(tmp_path / "flat" / name / f"more{at}.jpg", quality=92)
    return tmp_path / "flat"


def inspected(source: Path, **data: object) -> Inspection:
    return inspect(str(source), Data.model_validate(data))


def kinds(found: Inspection) -> dict[str, Finding]:
    assert len({finding.kind for finding in found.findings}) == len(found.findings)
    return {finding.kind: finding for finding in found.findings}


def paths(finding: Finding) -> list[str]:
    return [item.path for item in finding.items]


def sets(finding: Finding) -> list[list[str]]:
    return [[item.path for item in finding.items if item.set == number] for number in range(finding.sets)]


def test_clean_data_gives_no_findings(clean_split: Path, flat: Path) -> None:
    for source, split in ((clean_split, "given"), (flat, "made")):
        found = inspected(source)
        assert found.findings == ()
        assert (found.serious, found.verdict, found.split) == (False, "No problems found.", split)


def test_identical_files(split: Path) -> None:
    shutil.copy(split / "train/cat/03.jpg", split / "val/cat/leak.jpg")
    shutil.copy(split / "train/cat/04.jpg", split / "train/dog/other.jpg")
    shutil.copy(split / "train/dog/05.jpg", split / "train/dog/again.jpg")
    shutil.copy(split / "train/cat/06.jpg", split / "val/dog/both.jpg")
    found = inspected(split)
    by_kind = kinds(found)
    assert set(by_kind) == {"copies-across-splits", "copies-conflicting", "copies"}
    assert sets(by_kind["copies-across-splits"]) == [
        ["train/cat/03.jpg", "val/cat/leak.jpg"],
        ["train/cat/06.jpg", "val/dog/both.jpg"],
    ]
    assert sets(by_kind["copies-conflicting"]) == [
        ["train/cat/04.jpg", "train/dog/other.jpg"],
        ["train/cat/06.jpg", "val/dog/both.jpg"],
    ]
    assert sets(by_kind["copies"]) == [["train/dog/05.jpg", "train/dog/again.jpg"]]
    assert [by_kind[kind].severity for kind in by_kind] == ["serious", "serious", "warning"]
    assert found.serious


def test_near_duplicates(split: Path) -> None:
    Image.open(split / "train/cat/03.jpg").save(split / "val/cat/leak.jpg", quality=40)
    Image.open(split / "train/cat/04.jpg").resize((48, 36)).save(split / "train/dog/other.png")
    Image.open(split / "train/dog/05.jpg").point([min(255, v + 8) for v in range(256)] * 3).save(
        split / "train/dog/again.jpg", quality=70
    )
    mirrored = Image.open(split / "train/dog/06.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(split / "val/dog/mirror.jpg", quality=80)
    Image.open(split / "train/dog/07.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        split / "val/cat/arrow.jpg", quality=80
    )
    by_kind = kinds(inspected(split))
    assert set(by_kind) == {"near-across-splits", "near-conflicting", "near", "mirrored-across-splits"}
    assert sets(by_kind["near-across-splits"]) == [["train/cat/03.jpg", "val/cat/leak.jpg"]]
    assert sets(by_kind["near-conflicting"]) == [["train/cat/04.jpg", "train/dog/other.png"]]
    assert sets(by_kind["near"]) == [["train/dog/05.jpg", "train/dog/again.jpg"]]
    assert sets(by_kind["mirrored-across-splits"]) == [["train/dog/06.jpg", "val/dog/mirror.jpg"]]


def test_a_near_duplicate_leaks_through_an_identical_copy(split: Path) -> None:
    """The search sees only the first of identical files, here one in val; the leak is to its copy in train."""
    Image.open(split / "val/cat/01.jpg").save(split / "val/cat/near.jpg", quality=40)
    shutil.copy(split / "val/cat/01.jpg", split / "train/cat/zz.jpg")
    by_kind = kinds(inspected(split))
    assert sets(by_kind["copies-across-splits"]) == [["train/cat/zz.jpg", "val/cat/01.jpg"]]
    assert sets(by_kind["near-across-splits"]) == [["train/cat/zz.jpg", "val/cat/01.jpg", "val/cat/near.jpg"]]


def test_without_a_given_split_copies_cannot_leak(flat: Path) -> None:
    for at in range(20):
        shutil.copy(flat / f"cat/{at:02d}.jpg", flat / f"cat/copy{at:02d}.jpg")
        Image.open(flat / f"dog/{at:02d}.jpg").save(flat / f"dog/near{at:02d}.jpg", quality=40)
    found = inspected(flat)
    by_kind = kinds(found)
    assert set(by_kind) == {"copies", "near"} and not found.serious
    assert "keeps them together" in by_kind["copies"].why
    parts = {item.path: found.where(item)[1] for item in by_kind["near"].items}
    torn = sum(len({parts[path] for path in each}) > 1 for each in sets(by_kind["near"]))
    assert torn > 0 and f"{torn} sets would be divided between its parts" in by_kind["near"].why
    copies = {item.path: found.where(item)[1] for item in by_kind["copies"].items}
    assert all(len({copies[path] for path in each}) == 1 for each in sets(by_kind["copies"]))


def test_files_that_are_not_what_they_seem(split: Path) -> None:
    folder = split / "train/cat"
    whole = (folder / "00.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("notes")
    (folder / "01.jpg").rename(folder / "01.png")
    (folder / "02.jpg").rename(folder / "02.dat")
    exif = Image.Exif()
    exif[274] = 6
    scene(500).save(folder / "03.jpg", quality=92, exif=exif)
    scene(501).convert("CMYK").save(folder / "cmyk.jpg", quality=92)
    scene(502).convert("RGBA").save(folder / "clear.png")
    scene(503).quantize(64).save(folder / "palette.png")
    Image.fromarray(np.asarray(scene(504).convert("L")).astype(np.uint16) * 256).save(folder / "deep.png")
    scene(505).save(folder / "frames.webp", save_all=True, append_images=[scene(506)])
    scene(507, (40, 160)).save(folder / "narrow.jpg", quality=92)
    scene(508, (16, 12)).save(folder / "tiny.png")
    Image.new("RGB", (96, 72), (3, 3, 4)).save(folder / "night.png")
    by_kind = kinds(inspected(split))
    expected = {
        "unreadable": ["cut.jpg", "empty.png"],
        "not-pictures": ["notes.txt"],
        "wrong-extension": ["01.png", "02.dat"],
        "exif-rotated": ["03.jpg"],
        "cmyk": ["cmyk.jpg"],
        "alpha": ["clear.png"],
        "palette": ["palette.png"],
        "deep": ["deep.png"],
        "several-frames": ["frames.webp"],
        "extreme-aspect": ["narrow.jpg"],
        "tiny": ["tiny.png"],
        "blank": ["night.png"],
        "grey": ["deep.png", "night.png"],
    }
    assert {kind: [Path(path).name for path in paths(finding)] for kind, finding in by_kind.items()} == expected
    details = {item.path.split("/")[-1]: item.detail for finding in by_kind.values() for item in finding.items}
    assert "truncated" in details["cut.jpg"] and details["empty.png"] == "the file is empty"
    assert details["01.png"] == "holds JPEG" and "0" not in by_kind["unreadable"].why
    assert not inspected(split).serious
    strict = inspected(split, bad_images="fail")
    assert kinds(strict)["unreadable"].severity == "serious" and strict.serious


def test_classes_that_differ_between_splits(split: Path) -> None:
    make(split, {"val/fox": 3, "train/owl": 20}, first=700)
    found = inspected(split)
    by_kind = kinds(found)
    assert set(by_kind) == {"class-not-trained", "class-not-in-val"}
    assert paths(by_kind["class-not-trained"]) == [f"val/fox/{at:02d}.jpg" for at in range(3)]
    assert by_kind["class-not-trained"].names == ("fox",) and by_kind["class-not-in-val"].names == ("owl",)
    assert found.serious and found.split == "given"
    with pytest.raises(DataError):
        load_dataset(str(split), Data())


def test_balance(tmp_path: Path) -> None:
    root = make(tmp_path / "few", {"train/cat": 60, "train/dog": 4, "val/cat": 4, "val/dog": 6})
    by_kind = kinds(inspected(root))
    assert set(by_kind) == {"few-pictures", "imbalance", "class-shares-differ"}
    assert by_kind["few-pictures"].names == ("dog",) and by_kind["imbalance"].names == ("cat", "dog")
    assert "15 times" in by_kind["imbalance"].what and "54 %" in by_kind["class-shares-differ"].what


def test_properties_that_reveal_a_class_or_a_split(split: Path) -> None:
    for path in (split / "train/dog").iterdir():
        Image.open(path).convert("L").save(path, quality=92)
    for path in (split / "val/dog").iterdir():
        Image.open(path).convert("L").resize((60, 45)).save(path, quality=92)
    for path in (split / "val/cat").iterdir():
        Image.open(path).resize((60, 45)).save(path.with_suffix(".png"))
        path.unlink()
    by_kind = kinds(inspected(split))
    assert set(by_kind) == {"colour-tells-class", "size-tells-split", "grey"}
    assert set(by_kind["colour-tells-class"].names) == {"cat", "dog"}
    assert by_kind["size-tells-split"].severity == "warning" and len(by_kind["grey"].items) == 25


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Writes a table of 60 images from six sites, with a split that does not divide sites."""
    root = make(tmp_path / "table", {"pictures": 60})
    rows = ["path,label,site,split"]
    for at in range(60):
        part = "val" if at % 5 == 4 else "train"
        rows.append(f"pictures/{at:02d}.jpg,{'cat' if at < 30 else 'dog'},s{at // 20}{part},{part}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root / "labels.csv"


def test_tables(table: Path) -> None:
    assert inspected(table).findings == ()
    text = table.read_text().replace("04.jpg,cat,s0val", "04.jpg,cat,s0train").replace("07.jpg,", "07,")
    table.write_text(text + "\npictures/gone.jpg,cat,s1train,train\npictures/07,dog,s1train,train\n")
    scene(900).save(table.parent / "pictures/stray.jpg")
    found = inspected(table)
    by_kind = kinds(found)
    assert set(by_kind) == {"groups-straddle", "rows-without-file", "left-out", "files-without-row"}
    straddling = [f"pictures/{at:02d}.jpg" for at in range(20) if at != 7 and (at % 5 != 4 or at == 4)]
    assert paths(by_kind["groups-straddle"]) == straddling and by_kind["groups-straddle"].names == ("s0train",)
    assert by_kind["groups-straddle"].severity == "serious"
    assert paths(by_kind["rows-without-file"]) == ["pictures/gone.jpg"]
    assert paths(by_kind["left-out"]) == ["pictures/07"] * 2
    assert paths(by_kind["files-without-row"]) == ["pictures/stray.jpg"]
    assert found.to_dict()["groups"] == 6


def test_data_that_training_refuses(tmp_path: Path) -> None:
    found = inspected(make(tmp_path / "one", {"cat": 25}))
    assert set(kinds(found)) == {"refused"} and found.serious and found.split == "none"
    assert "cat" in found.findings[0].what and found.findings[0].todo
    (tmp_path / "bad/cat").mkdir(parents=True)
    (tmp_path / "bad/cat/a.jpg").write_bytes(b"nothing")
    nothing = inspected(tmp_path / "bad")
    assert {"unreadable", "refused"} <= set(kinds(nothing)) and nothing.to_dict()["pictures"] == 0
    print_inspection(nothing, Console(file=io.StringIO()))
    assert "Not ready" in page(nothing)
    for source in ("torchvision:CIFAR10", str(tmp_path / "absent"), str(tmp_path / "one" / "cat" / "00.jpg")):
        with pytest.raises(DataError):
            inspect(source, Data())


def test_the_split_is_that_of_a_run_and_threads_change_nothing(flat: Path) -> None:
    seen: list[tuple[int, int]] = []
    one = inspect(str(flat), Data(split_seed=3), workers=1, progress=lambda done, total: seen.append((done, total)))
    three = inspect(str(flat), Data(split_seed=3), workers=3)
    manifest = load_dataset(str(flat), Data(split_seed=3)).manifest
    assert one.evidence.parts.tolist() == manifest.splits.tolist()
    assert {**one.to_dict(), "seconds": 0} == {**three.to_dict(), "seconds": 0}
    assert seen[0] == (0, 60) and seen[-2:] == [(60, 60), (0, 0)], "at last the comparison"


def test_plain_is_json_with_all_files(split: Path) -> None:
    shutil.copy(split / "train/cat/03.jpg", split / "val/cat/leak.jpg")
    plain = json.loads(json.dumps(inspected(split).to_dict()))
    assert set(plain) == {
        *("version", "source", "root", "verdict", "serious", "seconds", "files", "pictures", "bytes", "split", "seed"),
        *("classes", "groups", "formats", "modes", "grey", "width", "height", "aspect", "findings", "notes"),
        "account",
    }
    assert plain["serious"] and plain["pictures"] == 51 and plain["formats"] == {"JPEG": 51}
    assert plain["width"] == {"min": 96, "median": 96.0, "max": 96}
    (finding,) = plain["findings"]
    assert finding["kind"] == "copies-across-splits" and finding["count"] == 2 and finding["sets"] == 1
    assert finding["files"][1] == {
        "path": "val/cat/leak.jpg", "class": "cat", "split": "val", "detail": "96 x 72", "set": 0
    }  # fmt: skip
    cat = next(entry for entry in plain["classes"] if entry["name"] == "cat")
    assert cat == {"name": "cat", "train": 20, "val": 6, "test": 0, "undecided": 0, "unreadable": 0}


def test_terminal_output_is_short_and_escapes_names(tmp_path: Path) -> None:
    root = make(tmp_path / "many", {f"train/class {at:02d}": 2 for at in range(40)} | {"train/[red]x": 2})
    shutil.copytree(root / "train", root / "val")
    file = io.StringIO()
    print_inspection(inspected(root), Console(file=file, width=100))
    text = file.getvalue()
    assert "27 classes between" in text
    assert any(line.split()[:1] == ["[red]x"] for line in text.splitlines())
    assert "82 sets of identical files (164 pictures) are in more than one of train, val and test" in text
    assert "and 160 more" in text and "Not ready" in text.splitlines()[-1]
    assert len(text.splitlines()) < 60


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_escaped_and_self_contained(split: Path, tmp_path: Path) -> None:
    evil = "<script>alert('1')&"
    make(split, {f"train/{evil}": 20, f"val/{evil}": 5}, first=300)
    shutil.copy(split / f"train/{evil}/03.jpg", split / f"val/{evil}/\"onload='x'.jpg")
    (split / "train/cat/cut.jpg").write_bytes((split / "train/cat/00.jpg").read_bytes()[:400])
    found = inspected(split)
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    parser = _Tags()
    parser.feed(text)
    assert parser.open == []
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|url\(", text)
    attributes = {name for _, attrs in parser.seen for name in attrs}
    assert not {name for name in attributes if name.startswith("on")}
    images = [attrs["src"] or "" for tag, attrs in parser.seen if tag == "img"]
    assert len(images) >= 24 and all(src.startswith("data:image/jpeg;base64,") for src in images)
    assert text.index("Not ready") < text.index("Findings") < text.index("Samples")
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&amp;" in text
    assert [path.name for path in tmp_path.glob("*.part")] == []
    with pytest.raises(StorageError):
        write_page(found, tmp_path / "absent" / "page.html")


def test_thumbnails_are_bounded(clean_split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspected(clean_split)
    whole = page(found)
    assert whole.count("data:image/jpeg") == 16 and len(whole) < _MOST_BYTES
    monkeypatch.setattr("stagewright.data.inspect.page._MOST_BYTES", 20_000)
    small = page(found)
    assert 0 < small.count("data:image/jpeg") < 16 and "not shown" in small and len(small) < 60_000


def test_everything_that_a_run_leaves_out_is_reported(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "awkward-images.zip") as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "awkward-images"
    found = inspected(root)
    told = {(item.path, item.detail) for finding in found.findings for item in finding.items}
    excluded = load_dataset(str(root), Data()).excluded
    assert len(excluded) >= 9
    assert {(item.path, item.reason) for item in excluded} <= told
    assert len(paths(kinds(found)["exif-rotated"])) == 15


def test_breeds(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "breeds-csv.zip") as archive:
        archive.extractall(tmp_path)
    table = next(tmp_path.rglob("labels.csv"))
    found = inspected(table)
    by_kind = kinds(found)
    assert len(paths(by_kind["rows-without-file"])) == 10_000
    assert paths(by_kind["wrong-extension"]) == ["train/Cat1035.png"]
    assert any(note.startswith("5 files with another extension than in the table") for note in found.to_dict()["notes"])
    assert by_kind["copies"].sets == 9
    assert sets(by_kind["near-conflicting"]) == [["train/Cat1118.jpg", "train/Cat95.jpg"]]  # seen by eye to be one cat
    told = {item.path for finding in found.findings for item in finding.items}
    assert {item.path for item in load_dataset(str(table), Data()).excluded} <= told


def test_class_names_that_differ_only_in_case_are_a_warning(tmp_path: Path) -> None:
    """Situation 014."""
    finding = kinds(inspected(make(tmp_path / "d", {"Cat": 4, "cat": 4, "dog": 4})))["class-names-alike"]
    assert finding.severity == "warning" and "'Cat' and 'cat'" in finding.what and len(finding.items) == 2


def typed_advice(found: Inspection, kind: str) -> list[str]:
    """The words of the command in the advice of finding ``kind``."""
    program, *words = shlex.split(kinds(found)[kind].command)
    assert program == "stagewright"
    return words


def plant_leaks(split: Path) -> None:
    """Near, mirrored and identical copies of images of train in val."""
    for at in range(4):
        Image.open(split / f"train/cat/{at:02d}.jpg").save(split / f"val/cat/near{at}.jpg", quality=40)
        Image.open(split / f"train/cat/{at:02d}.jpg").save(split / f"train/cat/near{at}.jpg", quality=60)
    mirrored = Image.open(split / "train/dog/06.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(split / "val/dog/mirror.jpg", quality=80)
    shutil.copy(split / "train/dog/07.jpg", split / "val/dog/copy.jpg")


@pytest.mark.parametrize("as_table", [False, True], ids=["folder", "table"])
def test_the_advised_command_ends_the_leaks(split: Path, monkeypatch: pytest.MonkeyPatch, as_table: bool) -> None:
    plant_leaks(split)
    monkeypatch.chdir(split.parent)
    source, settings = "split", {}
    if as_table:
        files = sorted(split.rglob("*.jpg"))
        rows = [f"{file.relative_to(split)},{file.parent.name},{file.relative_to(split).parts[0]}" for file in files]
        (split / "my table.csv").write_text("\n".join(["where,what,split", *rows]) + "\n")
        source, settings = "split/my table.csv", {"path": "where", "label": "what"}
    leaks = {"near-across-splits", "mirrored-across-splits", "copies-across-splits"}
    found = inspect(source, Data.model_validate(settings))
    assert leaks <= set(kinds(found)) and found.serious
    for number, kind in enumerate(sorted(leaks)):
        words = typed_advice(inspect(source, Data.model_validate(settings)), kind)
        assert not Path(words[-1]).exists(), "each advice names a new table"
        done = CliRunner().invoke(main.app, words)
        assert done.exit_code == 0, done.output
        again = inspect(words[-1], Data())
        assert not leaks & set(kinds(again)) and not again.serious, number
        assert len(again.evidence.listing.paths) == len(found.evidence.listing.paths)


def test_advice_for_a_split_that_is_yet_to_be_made(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(20):
        Image.open(flat / f"dog/{at:02d}.jpg").save(flat / f"dog/near{at:02d}.jpg", quality=40)
    monkeypatch.chdir(flat.parent)
    words = typed_advice(inspect("flat", Data(split_seed=3)), "near")
    assert words[-4:] == ["--seed", "3", "--out", "flat-split.csv"]
    assert CliRunner().invoke(main.app, words).exit_code == 0
    assert "divided" not in kinds(inspect("flat-split.csv", Data()))["near"].why


def test_near_duplicates_of_two_classes_are_no_proof(split: Path) -> None:
    Image.open(split / "train/cat/04.jpg").resize((48, 36)).save(split / "train/dog/other.png")
    Image.open(split / "train/cat/05.jpg").save(split / "val/dog/scene.jpg", quality=40)
    found = inspected(split)
    assert set(kinds(found)) == {"near-conflicting"} and kinds(found)["near-conflicting"].severity == "warning"
    assert not found.serious


def test_every_thumbnail_is_a_whole_image(clean_split: Path) -> None:
    """Names, however they read, do not get into the data of the images."""
    found = inspected(clean_split)
    thumbs = page_module._Thumbs(found)
    for row in range(len(found.evidence.listing.paths)):
        thumbs.known[row] = 'src="data:image/jpeg;base64,AALTALT="'
        assert thumbs.html(row, "a &quot;b&quot; ALT.jpg").count("AALTALT=") == 1
    files = re.findall(r'base64,([^"]*)"', page(found))
    assert len(files) > 10
    for data in files:
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
