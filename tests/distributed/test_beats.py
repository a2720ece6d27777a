"""Which rank is lost, from what the ranks say, without processes."""

from __future__ import annotations

from dataclasses import replace

from stagewright.distributed.beats import Beat, Watch
from stagewright.distributed.members import Member

MEMBERS = [Member("node-a", 10, ""), Member("node-a", 11, ""), Member("node-b", 12, "")]


class Story:
    """Three ranks that beat every 2 s and step every 2 s; a test changes what they say."""

    def __init__(self) -> None:
        self.watch = Watch(MEMBERS, 60.0)
        self.watch.begin(0.0)
        self.beats = [Beat(phase="train") for _ in MEMBERS]
        self.now = 0.0

    def go_on(self, seconds: float, silent: tuple[int, ...] = (), still: tuple[int, ...] = ()) -> list[tuple[int, str]]:
        for _ in range(round(seconds / 2)):
            self.now += 2
            for rank, beat in enumerate(self.beats):
                if rank not in silent and not beat.done:
                    step = beat.step + (rank not in still)
                    self.beats[rank] = replace(beat, number=beat.number + 1, step=step)
            self.watch.see(self.now, self.beats)
        return [(rank, did) for rank, did, _ in self.watch.lost()]

    def set(self, rank: int, **changes: object) -> None:
        self.beats[rank] = replace(self.beats[rank], **changes)  # pyright: ignore[reportArgumentType]


def test_nobody_is_lost_while_all_go_on() -> None:
    assert Story().go_on(1000) == []


def test_a_silent_rank_is_lost_after_the_timeout() -> None:
    story = Story()
    assert story.go_on(60, silent=(2,)) == []
    assert story.go_on(4, silent=(2,)) == [(2, "has been silent")]
    text = story.watch.describe(2, "has been silent", "14:03:21")
    assert text == "rank 2 (node-b, pid 12) has been silent since 14:03:21 in phase train at step 0"


def test_the_rank_without_progress_is_named_and_not_those_that_wait_for_it() -> None:
    story = Story()
    story.go_on(10)
    story.set(1, note="a.jpg")
    for rank in (0, 2):
        story.set(rank, waiting=True)
    assert story.go_on(60, still=(0, 1, 2)) == []
    assert story.go_on(2, still=(0, 1, 2)) == [(1, "has made no progress")]
    assert story.watch.describe(1, "x", "y").endswith("at step 5, last read: a.jpg")


def test_where_waits_are_not_marked_the_rank_behind_is_named() -> None:
    story = Story()
    story.set(0, step=6)
    story.set(2, step=6)
    story.set(1, step=5)
    assert story.go_on(70, still=(0, 1, 2)) == [(1, "has made no progress")]


def test_a_wait_for_a_rank_that_works_is_no_fault() -> None:
    """The others wait for hours while rank 0 scans."""
    story = Story()
    for rank in (1, 2):
        story.set(rank, waiting=True)
    assert story.go_on(7200, still=(1, 2)) == []


def test_ranks_that_wait_for_each_other_are_named() -> None:
    story = Story()
    for rank in range(3):
        story.set(rank, waiting=True)
    assert story.go_on(70, still=(0, 1, 2)) == [(0, "has waited for others, as do ranks 0-2,")]


def test_a_rank_that_is_done_is_not_missed() -> None:
    story = Story()
    story.set(2, done=True)
    assert story.go_on(200) == []
    for rank in (0, 1):
        story.set(rank, done=True)
    assert story.go_on(200) == [] and story.watch.all_done()


def test_a_reader_that_could_not_read_blames_nobody() -> None:
    """Ages count up to the last reading."""
    story = Story()
    story.go_on(10)
    story.watch.see(1000.0, [replace(beat, number=beat.number + 1, step=beat.step + 1) for beat in story.beats])
    assert story.watch.lost() == []


def test_a_beat_survives_its_way_as_json() -> None:
    beat = Beat(3, "evaluate", 17, 99, "ü.jpg", True, False)
    assert Beat.from_json(beat.to_json()) == beat
