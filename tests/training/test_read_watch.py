"""When data counts as gone, and which update is the first with missing images."""

from __future__ import annotations

from stagewright.training.read_watch import ReadWatch


def test_a_few_are_masked_and_many_stop() -> None:
    watch = ReadWatch(0.05, 10)
    for update in range(40):
        assert watch.check(update, 1 if update % 3 == 0 else 0, 20) is None, "4 of the 200 of a window"
    assert watch.check(40, 0, 20) is None and watch.check(41, 2, 20) is None
    assert watch.check(42, 9, 20) == 41, "in update 41, more than 1 in 20 were missing too"
    assert watch.missing_images() == (14, 200, "steps 34 to 43")


def test_the_first_update_of_an_outage_may_miss_few() -> None:
    watch = ReadWatch(0.05, 10)
    assert [watch.check(update, missing, 40) for update, missing in enumerate((1, 0, 1, 2, 1, 12))] == [None] * 5 + [
        None
    ]
    assert watch.check(6, 40, 40) == 2, (
        "updates 2 to 6 each miss some, and nothing says that update 2 is not of the outage"
    )
    assert watch.missing_images()[0] == 57


def test_a_batch_without_one_picture_stops_at_once() -> None:
    watch = ReadWatch(0.05, 10)
    assert watch.check(0, 0, 8) is None and watch.check(1, 8, 8) == 1
    assert watch.missing_images() == (8, 16, "steps 1 to 2")
    assert ReadWatch(0.5, 100).check(0, 8, 8) == 0
    assert ReadWatch(1.0, 100).check(0, 8, 8) is None, "1 never stops"


def test_going_back_forgets_what_came_after() -> None:
    watch = ReadWatch(0.05, 10)
    for update in range(8):
        watch.check(update, 1, 20)
    assert watch.check(3, 1, 20) is None and [update for update, _, _ in watch.recent] == [0, 1, 2, 3]


def test_a_single_picture_of_a_small_part_is_not_the_end() -> None:
    watch = ReadWatch(0.05, 10)
    assert not watch.is_gone(1, 12) and watch.is_gone(2, 12) and watch.is_gone(1, 1) and not watch.is_gone(0, 0)
    assert not watch.is_gone(50, 1000) and watch.is_gone(51, 1000)
