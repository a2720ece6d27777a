"""Words that all processes agree on, one step later."""

from __future__ import annotations

from pathlib import Path

from ranks import run_sizes

from stagewright.distributed.control import Agreement
from stagewright.distributed.world import World


def test_a_word_is_agreed_on_one_step_later(tmp_path: Path) -> None:
    (ranks,) = run_sizes(tmp_path / "ranks", "agreed", [3]).values()
    assert all(own == ranks[0] for own in ranks)
    steps, (pending, settled, none, last, nothing) = ranks[0][:6], ranks[0][6:]
    assert steps == [None, [0, 2], [0, 12], [0, 22], [1, 32], [0, 42]]
    assert pending == [0, 52]  # with the word of step 5, which no step has seen
    assert settled == [2, 0]
    assert none is None and last == [7, 7] and nothing is None


def test_alone_a_word_is_agreed_on_at_once() -> None:
    agreement = Agreement(World.alone("cpu"))
    assert agreement.exchange([1, 2]) == (1, 2)
    assert agreement.settle([3]) == (3,)
    assert agreement.drain() is None
