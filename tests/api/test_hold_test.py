"""train --hold-test: the test part stays closed, whatever is asked of the run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import typed
from held_runs import kinds, quiet, recipe, summary, trained
from stopping import stop_after

import stagewright as sw
from stagewright.api.finish import finish
from stagewright.api.open_test import open_test
from stagewright.api.train import resume
from stagewright.bundle.bundle import load_bundle
from stagewright.data.manifest import Manifest
from stagewright.errors import DataError, RecipeError
from stagewright.report.read import read_run
from stagewright.report.write import write
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Finished
from stagewright.rundir.event_text import sentence
from stagewright.rundir.held_test import hold_of, is_closed

PACKAGE = Path(sw.__file__).parent
STUDY = "the study cats opens it in its confirmation"


def silent(text: str) -> None: ...


def images_of(run: RunDir, split: str = "test") -> list[Path]:
    manifest = Manifest.read(run.manifest)
    return [Path(manifest.root, manifest.paths[int(row)].as_py()) for row in manifest.rows(split)]


def stays_closed(run: RunDir, opened: int = 0) -> None:
    """Nothing of the finished ``run`` knows its test images."""
    found = summary(run)
    assert found["status"] == "finished" and found["test"] == {"held": True, "opened": opened}
    assert [found[name]["test"] for name in ("top1", "top5", "loss")] == [None] * 3 and "test" not in found["measures"]
    assert [path.name for path in run.evaluations.iterdir()] == ["val.parquet"]
    assert load_bundle(run.root).spec.training["test_part"] == "not opened"
    assert is_closed(run)


class Deleting:
    """An observer that removes the test images of ``run`` when it begins."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.gone = run, list[Path]()

    def see(self, event: sw.Event) -> None:
        if event.kind == "started":
            self.gone = images_of(self.run)
            for path in self.gone:
                path.unlink()

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    return trained(picture_folder, tmp_path_factory.mktemp("held") / "r", hold_test=True)


@pytest.mark.parametrize("val", [0.3, 0.0])
def test_a_finish_reads_no_test_image(picture_folder: Path, tmp_path: Path, val: float) -> None:
    """They are gone before the first step: a run that looks at one of them would count it as unreadable."""
    shutil.copytree(picture_folder, tmp_path / "data")
    run = RunDir(tmp_path / "r")
    watch = Deleting(run)
    chosen = recipe(data={"val": val, "test": 0.3})
    sw.train(tmp_path / "data", chosen, out=run.root, execution=quiet(True), say=silent, observers=[watch])
    found = summary(run)
    assert len(watch.gone) == 18 and found["unreadable"] == 0 and found["top1"]["test"] is None
    assert len(load_bundle(run.root).classes) == 3 and len(list((run.bundle / "golden").iterdir())) == 16
    if val:
        stays_closed(run)
    said = sentence(kinds(run, Finished)[0]) or ""
    assert "test part not opened" in said and ("not measured: no validation pictures" in said) == (not val)


def test_summary_terminal_page_and_card_say_so(
    held: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stays_closed(held)
    assert json.loads(held.env.read_text())["hold_test"] is True
    assert "| test part | not opened |" in (held.bundle / "README.md").read_text()
    page = write(held.root).read_text()
    assert "test part not opened" in page and "18 pictures" in page and "top-1 on test" not in page
    assert "test part not opened" in sw.Run(held.root)._repr_html_()
    code, out, err = typed(capsys, monkeypatch, "finish", held.root)  # it is finished, and says how
    assert code == 0 and "test part not opened" in out + err
    assert f"Test     part not opened: stagewright evaluate {held.root} --split test --record opens it" in out


def test_the_flag_is_the_hold(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        "model.options={width: 4}",
        "image_size=16",
        "batch_size=16",
        "epochs=1ep",
        "data.val=0.2",
        "data.test=0.2",
    )
    words = ["train", picture_folder, "--recipe", "quick", *(word for one in small for word in ("--set", one))]
    words += ["--out", tmp_path / "r", "--no-pages", "--device", "cpu", "--hold-test"]
    code, out, _ = typed(capsys, monkeypatch, *words)
    assert code == 0 and "test part not opened" in out and "part not opened: stagewright evaluate" in out
    stays_closed(RunDir(tmp_path / "r"))


def test_what_reads_a_run_reads_its_validation_part(held: RunDir) -> None:
    run = sw.Run(held.root)
    assert run.confusion.split == "val" and int(run.confusion.counts.sum()) == 18
    assert run.evaluate(split="val", device="cpu").result.images == 18
    shutil.copy(held.evaluations / "val.parquet", held.evaluations / "test.parquet")  # left by someone
    try:
        assert set(read_run(held.root).predictions) == {"val"}
    finally:
        (held.evaluations / "test.parquet").unlink()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN"],
        ["evaluate", "RUN", "--split", "test"],
        ["evaluate", "RUN", "--split", "test", "--out", "answers.csv"],
        ["evaluate", "RUN", "TEST"],
        ["evaluate", "RUN", "ALL"],
        ["evaluate", "RUN/model", "ALL", "--no-near"],
        ["predict", "RUN", "TEST", "--csv", "-"],
        ["evaluate", "RUN", "--record", "--threads", "1"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_every_command_that_could_open_it_refuses(
    words: list[str],
    tmp_path: Path,
    picture_folder: Path,
    study_run: RunDir,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in images_of(study_run)[:7]:
        (tmp_path / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "test" / path.parent.name)
    places = {"RUN": study_run.root, "RUN/model": study_run.bundle, "TEST": tmp_path / "test", "ALL": picture_folder}
    code, out, err = typed(capsys, monkeypatch, *(places.get(word, word) for word in words), "--device", "cpu")
    assert code == 2 and STUDY in err and not out.strip(), (out, err)
    if "TEST" in words:
        assert re.search(r"7 pictures of 7 in .* are of the test part of", err)
    elif "ALL" in words:
        assert "18 pictures of 60" in err
    assert list(tmp_path.iterdir()) == [tmp_path / "test"]
    stays_closed(study_run)


@pytest.fixture(scope="module")
def study_run(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    return trained(picture_folder, tmp_path_factory.mktemp("study") / "r", hold_test=STUDY)


def test_other_commands_leave_it_closed(
    study_run: RunDir,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    others = tmp_path / "others"
    for path in images_of(study_run, "val"):
        (others / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, others / path.parent.name)
    for words in (
        ["finish", study_run.root],
        ["resume", study_run.root],
        ["evaluate", study_run.root, "--split", "val"],
        ["evaluate", study_run.root, others],
        ["evaluate", study_run.root, "--split", "val", "--at", "precision=0.01"],
        ["predict", study_run.root, others],
        ["report", study_run.root, "--saliency"],
        ["runs", study_run.root.parent],
        ["diff", study_run.root, study_run.root],
    ):
        code, out, err = typed(capsys, monkeypatch, *words)
        assert code == 0, (words, err)
        assert "test pictures" not in out.replace("test pictures of the other", ""), words
        stays_closed(study_run)
    assert STUDY in study_run.report.read_text()


def test_a_sentence_says_who_opens_it(study_run: RunDir) -> None:
    for given in (None, "another study opens it"):
        with pytest.raises(DataError, match=f"is not opened by hand: {STUDY}"):
            open_test(study_run.root, held_by=given, say=silent)
    for text in ("", " ", "x" * 501):
        with pytest.raises(RecipeError, match="hold_test of"):
            sw.Execution(hold_test=text)


def test_it_stays_closed_through_crash_stop_finish_and_resume(picture_folder: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    held = quiet(True)
    with pytest.raises(KeyboardInterrupt):
        sw.train(picture_folder, recipe(), out=run.root, execution=held, say=silent, observers=[Crashing(4)])
    assert summary(run)["test"] == {"held": True, "opened": 0}, "while it runs"
    run.env.unlink()  # the checkpoint has a copy
    finish(run.root, execution=quiet(), say=silent)
    stays_closed(run)
    assert not resume(run.root, execution=quiet(), say=silent, arm=stop_after(7)).finished
    sw.train(picture_folder, recipe(), out=run.root, resume=True, execution=quiet(), say=silent)
    stays_closed(run)
    resume(run.root, execution=quiet(), say=silent, from_start=True)
    stays_closed(run)


class Crashing:
    """An observer that ends the run by an error once a checkpoint of ``step`` or later is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def see(self, event: sw.Event) -> None:
        if event.kind == "saved" and event.step >= self.step:
            raise KeyboardInterrupt

    def close(self) -> None: ...


def test_the_summary_remembers_what_a_lost_env_file_said(held: RunDir, tmp_path: Path) -> None:
    copied = RunDir(Path(shutil.copytree(held.root, tmp_path / "r")))
    copied.env.unlink()
    assert hold_of(copied) is True
    with pytest.raises(DataError, match="stays closed"):
        sw.evaluate(copied.root, device="cpu")
    copied.summary.write_text("{")  # and the other way round
    shutil.copy(held.env, copied.env)
    assert is_closed(copied)


def test_a_fork_inherits_it(held: RunDir, picture_folder: Path) -> None:
    forked = resume(held.root, overrides=["lr.peak=0.01"], execution=quiet(), say=silent)
    again = sw.train(picture_folder, recipe(seed=5), out=held.root, resume=True, execution=quiet(), say=silent)
    for run in (forked, again):
        assert run.path != held.root
        stays_closed(RunDir(run.path))


def test_a_hold_can_come_later_but_not_go(picture_folder: Path, tmp_path: Path) -> None:
    from held_runs import STAGES

    run = RunDir(tmp_path / "r")
    sw.train(picture_folder, recipe(stages=STAGES[:1]), out=run.root, execution=quiet(), say=silent)
    assert summary(run)["test"] == {"held": False, "opened": 1} and not is_closed(run)
    other = resume(run.root, overrides=["lr.peak=0.01"], execution=quiet(STUDY), say=silent)
    assert hold_of(RunDir(other.path)) == STUDY
    stays_closed(RunDir(other.path))


def test_the_training_is_the_same(held: RunDir, picture_folder: Path, tmp_path: Path) -> None:
    """Only what happens to the test part differs: model, steps, validation answers and the other events are equal to the bit."""
    from stagewright.rundir.events import comparable, live_events

    other = trained(picture_folder, tmp_path / "r")
    for name in ("steps.csv", "metrics.csv", "evaluations/val.parquet", "model/weights.safetensors", "plan.json"):
        assert (held.root / name).read_bytes() == (other.root / name).read_bytes(), name
    assert comparable(live_events(held.events))[:-1] == comparable(live_events(other.events))[:-1]


def test_folds_are_refused_with_it(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--hold-test with --folds"):
        sw.folds(picture_folder, 2, recipe(), out=tmp_path / "f", execution=quiet(True), say=silent)
    assert not (tmp_path / "f").exists()


def test_the_images_of_a_run_come_through_one_door() -> None:
    """Whoever reads a manifest file without it must have a reason: digests and hashes alone, or a session, which closes it."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "Manifest.read(" in path.read_text() and "manifest.py" not in path.name
    }
    assert found == {"rundir/held_test.py", "api/carry_out.py", "api/diff.py", "api/seen.py", "comparison/pictures.py"}
