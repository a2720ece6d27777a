"""The command line in one process, as a user or a script uses it; signals and start-up are tested elsewhere."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from commands import typed

from stagewright.cli import main

TINY = [
    *("--set", "model.options={width: 4}", "--img-size", "16", "-b", "16", "--epochs", "2", "--no-pages", "-q"),
    *("--set", "data.val=0.2", "--set", "data.test=0.2"),
]


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> Answer:
    return Answer(*typed(capsys, monkeypatch, *words))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    from typer.testing import CliRunner

    out = tmp_path_factory.mktemp("cli") / "run"
    done = CliRunner().invoke(main.app, ["train", str(picture_folder), "--out", str(out), *TINY])
    assert done.exit_code == 0, done.output
    return out


def test_plan_as_json_is_the_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, picture_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [word for word in TINY if word not in ("--no-pages", "-q")]
    answer = call(capsys, monkeypatch, "plan", picture_folder, "--json", "--steps", *flags)
    content = json.loads(answer.out)
    assert (
        content["total_steps"]
        == len(content["hyper"])
        == content["stages"][-1]["first_step"] + content["stages"][-1]["num_steps"]
    )
    assert {"lr_first", "lr_peak", "lr_last", "momentum_first", "epochs_asked", "epochs_given"} <= content["stages"][
        0
    ].keys()
    assert content["stages"][0]["lr_peak"] == pytest.approx(max(row["lr"] for row in content["hyper"]))
    assert list(tmp_path.iterdir()) == [], "plan writes nothing"


def test_plan_for_people_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = call(capsys, monkeypatch, "plan", picture_folder, "-r", "quick")
    assert "3 classes" in answer.out and "learn" in answer.out and "settle" in answer.out
    assert max(map(len, answer.out.splitlines()[2:])) <= 80 and "…" not in answer.out


def test_evaluate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path, picture_folder: Path
) -> None:
    answer = json.loads(call(capsys, monkeypatch, "evaluate", run, "--json").out)
    assert answer["top1"] == pytest.approx(json.loads((run / "summary.json").read_text())["top1"]["test"])
    low, high = answer["top1_interval"]
    assert (
        0 <= low <= answer["top1"] <= high <= 100
        and sum(one["images"] for one in answer["classes"]) == answer["images"]
    )
    everything = json.loads(call(capsys, monkeypatch, "evaluate", run, picture_folder, "--json").out)
    assert everything["scored"] == "unseen" and everything["images"] == 24 and everything["all"]["images"] == 60
    assert "95 % interval" in call(capsys, monkeypatch, "evaluate", run, "--split", "val").out


def test_evaluate_says_what_cannot_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path, picture_folder: Path
) -> None:
    wrong = call(capsys, monkeypatch, "evaluate", run, "--split", "tst")
    assert wrong.code == 2 and re.search(r"no tst pictures[\s\S]*val \(\d+ pictures\), test", wrong.err)
    for name in ("across", "upside"):
        (tmp_path / name).mkdir()
        for at in range(3):
            (tmp_path / name / f"{at}.png").write_bytes((picture_folder / "across" / f"{at:02d}.png").read_bytes())
    foreign = call(capsys, monkeypatch, "evaluate", run, tmp_path)
    assert foreign.code == 2 and re.search(r"'upside' \(3 pictures\)[\s\S]*across, down, slanted", foreign.err)


def test_predict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path, picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    target = tmp_path / "answers.csv"
    words = ["predict", run, picture_folder / "down", tmp_path / "broken.jpg", "--top", "2"]
    said = json.loads(call(capsys, monkeypatch, *words, "--json").out)
    answers, account = said["predictions"], said["account"]
    assert account["read"] == 20 and [one["example"] for one in account["unreadable"]] == [str(tmp_path / "broken.jpg")]
    assert len(answers) == 21
    assert [bool(one.get("error")) for one in answers].count(True) == 1
    assert call(capsys, monkeypatch, *words, "--csv", target).code == 0
    with target.open(newline="") as file:
        assert len(list(csv.DictReader(file))) >= 21
    monkeypatch.setenv("COLUMNS", "250")
    assert "broken.jpg" in call(capsys, monkeypatch, *words).out
    none = call(capsys, monkeypatch, "predict", run, tmp_path / "no" / "*.jpg")
    assert none.code == 2 and "no" in none.err


def test_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"finetune", "quick", "standard"} <= {
        line.split()[0] for line in call(capsys, monkeypatch, "recipes").out.splitlines()
    }
    assert "# Source:" in call(capsys, monkeypatch, "recipes", "show", "quick").out
    unknown = call(capsys, monkeypatch, "recipes", "show", "quik")
    assert unknown.code == 2 and "did you mean 'quick'" in unknown.err


def test_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = call(capsys, monkeypatch, "models", "preact").out
    assert "cifar_preact_resnet18" in listed
    none = call(capsys, monkeypatch, "models", "zzz")
    assert (
        none.code == 2 and none.out == "" and none.err.startswith("error: no model's name contains or matches 'zzz'\n")
    )
    near = call(capsys, monkeypatch, "models", "ResNet81")
    assert near.code == 2 and "did you mean 'resnet" in near.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "no/such/place"], r"no/such/place[\s\S]*allowed[\s\S]*to do"),
        (["train", "DATA", "--recipe", "nonsense"], r"no shipped recipe and no file[\s\S]*finetune"),
        (["train", "DATA", "--model", "resnet5"], r"resnet5[\s\S]*resnet50"),
        (["train", "DATA", "--set", "stages.0.epoks=3ep"], r"stages\[0\].epoks: unknown field; did you mean 'epochs'"),
        (["train", "DATA", "--set", "optimizer.name=sgdd"], r"optimizer.name 'sgdd'[\s\S]*sgd"),
        (["train", "DATA", "--resume", "auto"], r"--resume auto without --out"),
        (["train", "DATA", "--epochs", "many"], r"--epochs many[\s\S]*30ep"),
        (["train", "DATA", "--weights", "no.pth"], r"no.pth[\s\S]*default"),
        (["resume", "no/run"], r"no/run is not a run directory"),
        (["predict", "no/run", "x.jpg"], r"x.jpg|no/run"),
        (["plan", "hf:food101"], r"hf:"),
        (["plan", "DATA", "--steps"], r"--steps without --json has no effect"),
        (["plan", "DATA", "--probe-seconds", "3"], r"--probe-seconds without --probe has no effect"),
        (["plan", "DATA", "--wire", "1G"], r"--wire without --devices"),
        (["plan", "DATA", "--from", "probe.json"], r"--from without --devices"),
        (["plan", "DATA", "--devices", "1,2"], r"--devices 1,2 without --probe or --from[\s\S]*--from probe.json"),
        (["plan", "DATA", "--devices", "1,2", "--probe", "--from", "a.json"], r"with --probe and --from"),
        (["plan", "DATA", "--devices", "two", "--probe"], r"--devices two[\s\S]*HOSTSxDEVICES"),
        (["plan", "DATA", "--devices", "2", "--probe", "--wire", "fast"], r"--wire fast[\s\S]*10G or 100M"),
        (["train", "DATA", "--price", "2"], r"--price without --budget has no effect"),
        (["data", "split", "DATA", "--mode", "copy"], r"--mode without --links has no effect"),
        (["data", "split", "DATA", "--anew", "--group-by", "site"], r"data.group=site with [\s\S]*has no columns"),
        (["data", "pack", "DATA", "--format", "raw", "--quality", "80"], r"--quality without --format jpeg"),
        (["data", "bench", "DATA", "--device", "cpu"], r"--device without --model has no effect"),
        (["plan", "DATA", "-r", "quick", "--set", "average.every=2ep"], r"average.every has no effect"),
        (["evaluate", "no/run", "--map-class", "wolf"], r"--map 'wolf'[\s\S]*THEIRS=OURS"),
        (["evaluate", "no/run", "--out", "a.xlsx"], r"ends in .csv or .parquet"),
        (["evaluate"], r"no run is given[\s\S]*--weights WEIGHTS and DATA"),
        (["evaluate", "no/run", "--model", "resnet18"], r"--model resnet18 without --weights"),
        (["evaluate", "--weights", "resnet18"], r"--weights resnet18 with no DATA"),
        (["evaluate", "no/run", "DATA", "--weights", "resnet18"], r"--weights resnet18 with RUN no/run"),
        (["runs", "nowhere"], r"nowhere: no such directory"),
        (["runs", ".", "--sort", "colour"], r"--sort 'colour' is not a field"),
        (["why", "no/run", "no/other"], r"no/run: no such directory"),
        (["report", "no/run", "--out", "x.html"], r"--out without several runs"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(capsys, monkeypatch, *[str(picture_folder) if word == "DATA" else word for word in words])
    assert answer.code == 2 and re.search(message, answer.err), answer.err
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err


def test_a_flag_that_stages_overrule_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picture_folder: Path
) -> None:
    recipe = tmp_path / "sizes.yaml"
    recipe.write_text("stages:\n- {name: a, epochs: 1ep, image_size: 16}\n- {name: b, epochs: 1ep}\n")
    answer = call(capsys, monkeypatch, "plan", picture_folder, "-r", recipe, "--img-size", "32")
    assert answer.code == 2 and "--set stages.a.image_size=32" in answer.err


@pytest.mark.long
def test_resume_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    flags = ["--set", "model.options={width: 4}", "--set", "image_size=16", "--set", "batch_size=8"]
    answer = call(capsys, monkeypatch, "resume-check", picture_folder, "--steps", "8", "--kills", "1", *flags)
    assert answer.code == 0, answer.out + answer.err
    assert (
        "Killed after step" in answer.out
        and "Killed in the evaluation" in answer.out
        and "Equal bit for bit" in answer.out
    )


def test_paths_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Path,
    run: Path,
    tmp_path: Path,
) -> None:
    """``~`` is the home folder, an empty path is an error, and with ``-`` standard output has nothing else."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["train", picture_folder, "--out", ""], ["plan", ""], ["predict", run, ""], ["resume", ""]):
        answer = call(capsys, monkeypatch, *words)
        assert answer.code == 2 and "is empty\n" in answer.err, words
    assert call(capsys, monkeypatch, "train", picture_folder, "--out=~/mine", *TINY).code == 0
    picture = next(picture_folder.glob("*/*.png"))
    answer = call(capsys, monkeypatch, "predict", "~/mine", picture, "--csv", "-")
    assert answer.code == 0 and next(csv.DictReader(answer.out.splitlines()))["path"] == str(picture)
    page = call(capsys, monkeypatch, "data", "inspect", picture_folder, "--html", "-")
    assert page.out.startswith("<!doctype html>") and page.out.endswith("</html>\n")
    for words in (["predict", run, picture, "--csv", "-"], ["data", "inspect", picture_folder, "--html", "-"]):
        answer = call(capsys, monkeypatch, *words, "--json")
        assert answer.code == 2 and "with --json" in answer.err
    assert call(capsys, monkeypatch, "report", "~/nothing").err.startswith(f"error: {tmp_path / 'nothing'}")
    assert list((tmp_path / "here").iterdir()) == []
