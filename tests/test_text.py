"""Text from files is shown and not obeyed, on terminals, in tables and in Markdown; which names are near enough to suggest."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.table import Table

import stagewright
from stagewright.bundle.card import card
from stagewright.bundle.predictions import CsvWriter, JsonWriter, Prediction
from stagewright.cli.predictions_view import predictions_view
from stagewright.data.account import Account
from stagewright.storage.lines import LineWriter
from stagewright.system.output import Output, tell
from stagewright.system.terminal import Terminal
from stagewright.text import (
    done_text,
    folded,
    from_table_cell,
    nearest,
    path_cell,
    score_text,
    some,
    table_cell,
    visible,
)

HOSTILE = ["\x1b[35mred\x1b[2J", "\x1b]0;owned\x07", "a\x9b31m", "[/b]", "[red]x", "caf\udce9", "a\rb", "\u202egpj.exe"]


class Screen(io.StringIO):
    """A terminal that remembers what it was sent."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_reaches_a_terminal_as_a_control_code(name: str) -> None:
    screen = Screen()
    print(f"class {name}", file=Output(screen))
    terminal = Terminal(screen, highlight=False)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    terminal.print(table)
    terminal.print(predictions_view([Prediction(name, ((name, 0.5), (name, 0.5))), Prediction(name, (), name)]))
    shown = screen.getvalue()
    for code in ("\x1b[35m", "\x1b[2J", "\x1b]", "\x07", "\x9b", "\r", "\udce9", "\u202e"):
        assert code not in shown
    assert visible(name).splitlines()[0] in shown


def test_styles_of_our_own_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen()
    Terminal(screen).print("bold", style="bold")
    assert "\x1b[1m" in screen.getvalue()


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+x", "'+x"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-", "'-"),
        ("\tx", "'\tx"),
        ("-1", "-1"),
        ("+2.5e3", "+2.5e3"),
        ("cat", "cat"),
        ("'quoted'", "'quoted'"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
    ],
)
def test_a_cell_is_no_formula_and_reads_back(text: str, cell: str) -> None:
    assert table_cell(text) == cell
    assert from_table_cell(cell) == (text if "\x1b" not in text else cell)


def test_a_path_in_a_table_still_names_its_file() -> None:
    assert path_cell("=a/1.png") == "./=a/1.png" and path_cell("-1/x.png") == "./-1/x.png"
    assert path_cell("/=a/1.png") == "/=a/1.png" and path_cell("a\nb.png") == "a\nb.png" and path_cell("'x") == "'x"


def test_predictions_have_no_formulas_and_keep_bytes_of_names(tmp_path: Path) -> None:
    answers = [Prediction("caf\udce9.png", (("=1+1", 1.0),)), Prediction("=x.png", (), "@reason")]
    with LineWriter(tmp_path / "p.csv") as lines, LineWriter(tmp_path / "p.json") as text:
        table, objects = CsvWriter(lines, 1), JsonWriter(text)
        for answer in answers:
            table.write(answer)
            objects.write(answer)
        objects.close(Account(2, (), ()))
    raw = (tmp_path / "p.csv").read_bytes()
    assert b"caf\xe9.png" in raw
    rows = list(csv.reader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")))
    assert rows[1][:2] == ["caf\udce9.png", "'=1+1"] and rows[2][0] == "./=x.png" and rows[2][-1] == "'@reason"
    written = (tmp_path / "p.json").read_bytes()
    assert written.isascii() and json.loads(written)["predictions"][0]["path"] == "caf\udce9.png"


def test_a_card_shows_names_and_neither_html_nor_markdown() -> None:
    classes = ["<script>alert(1)</script>", "[x](http://evil)", "`code`", "a|b", "\x1b[31m"]
    content = {
        "model": {"name": "cifar_resnet18", "options": {"a`b": 1}, "parameters": 5},
        "preprocessing": {
            "crop": 1.0,
            "fit": "crop",
            "image_size": 8,
            "interpolation": "bilinear",
            "mean": [0],
            "std": [1],
        },
        "classes": classes,
        "training": {"data": "<b>|x</b>"},
        "versions": {},
        "golden": [],
    }
    text = card(content)
    for markup in ("<script", "<b>", "[x](", "\x1b"):
        assert markup not in text
    for shown in ("&lt;script&gt;", r"\[x\](http://evil)", r"a\|b", r"\`code\`", "`{'a'b': 1}`"):
        assert shown in text


def test_output_never_raises_for_an_encoding() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    print("犬 caf\udce9 é", file=Output(stream))
    assert raw.getvalue() == b"\\u72ac caf\\udce9 \\xe9\n"
    stream.detach()


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("quik", "quick"), ("finetun", "finetune"), ("epoch", "epochs"), ("epoks", "epochs"), ("optimzer", "optimizer"),
        ("lable", "label"), ("pach", "patch"), ("flop", "flip"), ("greyscale", "grayscale"), ("hogg", "hog"), ("Nett", "Net"),
        ("digit", "digits"), ("photo", "photos"), ("resnet", "resnet18"), ("resnet81", "resnet18"), ("cifar10", "CIFAR10"),
        ("Label", "label"), ("mobilenet", "mobilenet_v2"), ("vit_b16", "vit_b_16"), ("layre2.*", "layer2.*"), ("adma", "adam"),
    ],
)  # fmt: skip
def test_near_names(word: str, name: str) -> None:
    assert nearest(word, ["nothing alike", name]) == f"; did you mean {name!r}?"


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("battery", "paper"), ("cat", "dog"), ("cat", "car"), ("zzz", "resnet18"), ("species", "path"), ("glass", "class"[1:3]),
        ("metal", "trash"), ("adam", "sgd"), ("train", "val"), ("rabbit", "robin"), ("banana", "bread"), ("plastic", "paper"),
        ("x", "xception"), ("", "digits"), ("paprika", "paper"), ("ImageNet", "CIFAR10"), ("house", "mouse pad"), ("size", "lr"),
    ],
)  # fmt: skip
def test_other_names(word: str, name: str) -> None:
    assert nearest(word, [name]) == ""
    assert nearest(word, []) == ""


def test_one_place_suggests_names() -> None:
    package = Path(stagewright.__file__).parent
    own = {str(file.relative_to(package)) for file in package.rglob("*.py") if "difflib" in file.read_text("utf-8")}
    said = {
        str(file.relative_to(package)) for file in package.rglob("*.py") if "did you mean" in file.read_text("utf-8")
    }
    assert own == said == {"text.py"}


def test_some_is_one_line() -> None:
    assert some(["red", "a\nb", "c\x1b[1m"], 2) == "red, a\\nb and 1 more"


def test_how_much_of_a_plan_is_done_is_rounded_down() -> None:
    assert done_text(430, 1000) == "43 % of its plan (step 430 of 1,000)"
    assert [done_text(step, 1000).split(" of")[0] for step in (0, 9, 10, 999, 1000)] == [
        *("0 %", "under 1 %", "1 %", "99 %", "100 %")
    ]


SENTENCE = (
    "4,648 images/s in 0.1 % of 3 h 20 min, 24.80 % (95 % interval 21.22 to 28.77), 53 img/s; 5 some, a/path/of/parts"
)


@pytest.mark.parametrize("width", range(12, 80))
def test_no_number_is_divided_from_its_unit(width: int) -> None:
    lines = folded(SENTENCE, width).split("\n")
    assert len(folded(SENTENCE, width)) == len(SENTENCE) and " ".join(lines) == SENTENCE
    assert all(len(line.rstrip()) <= width or " " not in line.strip() or "images/s" in line for line in lines), lines
    assert not any(line.startswith(("%", "images/s", "img/s", "h ", "min")) for line in lines), lines


def test_what_is_said_on_a_terminal_is_folded_and_elsewhere_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    screen, file = Screen(), io.StringIO()
    tell(SENTENCE, screen)
    tell(SENTENCE, file)
    assert max(map(len, screen.getvalue().splitlines())) <= 40 and file.getvalue() == f"{SENTENCE}\n"


def test_a_result_has_the_same_words_everywhere() -> None:
    assert score_text(24.8, "500 test pictures", 21.22, 28.77) == (
        "top-1 24.80 % on 500 test pictures (95 % interval 21.22 to 28.77)"
    )
    assert score_text(24.8, "the test pictures") == "top-1 24.80 % on the test pictures"
