"""The report of made-up runs, written through the documented formats, and of what damage may do to them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagewright.errors import CheckpointError
from stagewright.measures.intervals import wilson
from stagewright.report import results
from stagewright.report.read import read_run
from stagewright.report.write import write
from stagewright.storage.lock import lock

RunWriter = Callable[..., Path]


class Words(HTMLParser):
    """The text a reader sees, and the tags that were opened and not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.tags = "", list[str](), set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br", "path", "use", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"style", "svg", "title"} & set(self.open):
            self.text += data + " "


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("report") / finished_run.name
    shutil.copytree(finished_run, copy)
    write(copy)
    return copy


def page_of(run: Path) -> str:
    return (run / "report.html").read_text()


def test_every_figure_is_written_whole(run: Path) -> None:
    names = {f"{what}_{along}" for what in ("loss", "accuracy", "lr") for along in ("step", "minute")}
    assert {path.stem for path in (run / "plots").iterdir()} == names | {"confusion", "classes"}
    for path in (run / "plots").iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 400 and pixels.std() > 5, f"{path.name} is blank"


def test_the_page_is_self_contained_and_well_formed(run: Path) -> None:
    page = page_of(run)
    words = Words(page)
    assert words.open == []
    outside = re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)|@import", page)
    assert [one for one in outside if "xlink" not in one] == []
    assert "script" not in words.tags and "svg" in words.tags


def test_the_figures_in_the_page_are_those_of_the_files(run: Path) -> None:
    text = Words(page_of(run)).text
    for split, name in (("val", "validation"), ("test", "test")):
        table = pq.read_table(run / "evaluations" / f"{split}.parquet").to_pydict()
        rows = list(zip(table["label"], table["predicted"], table["readable"], strict=True))
        right = sum(label == predicted for label, predicted, readable in rows if readable)
        total = sum(readable for *_, readable in rows)
        assert f"{100 * right / total:.2f}" in text and f"{right:,} of {total:,} pictures" in text
        _, low, high = read_run(run).measures[split].means["accuracy"]  # over groups, which these images have
        assert low is not None and high is not None
        assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" in text and f"top-1 on {name}" in text
        assert (low, high) != wilson(right, total)
    plan = json.loads((run / "plan.json").read_text())
    for stage in plan["stages"]:
        assert stage["name"] in text and f"{stage['num_steps']:,} / {stage['num_steps']:,}" in text
    assert "fp32, evaluated in bf16 on" in text
    assert "n = 1" in text and "stagewright train 'my photos/'" in text


def test_the_sentence_names_the_chosen_weights_and_the_candidates(run: Path) -> None:
    chosen = json.loads((run / "summary.json").read_text())["chosen"]
    sentence = results.choice_sentence(read_run(run))
    assert f"after step {chosen['step']:,}" in sentence and results.WEIGHT_NAMES[chosen["weights"]] in sentence
    assert "20 evaluations" in sentence and "highest validation top-1 are chosen" in sentence


def test_restarts_and_groups_are_told(run: Path) -> None:
    text = Words(page_of(run)).text
    assert re.search(r"resumed at step \d+ from step_\d+; passed over step_\d+: state.pt does not match", text)
    assert "share no group" in text and "groups, the worst first" in text


def test_groups_on_both_sides_are_called_what_they_are(make_run: RunWriter, tmp_path: Path) -> None:
    text = Words(write(make_run(tmp_path / "leaky", shared_groups=True)).read_text()).text
    assert "are also in training: this accuracy says little about new groups" in text


def test_what_a_user_gave_is_escaped(run: Path) -> None:
    page = page_of(run)
    assert "&lt;b&gt;bad&lt;/b&gt;.jpg" in page and "<b>bad</b>" not in page


def test_hostile_names_stay_text(make_run: RunWriter, tmp_path: Path) -> None:
    classes = ["<script>alert(1)</script>", 'a"b', "$x_1$", "ä\x1b[31m", "e", "f", "g", "h", "i", "j"]
    words = Words(write(make_run(tmp_path / "<img>", classes=classes)).read_text())
    assert "script" not in words.tags and "img" not in words.tags
    assert "alert(1)" in words.text


def test_the_page_refreshes_only_while_the_run_lives(run: Path, make_run: RunWriter, tmp_path: Path) -> None:
    assert "http-equiv" not in page_of(run)
    begun = make_run(tmp_path / "live", until=520)
    with lock(begun):
        live = write(begun).read_text()
    assert '<meta http-equiv="refresh"' in live and "step 520 of 1,000" in Words(live).text
    dead = write(begun).read_text()  # its summary says "running", but no process has it any more (situation 070)
    assert "http-equiv" not in dead and "interrupted" in Words(dead).text


@pytest.mark.parametrize("until", [0, 1, 30])
def test_a_run_that_has_only_begun(make_run: RunWriter, tmp_path: Path, until: int) -> None:
    text = Words(write(make_run(tmp_path / "young", until=until)).read_text()).text
    assert "Nothing has been evaluated yet" in text


def test_torn_lines_are_left_out(make_run: RunWriter, tmp_path: Path) -> None:
    torn = make_run(tmp_path / "torn", until=520)
    for name, end in (("steps.csv", "521,1,2."), ("events.jsonl", '{"kind": "evalu'), ("timing.csv", "5")):
        with (torn / name).open("a") as file:
            file.write(end)
    assert read_run(torn).step == 520
    write(torn)


def test_damaged_files_are_said_and_the_rest_is_shown(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "plan.json").write_text("{")
    (broken / "evaluations" / "test.parquet").write_bytes(b"PAR1")
    (broken / "manifest.parquet").unlink()
    text = Words(write(broken).read_text()).text
    assert "plan.json" in text and "evaluations/test.parquet cannot be read" in text and "top-1 on validation" in text


def test_superseded_events_count_for_nothing(finished_run: Path) -> None:
    record = read_run(finished_run)
    assert record.superseded and len(record.resumes) == 1
    steps = [event.step for event in record.evaluations]
    assert steps == sorted(set(steps)) and len(steps) == 20


def test_excluded_files_are_listed(run: Path, tmp_path: Path) -> None:
    with_excluded = tmp_path / "excluded"
    shutil.copytree(run, with_excluded)
    (with_excluded / "excluded.csv").write_text("path,reason\ncat/a.jpg,truncated\n")
    text = Words(write(with_excluded).read_text()).text
    assert "1 file excluded when the data set was scanned" in text and "cat/a.jpg" in text and "truncated" in text


def test_many_classes_are_shown_as_pairs(make_run: RunWriter, tmp_path: Path) -> None:
    many = make_run(tmp_path / "many", classes=[f"class {at:03d}" for at in range(120)])
    text = Words(write(many).read_text()).text
    assert "All 120 classes" in text


def test_a_folder_that_is_no_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not the directory of a run[\s\S]*plan.json"):
        read_run(tmp_path)
    done = subprocess.run([sys.executable, "-m", "stagewright.report", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Brown, Cai and DasGupta's formula, computed by hand to four places; statsmodels' proportion_confint agrees.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)],
)
def test_wilson(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_refuses_what_is_no_share() -> None:
    for correct, total in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not a share"):
            wilson(correct, total)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("summary.json", b'"step": ', b'"step": "x", "was": ', "summary.json: a field is left out: step is 'x'"),
        ("summary.json", b'"top1": {', b'"top1": 5, "was": {', "summary.json: a field is left out: top1 is 5"),
        ("plan.json", b'"stages": [', b'"stages": null, "was": [', "plan.json: a field is left out: stages is None"),
        ("weights.json", b'"head": "', b'"head": 5, "was": "', "weights.json cannot be read: head is 5"),
        ("env.json", b'"cores": 2', b'"cores": [2]', "env.json: a field is left out: cores is [2]"),
        ("steps.csv", b"\n3,", b"\nx,", "steps.csv: 1 damaged line is left out, the first is line 4"),
        ("steps.csv", b"\n7,", b"\n\xff,", "steps.csv: 1 damaged line is left out, the first is line 8"),
        ("timing.csv", b"\n50,", b"\n5,0,", "timing.csv: 1 damaged line is left out, the first is line 2"),
        ("events.jsonl", b'"step": ', b'"step": -1, "was": ', "events.jsonl: line 1 is damaged and left out"),
    ],
)
def test_a_damaged_part_is_left_out_and_the_page_says_so(  # attack M9
    run: Path, tmp_path: Path, name: str, old: bytes, new: bytes, said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    content = (broken / name).read_bytes()
    assert old in content
    (broken / name).write_bytes(content.replace(old, new, 1))
    assert said in Words(write(broken).read_text()).text


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("label", [-1], "label has values below 0"),
        ("predicted", ["a"], "predicted has values of type string"),
        ("label", [None], "label has 360 empty cells"),
        ("label", [0.5], "label has values of type double"),
    ],
)
def test_predictions_that_are_no_classes_are_left_out(
    run: Path, tmp_path: Path, column: str, values: list[object], said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    path = broken / "evaluations" / "test.parquet"
    table = pq.read_table(path)
    changed = pa.array(values * len(table))
    pq.write_table(table.set_column(table.column_names.index(column), column, changed), path)
    assert f"test.parquet is left out: {said}" in Words(write(broken).read_text()).text


def test_numbers_on_strong_colours_are_white_in_dark_mode_too(run: Path) -> None:
    figure = re.search(r"<svg[^>]*>(?:(?!</svg>).)*?predicted class.*?</svg>", page_of(run), re.DOTALL)
    assert figure is not None and "#ffffff" in figure.group(), "a variable would turn dark with the page"
