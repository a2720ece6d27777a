"""Summary of a written split: images by part and class, files written, and notes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright.data.account import Account


@dataclass(frozen=True, eq=False)
class SplitSummary:
    """The result of a split: number of images by part and class, the files that were written, and notes for the user."""

    source: str
    """DATA as the user gave it."""
    seed: int
    classes: tuple[str, ...]
    num_folds: int | None
    """Number of folds; None if the split is into train, val and test."""
    parts: tuple[str, ...]
    """Names of the P parts: train, val, test; or fold 1 to fold K, test. Empty parts are left out."""
    pictures: NDArray[np.int64]
    """(P, C): number of images of each part and class."""
    groups: tuple[int, ...] | None
    """Number of groups in each part; None if DATA has no groups."""
    excluded: int
    """Number of files and table rows of DATA that are in no part."""
    account: Account
    """How many images were read, what was left out and what could not be read."""
    tables: tuple[Path, ...]
    """The tables that were written; with folds, the table of all folds comes first."""
    links: Path | None
    """The folder of links that was written; None if none was requested."""
    notes: tuple[str, ...]

    def class_distance(self) -> NDArray[np.float64]:
        """Returns (P,): total variation distance between the class shares of each part and of all images, 0 to 1.

        This is the fraction of a part's images whose class would have to change to make the shares equal.
        """
        own = self.pictures / np.maximum(self.pictures.sum(1, keepdims=True), 1)
        return np.abs(own - self.pictures.sum(0) / self.pictures.sum()).sum(1) / 2

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as plain data for JSON; shares and distances are in 0 to 1."""
        sizes, distance = self.pictures.sum(1), self.class_distance()
        return {
            "source": self.source,
            "seed": self.seed,
            "folds": self.num_folds,
            "pictures": int(sizes.sum()),
            "excluded": self.excluded,
            "account": self.account.to_dict(),
            "parts": [
                {
                    "name": name,
                    "pictures": int(sizes[at]),
                    "share": float(sizes[at] / sizes.sum()),
                    "groups": None if self.groups is None else self.groups[at],
                    "class_distance": float(distance[at]),
                    "classes": dict(zip(self.classes, self.pictures[at].tolist(), strict=True)),
                }
                for at, name in enumerate(self.parts)
            ],
            "tables": [str(table) for table in self.tables],
            "links": None if self.links is None else str(self.links),
            "notes": list(self.notes),
        }
