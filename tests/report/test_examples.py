"""Which images the report shows: against a selection by hand, for random predictions with ties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stagewright.report.examples import errors_by_pair, hardest, most_confident_errors
from stagewright.report.tables import Predictions

NUMBERS = st.integers(0, 3)


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    rows = draw(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=30))
    labels, predicted, sure, true = np.array(rows, np.int32).reshape(-1, 4).T
    return Predictions("test", labels, predicted, None, 0, None, sure / 3, true / 3)


@given(predictions(), st.integers(0, 10))
def test_the_most_confident_errors_come_first(found: Predictions, most: int) -> None:
    assert found.confidence is not None
    wrong = [at for at in range(len(found)) if found.labels[at] != found.predicted[at]]
    by_hand = sorted(wrong, key=lambda at: -found.confidence[at])[:most]  # pyright: ignore[reportOptionalSubscript]
    assert most_confident_errors(found, most).tolist() == by_hand


@given(predictions())
def test_every_error_is_in_its_pair(found: Predictions) -> None:
    seen = []
    for pair in errors_by_pair(found):
        assert all(found.labels[at] == pair.true and found.predicted[at] == pair.predicted for at in pair.places)
        assert found.confidence is not None and (np.diff(found.confidence[pair.places]) <= 0).all()
        seen += pair.places.tolist()
    assert sorted(seen) == np.flatnonzero(found.labels != found.predicted).tolist()
    counts = [len(pair.places) for pair in errors_by_pair(found)]
    assert counts == sorted(counts, reverse=True)


@given(predictions(), NUMBERS, st.integers(0, 10))
def test_the_hardest_have_the_least_probable_class(found: Predictions, label: int, most: int) -> None:
    assert found.true_probability is not None
    own = [at for at in range(len(found)) if found.labels[at] == label]
    by_hand = sorted(own, key=lambda at: found.true_probability[at])  # pyright: ignore[reportOptionalSubscript]
    assert hardest(found, label, most).tolist() == by_hand[:most]
    assert len(hardest(replace(found, true_probability=None), label, most)) == 0
