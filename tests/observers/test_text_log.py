"""log.txt on a disk that is full for some time."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stagewright.observers.text_log import TextLog
from stagewright.rundir.event_kinds import Event, Notice


def notice(text: str) -> Event:
    return Notice(step=1, text=text, time="2026-01-02T03:04:05.000+00:00")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Context in which files of this process cannot exceed ``size`` bytes: the system refuses more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_wait_for_room_and_none_is_torn(tmp_path: Path) -> None:
    log = TextLog(tmp_path / "log.txt")
    log.see(notice("one"))
    with room_for(60):
        log.see(notice("two, of which a part would fit"))
        log.see(notice("three"))
        assert (tmp_path / "log.txt").read_text() == "2026-01-02 03:04:05  one\n"
    log.see(notice("four"))
    log.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["one", "two, of which a part would fit", "three", "four"]


def test_a_log_whose_folder_is_gone_ends_nothing_and_makes_no_folder(tmp_path: Path) -> None:
    log = TextLog(tmp_path / "gone" / "log.txt")
    log.see(notice("one"))
    log.close()
    assert list(tmp_path.iterdir()) == []
