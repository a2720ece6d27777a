"""evaluate at its edges: one class, other classes, tables, parts, and images that cannot be read."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

import stagewright as sw
from stagewright.api.evaluate import EvaluationReport
from stagewright.api.evaluation_data import near_names
from stagewright.data.manifest import Manifest
from stagewright.errors import DataError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.report.read import read_run

QUICK = [
    *("model.name=cifar_resnet18", "model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=2ep"),
    *("data.val=0.2", "data.test=0.2"),
]


def trained(data: Path, out: Path, *overrides: str) -> Path:
    quiet = Execution(device="cpu", pages=False, quiet=True)
    sw.train(data, "quick", overrides=[*QUICK, *overrides], out=out, execution=quiet, say=lambda text: None)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    return trained(picture_folder, tmp_path_factory.mktemp("evaluate") / "run")


def take(source: Path, target: Path, **classes: int) -> Path:
    """Copies the first images of classes to ``target``; ``down__as__up=3`` calls the class up."""
    for spec, count in classes.items():
        name, _, other = spec.partition("__as__")
        folder = target / (other or name)
        folder.mkdir(parents=True, exist_ok=True)
        for at in range(count):
            shutil.copy(source / name / f"{at:02d}.png", folder / f"{name}{at}.png")
    return target


def counts(found: EvaluationReport) -> dict[str, int]:
    """Images of each class, seen ones too."""
    return dict(Counter(found.classes[label] for label in found.labels))


def refused(run: Path, data: Path, **options: object) -> DataError:
    with pytest.raises(DataError) as error:
        sw.evaluate(run, data, device="cpu", **options)  # pyright: ignore[reportArgumentType]
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def test_the_rules_of_a_training_do_not_hold(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    one = sw.evaluate(run, take(picture_folder, tmp_path / "one", down=6), device="cpu")
    assert one.result.images == 6 and [share.name for share in one.by_class()] == ["down"]
    assert "no picture of 2 classes of the model: across, slanted" in one.notes
    each = sw.evaluate(run, take(picture_folder, tmp_path / "each", down=1, across=1, slanted=1), device="cpu")
    assert each.result.images == 3
    take(picture_folder, tmp_path / "parts" / "train", down=4, across=4)
    parts = take(picture_folder, tmp_path / "parts" / "test", down=2, slanted=3).parent
    assert sw.evaluate(run, parts, device="cpu").result.images == 13
    assert sw.evaluate(run, parts, split="test", device="cpu").result.images == 5
    no_val = refused(run, parts, split="val")
    assert "has no val pictures" in no_val.given and no_val.allowed == "train (8 pictures), test (5 pictures)"
    shutil.rmtree(parts / "train")
    assert sw.evaluate(run, parts, device="cpu").result.images == 5, "a test folder needs no train folder beside it"


def test_all_unknown_classes_are_named_at_once(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    data = take(picture_folder, tmp_path, across__as__Across=3, down=2, slanted__as__tilted=4, down__as__noise=1)
    error = refused(run, data)
    assert "3 classes" in error.given and "are not among the model's 3" in error.given
    assert "'Across' (3 pictures), 'noise' (1 picture), 'tilted' (4 pictures)" in error.given
    assert "without a picture there: 'across', 'slanted'" in error.given
    assert "--map Across=across" in error.remedy and "--drop-class noise" in error.remedy
    assert "tilted=" not in error.remedy, "nothing is near"
    mapping = {"Across": "across", "tilted": "slanted", "noise": None}
    found = sw.evaluate(run, data, class_map=mapping, device="cpu")
    assert counts(found) == {"across": 3, "down": 2, "slanted": 4}
    assert [(one.count, one.example) for one in found.account.left_out] == [(1, "noise")]
    joined = sw.evaluate(run, data, class_map={**mapping, "noise": "down"}, device="cpu")
    assert counts(joined)["down"] == 3


def test_a_mapping_without_effect_is_refused(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    data = take(picture_folder, tmp_path, across=2, down=2)
    theirs = refused(run, data, class_map={"Down": "down"})
    assert "'Down'" in theirs.given and "did you mean 'down'" in theirs.remedy
    ours = refused(run, data, class_map={"down": "Slanted"})
    assert "the model does not have: 'Slanted'" in ours.given
    assert "classes that are dropped" in refused(run, data, class_map={"across": None, "down": None}).given
    with pytest.raises(DataError, match="without DATA"):
        sw.evaluate(run, class_map={"down": "across"}, device="cpu")
    with pytest.raises(DataError, match="without DATA"):
        sw.evaluate(run, overrides=["data.label=x"], device="cpu")


def test_what_cannot_be_read_is_counted(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    data = take(picture_folder, tmp_path, across=4, down=4)
    for at in range(3):
        (data / "down" / f"down{at}.png").write_bytes(b"junk")
    (data / "down" / "notes.txt").write_text("no image")
    found = sw.evaluate(run, data, device="cpu")
    assert found.result.images == found.account.read == 5 and found.account.num_unreadable == 3
    assert found.account.unreadable[0].example == "down/down0.png"
    content = found.to_dict()
    assert content["unreadable"] == 3 and content["all"]["images"] == 5  # pyright: ignore
    assert any(one.example == "down/notes.txt" for one in found.account.left_out)


def test_training_images_among_them_are_scored_apart(run: Path, picture_folder: Path) -> None:
    found = sw.evaluate(run, picture_folder, device="cpu")
    trained = Manifest.read(run / "manifest.parquet")
    names = set(trained.paths.take(pa.array(trained.rows("train"))).to_pylist())
    seen = np.array([path in names for path in found.paths.to_pylist()])
    assert seen.sum() == 36 and found.scored == "unseen"
    assert found.seen.same.tolist() == seen.tolist() and not found.seen.near.any()
    assert found.seen.twins[seen].tolist() == found.paths.filter(pa.array(seen)).to_pylist()
    right = found.result.predictions.predicted == found.labels
    assert found.top1 == pytest.approx(100 * right[~seen].mean()) and found.result.top1 == pytest.approx(
        100 * right.mean()
    )
    assert found.seen_score is not None
    assert (found.seen_score.images, found.seen_score.top1) == (36, pytest.approx(100 * right[seen].mean()))
    assert found.loss == pytest.approx(found.result.predictions.losses[~seen].mean())
    assert found.result.loss == pytest.approx(found.result.predictions.losses.mean())
    assert sum(share.images for share in found.by_class()) == 24
    content = found.to_dict()
    assert content["scored"] == "unseen" and content["top1"] == found.top1 and content["images"] == 24
    assert content["seen"]["same"] == 36 and content["all"]["images"] == 60  # pyright: ignore
    assert any("12 pictures of the 24 that were not trained on chose the weights" in note for note in found.notes)
    test = sw.evaluate(run, device="cpu")
    assert test.scored == "all" and test.seen_score is None and test.account.read == test.result.images
    train = sw.evaluate(run, split="train", device="cpu")
    assert train.scored == "seen" and train.top1 == train.result.top1


def test_near_duplicates_count_as_seen(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    """Smaller, mirrored copies under other names; without ``near`` only equal files are recognised."""
    trained = Manifest.read(run / "manifest.parquet")
    row = trained.rows("train")[0]
    original = picture_folder / trained.paths[int(row)].as_py()
    folder = tmp_path / original.parent.name
    folder.mkdir()
    with Image.open(original) as image:
        ImageOps.mirror(image).resize((image.width - 2, image.height - 2)).save(folder / "copy.png")
    other = trained.rows("test")[0]
    (tmp_path / Path(trained.paths[int(other)].as_py()).parent.name).mkdir(exist_ok=True)
    shutil.copy(picture_folder / trained.paths[int(other)].as_py(), tmp_path / trained.paths[int(other)].as_py())
    found = sw.evaluate(run, tmp_path, device="cpu")
    by_name = dict(zip([Path(path).name for path in found.paths.to_pylist()], found.seen.near, strict=True))
    assert by_name["copy.png"] and not found.seen.same.any() and found.scored == "unseen"
    assert found.seen.twins[found.seen.near].tolist()[0] == trained.paths[int(row)].as_py()
    assert sw.evaluate(run, tmp_path, near=False, device="cpu").scored == "all"


def test_what_cannot_be_compared_is_said(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    data = take(picture_folder, tmp_path / "data", across=3, down=3, slanted=3)
    shutil.copytree(run / "model", tmp_path / "bundle")
    alone = sw.evaluate(tmp_path / "bundle", data, device="cpu")
    assert alone.scored == "all" and any("not recorded beside it" in note for note in alone.notes)
    photos = tmp_path / "photos"
    shutil.copytree(picture_folder, photos)
    moved = trained(photos, tmp_path / "run")
    gone = next(photos.glob("*/*.png"))
    names = Manifest.read(moved / "manifest.parquet")
    gone = photos / names.paths[int(names.rows("train")[0])].as_py()
    gone.unlink()
    lost = sw.evaluate(moved, data, device="cpu")
    assert any("1 training picture of 36 could not be compared" in note for note in lost.notes)
    photos.rename(tmp_path / "elsewhere")
    missing = sw.evaluate(moved, data, device="cpu")
    assert any("near duplicates of training pictures were not looked for" in note for note in missing.notes)
    assert missing.seen.same.any(), "hashes are in the run itself"


def test_what_an_earlier_run_has_seen_counts_too(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    """A run that began with the weights of another one has in them what that one was trained on."""
    few = take(picture_folder, tmp_path / "few", across=10, down=10, slanted=10)
    later = trained(few, tmp_path / "later", f"model.weights={run}")
    record, parent = (Manifest.read(place / "manifest.parquet") for place in (later, run))
    own = set(record.hashes.take(pa.array(record.rows("train"))).to_pylist())
    before = set(parent.hashes.take(pa.array(parent.rows("train"))).to_pylist())
    found = sw.evaluate(later, picture_folder, near=False, device="cpu")
    assert int(found.seen.same.sum()) == len(own | before) > len(own)
    assert any(f"{len(before - own)} pictures seen by {run}" in note for note in found.notes)


def write_table(file: Path, rows: list[tuple[str, str, str]], names: tuple[str, str, str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([names, *rows])
    return file


def test_a_table_is_read_as_in_the_training(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        (f"{name}/{at:02d}.png", name, f"site{at % 9}") for name in ("across", "down", "slanted") for at in range(20)
    ]
    shutil.copytree(picture_folder, tmp_path / "pics")
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "t.csv", rows, ("pic", "what", "place"))
    run = trained(table, tmp_path / "run", "data.path=pic", "data.label=what", "data.images=pics", "data.group=place")
    for model in (run, run / "model"):  # the Bundle alone knows it too
        found = sw.evaluate(model, "t.csv", device="cpu")
        assert found.result.images == 60 and len(set(found.groups or ())) == 9 and len(found.by_group()) == 4
        assert any("data.path=pic, data.label=what, data.group=place, data.images=pics" in note for note in found.notes)
    # Options come before what the run has.
    assert "no column 'kind'" in refused(run, table, overrides=["data.label=kind"]).given
    with pytest.raises(RecipeError, match=r"data\.val has no effect here"):
        sw.evaluate(run, table, overrides=["data.val=0.5"], device="cpu")
    # A table with usual names elsewhere: its own folder holds the images, not the run's.
    other = write_table(tmp_path / "other" / "t.csv", rows[:9], ("path", "label", "note"))
    assert "leads to a file" in refused(run, other).given
    shutil.copytree(picture_folder, tmp_path / "other", dirs_exist_ok=True)
    assert sw.evaluate(run, other, device="cpu").result.images == 9


def test_near_names() -> None:
    assert near_names(["Red Fox", "dogs", "battery"], ["red_fox", "dog", "paper"]) == {
        "Red Fox": "red_fox",
        "dogs": "dog",
    }
    assert near_names(["cat", "Cat"], ["CAT"]) == {"cat": "CAT"}, "each once"


def test_a_flat_folder_with_display_names(picture_folder: Path, tmp_path: Path) -> None:
    for kind, numbers in (("flat", range(20)), ("new", range(15, 20))):
        (tmp_path / kind).mkdir()
        for name in ("across", "down", "slanted"):
            for at in numbers:
                shutil.copy(picture_folder / name / f"{at:02d}.png", tmp_path / kind / f"{name}.{at}.png")
    (tmp_path / "names.yaml").write_text("across: Quer\ndown: Längs\n")
    names = f"data.names={tmp_path / 'names.yaml'}"
    label = r"data.label=(?P<label>[a-z]+)\.\d+"
    run = trained(tmp_path / "flat", tmp_path / "run", label, names, "data.near=together")
    (tmp_path / "names.yaml").unlink()  # the run has stored the names
    shown = {"Quer", "Längs", "slanted"}
    bundle = sw.load_bundle(run)
    assert {name for answer in bundle.predict(tmp_path / "new") for name, _ in answer.classes} == shown
    assert bundle.classes == ("across", "down", "slanted"), "what is matched are the names of the data"
    assert "Quer (across), Längs (down), slanted" in (bundle.folder / "README.md").read_text()
    assert set(read_run(run).classes) == shown
    found = sw.evaluate(run, tmp_path / "new", device="cpu")
    assert found.result.images == 15 and any(f"read as in the training: {label}" in note for note in found.notes)
    assert {one.name for one in found.by_class()} <= shown == set(found.table().column("label").to_pylist())
    assert sw.evaluate(run, picture_folder, device="cpu").result.images == 60, "class folders need no pattern"
    mapped = take(picture_folder, tmp_path / "mapped", across__as__Quer=3, down=2)
    again = sw.evaluate(run, mapped, device="cpu")
    assert counts(again) == {"across": 3, "down": 2}, "folders may have the display names too"
