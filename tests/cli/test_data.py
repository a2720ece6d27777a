"""The data commands and doctor, as a user types them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import typed
from PIL import Image

import stagewright as sw
from stagewright.data.dataset import load_dataset
from stagewright.data.images import native
from stagewright.preflight import doctor_machine
from stagewright.recipe.recipe import Data

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def answer(*words: object) -> tuple[int, str, str]:
        code, out, err = typed(capsys, monkeypatch, *words)
        return code, out if "--json" in words else " ".join(out.split()), err

    return answer


@pytest.fixture
def photos(tmp_path: Path, picture_folder: Path) -> Path:
    """Writes the images as JPEGs of twice the size to tmp_path/photos."""
    for file in picture_folder.glob("*/*.png"):
        target = tmp_path / "photos" / file.parent.name / f"{file.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(file)
        picture.resize((2 * picture.width, 2 * picture.height)).save(target, quality=92)
    return tmp_path / "photos"


def test_inspect_says_whether_something_is_serious(call: Call, photos: Path, tmp_path: Path) -> None:
    code, said, _ = call("data", "inspect", photos)
    assert code == 0 and "60 pictures in 3 classes" in said
    shutil.copy(photos / "down" / "03.jpg", photos / "across" / "copy.jpg")
    code, said, _ = call("data", "inspect", photos, "--html", "page.html")
    assert code == 1 and "different classes" in said and "across/copy.jpg" in said
    assert "across/copy.jpg" in (tmp_path / "page.html").read_text("utf-8")
    code, said, _ = call("data", "inspect", photos, "--json")
    found = json.loads(said)
    assert code == 1 and any(finding["severity"] == "serious" for finding in found["findings"])


def test_split_is_written_and_train_reads_it(call: Call, photos: Path, tmp_path: Path) -> None:
    code, said, _ = call("data", "split", photos, "--val", 0.2, "--test", 0.1, "--links", "linked")
    assert code == 0 and "photos-split.csv" in said
    rows = list(csv.DictReader((tmp_path / "photos-split.csv").read_text().splitlines()))
    counts = {part: sum(row["split"] == part for row in rows) for part in ("train", "val", "test")}
    assert counts == {"train": 42, "val": 12, "test": 6}
    for source in ("photos-split.csv", "linked"):
        manifest = load_dataset(source, Data()).manifest
        assert [len(manifest.rows(part)) for part in ("train", "val", "test")] == [42, 12, 6]
    code, _, complaint = call("data", "split", photos)
    assert code == 2 and "--overwrite" in complaint
    code, said, _ = call("data", "split", photos, "--folds", 3, "--out", "k.csv", "--json")
    assert code == 0 and json.loads(said) and len(list(tmp_path.glob("k-fold*of3.csv"))) == 3
    code, said, _ = call("data", "split", photos, "--near", "together", "--out", "n.csv")
    assert code == 0 and "near duplicates stay together:" in said
    code, _, complaint = call("data", "split", photos, "--near", "apart", "--out", "m.csv")
    assert code == 2 and "data.near: 'apart' is not allowed" in complaint and "'ignore' or 'together'" in complaint
    code, _, complaint = call("data", "split", photos, "--mode", "teleport", "--links", "l", "--out", "x.csv")
    assert code == 2 and "symlink, hardlink or copy" in complaint


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_pack_takes_the_place_of_data(call: Call, photos: Path, tmp_path: Path, encoding: str) -> None:
    code, said, _ = call("data", "pack", photos, "--size", 48, "--format", encoding)
    assert code == 0 and "photos.pack: 60 pictures" in said and "stagewright train photos.pack" in said
    one, other = load_dataset("photos", Data()), load_dataset("photos.pack", Data())
    assert one.manifest.paths.equals(other.manifest.paths) and (one.manifest.splits == other.manifest.splits).all()
    assert one.manifest.digest != other.manifest.digest
    settings = [
        "--set",
        "model.options={width: 4}",
        "--img-size",
        "16",
        "-b",
        "16",
        "--epochs",
        "1",
        "-q",
        "--no-pages",
    ]
    assert call("train", "photos.pack", "--out", "run", "--weights", "none", *settings)[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["unreadable"] == 0 and summary["loading"]["images"] > 0 and summary["loading"]["verdict"]
    code, said, _ = call("evaluate", "run", "--json")
    assert code == 0 and json.loads(said)["top1"] == pytest.approx(summary["top1"]["test"])
    assert [answer.error for answer in sw.Run(tmp_path / "run").model.predict([photos / "down" / "01.jpg"])] == [None]
    part = next((tmp_path / "photos.pack").glob("part-*.arrow"))
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    part.write_bytes(damaged)
    code, _, complaint = call("train", "photos.pack", "--out", "again", *settings)
    assert code == 2 and part.name in complaint and ".jpg" in complaint, "the record is named"
    code, said, _ = call("data", "pack", photos, "--size", 48, "--format", encoding, "--json")
    assert code == 0 and json.loads(said)["made"] > 0
    assert load_dataset("photos.pack", Data()).manifest.digest == other.manifest.digest


def test_bench_ends_in_words(call: Call, photos: Path) -> None:
    quick = ["--seconds", 0.15, "--img-size", 48, "-b", 8, "-j", 1]
    code, said, _ = call("data", "bench", photos, *quick, "--model", "cifar_resnet18", "--no-peers", "--json")
    found = json.loads(said)
    assert code == 0 and found["pictures"] == 60 and found["step_images_per_second"] > 0
    assert {rate["what"] for rate in found["rates"]} == {"stagewright", "in memory", "jpeg pack", "raw pack"}
    assert {rate["prefetch"] for rate in found["rates"]} == {1, 2, 4, 8}
    assert all(rate["images_per_second"] > 0 for rate in found["rates"])
    assert found["microseconds_a_picture"].keys() == {"reading", "decoding"}
    assert "1 thread gives" in found["verdict"] and "training step of cifar_resnet18" in found["verdict"]
    code, said, _ = call("data", "bench", photos, *quick, "--no-packs")
    assert code == 0 and "torchvision" in said and "times torchvision's ImageFolder and DataLoader" in said


def test_wrong_words_are_told_what_is_allowed(call: Call, photos: Path) -> None:
    for words, allowed in (
        (["data", "inspect", photos, "--set", "epochs=3"], "data.FIELD=VALUE"),
        (["data", "pack", photos, "--format", "webp"], "jpeg or raw"),
        (["data", "inspect", "photoss"], "photos"),
        (["data", "bench", photos, "--model", "cifar_resnet18", "--device", "tpu"], "cpu"),
    ):
        code, _, complaint = call(*words)
        assert code == 2 and allowed in complaint, words


@pytest.mark.long
def test_doctor_says_which_decoder_is_active_and_what_the_other_costs(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said, _ = call("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(said)}
    assert code == 0 and checks.keys() >= {"versions", "machine", "device", "cache", "decoder", "disk", "threads"}
    assert "crops/s on one thread" in checks["decoder"]["text"]
    monkeypatch.setattr(native, "_module", lambda: None)
    monkeypatch.setattr(doctor_machine, "machine_checks", lambda folder, ranks: [])  # seen above
    code, said, _ = call("doctor")
    assert code == 0 and "not built" in said and "libjpeg-dev" in said and "slow decoder" in " ".join(said.split())


def test_a_preview_is_a_page_or_a_png_of_a_step(call: Call, photos: Path, tmp_path: Path) -> None:
    small = (
        "--model",
        "cifar_resnet18",
        "--img-size",
        16,
        "--batch-size",
        8,
        "--epochs",
        "4st",
        "--set",
        "data.test=0",
    )
    code, said, _ = call("data", "preview", photos, "-r", "quick", *small, "--step", 3, "--images", 2)
    assert code == 0 and "step 3 of 0 to 4" in said and said.endswith("Preview preview.html")
    assert "6 more pictures of the batch" in (tmp_path / "preview.html").read_text("utf-8")
    (tmp_path / "preview.html").unlink()
    code, said, _ = call("data", "preview", photos, "-r", "quick", *small, "--png", "a.png", "-q")
    assert code == 0 and said == "Preview a.png" and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "preview.html").exists()
    code, said, _ = call("data", "preview", photos, "-r", "quick", *small, "--html", "-")
    assert code == 0 and said.startswith("<!doctype html>")
    code, _, error = call("data", "preview", photos, "-r", "quick", *small, "--step", 5)
    assert code == 2 and "step 5, but the plan has 5 steps" in error
