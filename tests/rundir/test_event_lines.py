"""Events as lines: the bytes that are written, and what is refused when they are read."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sample_events import TIME, make_event

from stagewright.rundir.event_kinds import KINDS, Event, Notice, RolledBack
from stagewright.rundir.event_lines import UnknownKind, from_line, to_json, to_line
from stagewright.rundir.events import live_events, read_events


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_read_as_it_was_written(kind: str) -> None:
    event = make_event(kind)
    assert from_line(to_line(event)) == event
    assert event.kind == kind and hasattr(type(event), "__dataclass_fields__")


def test_the_order_of_keys_is_the_files() -> None:
    """As runs of all versions have it: kind, step, the event's own fields, the clock."""
    assert to_line(make_event("evaluated")).decode() == (
        '{"kind": "evaluated", "step": 200, "stage": 1, "stage_name": "middle", "epoch": 3.0, "split": "val", '
        '"train_loss": 1.23456, "train_top1": 61.2345, "results": {"raw": {"loss": 1.1111, "top1": 65.0, "top5": 95.0, '
        '"images": 300, "unreadable": 0}, "ema": {"loss": 1.0, "top1": 66.1, "top5": 96.0, "images": 300, '
        '"unreadable": 0}}, "chosen": "ema", "best": true, "clock": {"at": "2026-01-02T03:04:05.678+00:00", '
        '"train_seconds": 60.0, "memory_gb": 3.2, "epoch_seconds": 12.34, "images_per_second": 1234.5, '
        '"eval_seconds": 0.8, "eta_seconds": 190.0}}\n'
    )
    assert to_line(make_event("rolled_back")).decode() == (
        '{"kind": "rolled_back", "step": 140, "number": 1, "at": 151, "found": 160, "fault": "not finite", '
        '"reason": "the loss is nan", "remedy": "the images of that step are looked at one by one", '
        '"clock": {"at": "2026-01-02T03:04:05.678+00:00"}}\n'
    )
    assert list(to_json(make_event("suspect"))) == [
        *("kind", "step", "update", "rows", "paths", "verdict", "guilty", "clock")
    ]


def changed(kind: str, /, **changes: Any) -> bytes:
    """The line of a plausible event with other values in it; ... leaves a field out."""
    content = {**to_json(make_event(kind)), **changes}
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("notice", {"text": 5}),
        ("notice", {"text": None}),
        ("notice", {"text": ...}),
        ("notice", {"step": 1.0}),
        ("notice", {"step": True}),
        ("notice", {"clock": []}),
        ("notice", {"clock": {"already_shown": "yes"}}),
        ("notice", {"kind": 5}),
        ("stage", {"trainable": 1.5}),
        ("stage", {"stage": False}),
        ("evaluated", {"epoch": "1"}),
        ("evaluated", {"best": 1}),
        ("evaluated", {"results": []}),
        ("evaluated", {"results": {"raw": {"loss": 1.0}}}),
        ("evaluated", {"results": {"raw": 1.0}}),
        ("evaluated", {"clock": {"eta_seconds": "soon"}}),
        ("bad_image", {"rows": ["3"]}),
        ("bad_image", {"paths": "cat/a.jpg"}),
        ("resumed", {"rejected": [{"name": "step_000009"}]}),
        ("memory", {"clock": {"points": {"now": 1.0}}}),
        ("finished", {"chosen": None}),
    ],
)
def test_a_field_of_another_type_is_damage(kind: str, changes: dict[str, Any]) -> None:
    from_line(changed(kind))
    with pytest.raises(ValueError):
        from_line(changed(kind, **changes))


def test_whole_numbers_are_numbers_and_missing_clocks_are_none() -> None:
    event = from_line(changed("evaluated", epoch=3, train_loss=None, clock=...))
    assert event == make_event(
        "evaluated",
        **{"epoch": 3, "train_loss": None, "time": None, "train_seconds": None, "memory_gb": None},
        **{"epoch_seconds": None, "images_per_second": None, "eval_seconds": None, "eta_seconds": None},
    )


def test_what_a_later_version_added_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    later = json.dumps({"kind": "praised", "step": 3, "by": "me", "clock": {}}).encode()
    with pytest.raises(UnknownKind, match="praised"):
        from_line(later)
    assert from_line(changed("notice", loud=True)) == make_event("notice")
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join([changed("started"), later, changed("notice"), b""]))
    with caplog.at_level(logging.WARNING):
        assert [event.kind for event in live_events(path)] == ["started", "notice"]
    assert "line 2 is left out: this version of stagewright does not know the kind praised" in caplog.text
    assert [one.line for one in read_events(path, left_out=lambda text: None)] == [1, 3]


def test_what_the_first_versions_wrote_is_read() -> None:
    shown = from_line(changed("notice", clock={"at": TIME, "told": True}))
    assert shown == make_event("notice", already_shown=True)
    assert isinstance(shown, Notice) and to_json(shown)["clock"] == {"at": TIME, "already_shown": True}
    back = from_line(changed("rolled_back", number=...))
    assert isinstance(back, RolledBack) and back.number is None


def test_a_rollback_that_is_written_again_supersedes_the_first(tmp_path: Path) -> None:
    """Only where it is numbered, with the same number and step."""
    path = tmp_path / "events.jsonl"
    back, other = changed("rolled_back"), changed("rolled_back", number=2)
    early = changed("rolled_back", number=...)
    for lines, live in (
        ([back, changed("suspect"), back], [2]),
        ([back, changed("suspect"), other], [0, 1, 2]),
        ([early, changed("suspect"), early], [0, 1, 2]),
    ):
        path.write_bytes(b"\n".join([*lines, b""]))
        assert [at for at, one in enumerate(read_events(path)) if not one.superseded] == live


def test_events_are_read_only_to_the_bottom() -> None:
    def check(value: object) -> None:
        assert not isinstance(value, list | dict | set)
        if dataclasses.is_dataclass(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, dataclasses.fields(value)[0].name, None)
            for one in dataclasses.fields(value):
                check(getattr(value, one.name))
        elif isinstance(value, tuple):
            for one in value:
                check(one)

    for kind in KINDS:
        check(make_event(kind))
    check(make_event("bad_image", rows=[1], paths=["a"], reasons=["b"]))


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len(KINDS) == len(Event.__subclasses__()) == 19
    assert {kind for kind, one in KINDS.items() if one.supersedes} == {"resumed", "rolled_back"}
    assert {kind for kind, one in KINDS.items() if one.by_process} == {
        *("started", "resumed", "saved", "stopped", "notice", "memory", "interim_finished", "tested")
    }
    assert {kind for kind, one in KINDS.items() if not one.in_file} == {"progress", "evaluating", "computing"}
