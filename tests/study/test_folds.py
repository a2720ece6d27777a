"""Folds in one command: honest parts, one whole that can be stopped anywhere, and results that are those of the runs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import typed

import stagewright as sw
from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, DataError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.report.runs import runs
from stagewright.rundir.event_kinds import Evaluated, Event
from stagewright.study.fold_definition import FILE
from stagewright.study.folds import Folds, folds, resume_folds
from stagewright.study.jobs import Job, Manner, carry_out, request_from_dict, request_to_dict

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True)
SMALL = ("model.options={width: 4}", "image_size=16", "batch_size=8", "epochs=2ep")
FLAGS = ("--recipe", "quick", *(part for one in SMALL for part in ("--set", one)), "--no-pages", "-q")


def silent(text: str) -> None: ...


def go(data: str | Path, out: Path, k: Any = 3, **more: Any) -> Folds:
    return folds(data, k, "quick", **{"out": out, "overrides": SMALL, "execution": QUIET, "say": silent, **more})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Folds:
    """Three folds of the picture folder, for reading only."""
    return go(picture_folder, tmp_path_factory.mktemp("folds") / "whole")


def manifest(run: Path) -> Manifest:
    return Manifest.read(run / "manifest.parquet")


def hashes(of: Manifest, split: str) -> set[str]:
    return {of.hashes[int(row)].as_py() for row in of.rows(split)}


def result(found: Folds) -> dict[str, Any]:
    return json.loads((found.path / "result.json").read_text())


def outcome(found: Folds) -> dict[str, Any]:
    """What must not depend on interruptions, to the bit: the answers, the weights and every step of each run."""
    content = result(found)
    for one in content["by_fold"]:
        del one["seconds"]
    files = {f"{run.path.name} {name}": (run.path / name).read_bytes() for run in found.runs for name in ("steps.csv",)}
    weights = {run.path.name: (run.path / "model" / "weights.safetensors").read_bytes() for run in found.runs}
    table = (found.path / "out-of-fold.csv").read_text().replace(str(found.path), "")
    return {"result": content, "table": table, **files, **weights}


def test_each_picture_is_held_out_once_and_has_no_part_in_choices(done: Folds) -> None:
    held = [hashes(manifest(run.path), "test") for run in done.runs]
    everything = set().union(*held)
    assert len(done.runs) == 3 and sum(map(len, held)) == len(everything) == 60
    for run, own in zip(done.runs, held, strict=True):
        train, val = hashes(manifest(run.path), "train"), hashes(manifest(run.path), "val")
        assert len(val) > 0 and not own & (train | val) and train | val == everything - own


def test_the_runs_differ_in_their_seed_alone(done: Folds) -> None:
    recipes = [json.loads((run.path / "plan.json").read_text())["recipe"] for run in done.runs]
    assert [one.pop("seed") for one in recipes] == [0, 1, 2]
    assert recipes[0] == recipes[1] == recipes[2]


def test_the_results_are_those_of_the_runs(done: Folds) -> None:
    answers: dict[str, tuple[int, str, str]] = {}
    for at, run in enumerate(done.runs, 1):
        table = pq.read_table(run.path / "evaluations" / "test.parquet").to_pydict()
        names = manifest(run.path).classes
        for path, label, predicted in zip(table["path"], table["label"], table["predicted"], strict=True):
            answers[path] = (at, names[label], names[predicted])
    with (done.path / "out-of-fold.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: (int(row["fold"]), row["label"], row["predicted"]) for row in rows} == answers
    right = [row["label"] == row["predicted"] for row in rows]
    content = result(done)
    assert content["accuracy"]["value"] == np.mean(right)
    assert [one["accuracy"] for one in content["by_fold"]] == [
        np.mean([ok for ok, row in zip(right, rows, strict=True) if row["fold"] == str(fold)]) for fold in (1, 2, 3)
    ]
    assert np.array(content["confusion"]).sum() == 60 and np.trace(content["confusion"]) == sum(right)
    assert np.array_equal(done.confusion, content["confusion"])
    low, high = done.interval
    assert low < 100 * content["accuracy"]["value"] < high
    assert (high - low) / 100 > content["measures"]["accuracy"]["high"] - content["measures"]["accuracy"]["low"]
    parquet = pq.read_table(done.path / "out-of-fold.parquet")
    assert np.allclose(np.array(parquet["probabilities"].to_pylist()).sum(1), 1.0, atol=1e-5)
    assert np.asarray(done.out_of_fold["fold"]).tolist() == sorted(int(row["fold"]) for row in rows)
    assert len(done.mistakes(100)) == 60 - sum(right)
    assert f"{100 * np.mean(right):.2f} %" in done._repr_html_()


def test_the_page_names_each_fold_and_links_to_its_run(done: Folds) -> None:
    page = (done.path / "report.html").read_text()
    for at in (1, 2, 3):
        assert f'href="fold{at}of3/report.html"' in page
    assert "out-of-fold pictures" in page and "http" not in page.replace("http://www.w3.org", "")


def test_a_listing_shows_the_folds_as_runs(done: Folds) -> None:
    assert {row.name for row in runs(done.path)} == {"fold1of3", "fold2of3", "fold3of3"}
    assert {row.name for row in runs(done.path.parent)} == {f"whole/fold{at}of3" for at in (1, 2, 3)}


def test_the_same_call_trains_nothing_again(done: Folds) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*") if "final" not in path.parts}
    again = go(Path(json.loads((done.path / FILE).read_text())["place"]), done.path)
    changed = {path.name for path, at in before.items() if path.is_file() and path.stat().st_mtime_ns != at}
    assert again.finished and changed <= {
        "result.json",
        "report.html",
        "out-of-fold.csv",
        "out-of-fold.parquet",
        ".lock",
    }


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"k": 4}, "folds (3, now 4)"),
        ({"overrides": (*SMALL, "lr.peak=0.5")}, "lr.peak"),
        ({"epochs": 5}, "epochs (2ep, now 5ep)"),
        ({"seed": 7}, "seed (0, now 7)"),
        ({"tiny": True}, "tiny (False, now True)"),
        ({"overrides": (*SMALL, "data.near=together")}, "data.near (ignore, now together)"),
    ],
)
def test_other_settings_are_refused_by_name(
    done: Folds, picture_folder: Path, more: dict[str, Any], named: str
) -> None:
    if "epochs" in more:
        more["overrides"] = SMALL[:-1]
    with pytest.raises(CheckpointError) as error:
        go(picture_folder, done.path, **more)
    assert named in error.value.given and "stagewright resume" in error.value.remedy


def test_finish_trains_one_model_on_all_of_them(done: Folds, tmp_path: Path) -> None:
    copy = Folds(shutil.copytree(done.path, tmp_path / "copy"))
    final = copy.finish(execution=QUIET, say=silent)
    used = manifest(final.path)
    assert len(used) == 60 and not len(used.rows("test")) and len(used.rows("val"))
    expected = f"top-1 {100 * (done.accuracy.pooled.value or 0):.2f} %"
    assert expected in (final.path / "model" / "README.md").read_text()
    (answer,) = final.model.predict(next(Path(json.loads((copy.path / FILE).read_text())["place"]).glob("down/*.png")))
    assert answer.answer in ("across", "down", "slanted")
    assert 'href="final/report.html"' in (copy.path / "report.html").read_text()


def test_finish_needs_all_folds(done: Folds, tmp_path: Path) -> None:
    copy = Folds(shutil.copytree(done.path, tmp_path / "copy"))
    shutil.rmtree(copy.path / "fold2of3")
    with pytest.raises(CheckpointError, match=r"1 fold of 3 in .* have not finished: 2"):
        copy.finish(execution=QUIET, say=silent)
    with pytest.raises(CheckpointError, match="have not finished"):
        _ = copy.accuracy


def command(data: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "stagewright", "train", str(data), "--folds", "3", "--out", str(out)]
    return [*words, "--device", "cpu", "-j", "1", *FLAGS]


def begun(folder: Path, file: str, lines: int = 0) -> Callable[[], bool]:
    """Whether ``file`` of a run exists, with more than so many lines."""

    def check() -> bool:
        place = folder / file
        return place.is_file() and (not lines or place.read_bytes().count(b"\n") > lines)

    return check


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Folds:
    out = tmp_path_factory.mktemp("folds") / "out"
    subprocess.run(command(picture_folder, out), check=True, capture_output=True)
    return Folds(out)


@pytest.mark.long
def test_a_whole_killed_in_four_places_gives_the_same_bits(
    unbroken: Folds, tmp_path_factory: pytest.TempPathFactory, picture_folder: Path
) -> None:
    out = tmp_path_factory.mktemp("folds") / "out"
    moments = (
        begun(out, "all.csv"),  # the folds are being written
        begun(out, "fold1of3/steps.csv", 3),
        begun(out, "fold2of3/plan.json"),
        begun(out, "fold3of3/steps.csv", 6),
    )
    for ready in moments:
        process = subprocess.Popen(command(picture_folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not ready() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert not (out / FILE).exists() or not Folds(out).finished
    subprocess.run(command(picture_folder, out), check=True, capture_output=True)
    assert outcome(Folds(out)) == outcome(unbroken)
    assert (out / FILE).read_text().count("digest") == 1


class StopAfter:
    """An observer that sends a signal at the evaluation with this number."""

    def __init__(self, number: int, kind: int = signal.SIGTERM) -> None:
        self.left, self.kind = number, kind

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), self.kind)

    def close(self) -> None: ...


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resume_goes_on(
    unbroken: Folds, tmp_path_factory: pytest.TempPathFactory, picture_folder: Path, kind: int
) -> None:
    out = tmp_path_factory.mktemp("folds") / "out"
    stopped = go(picture_folder, out, observers=[StopAfter(4, kind)])
    assert not stopped.finished and len(stopped.runs) < 3
    with pytest.raises(CheckpointError, match="stagewright resume"):
        _ = stopped.mean
    gone_on = resume_folds(out, Manner(QUIET, say=silent))
    assert outcome(gone_on) == outcome(unbroken)


def test_the_command_line(
    done: Folds,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    loud = [word for word in FLAGS if word != "-q"]
    words = ("train", picture_folder, "--folds", 3, *loud, "--device", "cpu", "--out", done.path)
    code, out, _ = typed(capsys, monkeypatch, *words)
    assert code == 0 and "out-of-fold pictures" in out and f"stagewright finish {done.path}" in out
    assert max(len(line) for line in out.splitlines() if str(done.path) not in line) <= 80
    code, out, _ = typed(capsys, monkeypatch, "resume", done.path)
    assert code == 0 and "3 of 3" in out
    code, _, err = typed(capsys, monkeypatch, "resume", done.path, "--set", "lr.peak=1")
    assert code == 2 and "--set without the directory of a single run" in err
    code, _, err = typed(capsys, monkeypatch, "train", picture_folder, "--folds", "many", "--out", tmp_path / "x")
    assert code == 2 and "--folds many" in err and "given" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.long
def test_a_stop_on_the_command_line_has_code_75(picture_folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(picture_folder, tmp_path / "out"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not begun(tmp_path / "out", "fold2of3/steps.csv", 2)() and process.poll() is None:
        time.sleep(0.001)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 75 and f"stagewright resume {tmp_path / 'out'}" in said


def test_a_budget_is_for_all_folds_and_a_refusal_leaves_nothing(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="4s / 2") as error:
        go(picture_folder, tmp_path / "out", 2, overrides=SMALL[:-1], budget="4s")
    assert error.value.allowed.startswith("for each of 2 folds: --budget")
    assert not (tmp_path / "out").exists()


def test_auto_chooses_once(picture_folder: Path, tmp_path: Path) -> None:
    overrides = ("model.name=cifar_resnet18", *SMALL, "data.label=label")
    table = tmp_path / "in.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(picture_folder.glob("*/*.png"))]
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    found = folds(table, 2, out=tmp_path / "out", overrides=overrides, execution=QUIET, say=silent)
    plans = [json.loads((run.path / "plan.json").read_text())["recipe"] for run in found.runs]
    assert found.finished and plans[0]["name"] == plans[1]["name"] == "auto"
    assert {**plans[0], "seed": 1} == plans[1]


# What DATA may be.


def groups_table(folder: Path, pictures: Path, **columns: Callable[[int], object]) -> Path:
    table = folder / "table.csv"
    rows = [f"path,label,{','.join(columns)}"]
    for at, path in enumerate(sorted(pictures.glob("*/*.png"))):
        rows.append(f"{path},{path.parent.name},{','.join(str(value(at)) for value in columns.values())}")
    table.write_text("\n".join(rows) + "\n")
    return table


def test_groups_are_never_divided(picture_folder: Path, tmp_path: Path) -> None:
    found = go(groups_table(tmp_path, picture_folder, site=lambda at: f"s{at % 12}"), tmp_path / "out")
    for run in found.runs:
        of = manifest(run.path)
        parts = [set(of.group_names(of.rows(split)) or ()) for split in ("train", "val", "test")]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_the_test_part_stays_closed(picture_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    table = groups_table(tmp_path, picture_folder, split=lambda at: "test" if at % 5 == 0 else "train")
    found = go(table, tmp_path / "out", 2, say=said.append)
    assert result(found)["images"] == 48 and result(found)["test_images"] == 12
    assert "12 pictures of the test part are in no fold and stay closed." in said
    closed = {str(path) for at, path in enumerate(sorted(picture_folder.glob("*/*.png"))) if at % 5 == 0}
    for run in found.runs:
        of = manifest(run.path)
        used = {os.path.realpath(os.path.join(of.root, path)) for path in of.paths.to_pylist()}
        assert len(used) == 48 and not used & {os.path.realpath(path) for path in closed}


def test_folds_of_a_table_are_used_as_given(picture_folder: Path, tmp_path: Path) -> None:
    table = groups_table(tmp_path, picture_folder, fold=lambda at: 10 if at % 4 == 0 else 9)
    found = go(table, tmp_path / "out", "given")
    assert [one["pictures"] for one in result(found)["by_fold"]] == [45, 15]


@pytest.mark.parametrize(
    ("columns", "k", "given"),
    [
        ({"split": lambda at: "val" if at % 5 == 0 else "train"}, 3, "which has a validation part of its own"),
        ({"split": lambda at: "test" if at % 5 == 0 else "train"}, 1, "--folds 1"),
        ({"site": lambda at: f"s{at % 2}"}, 3, "2 groups cannot give 3 folds"),
        ({"site": lambda at: f"s{at // 10}"}, 61, "6 groups cannot give 61 folds"),
        ({"site": lambda at: "a"}, "given", "has no column 'fold'"),
        ({"fold": lambda at: "" if at == 3 else at % 3}, "given", "1 picture of"),
        ({"fold": lambda at: 1}, "given", "has 1 value"),
        ({"fold": lambda at: at // 20}, "given", "3 classes in fewer than two folds"),
        (
            {"fold": lambda at: at % 3, "split": lambda at: "test" if at < 2 else "train"},
            "given",
            "have a fold and are in",
        ),
    ],
)
def test_data_without_such_folds_are_refused(
    picture_folder: Path, tmp_path: Path, columns: dict[str, Callable[[int], object]], k: Any, given: str
) -> None:
    with pytest.raises(DataError) as error:
        go(groups_table(tmp_path, picture_folder, **columns), tmp_path / "out", k)
    assert given in error.value.given and error.value.remedy
    again = go(picture_folder, tmp_path / "out", 2)  # the refusal leaves a folder that can be used
    assert again.finished


def test_more_folds_than_pictures_are_refused(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="60 different pictures cannot give 61 folds"):
        go(picture_folder, tmp_path / "out", 61)


def test_pictures_that_are_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whose pictures are not files"):
        go("torchvision:CIFAR10", tmp_path / "out", 3)


def test_a_folder_with_other_files_is_left_alone(picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is not empty: it holds folds.csv"):
        go(picture_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]
    assert (tmp_path / "folds.csv").read_text() == "mine"


def test_a_run_is_no_folder_for_folds(small_run: Path, picture_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a run"):
        go(picture_folder, small_run)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is damaged"), ('{"format": 1}', "is missing"), ('{"format": 2}', "format"), ("[]", "not a JSON object")],
)
def test_a_damaged_definition_is_named(done: Folds, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"folds.json is damaged") as error:
        resume_folds(tmp_path, Manner(QUIET, say=silent))
    assert reason in error.value.given


def test_a_run_without_its_answers_is_named(done: Folds, tmp_path: Path) -> None:
    copy = Folds(shutil.copytree(done.path, tmp_path / "copy"))
    (copy.path / "fold2of3" / "evaluations" / "test.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CheckpointError, match="fold2of3 has no usable answers") as error:
        _ = copy.accuracy
    assert "test.parquet cannot be read" in error.value.given


def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    for action in (lambda: resume_folds(tmp_path / "typo", Manner(QUIET)), lambda: Folds(tmp_path / "typo").finish()):
        with pytest.raises(CheckpointError, match="holds no folds"):
            action()
    assert not (tmp_path / "typo").exists()


# Jobs know nothing of folds.


def test_jobs_are_done_once_and_in_order(picture_folder: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def jobs() -> Iterator[Job]:
        for seed in (4, 5):
            asked.append(f"{seed}")
            overrides = (*SMALL, f"seed={seed}", "epochs=1ep")
            yield Job(f"seed{seed}", str(picture_folder), sw_request("quick", overrides))

    first = carry_out(jobs(), tmp_path, Manner(QUIET, observers=[StopAfter(1)], say=silent))
    assert [run.path.name for run in first] == ["seed4"] and not first[0].finished and asked == ["4"]
    second = carry_out(jobs(), tmp_path, Manner(QUIET, say=silent))
    assert [run.summary["seed"] for run in second] == [4, 5] and all(run.finished for run in second)
    stamps = [(run.path / "summary.json").stat().st_mtime_ns for run in second]
    third = carry_out(jobs(), tmp_path, Manner(QUIET, say=silent))
    assert [(run.path / "summary.json").stat().st_mtime_ns for run in third] == stamps


def sw_request(name: str, overrides: tuple[str, ...]) -> Any:
    from stagewright.recipe.request import as_request

    return as_request(name, overrides)


@pytest.mark.parametrize("name", ["quick", "auto", "finetune"])
def test_a_request_survives_its_file(name: str) -> None:
    request = sw_request(name, ("image_size=32", "data.val=0.2"))
    again = request_from_dict(json.loads(json.dumps(request_to_dict(request))))
    assert again.preliminary == request.preliminary and again.is_auto == request.is_auto


def test_second_lengths_are_refused(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only one of them"):
        go(picture_folder, tmp_path / "out", budget="5m", epochs=3)
    assert sw.folds is folds
