"""The pictures of a real run's report: they are the files, links lead to them, and the page does without what is gone."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stopping import begin

from stagewright.api.train import resume
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.report import results
from stagewright.report.examples import most_confident_errors
from stagewright.report.gallery import MOST_BYTES, Gallery
from stagewright.report.html import page
from stagewright.report.read import read_run
from stagewright.report.write import write

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
HOSTILE = '<i>&"x"'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> tuple[Path, Path]:
    """A finished run that has learned little, and the folder of its images, in which one class has a hostile name."""
    folder = tmp_path_factory.mktemp("gallery")
    pictures = folder / "pictures"
    shutil.copytree(picture_folder, pictures)
    (pictures / "down").rename(pictures / HOSTILE)
    recipe = recipes.from_dict(
        {
            "model": {"name": "cifar_resnet18", "options": {"width": 4}},
            "batch_size": 8,
            "lr": 0.001,
            "stages": [
                {"name": "small", "epochs": "2st", "image_size": 16, "mix": {"mixup": 1.0}},
                {"name": "large", "epochs": "2st", "image_size": 24},
            ],
            "data": {"val": 0.2, "test": 0.4},
        }
    )
    run = begin(folder / "run", pictures, recipe)
    assert resume(run.root, execution=QUIET, say=lambda text: None).finished
    return run.root, pictures


@pytest.fixture
def run(made: tuple[Path, Path], tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(made[0], copy)
    return copy


def page_of(run: Path, most_bytes: float = MOST_BYTES) -> str:
    """The page without its figures, which take most of the time."""
    record = read_run(run)
    return page(record, [], Gallery(record, most_bytes))


def pictures_of(page: str) -> dict[str, bytes]:
    """The pictures stored in the page, by their class."""
    stored = re.findall(
        r"\.(p\d+)\{[^{}]*background-image:url\(data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)\)\}", page
    )
    return {name: base64.b64decode(data, validate=True) for name, data in stored}


def test_every_picture_is_stored_once_and_can_be_opened(run: Path) -> None:
    shown = page_of(run)
    stored = pictures_of(shown)
    assert len(stored) > 10 and len(set(stored.values())) == len(stored) == shown.count("url(data:")
    for name, file in stored.items():
        image = Image.open(io.BytesIO(file))
        assert image.size == (24, 24) and f'class="pic {name}"' in shown
    assert "<img" not in shown and "<script" not in shown and re.findall(r"(?:src|href)=\"(?!#)", shown) == []


def test_thumbnails_are_the_evaluations_view(run: Path) -> None:
    shown = page_of(run)
    record = read_run(run)
    predictions = results.shown_split(record)
    assert predictions is not None and predictions.paths is not None and predictions.confidence is not None
    first = most_confident_errors(predictions, 1)[0]
    path = str(predictions.paths[first])
    found = re.search(rf'<span class="pic (p\d+)" role="img" aria-label="{re.escape(html.escape(path))}">', shown)
    assert found is not None
    pixels = np.asarray(Image.open(io.BytesIO(pictures_of(shown)[found[1]])).convert("RGB")).astype(float)
    whole = Image.open(
        Path(json.loads(pq.read_schema(run / "manifest.parquet").metadata[b"stagewright.manifest"])["root"], path)
    )
    side = 0.875 * min(whole.size)
    left, top = (whole.width - side) / 2, (whole.height - side) / 2
    box = (left, top, left + side, top + side)
    reference = np.asarray(whole.resize((24, 24), Image.Resampling.BILINEAR, box=box)).astype(float)
    assert np.abs(pixels - reference).max() <= 1.0
    assert f"{100 * predictions.confidence[first]:.1f}&nbsp;%" in shown


def test_each_cell_of_the_matrix_leads_to_its_errors(run: Path) -> None:
    shown = write(run).read_text()
    record = read_run(run)
    predictions = results.shown_split(record)
    assert predictions is not None
    matrix = results.confusion(predictions, len(record.classes))
    wrong = {f"confusion-{t}-{p}" for t, p in zip(*np.nonzero(matrix), strict=True) if t != p}
    assert wrong and wrong == set(re.findall(r'id="(confusion-\d+-\d+)"', shown))
    figure = shown[shown.index('aria-label="Confusion matrix') : shown.index('aria-label="Accuracy by class')]
    assert wrong == set(re.findall(r'xlink:href="#(confusion-\d+-\d+)"', figure))
    assert wrong == set(re.findall(r'<a class="chip" href="#(confusion-\d+-\d+)"', shown))
    for t, p in zip(*np.nonzero(matrix), strict=True):
        if t != p:
            block = shown[shown.index(f'id="confusion-{t}-{p}"') :]
            assert f": {matrix[t, p]} error" in block[: block.index("close</a>")]


def test_names_are_escaped(run: Path) -> None:
    shown = page_of(run)
    assert "<i>&" not in shown and html.escape(HOSTILE) in shown


def test_the_size_is_bounded_and_the_rest_is_counted(run: Path) -> None:
    whole = page_of(run)
    record = read_run(run)
    gallery = Gallery(record, 8000)
    assert 4000 < len(gallery.style) <= 8000 and "left out: this page holds at most 0.008 MB" in gallery.note
    left = int(re.findall(r">(\d+) pictures? left out", gallery.note)[0])
    assert left + len(pictures_of(gallery.style)) == len(pictures_of(whole))
    none = page_of(run, 0)
    assert pictures_of(none) == {} and "left out" in none and "left out: this page" not in whole
    block = none[none.index('class="pair" id="confusion-') :]
    assert ".png</li>" in block[: block.index("</div>")], "errors without room are named"


def test_pictures_that_are_gone_or_changed_are_said(made: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    pictures, kept = made[1], tmp_path / "kept"
    predictions = results.shown_split(read_run(run))
    assert predictions is not None and predictions.paths is not None
    first = str(predictions.paths[most_confident_errors(predictions, 1)[0]])
    before = len(pictures_of(page_of(run)))
    content = (pictures / first).read_bytes()
    try:
        with Image.open(pictures / first) as image:
            size = image.size
        Image.new("RGB", size).save(pictures / first)
        shown = page_of(run)
        assert "1 picture cannot be shown; of the last one, it has changed since the run" in shown
        (pictures / first).unlink()
        shown = page_of(run)
        assert "1 picture cannot be shown; of the last one, it does not exist any more" in shown
        assert len(pictures_of(shown)) == before - 1 and f"<li>{html.escape(first)}</li>" in shown
        pictures.rename(kept)
        shown = page_of(run)
        assert "The pictures themselves cannot be shown" in shown and "does not exist now" in shown
        assert pictures_of(shown) == {} and 'id="confusion-' in shown
    finally:
        if kept.exists():
            kept.rename(pictures)
        (pictures / first).write_bytes(content)


def test_what_a_stage_was_fed_is_shown_and_damage_is_said(run: Path) -> None:
    tile = base64.b64encode(_png()).decode()
    one = {"path": "a<b.png", "label": 0, "other": 1, "file": tile}
    (run / "fed").mkdir(exist_ok=True)
    (run / "fed" / "0.json").write_text(json.dumps({"step": 0, "kind": "mixup", "share": 0.7, "images": [one]}))
    (run / "fed" / "1.json").write_text(json.dumps({"step": 2, "kind": "x", "share": 0.7, "images": []}))
    shown = page_of(run)
    part = shown[shown.index("What each stage was fed") : shown.index("Where it is wrong")]
    assert "small" in part and "16 px · step 0 · mixup, 70 % of each its own" in part and "a&lt;b.png" in part
    assert " 70&nbsp;% + " in part and "1.json: a field is left out: kind is" in shown
    for bad in ("javascript:x", "iVBORw0KGgo)", tile + "'"):
        (run / "fed" / "0.json").write_text(
            json.dumps({"step": 0, "kind": "none", "share": 1.0, "images": [{**one, "file": bad}]})
        )
        shown = page_of(run)
        assert "What each stage was fed" not in shown and "0.json: a field is left out: images.0.file" in html.unescape(
            shown
        )


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 77, np.uint8)).save(file, "PNG")
    return file.getvalue()
