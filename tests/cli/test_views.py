"""What the commands print: the views of results that other modules compute."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console, RenderableType

from stagewright.api.evaluate import EvaluationReport
from stagewright.api.seen import Seen
from stagewright.bundle.predictions import Prediction
from stagewright.cli.evaluation_view import evaluation_view
from stagewright.cli.machine_view import benchmark_view, checks_view
from stagewright.cli.plan_view import recipe_list
from stagewright.cli.predictions_view import predictions_view
from stagewright.data.account import Account, Omission
from stagewright.engine.evaluate import Evaluation, Predictions
from stagewright.preflight.doctor import Check
from stagewright.preflight.loader_bench import Benchmark, Rate
from stagewright.recipe import recipes


def shown(view: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(view)
    return out.getvalue()


def test_predictions_show_percent_and_errors() -> None:
    text = shown(
        predictions_view(
            [
                Prediction("a.jpg", (("bée", 0.75), ("ant", 0.25))),
                Prediction("b,c.jpg", (), "the file is empty"),
                Prediction("odd[1].jpg", (("[x]", 1.0),)),
            ]
        )
    )
    assert "75.0 %" in text and "ant 25.0 %" in text and "the file is empty" in text
    assert "odd[1].jpg" in text and "[x]" in text, "brackets are no markup"


def test_a_shared_folder_is_said_once() -> None:
    text = shown(predictions_view([Prediction(f"photos/{name}.jpg", (("ant", 1.0),)) for name in "ab"]))
    assert text.count("photos") == 1 and "in photos" in text


ACCOUNT = Account(5)


def report(classes: int) -> EvaluationReport:
    """Two images of each class; those of the last class are taken for another, and one of the first cannot be read."""
    labels = np.repeat(np.arange(classes), 2)
    predicted = np.where(labels == classes - 1, 0, labels)
    readable = np.arange(len(labels)) > 0
    shares = np.full(len(labels), 0.5, np.float32)
    answers = Predictions(
        *(predicted, shares, shares, readable, labels, -np.log(shares.astype(float))),
        ranks=1 - (predicted == labels),
    )
    result = Evaluation(
        0.51239, 100 * (2 * classes - 3) / (2 * classes - 1), None, 2 * classes - 1, 1, answers, classes
    )
    account = Account(result.images, (Omission("no class", 3, "x[1].png"),), (Omission("it is empty", 1, "y.png"),))
    names = tuple(f"c[{at}]" for at in range(classes))
    paths = pa.array([f"{at}.png" for at in range(len(labels))])
    none = np.zeros(len(labels), np.bool_)
    seen = Seen(none, none.copy(), np.full(len(labels), "", object))
    return EvaluationReport(
        "odd [b]folder", names, labels, None, result, account, ("read [b]so",), paths=paths, seen=seen, shown=names
    )


def test_an_evaluation_shows_figures_and_classes() -> None:
    lines = shown(evaluation_view(report(3))).splitlines()
    assert lines[0].startswith(
        "odd [b]folder: top-1 60.00 % on 5 pictures (95 % interval 23.07 to 88.24), loss 0.5124, "
    )
    assert "loss 0.5124, 1 unreadable" in " ".join(" ".join(lines).split())
    assert any(line.split()[:3] == ["calibration", "error", "0.1000"] for line in lines)
    assert [line.split()[:3] for line in lines if line.strip().startswith("c[")] == [
        ["c[0]", "1", "100.0"],
        ["c[1]", "2", "100.0"],
        ["c[2]", "2", "0.0"],
    ]
    said = " ".join(lines)
    assert "read [b]so" in said and "left out 3: no class 3 (x[1].png)" in said and "y.png (it is empty)" in said


def test_seen_images_stand_apart() -> None:
    found = report(3)
    same, near = np.array([0, 0, 1, 0, 0, 0], bool), np.array([0, 0, 0, 1, 0, 0], bool)
    text = shown(evaluation_view(replace(found, seen=Seen(same, near, np.full(6, "t.png", object), ["a note"]))))
    lines = text.splitlines()
    assert lines[0].startswith(
        "odd [b]folder: top-1 33.33 % on 3 pictures not seen in training (95 % interval 6.15 to 79.23)"
    )
    assert lines[1].startswith(
        "Apart, top-1 100.00 % on 2 pictures seen in training, 1 the same and 1 nearly the same (95"
    )
    assert "all together 60.00 %" in " ".join(text.split()) and ["c[1]"] not in [line.split()[:1] for line in lines]
    all_seen = replace(found, seen=Seen(np.ones(6, bool), ~np.ones(6, bool), np.full(6, "t.png", object)))
    text = shown(evaluation_view(all_seen))
    assert "top-1 60.00 % on 5 pictures, all of them seen in training" in text
    assert "All 5 pictures seen in training, 6 the same: the accuracy says nothing about new pictures." in text


def test_of_many_classes_the_worst_are_shown() -> None:
    text = shown(evaluation_view(report(40)))
    assert "class (the 30 worst of 40)" in text and "c[39]" in text and "c[30]" not in text


def test_groups_have_a_table_of_their_own() -> None:
    found = report(3)
    with_groups = replace(found, groups=["a", "a", "b", "b", None, None])
    assert [(one.name, one.images, one.top1) for one in with_groups.by_group()] == [
        *(("(none)", 2, 0.0), ("a", 1, 100.0), ("b", 2, 100.0))
    ]
    assert "group" in shown(evaluation_view(with_groups))


def test_checks_say_which_are_good() -> None:
    text = shown(checks_view([Check("decoder", True, "native [b]"), Check("cache", False, "full")]))
    assert [line.split() for line in text.splitlines()] == [
        ["ok", "decoder", "native", "[b]"],
        ["slow", "cache", "full"],
    ]


@pytest.mark.parametrize("torchvision", [True, False])
def test_a_benchmark_is_a_table_and_a_verdict(torchvision: bool) -> None:
    found = Benchmark("photos/", 500, "native", "CPU")
    found.rates = [Rate("stagewright", 224, 2, 4, 1000.0, 2500)]
    found.rates += [Rate("torchvision", 224, 2, 2, 400.0)] if torchvision else []
    text = shown(benchmark_view(found))
    assert "500 pictures of photos/, native" in text and found.verdict() in text
    own = next(line.split() for line in text.splitlines() if line.strip().startswith("stagewright"))
    assert own[1:] == ["224", "2", "4", "1,000", *(["2.50"] if torchvision else []), "2.5"]


@pytest.mark.parametrize("width", [60, 80, None])
def test_the_list_of_recipes_fits_the_terminal(width: int | None) -> None:
    lines = recipe_list(width).splitlines()
    assert width is None or max(map(len, lines)) <= width
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == sorted([*recipes.shipped(), recipes.AUTO])
    assert "chooses a recipe and states the reasons" in " ".join(" ".join(lines).split())
