"""open_test and evaluate --record: the closed test part is scored as the finish would have scored it, counted, and whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import typed
from held_runs import STAGES, kinds, quiet, recipe, summary, trained
from stopping import stop_after

import stagewright as sw
from stagewright.api import open_test as opening
from stagewright.api.finish import finish
from stagewright.api.open_test import open_test
from stagewright.api.train import resume
from stagewright.bundle.bundle import load_bundle
from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, DataError
from stagewright.report.read import read_run
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Finished, OpenedTest
from stagewright.rundir.event_text import sentence
from stagewright.rundir.held_test import is_closed

STUDY = "the study cats opens it in its confirmation"
TIMES = ("setup_seconds", "train_seconds", "eval_seconds", "checkpoint_seconds", "wall_seconds", "images_per_second")
OWN = ("name", "test", "loading", "memory_gb", "against_head", *TIMES)
"""What differs between two runs of a plan in summary.json, and ``test``, which says how it came about."""


def silent(text: str) -> None: ...


def opened(run: RunDir, **more: Any) -> sw.Run:
    return open_test(run.root, execution=quiet(), **{"say": silent, **more})


def copied(run: RunDir, place: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run.root, place)))


def answers(run: RunDir) -> bytes:
    return (run.evaluations / "test.parquet").read_bytes()


def results(run: RunDir) -> dict[str, Any]:
    return {name: value for name, value in summary(run).items() if name not in OWN}


def alike(one: RunDir, other: RunDir) -> None:
    """The two runs say the same of their test part, to the bit."""
    assert answers(one) == answers(other)
    assert results(one) == results(other)
    scores = [load_bundle(run.root).spec.training["top1"] for run in (one, other)]
    assert scores[0] == scores[1] and list(scores[0]) == ["val", "test"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    """A run whose finish has opened its test part."""
    return trained(picture_folder, tmp_path_factory.mktemp("plain") / "r")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    return trained(picture_folder, tmp_path_factory.mktemp("held") / "r", hold_test=True)


def test_the_rows_are_those_of_the_finish(plain: RunDir, held: RunDir, tmp_path: Path) -> None:
    run, said = copied(held, tmp_path / "r"), list[str]()
    shutil.rmtree(run.checkpoints)  # the model is in model/
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    done = opened(run, say=said.append)
    alike(run, plain)
    changed = {path.relative_to(run.root).as_posix() for path, data in before.items() if path.read_bytes() != data}
    assert changed - {".lock"} == {"events.jsonl", "log.txt", "summary.json", "model/model.json", "model/README.md"}
    event = kinds(run, OpenedTest)[0]
    finished = kinds(plain, Finished)[0]
    assert (event.step, event.number, event.weights) == (10, 1, finished.chosen)
    assert (event.top1, event.range) == (finished.test_top1, finished.ranges["test"])
    assert summary(run)["test"] == {"held": True, "opened": 1}
    assert said == (sentence(event) or "").splitlines() and said[0] in run.log.read_text()
    assert "| test part | opened once |" in (run.bundle / "README.md").read_text()
    assert load_bundle(run.root).spec.training["test_part"] == "opened once"
    assert not is_closed(run) and done.evaluate(device="cpu").result.images == 18, "now it is like any other"
    assert done.confusion.split == "test"


@pytest.mark.parametrize(
    "fields",
    [
        {"stages": STAGES[1:]},
        {"stages": [{**STAGES[0], "image_size": 24}, {**STAGES[1], "average": {"kind": "swa", "recalibrate": 12}}]},
        {"stages": STAGES, "lr": {"schedule": "constant", "peak": 0.3}},
        {"eval": {"select": "best", "fold": False, "crop": 0.9}, "batch_size": 7},
    ],
    ids=["ema", "swa", "head", "best"],
)
def test_any_weights_are_evaluated_as_the_finish_does(
    picture_folder: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Also the head alone, which is evaluated at the image size of the stage after it."""
    runs = [trained(picture_folder, tmp_path / name, hold_test=name == "held", **fields) for name in ("held", "plain")]
    opened(runs[0])
    alike(*runs)
    if fields.get("lr"):
        assert summary(runs[0])["chosen"]["weights"] == "head"


def test_an_interim_model_too_and_a_resume_closes_it_again(picture_folder: Path, tmp_path: Path) -> None:
    runs = [stopped(picture_folder, tmp_path / name, hold=name == "held") for name in ("held", "plain")]
    run = runs[0]
    for one in runs:
        finish(one.root, execution=quiet(), say=silent)
    opened(run)
    alike(*runs)
    resume(run.root, execution=quiet(), say=silent)
    found = summary(run)
    assert found["stopped_at"] is None and found["top1"]["test"] is None, "the weights are others"
    assert found["test"] == {"held": True, "opened": 1} and is_closed(run)
    assert "test" not in read_run(run.root).predictions
    with pytest.raises(DataError, match=r"was opened before \(1 time\)"):
        opened(run)
    opened(run, again=True)
    assert summary(run)["test"]["opened"] == 2 and [one.number for one in kinds(run, OpenedTest)] == [1, 2]


def stopped(pictures: Path, out: Path, hold: bool) -> RunDir:
    """A run that was stopped in its second half."""
    from stopping import begin

    run = begin(out, pictures, recipe())
    assert not resume(run.root, execution=quiet(hold), say=silent, arm=stop_after(8)).finished
    return run


def test_a_second_time_is_asked_for_and_counted(plain: RunDir, held: RunDir, tmp_path: Path) -> None:
    for run, first in ((copied(held, tmp_path / "held"), 1), (copied(plain, tmp_path / "plain"), 2)):
        before = answers(plain)
        if first == 1:
            opened(run)
        with pytest.raises(DataError, match=r"was opened before \(1 time\)") as error:
            opened(run)
        assert "--again" in error.value.remedy
        opened(run, again=True)
        assert summary(run)["test"]["opened"] == 2 and answers(run) == before
        assert "| test part | opened 2 times |" in (run.bundle / "README.md").read_text()
        assert "again, 2 times in all" in (sentence(kinds(run, OpenedTest)[-1]) or "")
        with pytest.raises(DataError, match=r"\(2 times\)"):
            opened(run)


class PowerCut(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("step", ["write_predictions", "store_test_score", "write_summary", "write_page"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_it_is_the_old_or_the_new(
    step: str, after: bool, plain: RunDir, held: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(held, tmp_path / "r")
    run.report.write_text("an old page")
    real: Callable[..., Any] = getattr(opening, step)

    def cut(*given: Any) -> None:
        if after:
            real(*given)
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(opening, step, cut)
        with pytest.raises(PowerCut):
            opened(run)
    new = step == "write_page" or (step == "write_summary" and after)
    assert ("test" in read_run(run.root).predictions) == new == (not is_closed(run))
    assert summary(run)["test"]["opened"] == new
    if not new:
        assert results(run) == results(held)
        opened(run)  # without --again: it is the same opening
    alike(run, plain)
    assert summary(run)["test"] == {"held": True, "opened": 1} and len(kinds(run, OpenedTest)) == 1
    with pytest.raises(DataError, match="opened before"):
        opened(run)


def test_killed_in_a_second_opening_the_count_is_neither_lost_nor_doubled(
    plain: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(plain, tmp_path / "r")

    def cut(*given: Any) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(opening, "write_predictions", cut)
        with pytest.raises(PowerCut):
            opened(run, again=True)
    assert summary(run)["test"]["opened"] == 1 and len(kinds(run, OpenedTest)) == 1
    opened(run)
    assert summary(run)["test"]["opened"] == 2 and [one.number for one in kinds(run, OpenedTest)] == [2]
    alike(run, plain)


def test_only_who_holds_it_opens_it(picture_folder: Path, tmp_path: Path) -> None:
    run = trained(picture_folder, tmp_path / "r", hold_test=STUDY)
    with pytest.raises(DataError, match=STUDY):
        opened(run)
    opened(run, held_by=STUDY)
    assert summary(run)["top1"]["test"] is not None
    other = trained(picture_folder, tmp_path / "other", hold_test=True)
    with pytest.raises(DataError, match="is not held by 'the study"):
        opened(other, held_by=STUDY)


def test_what_cannot_be_opened_is_refused(held: RunDir, plain: RunDir, picture_folder: Path, tmp_path: Path) -> None:
    run = stopped(picture_folder, tmp_path / "stopped", hold=True)
    with pytest.raises(CheckpointError, match="has not finished"):
        opened(run)
    none = trained(picture_folder, tmp_path / "none", hold_test=True, data={"val": 0.3, "test": 0.0})
    assert summary(none)["test"] is None and not kinds(none, Finished)[0].test_held
    with pytest.raises(DataError, match="has no test pictures"):
        opened(none)
    changed = copied(held, tmp_path / "changed")
    description = json.loads((changed.bundle / "model.json").read_text())
    description["training"]["step"] = 3
    (changed.bundle / "model.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="is not the model of which summary"):
        opened(changed)
    assert not kinds(changed, OpenedTest)


def test_the_command(
    plain: RunDir,
    held: RunDir,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copied(held, tmp_path / "r")
    sw.Run(run.root)  # a page is written again only where there is one
    from stagewright.report.write import write

    assert "test part not opened" in write(run.root).read_text()
    for wrong in (["DATA"], ["--out", "x.csv"], ["--split", "val"], ["--at", "none"], ["--no-near"]):
        code, _, err = typed(capsys, monkeypatch, "evaluate", run.root, *wrong, "--record")
        assert code == 2 and "--record with" in err, wrong
    for alone in (["--again"], ["--threads", "1"]):
        code, _, err = typed(capsys, monkeypatch, "evaluate", run.root, *alone)
        assert code == 2 and "--record" in err
    words = ["evaluate", run.root, "--split", "test", "--record", "--device", "cpu"]
    code, out, _ = typed(capsys, monkeypatch, *words)
    score = summary(plain)["top1"]["test"]
    assert code == 0 and f"top-1 {score:.2f} % on 18 test pictures" in out and str(run.report) in out
    assert answers(run) == answers(plain) and "top-1 on test" in run.report.read_text()
    code, _, err = typed(capsys, monkeypatch, *words)
    assert code == 2 and "--again opens it once more" in err
    code, out, _ = typed(capsys, monkeypatch, *words, "--again", "--json")
    found = json.loads(out)
    assert code == 0 and (found["top1"], found["opened"]) == (score, 2) and found["measures"]["accuracy"]
    assert "but opened 2 times" in run.report.read_text()
    code, out, err = typed(capsys, monkeypatch, "finish", run.root)
    assert "test part opened again, 2 times in all" in out + err and "not opened:" not in out


def test_unreadable_test_images_are_counted_as_by_the_finish(picture_folder: Path, tmp_path: Path) -> None:
    """An image that goes after the set-up has a row without a rank, and opening twice does not count it twice."""
    shutil.copytree(picture_folder, tmp_path / "data")
    run = trained(
        tmp_path / "data", tmp_path / "r", hold_test=True, data={"val": 0.3, "test": 0.3, "max_unreadable": 0.5}
    )
    manifest = Manifest.read(run.manifest)
    row = int(manifest.rows("test")[4])
    name = manifest.paths[row].as_py()
    path = tmp_path / "data" / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "own_images", _without(path, opening.own_images))
        opened(run)
        assert summary(run)["unreadable"] == 1
        opened(run, again=True)
    assert summary(run)["unreadable"] == 1
    record = read_run(run.root)
    assert not record.problems and (len(record.predictions["test"]), record.predictions["test"].unreadable) == (17, 1)
    table = pq.read_table(run.evaluations / "test.parquet")
    lost = table.column("path").to_pylist().index(name)
    assert table.column("rank").to_pylist()[lost] is None and not table.column("readable").to_pylist()[lost]
    assert table.column("rank").null_count == 1


def _without(path: Path, real: Callable[..., Any]) -> Callable[..., Any]:
    """Verifies all images, and then removes one."""

    def verified(*given: Any, **more: Any) -> Any:
        if not path.exists():
            shutil.copy(path.with_suffix(".kept"), path)
        shutil.copy2(path, path.with_suffix(".kept"))
        found = real(*given, **more)
        path.unlink()
        return found

    return verified


def test_ranks_and_metadata(plain: RunDir) -> None:
    for split in ("val", "test"):
        table = pq.read_table(plain.evaluations / f"{split}.parquet")
        ranks, label, predicted = (table.column(name).to_numpy() for name in ("rank", "label", "predicted"))
        assert str(table.schema.field("rank").type) == "int32"
        shares = np.stack(table.column("probabilities").to_numpy())
        expected = 1 + (shares > shares[np.arange(len(label)), label][:, None]).sum(axis=1)
        assert ranks.tolist() == expected.tolist() and ((ranks == 1) == (label == predicted)).all()
        about = json.loads(table.schema.metadata[b"stagewright.predictions"])
        found, model = summary(plain), json.loads((plain.bundle / "model.json").read_text())
        assert about == {
            **{name: found[name] for name in ("dataset_digest", "plan_digest", "precision")},
            **{name: found["chosen"][name] for name in ("step", "weights")},
            "view": model["preprocessing"],
        }


def test_tables_without_ranks_and_metadata_are_read(plain: RunDir, tmp_path: Path) -> None:
    run = copied(plain, tmp_path / "r")
    path = run.evaluations / "test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["rank"]).replace_schema_metadata(None), path)
    older = summary(run)
    del older["test"]
    run.summary.write_text(json.dumps(older))
    record = read_run(run.root)
    assert not record.problems and len(record.predictions["test"]) == 18
    assert not is_closed(run)
    with pytest.raises(DataError, match=r"was opened before \(1 time\)"):
        opened(run)
    opened(run, again=True)
    assert summary(run)["test"] == {"held": False, "opened": 2} and answers(run) == answers(plain)


def test_the_recipe_of_these_runs_reaches_each_case(held: RunDir) -> None:
    assert summary(held)["finalists"], "the head alone is compared"
