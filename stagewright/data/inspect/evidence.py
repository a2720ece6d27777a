"""Evidence: what is known about the files of a data set, and the findings that are drawn from it.

Severities: *serious*: results would be wrong, or training refuses the data. *Warning*: it probably costs accuracy or
time. *Notice*: good to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stagewright.data.inspect.fingerprint import Fingerprints, Pairs, Rows
from stagewright.data.sources.folders import Listing

Severity = Literal["serious", "warning", "notice"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "notice")


def no_detail(row: int) -> str:
    """Returns "": the text of a file about which there is nothing more to report."""
    return ""


@dataclass(frozen=True)
class Item:
    """A file, or a row of a table, that a finding is about."""

    path: str
    """Path relative to the root, with ``/``; for a table row without a file, the path in the table."""
    row: int = -1
    """Row of the listing; -1 if the listing does not contain the file."""
    detail: str = ""
    """Further information for the user, e.g. the size, or why the file cannot be read."""
    set: int = -1
    """Number of the set of copies that the image belongs to; -1 if none."""


@dataclass(frozen=True)
class Finding:
    """One problem or peculiarity of the data set, and the files that it is about."""

    kind: str
    """A name for programs, e.g. ``unreadable``; it stays the same in later versions."""
    severity: Severity
    what: str
    """What was found."""
    why: str
    """Why it matters."""
    todo: str
    """What the user can do."""
    items: tuple[Item, ...] = ()
    """The files and table rows that the finding is about."""
    names: tuple[str, ...] = ()
    """The classes or groups that the finding is about."""
    command: str = ""
    """The command that does what ``todo`` says, ready to be typed; empty if no command does it."""

    @property
    def sets(self) -> int:
        """Number of sets of copies among ``items``."""
        return len({item.set for item in self.items} - {-1})


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that is known about the N files of a listing; the input of all findings."""

    listing: Listing
    fingerprints: Fingerprints
    pairs: Pairs
    parts: NDArray[np.int8]
    """(N,): the split that DATA gives, or else the one that a run would make; UNDECIDED if there is none."""
    strict: bool = False
    """Whether unreadable images stop a run (``data.bad_images=fail``)."""
    refusal: str = ""
    """Why training refuses this data; empty if it does not."""
    unlisted: tuple[str, ...] = ()
    """Images in the folder that no row of the table names."""
    new_split: str = ""
    """The command that makes a new split and keeps near duplicates together in it."""
    together: bool = False
    """Whether the split that a run makes keeps near duplicates together (``data.near``)."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, sorted."""
        return tuple(sorted(set(self.listing.labels.to_pylist())))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,): index into ``classes``."""
        at = {name: label for label, name in enumerate(self.classes)}
        return np.array([at[name] for name in self.listing.labels.to_pylist()], np.int64)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """(N,): a number for each file; identical files have the same number, except unreadable ones."""
        keys = np.ascontiguousarray(self.fingerprints.digests).view("V16").ravel()
        _, units = np.unique(keys, return_inverse=True)
        bad = np.flatnonzero(~self.fingerprints.readable)
        units[bad] = len(units) + bad
        return units

    def counts(self, part: int | None = None) -> NDArray[np.int64]:
        """Returns the number of readable images of each class, (C,), in ``part``, or in all parts if it is None."""
        rows = self.fingerprints.readable if part is None else self.fingerprints.readable & (self.parts == part)
        return np.bincount(self.labels[rows], minlength=len(self.classes))

    def items(self, rows: Rows | Sequence[int], detail: Callable[[int], str] = no_detail) -> tuple[Item, ...]:
        """Returns an item for each of ``rows``, in this order, with the text that ``detail(row)`` returns."""
        return tuple(Item(self.listing.paths[row].as_py(), row, detail(row)) for row in map(int, rows))

    def size(self, row: int) -> str:
        """Returns the size of an image in pixels, e.g. ``500 x 375``, with the EXIF orientation applied."""
        return f"{self.fingerprints.widths[row]} x {self.fingerprints.heights[row]}"
