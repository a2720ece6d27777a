"""What a run answered to its held-out images, for Python and notebooks: the confusion matrix and the most confident errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.encode import data_uri, encoded
from stagewright.errors import CheckpointError, DataError
from stagewright.report import results
from stagewright.report.examples import most_confident_errors
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES
from stagewright.report.tables import Predictions
from stagewright.report.thumbnails import thumbnails
from stagewright.system.notebook import heading, table, tile
from stagewright.text import counted

_MOST_CELLS = 5_000
"""A matrix of so many classes takes 200 MB."""
_SHOWN_CLASSES = 40
_SHOWN = 48
"""Most images in a notebook's cell."""


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often each class was taken for each other; ``numpy.asarray`` gives the counts."""

    counts: NDArray[np.int64]
    """(C, C) number of images: rows are true classes, columns are predicted classes."""
    classes: tuple[str, ...]
    """Names of the C classes."""
    split: str
    """The images that were answered: ``test``, or ``val`` where there are no test images."""

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> NDArray[np.int64]:
        return np.array(self.counts, dtype=dtype) if copy or dtype is not None else self.counts

    def __getitem__(self, pair: tuple[str, str]) -> int:
        """Returns how many images of the first class were taken for the second, by their names; KeyError for another name."""
        true, predicted = (self._number(name) for name in pair)
        return int(self.counts[true, predicted])

    def _number(self, name: str) -> int:
        if name not in self.classes:
            raise KeyError(name)
        return self.classes.index(name)

    def _repr_html_(self) -> str:
        right, total = int(np.trace(self.counts)), int(self.counts.sum())
        title = heading(
            f"{right:,} of {total:,} {SPLIT_NAMES[self.split]} pictures right", "rows: true, columns: predicted"
        )
        if len(self.classes) > _SHOWN_CLASSES:
            return title + heading("", f"{len(self.classes):,} classes are too many to show here")
        rows = [
            (name, *(f"{count:,}" if count else "·" for count in line))
            for name, line in zip(self.classes, self.counts.tolist(), strict=True)
        ]
        return title + table(("", *self.classes), rows)


def confusion(record: RunRecord) -> Confusion:
    """Returns the confusion matrix of the test images, or else of the validation images; CheckpointError if the run has not
    answered any yet, DataError for more than 5,000 classes."""
    predictions, classes = _answered(record), tuple(record.classes)
    if len(classes) > _MOST_CELLS:
        raise DataError(
            f"a confusion matrix of {len(classes):,} classes",
            f"at most {_MOST_CELLS:,}",
            "run.mistakes lists single errors; evaluations/*.parquet has every answer",
        )
    return Confusion(results.confusion(predictions, len(classes)), classes, predictions.split)


@dataclass(frozen=True)
class Mistake:
    """An image that was answered with a wrong class."""

    path: str
    """Its file; of an image in an archive or pack, its name there."""
    label: str
    """The class that it is of."""
    answer: str
    """The class that was answered."""
    probability: float | None
    """Of the answer, in [0, 1]; None where the run has not stored it."""


class Mistakes(Sequence[Mistake]):
    """Wrong answers, the most confident first. A notebook shows their images, as far as they are still there."""

    def __init__(self, found: Sequence[Mistake], names: Sequence[str], errors: int, record: RunRecord) -> None:
        """``names`` are the paths in the manifest, ``errors`` is the number of all wrong answers."""
        self._found, self._names, self._record = tuple(found), tuple(names), record
        self.errors = errors
        """Number of all wrong answers."""

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, at: int) -> Mistake: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Mistake]: ...
    def __getitem__(self, at: int | slice) -> Mistake | Sequence[Mistake]:
        return self._found[at]

    def __repr__(self) -> str:
        return f"Mistakes({list(self._found)!r})"

    def _repr_html_(self) -> str:
        shown = self._found[:_SHOWN]
        pixels = dict(self._thumbnails(self._names[:_SHOWN]))
        tiles = [
            tile(pixels.get(name), f"{one.label} → {one.answer}", _sure(one), one.path)
            for name, one in zip(self._names, shown, strict=False)
        ]
        note = f"{counted(len(shown), 'picture')} of {counted(self.errors, 'wrong answer')}: true class → answer"
        return heading("Most confident mistakes", note) + "".join(tiles)

    def _thumbnails(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yields name and address of each image that can be read."""
        source = thumbnails(self._record)
        if isinstance(source, str):
            return
        for name, pixels in source.read(names):
            if pixels is not None:
                yield name, data_uri(encoded(pixels))


def _sure(one: Mistake) -> str:
    return "" if one.probability is None else f"{100 * one.probability:.1f} %"


def mistakes(record: RunRecord, most: int) -> Mistakes:
    """Returns at most ``most`` wrong answers to the test images, or else to the validation images, the most confident first.
    CheckpointError if the run has not answered any yet, DataError if ``most`` is below 1."""
    if most < 1:
        raise DataError(f"{most} mistakes", "1 or more", "give a larger number")
    found, classes = _answered(record), record.classes
    places = most_confident_errors(found, most).tolist()
    names = ["" if found.paths is None else str(found.paths[at]) for at in places]
    source = thumbnails(record)
    root = None if isinstance(source, str) else Path(source.manifest.root)
    files = [name if root is None or not name or not (root / name).is_file() else str(root / name) for name in names]
    sure = [None if found.confidence is None else float(found.confidence[at]) for at in places]
    wrong = [
        Mistake(file, classes[found.labels[at]], classes[found.predicted[at]], probability)
        for at, file, probability in zip(places, files, sure, strict=True)
    ]
    return Mistakes(wrong, names, len(found) - found.correct, record)


def _answered(record: RunRecord) -> Predictions:
    found = results.shown_split(record)
    if found is None or not len(found):
        raise CheckpointError(
            f"{record.path} has no answers to held-out pictures yet: it is {record.status}",
            "a finished run with validation or test pictures",
            f"stagewright finish {record.path} evaluates what it has saved"
            if record.status != "finished"
            else "give pictures: run.evaluate(DATA)",
        )
    return found
