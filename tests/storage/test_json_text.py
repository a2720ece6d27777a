"""JSON from strangers: what is refused, and that fields have the types they must have."""

from __future__ import annotations

from pathlib import Path

import pytest

import stagewright
from stagewright.rundir.json_fields import MetaFields, SummaryFields
from stagewright.storage.json_text import fitting, misfit, parse_object


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"", "Expecting value"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper"),
        (b"[" * 100_000, "nested deeper"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": ' + b"9" * 6000 + b"}", "digits"),
    ],
)
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_object(data)


def test_what_editors_add_is_read() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": NaN}\r\n').keys() == {"a"}


def test_fields_of_a_wrong_type_are_left_out_and_named() -> None:
    given = {"step": "5", "name": "run", "top1": {"val": "high"}, "seed": True, "other": [1]}
    found, problems = fitting(given, SummaryFields)
    assert found == {"name": "run", "other": [1]}
    assert [problem.split(" is ")[0] for problem in problems] == ["seed", "step", "top1.val"]


def test_a_missing_field_is_named() -> None:
    given = {"step": 1, "plan_digest": "d", "bytes": 5, "sha256": "s"}
    assert misfit(given, MetaFields) == "protect is missing"
    assert misfit({**given, "protect": [-1]}, MetaFields).startswith("protect.0 is -1")
    assert not misfit({**given, "protect": []}, MetaFields)
    seal = {"bytes": 1, "sha256": "s"}
    assert not misfit({**given, "protect": [], "logs": {"steps.csv": seal}}, MetaFields)
    assert misfit({**given, "protect": [], "logs": {"../../.profile": seal}}, MetaFields).startswith("logs")


def test_nothing_else_reads_json() -> None:
    """json.loads has no limit of depth and takes equal keys, so files are read by json_text alone."""
    package = Path(stagewright.__file__).parent
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "json.load" in path.read_text()}
    assert found == {
        "storage/json_text.py",
        "rundir/checkpoint.py",  # only what it has just written
        # What processes of one run have told each other a moment ago; those of other hosts are checked field by field.
        "preflight/interconnect.py",  # what its own processes have printed
        "system/notices.py",  # a metadata service's answer; each field is looked at
        *(f"distributed/{name}.py" for name in ("beats", "gathering", "heartbeat", "rendezvous", "verdict", "world")),
    }
