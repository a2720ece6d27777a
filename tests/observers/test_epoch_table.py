"""The table of evaluations: at every width a person's terminal has, its head names the columns and no number is broken."""

from __future__ import annotations

import io
import re

import pytest
from sample_events import make_event

from stagewright.observers.console import Console
from stagewright.observers.epoch_table import EpochTable, columns, fitting, loss_text
from stagewright.rundir.event_kinds import Evaluated, Evaluating, Progress

WIDTHS = (60, 80, 100, 130)
EXTREMES: dict[str, object] = {
    "epoch": 112.5,
    "train_loss": 933.123,
    "train_top1": 100.0,
    "best": False,
    "stage_name": "a-very-long-name",
    "eta_seconds": 12_000.0,
    "epoch_seconds": 3_600.0,
    "images_per_second": 123_456.0,
}


def evaluated(**changed: object) -> Evaluated:
    event = make_event("evaluated", **changed)
    assert isinstance(event, Evaluated)
    return event


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


class Wide(io.StringIO):
    """A terminal; its width is that of the environment."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [*WIDTHS, None])
def test_lines_fit_and_every_cell_stands_below_its_name(width: int | None) -> None:
    table = EpochTable()
    lines = [*table.lines(evaluated(), width), *table.lines(evaluated(**EXTREMES), width)]
    assert len(lines) == 4 and all(width is None or len(line) <= width for line in lines), lines
    groups, names, *rows = lines
    assert groups.split() == ["train", "val", "ema"] and {"epoch", "loss", "top-1", "ETA"} <= set(names.split())
    for one in fitting(columns(evaluated()), width):
        if one.name and not one.left:  # right-aligned: name and cells end in the same place
            end = rows[0].index(one.cell) + len(one.cell)
            assert names[:end].endswith(one.name), (one, lines)
    assert "65.00 %" in rows[0] and "66.10 %" in rows[0] and rows[0].endswith(" 3 min")
    assert rows[1].endswith("3 h 20 min") and "933.1" in rows[1]


def test_narrow_terminals_leave_out_columns_and_cut_none() -> None:
    names = {width: [one.name for one in fitting(columns(evaluated()), width)] for width in WIDTHS}
    assert [len(names[width]) for width in WIDTHS] == sorted(len(names[width]) for width in WIDTHS)
    assert "img/s" in names[60] and "time" not in names[60] and "stage" in names[130]


def test_the_head_comes_again_after_a_screen_and_for_other_columns() -> None:
    table = EpochTable()
    lengths = [len(table.lines(evaluated(), 80)) for _ in range(40)]
    assert lengths[0] == 3 and lengths.count(3) == 2 and set(lengths) == {1, 3}
    results = {"raw": evaluated().results["raw"]}
    assert len(table.lines(evaluated(results=results, chosen="raw"), 80)) == 3


SIZES = {1.2345: "1.234", 36.87: "36.870", 933.123: "933.1", 12_345.6: "12,346", 1.23e7: "1.2e+07", None: "–"}


@pytest.mark.parametrize(("loss", "text"), [*SIZES.items(), (float("nan"), "–"), (float("inf"), "inf")])
def test_losses_of_any_size_fit_into_their_column(loss: float | None, text: str) -> None:
    assert loss_text(loss) == text and len(text) <= 7


@pytest.mark.parametrize("width", WIDTHS)
def test_bar_and_eta_stay(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    out = Wide()
    console = Console(5_000, [("small", 0, 100), ("middle", 100, 4_900)], file=out)
    for event in (make_event("progress"), make_event("evaluating", step=1_234)):
        assert isinstance(event, Progress | Evaluating)
        console.see(event)
        assert console._live is not None  # pyright: ignore[reportPrivateUsage]
        console._live.refresh()  # pyright: ignore[reportPrivateUsage]
        line = plain(out.getvalue()).replace("\r", "\n").rstrip().splitlines()[-1]
        assert "━" in line and "ETA 12 min" in line and "…" not in line and len(line) <= width, line
    console.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["finished", "evaluated", "notice", "interim_finished"])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_no_number_is_divided_from_its_unit(kind: str, term: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", term)
    out = Wide()
    console = Console(300, [("small", 0, 100), ("middle", 100, 200)], file=out)
    text = "reading kept up (1 thread can deliver 4,648 images/s; training waited 0.1 % of its time); " * 3
    console.see(make_event("notice", text=text) if kind == "notice" else make_event(kind))
    lines = plain(out.getvalue()).splitlines()
    assert lines and all(len(line) <= width for line in lines), lines
    assert not any(re.match(r"(%|images/s|img/s|s|min)(?!\w)", line) for line in lines), lines


def test_a_dumb_terminal_and_a_file_get_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for out in (Wide(), io.StringIO()):
        console = Console(300, [("small", 0, 100), ("middle", 100, 200)], file=out)
        for kind in ("stage", "evaluated", "finished"):
            console.see(make_event(kind))
        console.close()
        assert "\x1b" not in out.getvalue() and "ETA" in out.getvalue()
