"""Reads classes and groups from the paths of images, by the patterns of the recipe (``data.label``, ``data.group``).

Every image must match: an image that is left out in silence, or that is a group of its own by mistake, spoils what is measured.
Files that are no images by their extension need not; they are left out and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa

from stagewright.data.account import by_reason
from stagewright.data.images.decode import image_extensions
from stagewright.data.sources.folders import BY_NAME, Listing
from stagewright.errors import DataError
from stagewright.recipe.name_pattern import NamePattern, for_paths
from stagewright.storage.parquet import pc
from stagewright.text import counted, printable, some

Kind = Literal["label", "group"]


def read_classes(listing: Listing, pattern: NamePattern) -> Listing:
    """Returns ``listing`` with the class that ``pattern`` reads from each path; DataError if an image does not match."""
    listing, values = _matching(listing, pattern, "label")
    labels = pc.utf8_normalize(pa.array(values, pa.string()), form="NFC")
    note = _preview("classes from the names", "label", listing, labels.to_pylist())
    return replace(listing, labels=labels, notes=(*listing.notes, note))


def read_groups(listing: Listing, pattern: NamePattern) -> Listing:
    """Returns ``listing`` with the group that ``pattern`` reads from each path; DataError if an image does not match."""
    listing, values = _matching(listing, pattern, "group")
    note = _preview("groups from the names", "group", listing, values)
    return replace(listing, groups=pa.array(values, pa.string()), group_name=BY_NAME, notes=(*listing.notes, note))


def matches(pattern: NamePattern, kind: Kind, paths: pa.StringArray) -> list[str | None]:
    """Returns what the group ``kind`` of ``pattern`` matches in each path, None where nothing or the empty text."""
    found = pc.extract_regex(pc.utf8_normalize(paths, form="NFC"), pattern=for_paths(pattern.pattern))
    return [value or None for value in pc.struct_field(found, kind).to_pylist()]


def _matching(listing: Listing, pattern: NamePattern, kind: Kind) -> tuple[Listing, list[str]]:
    """Returns ``listing`` without files that are no images and do not match, and the value of each row."""
    values = matches(pattern, kind, listing.paths)
    paths = listing.paths.to_pylist()
    missed = [row for row, value in enumerate(values) if value is None]
    images = [row for row in missed if _is_image(paths[row])]
    if images:
        raise _no_match(listing, pattern, kind, [paths[row] for row in images])
    kept = np.setdiff1d(np.arange(len(paths)), missed)
    reason = f"no image by its name, and data.{kind} does not match it"
    left_out = by_reason((paths[row], reason) for row in missed)
    listing = listing.taken(kept)
    return replace(listing, left_out=(*listing.left_out, *left_out)), [value for value in values if value is not None]


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in image_extensions()


def _no_match(listing: Listing, pattern: NamePattern, kind: Kind, missed: list[str]) -> DataError:
    count = len(listing.paths)
    return DataError(
        f"data.{kind}={pattern} does not match {len(missed):,} of the {counted(count, 'file')} in {listing.root}: "
        f"{some(missed, 8)}",
        "a pattern that matches every image: it begins where the name of the file, or of a folder above it below DATA, begins, "
        "and letter case counts",
        r"extend the pattern ([^/]* in front skips the begin of a name, (?i) ignores case, A|B allows two forms), or move "
        "these files away",
    )


def _preview(what: str, kind: Kind, listing: Listing, values: list[str]) -> str:
    """A note with the number of values, their sizes and three examples of different values."""
    sizes = Counter(values)
    if not sizes:
        return f"{what}: there are no files"
    names = sorted(sizes)
    rows = [values.index(name) for name in dict.fromkeys((names[0], names[len(names) // 2], names[-1]))]
    rows += [row for row in range(len(values) - 1, -1, -1) if row not in rows][: 3 - len(rows)]
    shown = [f"{printable(listing.paths[row].as_py())} is {printable(values[row])!r}" for row in rows]
    low, high = min(sizes.values()), max(sizes.values())
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    noun = "class" if kind == "label" else kind
    each += " file" if high == 1 else " files"
    return f"{what}: {counted(len(sizes), noun)} of {each}; e.g. {', '.join(shown)}"
