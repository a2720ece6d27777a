"""Interprets names of folders and files: parts of a data set, folders that stagewright wrote, classes in file names.

Pure functions of names; :mod:`stagewright.data.sources.folders` reads the disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from stagewright.data.partition import TEST, TRAIN, VAL

PART_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "validate": VAL,
    "dev": VAL,
    "eval": VAL,
    "test": TEST,
    "testing": TEST,
    "holdout": TEST,
}
"""Words that name a part of a data set."""
_UNLABELLED = frozenset(
    ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "inference", "submission")
)
"""Words for images that have no classes."""
_NEUTRAL = frozenset(
    (
        *(
            "set",
            "data",
            "dataset",
            "split",
            "folder",
            "files",
            "image",
            "images",
            "img",
            "imgs",
            "picture",
            "pictures",
        ),
        *("photo", "photos", "jpg", "jpeg", "png", "hold", "out"),
    )
)
"""Words without meaning next to a word for a part: ``training_set``, ``test-images``."""
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


@dataclass(frozen=True)
class PartFolders:
    """Sibling folders that are parts of one data set."""

    names: dict[int, list[str]]
    """Maps TRAIN, VAL and TEST to the folders with such names."""
    unlabelled: tuple[str, ...]
    """Folders of images without classes, such as ``seg_pred``."""
    others: tuple[str, ...]
    """Folders whose names do not name a part."""


def part_folders(names: Sequence[str]) -> PartFolders:
    """Sorts sibling folders by their names: ``seg_train``, ``training_set``, ``test1``, ``Training``, ``valid``.

    Further words in a name (``seg``) must be the same in all parts: ``bus_test`` and ``car_train`` are not parts.
    """
    found = {name: _part(name) for name in names}
    rests = Counter(rest for part, rest in found.values() if part is not None)
    common = next((rest for rest, count in rests.most_common(1) if count > 1 or not rest), None)
    parts: dict[int, list[str]] = {}
    unlabelled, others = [], []
    for name, (part, rest) in found.items():
        if part is None or rest != common:
            others.append(name)
        elif part == _NO_CLASSES:
            unlabelled.append(name)
        else:
            parts.setdefault(part, []).append(name)
    return PartFolders(parts, tuple(unlabelled), tuple(others))


def words_of(name: str) -> list[str]:
    """Returns the words of a name, without figures and case: ``trainImages2017`` is ``train`` and ``images``."""
    return [word.casefold() for word in _TOKEN.findall(name)]


_NO_CLASSES = -2


def _part(name: str) -> tuple[int | None, tuple[str, ...]]:
    """Returns the part that ``name`` names, or None, and its other words."""
    words = words_of(name)
    meant = [word for word in words if word in PART_WORDS or word in _UNLABELLED]
    if {"hold", "out"} <= set(words) and not meant:
        meant, words = ["holdout"], [word for word in words if word not in ("hold", "out")]
    if len(meant) != 1:
        return None, ()
    rest = tuple(word for word in words if word not in meant and word not in _NEUTRAL)
    return PART_WORDS.get(meant[0], _NO_CLASSES), rest


_OWN = (
    (frozenset(("plan.json", "recipe.yaml")), "a run"),
    (frozenset(("plan.json", "manifest.parquet")), "a run"),
    (frozenset(("model.json", "weights.safetensors")), "a trained model"),
    (frozenset(("pack.json", "index.parquet")), "a pack"),
    (frozenset(("packing.json",)), "an unfinished pack"),
    (frozenset(("lr-find.json",)), "a learning rate search"),
)


def own_folder(entries: Collection[str]) -> str | None:
    """Returns what stagewright stored in a folder with these ``entries`` (``a run``, ``a pack``, ...), or None."""
    names = frozenset(entries)
    return next((what for files, what in _OWN if files <= names), None)


def similar_names(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns sets of class names that differ only in case, blanks, ``-``, ``_`` and ``.``."""
    by_key: dict[str, list[str]] = {}
    for name in classes:
        by_key.setdefault(re.sub(r"[\s\-_.]+", "", name).casefold() or name, []).append(name)
    return [tuple(names) for names in by_key.values() if len(names) > 1]


def combined_names(classes: Collection[str]) -> list[str]:
    """Returns classes whose names consist of several other classes' names (``scab rust``), probably cells with several labels."""
    known = set(classes)
    found = []
    for name in classes:
        for separator in (" ", ",", ";", "|", "/", "+", "&"):
            words = [word.strip() for word in name.split(separator)]
            if len(words) > 1 and all(words) and sum(word in known for word in words) >= max(1, len(words) - 1):
                found.append(name)
                break
    return found if len(found) > 0 and _several_are_whole(found, known) else []


def _several_are_whole(combined: Sequence[str], known: set[str]) -> bool:
    """Whether some combined name is made of known names alone: ``red fox`` beside ``fox`` is not."""
    return any(
        all(word.strip() in known for word in re.split(r"[\s,;|/+&]+", name) if word.strip()) for name in combined
    )


CLASS_AND_NUMBER = r"(?P<label>[^/\d]*[^/\d ._(-])[ ._-]*\(?\d+"
"""A pattern (``data.label``) for the names that :func:`classes_in_file_names` knows."""


def classes_in_file_names(files: Sequence[str]) -> list[str]:
    """Returns the words before the number in names such as ``cat.12.jpg`` and ``dog_3.png`` if they may be classes, else [].

    They may be if there are 2 to 50 words, each in at least two files, and all files have such names.
    """
    words = Counter[str]()
    for name in files:
        match = re.fullmatch(r"(\D*[^\W\d_])[\s._-]*\(?\d+\)?\.\w+", name)
        if match is None:
            return []
        words[match[1]] += 1
    return sorted(words) if 2 <= len(words) <= 50 and min(words.values()) >= 2 else []
