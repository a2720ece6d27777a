"""Operating points: chosen on the validation images of a run, stored in its model, used by predict and evaluate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import typed

import stagewright as sw
from stagewright.api.operating import Target, choose_operating_point
from stagewright.bundle.bundle import load_bundle
from stagewright.bundle.files import store_operating_point
from stagewright.errors import BundleError, DataError
from stagewright.measures.operating import OperatingPoint
from stagewright.plan.execution import Execution


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("operating") / "run"
    overrides = [
        "model.name=cifar_resnet18",
        "model.options={width: 4}",
        "image_size=16",
        "batch_size=16",
        "epochs=2ep",
    ]
    quiet = Execution(device="cpu", pages=False, quiet=True)
    parts = ["data.val=0.4", "data.test=0.3"]
    sw.train(picture_folder, "quick", overrides=[*overrides, *parts], out=out, execution=quiet, say=lambda text: None)
    return out


@pytest.fixture
def run(trained: Path) -> Path:
    store_operating_point(trained / "model", OperatingPoint())
    return trained


def test_a_threshold_is_chosen_on_validation_and_stored(run: Path) -> None:
    before, card = json.loads((run / "model/model.json").read_text()), (run / "model/README.md").read_text()
    name = before["classes"][1]
    first = choose_operating_point(run, Target("precision", 0.2), device="cpu")
    assert first.min_confidence > 0 and not first.thresholds
    point = choose_operating_point(run, Target("recall", 0.9, name), device="cpu")
    assert point.min_confidence == first.min_confidence and list(point.thresholds) == [name]  # what was there stays
    stored = load_bundle(run).spec.operating
    assert stored == point and stored.reasons.keys() == {name, ""} and "recall 0.9 on" in stored.reasons[name]
    said = (run / "model/README.md").read_text()
    assert said.count("## When it answers\n") == 1 and said.count("is answered from a probability of") == 1
    assert said.index("no answer where another class") < said.index("## How to use it") and "recall 0.9 on" in said
    found = sw.evaluate(run, split="val", device="cpu").at_point
    assert found is not None and (found.classes[name][1].value or 0) >= 0.9
    assert choose_operating_point(run, None, device="cpu") == OperatingPoint()
    assert json.loads((run / "model/model.json").read_text()) == before
    assert (run / "model/README.md").read_text() == card


def test_a_card_that_someone_wrote_anew_or_removed_is_left_alone(run: Path) -> None:
    card = run / "model/README.md"
    kept, name = card.read_text(), load_bundle(run).classes[0]
    card.write_text("my own words")
    store_operating_point(run / "model", OperatingPoint({name: 0.5}))
    assert card.read_text() == "my own words"
    card.unlink()
    store_operating_point(run / "model", OperatingPoint())
    assert not card.exists()
    card.write_text(kept)


def test_predictions_follow_the_stored_point(run: Path, picture_folder: Path) -> None:
    name = load_bundle(run).classes[0]
    plain = list(load_bundle(run).predict(picture_folder))
    store_operating_point(run / "model", OperatingPoint({name: 0.05}, 0.9999))
    bundle = load_bundle(run)
    for before, after in zip(plain, bundle.predict(picture_folder), strict=True):
        share = dict(before.classes)[name]
        assert before.answer == before.classes[0][0] and after.classes == before.classes
        assert after.answer == (name if share >= 0.05 else None)
        assert after.answer_probability == (pytest.approx(share) if share >= 0.05 else None)
    assert [one.answer for one in bundle.predict(picture_folder, operating=OperatingPoint())] == [
        one.answer for one in plain
    ]
    with pytest.raises(DataError, match="no class of the model"):
        next(bundle.predict(picture_folder, operating=OperatingPoint({"nothing": 0.5})))


def test_the_commands(
    run: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def call(*words: object) -> tuple[int, str, str]:
        return typed(capsys, monkeypatch, *words)

    code, out, _ = call("evaluate", run, "--at", "precision=0.2", "--json", "-q")
    found = json.loads(out)["operating_point"]
    assert code == 0 and found["min_confidence"] > 0 and found["answered"]["value"] <= 1
    code, out, err = call("predict", run, picture_folder, "--min-confidence", "1", "-q")
    assert code == 0 and "no answer" in out and "no answer where a class has a probability below 1" in err
    name, target = load_bundle(run).classes[1], tmp_path / "answers.csv"
    words = ("--threshold", f"{name}=0.01", "--most-probable", "--csv", target)
    assert call("predict", run, picture_folder, *words, "-q")[0] == 0
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert [row["answer"] for row in rows].count(name) > len(rows) / 2
    assert call("predict", run, picture_folder, "--most-probable", "--csv", target, "-q")[0] == 0
    assert "answer" not in target.read_text().splitlines()[0]
    assert call("evaluate", run, "--at", "none", "-q")[0] == 0
    assert not load_bundle(run).spec.operating
    for words, said in (
        (("evaluate", run, "--at", "recall=0.9"), "without --class"),
        (("evaluate", run, "--at", "f1=0.9"), "precision=P or recall=P"),
        (("evaluate", run, "--class", name), "without --at has no effect"),
        (("evaluate", run, "--at", "precision=0.5", "--class", "nothing"), "is no class of the model"),
        (("predict", run, picture_folder, "--threshold", "0.3"), "CLASS=P"),
        (("predict", run, picture_folder, "--threshold", f"{name}=2"), "at most 1"),
    ):
        code, _, err = call(*words)
        assert code == 2 and said in err


def test_what_is_not_reached_says_what_is(run: Path) -> None:
    answers = sw.evaluate(run, split="val", device="cpu").result.answers()
    assert answers.probabilities is not None
    tops = answers.probabilities.argmax(axis=0)  # the picture that is most sure of each class
    wrong = [name for at, name in enumerate(load_bundle(run).classes) if answers.labels[tops[at]] != at]
    assert wrong  # of a network that has hardly learned
    for name in wrong:
        with pytest.raises(DataError, match="is not reached on the validation pictures") as error:
            choose_operating_point(run, Target("precision", 1.0, name), device="cpu")
        assert "up to 0." in error.value.allowed
    store_operating_point(run / "model", OperatingPoint(dict.fromkeys(load_bundle(run).classes, 0.01)))
    with pytest.raises(DataError, match="among those that no stored threshold decides on"):
        choose_operating_point(run, Target("precision", 0.5), device="cpu")


def test_a_strangers_operating_point_is_checked(run: Path) -> None:
    path = run / "model/model.json"
    content = json.loads(path.read_text())
    for operating in (
        {"thresholds": {"nothing": 0.5}, "min_confidence": 0.0, "reasons": {}},
        {"thresholds": {}, "min_confidence": 2.0, "reasons": {}},
        {"thresholds": {content["classes"][0]: 0.0}, "min_confidence": 0.5, "reasons": {}},
    ):
        path.write_text(json.dumps({**content, "operating": operating}))
        with pytest.raises(BundleError, match=r"model\.json is damaged"):
            load_bundle(run)
    path.write_text(json.dumps(content))
