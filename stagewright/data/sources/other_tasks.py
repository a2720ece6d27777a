"""Recognises data for other tasks than classification: detection, segmentation, several labels of one image, regression.

Read as classes, such data would train something that nobody asked for: a class ``images`` and a class ``masks``. Names of folders
alone prove nothing, so each kind needs evidence in the files too: lines of boxes, JSON with annotations, masks with the names of
images. A tree with any folder that can be a class is never refused. At most a few files are opened, and of each only the ends.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from stagewright.data.images.decode import image_extensions
from stagewright.data.sources.folder_names import PART_WORDS, words_of
from stagewright.data.sources.table_text import Place
from stagewright.data.sources.tree import Tree, as_tree
from stagewright.errors import DataError
from stagewright.text import some

_INSTEAD = {
    "object detection": "a detector: Ultralytics YOLO, or torchvision.models.detection",
    "segmentation": "a segmentation model: segmentation_models_pytorch, or torchvision.models.segmentation",
    "several labels of one image": "a model with a yes or no for each label: timm or fastai with binary cross-entropy",
    "regression": "a model with one linear output: fastai or timm with one output and the mean squared error",
}
_IMAGE_WORDS = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "jpeg", "photos", "pictures", "input", "inputs")
)
_MASK_WORDS = frozenset(
    ("mask", "masks", "segmentation", "segmentations", "labels", "label", "annotations", "annotation", "trimaps")
) | {"groundtruth", "gt", "targets", "target", "panoptic", "semantic"}
_BESIDE_WORDS = frozenset(
    ("sets", "set", "class", "object", "data", "dataset", "boxes", "bboxes", "xml", "xmls", "coco")
)
_STRUCTURE = _IMAGE_WORDS | _MASK_WORDS | _BESIDE_WORDS | PART_WORDS.keys()
"""Words of which the names of all folders consist in the usual layouts of other tasks."""
_NUMBERS = re.compile(rb"\s*\d+((?:[ \t]+-?\d*\.?\d+(?:[eE]-?\d+)?){4,})\s*")
_MASK_END = re.compile(r"[ _.-]*(masks?|seg|segmentation|gt|labels?|matte|l)$", re.IGNORECASE)
_MOST_FILES, _OPENED, _HEAD = 2000, 5, 1 << 18


def refuse_folder(place: Path | Tree) -> None:
    """DataError if a folder, on the disk or any tree, holds data of another task than classification."""
    root = as_tree(place)
    top = _Level.read(root, "")
    levels = [top, *(_Level.read(root, name) for name in top.folders[:20])]
    parts = [level for level in levels[1:] if set(words_of(level.name)) & PART_WORDS.keys()]
    if not all(map(_is_structure, top.folders)) or any(
        not _is_structure(name) for one in parts for name in one.folders
    ):
        return  # there are folders that can be classes
    images = next((name for name in top.folders if set(words_of(name)) & _IMAGE_WORDS), None)
    remedy = "give each image one class by a folder, a table, or its name (data.label)"
    if images is not None:
        remedy = f"point at {root.join(images)}, where folders or names of files (data.label) must say the class"
    for level in levels:
        for task, what in (*_boxes_of_coco(level), *_boxes_of_voc(level), *_boxes_of_yolo(level), *_masks(level)):
            raise refusal(root.place, task, what, remedy)


def refusal(source: str, task: str, what: str, remedy: str) -> DataError:
    """The error for data of another ``task``, recognised by ``what``; ``remedy`` for those who want to classify whole images."""
    return DataError(
        f"{source} looks like data for {task}: {what}",
        "data for classification: one class for each image",
        f"use {_INSTEAD[task]}; or, to classify whole images, {remedy}",
    )


def _is_structure(name: str) -> bool:
    words = words_of(name)
    return bool(words) and all(word in _STRUCTURE for word in words)


@dataclass(frozen=True)
class _Level:
    """The first entries of one folder."""

    tree: Tree
    inner: str
    folders: tuple[str, ...]
    files: tuple[str, ...]

    @classmethod
    def read(cls, tree: Tree, inner: str) -> _Level:
        folders, files = [], []
        try:
            for entry in islice(tree.scan(inner), _MOST_FILES):
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
        except OSError:  # the listing says so
            pass
        return cls(tree, inner, tuple(sorted(folders)), tuple(sorted(files)))

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.tree.join(self.inner).rpartition("/")[2]

    def named(self, *extensions: str) -> list[str]:
        """The files with one of ``extensions``, lower case with the dot."""
        return [name for name in self.files if os.path.splitext(name)[1].lower() in extensions]

    def ends(self, name: str) -> bytes:
        """The begin and the end of a regular file; nothing if it cannot be read."""
        return self.tree.ends(self._path(name), _HEAD)

    def folder(self, name: str) -> _Level:
        """The level of one of the folders."""
        return _Level.read(self.tree, self._path(name))

    def below(self) -> list[_Level]:
        """This level and those of its folders."""
        return [self, *map(self.folder, self.folders[:5])]

    def _path(self, name: str) -> str:
        return f"{self.inner}/{name}" if self.inner else name


def _boxes_of_coco(level: _Level) -> Iterable[tuple[str, str]]:
    for file in level.named(".json")[:_OPENED]:
        text = level.ends(file)
        if b'"annotations"' in text and b'"image_id"' in text and (b'"bbox"' in text or b'"segmentation"' in text):
            yield "object detection", f"{file} holds annotations of COCO"


def _boxes_of_voc(level: _Level) -> Iterable[tuple[str, str]]:
    found = sum(
        b"<annotation" in (text := level.ends(file)) and b"<bndbox" in text for file in level.named(".xml")[:_OPENED]
    )
    if found:
        yield "object detection", f"{level.name}/ holds XML files with boxes, as of Pascal VOC"


def _boxes_of_yolo(level: _Level) -> Iterable[tuple[str, str]]:
    beside = {os.path.splitext(name)[0] for name in level.files if _is_image(name)}
    labels = [one for name in level.folders if "labels" in words_of(name) for one in level.folder(name).below()]
    for place in (level, *labels):
        files = [file for file in place.named(".txt") if place is not level or os.path.splitext(file)[0] in beside]
        lines = [line for file in files[:_OPENED] for line in place.ends(file).splitlines() if line.strip()]
        matched = [match for line in lines if (match := _NUMBERS.fullmatch(line))]
        if not lines or len(matched) < len(lines):
            continue
        if all(len(match[1].split()) == 4 for match in matched):
            yield "object detection", f"{files[0]} and others hold boxes of YOLO"
        else:
            yield "segmentation", f"{files[0]} and others hold polygons of YOLO"


def _masks(level: _Level) -> Iterable[tuple[str, str]]:
    masks = [name for name in level.folders if set(words_of(name)) & _MASK_WORDS]
    for name, other in ((mask, other) for mask in masks for other in level.folders if other not in masks):
        stems = [_MASK_END.sub("", stem) for stem in _image_stems(level.folder(name))]
        images = set(_image_stems(level.folder(other)))
        if len(stems) >= 2 and sum(stem in images for stem in stems) >= 0.8 * len(stems):
            yield "segmentation", f"the images in {name}/ have the names of those in {other}/, as masks have"


def _image_stems(level: _Level) -> list[str]:
    return [os.path.splitext(name)[0] for one in level.below() for name in one.files if _is_image(name)]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_extensions()


_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")
_CORNERS = (
    *(("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x", "y", "width", "height"), ("x", "y", "w", "h")),
    *(("bbox",), ("bounding_box",)),
)
_MANY, _FEW_ROWS = 20, 0.05
_ONE_ROW = "give a table with one row for each image and one class in it"


def refuse_boxes(file: Place, table: pa.Table, paths: Sequence[str]) -> None:
    """DataError if ``table`` has boxes or masks: columns of their names, and several rows for an image. ``paths`` (rows,)."""
    names = {re.sub(r"[\W_]+", "", name.casefold()): name for name in table.column_names}
    if "encodedpixels" in names or "rle" in names:
        what = f"column '{names.get('encodedpixels') or names['rle']}' holds masks"
        raise refusal(str(file), "segmentation", what, _ONE_ROW)
    repeated = len(paths) - len(set(paths))
    box = next((box for box in _CORNERS if all(word.replace("_", "") in names for word in box)), None)
    if box and repeated > _FEW_ROWS * len(paths):
        what = (
            f"it has boxes ({', '.join(names[word.replace('_', '')] for word in box)}), and several rows for an image"
        )
        raise refusal(str(file), "object detection", what, _ONE_ROW)


def refuse_values(file: Place, column: str, labels: Iterable[str]) -> None:
    """DataError if the cells of a column of classes are measurements, or hold several labels each."""
    sizes = Counter(label for label in labels if label)
    rows = sum(sizes.values())
    if sizes and all(_NUMBER.fullmatch(label) for label in sizes):
        values = [float(label) for label in sizes]
        fractions = sum(not value.is_integer() for value in values)
        sparse = len(sizes) > rows / 2 and max(values) - min(values) > 5 * len(sizes)
        if len(sizes) >= _MANY and (fractions or sparse):
            what = f"column '{column}' holds {len(sizes):,} different numbers, e.g. {some(sizes, 3)}"
            remedy = "write a column of classes, such as ranges of the numbers"
            raise refusal(str(file), "regression", what, remedy)
    several = cells_with_several(sizes)
    if len(several) >= 3 and sum(sizes[cell] for cell in several) >= _FEW_ROWS * rows:
        what = f"cells of column '{column}' hold several labels, e.g. {some(map(repr, several), 3)}"
        raise refusal(str(file), "several labels of one image", what, _ONE_ROW)


def cells_with_several(cells: Collection[str]) -> list[str]:
    """Returns the cells that consist of two or more labels with ``,``, ``;`` or ``|`` between, each of which comes in another
    cell too."""
    words = {cell: [word.strip() for word in re.split(r"[,;|]", cell)] for cell in cells}
    known = Counter(word for found in words.values() for word in set(found))
    return sorted(cell for cell, found in words.items() if len(found) > 1 and all(known[word] > 1 for word in found))


def refuse_several_flags(file: Place, names: Sequence[str], num_several: int, num_rows: int) -> None:
    """DataError if more than a quarter of the rows have a 1 in several of the one-hot columns ``names``."""
    if num_several > num_rows / 4:  # fewer are left out and listed
        what = f"{num_several:,} of {num_rows:,} rows have a 1 in several of the columns {some(names, 5)}"
        remedy = "name a column of classes: --set data.label=NAME"
        raise refusal(str(file), "several labels of one image", what, remedy)
