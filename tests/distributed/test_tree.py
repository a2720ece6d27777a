"""The tree of additions: the same expression for every split of the lanes, over symbols and not numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.distributed.tree import PartialSums, fold, share, subtrees


def add(left: str, right: str) -> str:
    return f"({left}+{right})"


def expression(lanes: int, size: int, outside: bool = False) -> str:
    """The sum that ``size`` ranks form, from symbols 0, 1, ...; with ``outside``, a lane's first addition is the caller's."""
    values: dict[tuple[int, int], str] = {}
    for rank in range(size):
        own = share(lanes, rank, size)
        sums = PartialSums(lanes, own, add)
        for lane in own:
            left = sums.take_left() if outside else None
            sums.push(str(lane) if left is None else add(left, str(lane)))
        parts = subtrees(lanes, own)
        values |= {(part.start, part.stop): value for part, value in zip(parts, sums.sums, strict=True)}
    return fold(lanes, values, add)


def test_every_split_of_up_to_64_lanes_folds_to_the_same_expression() -> None:
    for lanes in range(1, 65):
        alone = expression(lanes, 1)
        for size in range(2, lanes + 1):
            assert expression(lanes, size) == alone, (lanes, size)
            assert expression(lanes, size, outside=True) == alone, (lanes, size)


def test_the_tree_is_the_one_that_is_documented() -> None:
    assert expression(1, 1) == "0"
    assert expression(2, 1) == "(0+1)"
    assert expression(3, 1) == "((0+1)+2)"
    assert expression(4, 1) == "((0+1)+(2+3))"
    assert expression(7, 3) == "(((0+1)+(2+3))+((4+5)+6))"


def test_another_order_of_one_addition_is_seen() -> None:
    """The comparison of expressions must be able to fail: swapped operands, and another association."""
    alone = expression(8, 1)
    values = {(lane, lane + 1): str(lane) for lane in range(8)}
    assert fold(8, values, add) == alone
    calls = iter(range(7))
    assert fold(8, values, lambda left, right: add(right, left) if next(calls) == 5 else add(left, right)) != alone
    in_sequence = PartialSums(8, range(8), add)
    in_sequence._merges = [0, 1, 1, 1, 1, 1, 1, 1]  # a running sum in place of the tree
    for lane in range(8):
        in_sequence.push(str(lane))
    assert in_sequence.sums[0] != alone


@given(lanes=st.integers(1, 300), data=st.data())
def test_subtrees_are_maximal_and_cover_the_lanes_of_a_rank(lanes: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, lanes))
    whole = [lane for rank in range(size) for lane in share(lanes, rank, size)]
    assert whole == list(range(lanes))
    rank = data.draw(st.integers(0, size - 1))
    own = share(lanes, rank, size)
    parts = subtrees(lanes, own)
    assert [lane for part in parts for lane in part] == list(own)
    assert len(parts) <= 2 * lanes.bit_length()
    nodes = nodes_of(range(lanes))
    assert all(part in nodes for part in parts)
    assert not any(
        is_inside(node, own) and any(is_inside(part, node) and part != node for part in parts) for node in nodes
    )


def nodes_of(part: range) -> set[range]:
    """Every node of the tree over ``part``, by the definition."""
    if len(part) == 1:
        return {part}
    power = 1
    while 2 * power < len(part):
        power *= 2
    middle = part.start + power
    return {part} | nodes_of(range(part.start, middle)) | nodes_of(range(middle, part.stop))


def is_inside(part: range, other: range) -> bool:
    return other.start <= part.start and part.stop <= other.stop


def test_the_stack_is_as_deep_as_the_logarithm_of_the_lanes() -> None:
    sums = PartialSums(1000, range(1000), add)
    deepest = 0
    for lane in range(1000):
        sums.push(str(lane))
        deepest = max(deepest, len(sums._stack))
    assert deepest <= 10
    assert len(sums.sums) == 1


def test_wrong_use_is_an_error() -> None:
    with pytest.raises(ValueError, match="every rank needs a lane"):
        share(3, 0, 4)
    sums = PartialSums(4, range(2, 4), add)
    sums.push("2")
    with pytest.raises(ValueError, match="1 of 2 lanes"):
        _ = sums.sums
    sums.push("3")
    with pytest.raises(ValueError, match="already"):
        sums.push("4")
    with pytest.raises(KeyError):
        fold(4, {(0, 2): "01"}, add)
