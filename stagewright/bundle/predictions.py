"""Predictions, and their output as CSV or JSON. Does not use torch; a Bundle (:mod:`stagewright.bundle.bundle`) computes them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stagewright.data.account import Account
from stagewright.storage.lines import LineWriter
from stagewright.system.notebook import heading, table
from stagewright.text import path_cell, table_cell


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image: either classes or an error."""

    path: str
    classes: tuple[tuple[str, float], ...]
    """(name, probability in [0, 1]), most probable first; () if the image could not be read."""
    error: str | None = None
    """Why there is no prediction; None if there is one."""
    decided: tuple[str, float] | Literal["most probable"] | None = "most probable"
    """The class that an operating point answers, with its probability; None for no answer."""

    @property
    def answer(self) -> str | None:
        """The class that is answered; None for no answer, and for an error. Without an operating point, the most probable one."""
        return None if self._chosen is None else self._chosen[0]

    @property
    def answer_probability(self) -> float | None:
        """Its probability in [0, 1]."""
        return None if self._chosen is None else self._chosen[1]

    def _repr_html_(self) -> str:
        """Returns the prediction for a notebook: the path, the answer, and the probabilities of the classes."""
        if self.error is not None:
            return heading(self.path, f"no prediction: {self.error}")
        chosen = self._chosen
        answer = "no answer" if chosen is None else f"{chosen[0]}, {100 * chosen[1]:.1f} %"
        return heading(answer, self.path) + table(
            (), [(name, f"{100 * probability:.1f} %") for name, probability in self.classes]
        )

    @property
    def _chosen(self) -> tuple[str, float] | None:
        if self.decided != "most probable":
            return self.decided
        return self.classes[0] if self.classes else None


class CsvWriter:
    """Writes predictions as CSV to ``lines``, one row per image: path, class_1, probability_1, ... class_k, probability_k,
    error; with an operating point path, answer, class_1, ...; cells without a value are empty.

    Names and paths are written by :func:`~stagewright.text.table_cell` and :func:`~stagewright.text.path_cell`, so that a
    spreadsheet takes none of them for a formula; bytes of a path that are no UTF-8 are written as they are.
    """

    def __init__(self, lines: LineWriter, num_classes: int, *, answers: bool = False) -> None:
        """``num_classes`` is k; ``answers`` tells whether there is an operating point."""
        self.lines, self.num_classes, self.answers = lines, num_classes, answers
        self._begun = False

    def write(self, prediction: Prediction) -> None:
        """Writes one row; before the first, also the names of the columns."""
        if not self._begun:
            places = range(1, self.num_classes + 1)
            names = [f"{what}_{at}" for at in places for what in ("class", "probability")]
            self.lines.write(_csv_row(["path", *(["answer"] if self.answers else []), *names, "error"]))
            self._begun = True
        cells = [cell for name, probability in prediction.classes for cell in (table_cell(name), f"{probability:.6f}")]
        own = [table_cell(prediction.answer or "")] if self.answers else []
        cells += [""] * (2 * self.num_classes - len(cells))
        self.lines.write(_csv_row([path_cell(prediction.path), *own, *cells, table_cell(prediction.error or "")]))


def _csv_row(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()


class JsonWriter:
    """Writes predictions as one JSON object to ``lines``: ``predictions``, a list with one object per line and image, and
    ``account``. It is ASCII, which every terminal can show.

    A prediction is: path, answer (a class, or null for no answer), classes [{name, probability}] (most probable first), error or
    null. ``close`` completes the object,
    also after an interruption.
    """

    def __init__(self, lines: LineWriter) -> None:
        self.lines = lines
        self._count = 0

    def write(self, prediction: Prediction) -> None:
        """Writes the object of one image."""
        classes = [{"name": name, "probability": probability} for name, probability in prediction.classes]
        content = {
            "path": prediction.path,
            "answer": prediction.answer,
            "classes": classes,
            "error": prediction.error,
        }
        # The comma comes before the object that follows, since which one is the last is not known.
        before = ",\n" if self._count else '{"predictions": [\n'
        self.lines.write(before + json.dumps(content))
        self._count += 1

    def close(self, account: Account) -> None:
        """Writes the account and the end of the object."""
        before = "\n" if self._count else '{"predictions": ['
        self.lines.write(f'{before}],\n"account": {json.dumps(account.to_dict())}}}\n')
