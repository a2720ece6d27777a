"""Data for other tasks is refused with what to use instead, and data for classification never is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from stagewright.data.sources.local import list_source
from stagewright.data.sources.other_tasks import cells_with_several, refuse_boxes, refuse_folder, refuse_values
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data

BOX, POLYGON = "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.05 0.05\n", "0 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3\n"
VOC = "<annotation><object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"
# The keys after the images, which may take megabytes: the end of the file is read too.
COCO = json.dumps(
    {
        "images": [{"file_name": f"{at}.jpg", "pad": "x" * 2000} for at in range(400)],
        "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1}],
    }
)


def fill(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "task"),
    [
        ({"images/train/a.jpg": "", "labels/train/a.txt": BOX, "data.yaml": "names: [a]"}, "object detection"),
        ({"train/images/a.jpg": "", "train/labels/a.txt": BOX, "valid/images/b.jpg": ""}, "object detection"),
        ({"images/a.jpg": "", "labels/a.txt": POLYGON}, "segmentation"),
        ({"a.jpg": "", "a.txt": BOX, "b.jpg": "", "b.txt": ""}, "object detection"),
        ({"train/a.jpg": "", "train/_annotations.coco.json": COCO}, "object detection"),
        (
            {"train2017/a.jpg": "", "val2017/b.jpg": "", "annotations/instances_train2017.json": COCO},
            "object detection",
        ),
        ({"JPEGImages/a.jpg": "", "Annotations/a.xml": VOC, "ImageSets/Main/train.txt": "a"}, "object detection"),
        ({"train/a.jpg": "", "train/a.xml": VOC}, "object detection"),
        ({f"{d}/{n}": "" for d in ("images", "masks") for n in ("a.png", "b.png")}, "segmentation"),
        ({f"{d}": "" for n in "abc" for d in (f"train/{n}.jpg", f"train_masks/{n}_mask.gif")}, "segmentation"),
        ({f"{d}": "" for n in "abc" for d in (f"images/{n}.jpg", f"annotations/trimaps/{n}.png")}, "segmentation"),
    ],
)
def test_folders_of_other_tasks(tmp_path: Path, files: dict[str, str], task: str) -> None:
    with pytest.raises(DataError, match=f"looks like data for {task}: ") as error:
        list_source(str(fill(tmp_path, files)), Data())
    assert error.value.remedy.startswith("use a ") and "to classify whole images" in error.value.remedy


@pytest.mark.parametrize(
    "files",
    [
        {"cat/a.jpg": "", "dog/b.jpg": "", "instances.json": COCO, "data.yaml": "names: [a]\ntrain: x"},
        {"train/cat/a.jpg": "", "train/cat/a.xml": VOC, "train/dog/b.jpg": "", "val/cat/c.jpg": ""},
        {"mask/a.jpg": "", "mask/b.jpg": "", "no_mask/a.jpg": "", "no_mask/b.jpg": ""},
        {"images/a.jpg": "", "labels/b.jpg": "", "images/c.jpg": "", "labels/d.jpg": ""},
        {"cat/a.jpg": "", "masks/a.jpg": "", "cat/b.jpg": "", "masks/b.jpg": ""},
        {"train/image/a.jpg": "", "train/text/b.jpg": "", "test/image/a.jpg": "", "test/text/b.jpg": ""},
        {"cat/a.jpg": "", "cat/a.txt": "a cat", "dog/b.jpg": "", "labels.txt": "0 1 2"},
    ],
)
def test_class_folders_are_no_other_task(tmp_path: Path, files: dict[str, str]) -> None:
    refuse_folder(fill(tmp_path, files))


def test_real_sets_are_no_other_task(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "awkward-images.zip") as packed:
        packed.extractall(tmp_path / "awkward")
    with zipfile.ZipFile(shared_data / "breeds-csv.zip") as packed:
        names = [name for name in packed.namelist() if name.endswith("labels.csv")]
        packed.extract(names[0], tmp_path / "breeds")
    for place in (tmp_path / "awkward", tmp_path / "breeds"):
        for folder in (place, *(one for one in place.rglob("*") if one.is_dir())):
            refuse_folder(folder)


def test_a_table_of_boxes(tmp_path: Path) -> None:
    box = {name: ["1"] * 4 for name in ("x_min", "y_min", "x_max", "y_max")}
    with pytest.raises(DataError, match=r"boxes \(x_min, y_min, x_max, y_max\), and several rows for an image"):
        refuse_boxes(tmp_path, pa.table(box), ["a.jpg", "a.jpg", "b.jpg", "c.jpg"])
    refuse_boxes(
        tmp_path, pa.table(box), ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    )  # one object in each image has one class
    with pytest.raises(DataError, match="column 'EncodedPixels' holds masks"):
        refuse_boxes(tmp_path, pa.table({"EncodedPixels": ["1 2"]}), ["a.jpg"])


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([f"{at / 7:.3f}" for at in range(50)], "regression"),
        ([str(at * 1000 + 17) for at in range(50)], "regression"),
        (["cat", "dog", "fox", "cat|dog", "cat|fox", "dog|fox"], "several labels of one image"),
        (["cat", "dog", "fox", "cat, dog", "cat,fox", "dog,fox"], "several labels of one image"),
        ([str(at % 100) for at in range(300)], None),  # ages in years may be classes
        ([f"{at % 5 / 2}" for at in range(100)], None),  # grades
        ([str(at) for at in range(40)], None),
        (["red fox", "fox", "gray fox", "arctic fox", "red", "gray"], None),
        (["Doe, John", "Roe, Jane", "Smith, A"], None),
        (["cat", "dog", ""], None),
    ],
)
def test_columns_of_other_tasks(labels: list[str], task: str | None) -> None:
    if task is None:
        refuse_values(Path("labels.csv"), "target", labels)
        return
    with pytest.raises(DataError, match=f"labels.csv looks like data for {task}: .*column 'target'"):
        refuse_values(Path("labels.csv"), "target", labels)


def test_labels_that_come_once_are_no_parts_of_cells() -> None:
    assert cells_with_several(["a,b", "a", "b", "c;d", "c"]) == ["a,b"]


def test_tables_say_it_when_they_are_read(tmp_path: Path) -> None:
    rows = "".join(f"{at}.jpg,{at / 3:.2f}\n" for at in range(30))
    fill(tmp_path, {"age.csv": "path,target\n" + rows, **{f"{at}.jpg": "" for at in range(30)}})
    with pytest.raises(DataError, match="looks like data for regression"):
        list_source(str(tmp_path / "age.csv"), Data())
    flags = "".join(f"{at}.jpg,1,{at % 2},0\n" for at in range(30))
    fill(tmp_path, {"flags.csv": "path,sun,rain,snow\n" + flags})
    with pytest.raises(DataError, match="15 of 30 rows have a 1 in several of the columns sun, rain, snow"):
        list_source(str(tmp_path / "flags.csv"), Data())
