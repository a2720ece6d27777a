"""What workers leave for the launcher, and the code that follows from all of them."""

from __future__ import annotations

import json
import signal
from itertools import permutations
from pathlib import Path

import pytest

from stagewright.distributed.verdict import VERDICTS, Verdict, combined_code, leave_verdict, read_verdict

TERM, TERMINATED = int(signal.SIGTERM), 143


@pytest.mark.parametrize(
    ("codes", "passed", "expected"),
    [
        ([0], None, 0),
        ([0, 0, 0], None, 0),
        ([2, 0, 0], None, 2),
        ([2, 75, 1], None, 2),
        ([2, 69, 0], None, 2),
        ([75, 75, 75], None, 75),
        ([75, 0, 0], None, 75),
        ([75, 1, 0], None, 1),
        ([69, 0, 0], None, 69),
        ([69, 75, 1], None, 69),
        ([None, 0, 0], None, 69),
        ([None, 2, 75], None, 2),
        ([None, 75, 75], TERM, 69),
        ([1, 0, 0], None, 1),
        ([130, 0, 0], None, 1),
        ([TERMINATED, 0, 0], None, 1),
        ([TERMINATED, TERMINATED, TERMINATED], TERM, TERMINATED),
        ([TERMINATED, 0, 0], TERM, TERMINATED),
        ([TERMINATED, 75, 75], TERM, 75),
        ([TERMINATED, 1, 75], TERM, 1),
        ([0, 0, 0], TERM, 0),
    ],
)
def test_the_code_of_all_ranks(codes: list[int | None], passed: int | None, expected: int) -> None:
    """In every order of the ranks."""
    assert {combined_code(order, passed) for order in permutations(codes)} == {expected}


def test_a_verdict_is_left_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VERDICTS, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    assert leave_verdict(75, "gespeichert: größer") == 0
    assert read_verdict(tmp_path, 3) == Verdict(75, "gespeichert: größer")
    assert read_verdict(tmp_path, 2) is None
    assert [path.name for path in tmp_path.iterdir()] == ["rank-3.json"]


def test_without_the_launcher_a_worker_ends_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the launcher's folder has gone."""
    monkeypatch.delenv(VERDICTS, raising=False)
    assert leave_verdict(75) == 75
    monkeypatch.setenv(VERDICTS, str(tmp_path / "gone"))
    monkeypatch.setenv("RANK", "0")
    assert leave_verdict(2, "text") == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"code": true}', '{"code": "0"}', '{"code": 256}', '{"code": 0, "text": 1}', "{}"]
)
def test_what_is_no_verdict_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "rank-0.json").write_text(content)
    assert read_verdict(tmp_path, 0) is None
    (tmp_path / "rank-0.json").write_text(json.dumps({"code": 0}))
    assert read_verdict(tmp_path, 0) == Verdict(0)
