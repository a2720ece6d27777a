"""diff, and the page that lays runs over each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stagewright as sw
from stagewright.api.comparison_page import write_comparison
from stagewright.api.diff import SameBits, diff
from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, RecipeError
from stagewright.report.overlay import MOST_RUNS
from stagewright.training.paired import paired_difference

SMALL = ["model.options={width: 4}", "image_size=16", "batch_size=16", "data.val=0.2", "data.test=0.2"]


def trained(data: Path, out: Path, *overrides: str) -> Path:
    quiet = sw.Execution(device="cpu", pages=False, quiet=True)
    sw.train(data, "quick", overrides=[*SMALL, *overrides], out=out, execution=quiet, say=lambda text: None)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> tuple[Path, Path, Path]:
    """Two runs on the same split, of other lengths, and one on half of the images with another class and a split of its own."""
    root = tmp_path_factory.mktemp("compare")
    fewer = root / "fewer"
    for name, other in (("across", "across"), ("down", "down"), ("slanted", "tilted")):
        (fewer / other).mkdir(parents=True)
        for at in range(10):
            shutil.copy(picture_folder / name / f"{at:02d}.png", fewer / other / f"x{at}.png")
    return (
        trained(picture_folder, root / "one", "epochs=2ep"),
        trained(picture_folder, root / "two", "epochs=3ep", "lr.peak=0.02"),
        trained(fewer, root / "three", "epochs=2ep"),
    )


def answers(run: Path) -> dict[str, bool]:
    table = pq.read_table(run / "evaluations" / "test.parquet").to_pydict()
    return {path: a == b for path, a, b in zip(table["path"], table["label"], table["predicted"], strict=True)}


def test_fields_data_and_paired_results(runs: tuple[Path, Path, Path]) -> None:
    one, two, _ = runs
    found = diff(one, two)
    fields = {field.name: (field.one, field.other) for field in found.recipe}
    assert fields["epochs"] == ("2ep", "3ep") and fields["lr.peak"][1] == 0.02 and "(updates)" in fields
    assert found.versions == () and found.notes == () and found.data == ("the same 60 pictures, classes and parts",)
    test = found.results[0]
    first, second = answers(one), answers(two)
    both = sorted(first)
    wanted = paired_difference(np.array([second[p] for p in both]), np.array([first[p] for p in both]))
    assert test.split == "test" and test.paired == wanted and wanted is not None and wanted.images == 12
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert test.one is not None and test.other is not None
    assert [test.one.percent, test.other.percent] == pytest.approx([one["top1"]["test"] for one in summaries])
    swapped = diff(two, one).results[0].paired
    assert swapped is not None and swapped.points == -wanted.points and swapped.gained == wanted.lost
    assert json.loads(json.dumps(found.to_dict()))["results"][0]["paired"]["images"] == 12
    same = diff(one, one)
    assert same.recipe == () and same.results[0].paired is not None and same.results[0].paired.gained == 0


def test_other_data_are_told_by_content(runs: tuple[Path, Path, Path]) -> None:
    one, _, three = runs
    found = diff(one, three)
    said = "; ".join(found.data)
    assert "classes only in one: slanted" in said and "classes only in three: tilted" in said
    assert "one has 60 pictures, three 30; 30 are in both" in said and "training: 36 and 18" in said
    manifests = [pq.read_table(run / "manifest.parquet").to_pydict() for run in (one, three)]

    def hashes(at: int, split: str) -> set[str]:
        return {h for h, part in zip(manifests[at]["hash"], manifests[at]["split"], strict=True) if part == split}

    if leaked := len(hashes(1, "train") & hashes(0, "test")):
        assert f"three was trained on {leaked} picture" in said
    paired = next(pair for pair in found.results if pair.split == "test").paired
    names = dict(zip(manifests[0]["hash"], manifests[0]["path"], strict=True))
    shared = {h for h in hashes(0, "test") & hashes(1, "test") if not names[h].startswith("slanted")}
    assert (paired.images if paired else 0) == len(shared), "an image of another class is another question"


def test_what_is_missing_is_said_and_no_crash(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, two, _ = runs
    broken = shutil.copytree(two, tmp_path / "two")
    (broken / "manifest.parquet").write_bytes(b"PAR1 junk")
    (broken / "plan.json").write_text('{"recipe": 3}')
    (broken / "env.json").unlink()
    found = diff(one, broken)
    assert found.data == () and any("manifest" in note for note in found.notes) and found.results[0].paired is None
    with pytest.raises(CheckpointError, match="no such directory"):
        diff(one, tmp_path / "none")


def test_equal_runs_are_equal_to_the_bit(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, two, three = runs
    copy = shutil.copytree(one, tmp_path / "elsewhere")
    found = diff(one, copy)
    assert found.equal and found.areas == found.unknown == found.notes == () and len(found.same) == 6
    assert found.bits == SameBits(True, {"val": True, "test": True}) and found.pictures is None
    assert json.loads(json.dumps(found.to_dict()))["equal"] is True
    weights = copy / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shutil.copystat(one / "model" / "weights.safetensors", weights)
    table = pq.read_table(copy / "evaluations" / "val.parquet")
    losses = table["loss"].to_numpy().copy()
    losses[0] += 1e-6
    at = table.column_names.index("loss")
    pq.write_table(table.set_column(at, "loss", [losses]), copy / "evaluations" / "val.parquet")
    found = diff(one, copy)
    assert found.equal and found.bits == SameBits(False, {"val": False, "test": True})
    weights.unlink()
    found = diff(one, copy)
    assert found.bits is not None and found.bits.models is None
    bits = diff(one, two).bits
    assert bits is not None and bits.models is False and bits.answers.keys() == {"val", "test"}
    found = diff(one, three)
    assert found.bits == SameBits(False, {}), "answers to other pictures are not compared"


def test_on_a_gpu_without_fixed_sums_bits_may_differ(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pair = [shutil.copytree(runs[0], tmp_path / name) for name in ("a", "b")]
    for run in pair:
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"device": "cuda:0"}))
    (pair[1] / "model" / "weights.safetensors").write_bytes(b"other")
    (note,) = diff(*pair).notes
    assert "deterministic: true" in note
    plan = json.loads((pair[0] / "plan.json").read_text())
    plan["recipe"]["deterministic"] = True
    for run in pair:
        (run / "plan.json").write_text(json.dumps(plan))
    assert diff(*pair).notes == ()


def test_an_unfinished_run_is_said_to_be_one(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"status": "stopped"}))
    found = diff(runs[0], copy)
    assert found.equal and found.bits is None
    assert "stopped at 100 % of its plan" in found.notes[0]


def rewritten(run: Path, change: Callable[[Manifest], Manifest]) -> None:
    path = run / "manifest.parquet"
    changed = change(Manifest.read(path))
    path.unlink()
    changed.write(path)


def test_pictures_of_a_closed_test_part_are_not_named(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    def relabelled(manifest: Manifest) -> Manifest:
        return replace(manifest, labels=(manifest.labels + 1) % 3)

    pair = [shutil.copytree(runs[0], tmp_path / name) for name in ("a", "b")]
    rewritten(pair[1], relabelled)
    tests = answers(runs[0]).keys()
    for run in pair:
        (run / "evaluations" / "val.parquet").unlink()
    opened = diff(*pair)
    assert opened.pictures is not None and opened.pictures.relabelled.count == 60
    assert sum(turn.count for turn in opened.pictures.relabelled.turns) == 60
    rewritten(pair[0], lambda manifest: manifest.taken(manifest.rows("test")))
    rewritten(pair[1], lambda manifest: manifest.taken(manifest.rows("test")))
    assert any(path in str(diff(*pair).to_dict()) for path in tests), "this test can fail"
    env = json.loads((pair[0] / "env.json").read_text()) | {"hold_test": True}
    (pair[0] / "env.json").write_text(json.dumps(env))
    summary = json.loads((pair[0] / "summary.json").read_text())
    summary["top1"]["test"] = None
    (pair[0] / "summary.json").write_text(json.dumps(summary))
    found = diff(*pair)
    assert found.pictures is not None and found.pictures.relabelled.count == 12 and found.areas == ("data",)
    assert not any(path in str(found.to_dict()) for path in tests)
    assert any("its test part is closed" in note for note in found.notes)


def test_without_a_manifest_the_digests_in_the_plans_decide(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, two, three = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    for run in (two, three):
        (run / "manifest.parquet").unlink()
    found = diff(one, two)
    assert "data" in found.same and found.data == ("the same pictures, classes and parts, by the digests in the plans",)
    found = diff(one, three)
    assert "data" in found.areas and found.data[0].startswith("other pictures, classes or parts")
    (two / "plan.json").unlink()
    found = diff(one, two)
    assert {"data", "recipe"} <= {*found.unknown} and not found.equal and found.data == ()


@pytest.mark.parametrize("damage", ["hashes", "classes", "paths"])
def test_a_manifest_of_a_stranger_is_not_compared(runs: tuple[Path, Path, Path], tmp_path: Path, damage: str) -> None:
    """One whose digest is right, so that only the comparison meets what is wrong with it."""
    copy = shutil.copytree(runs[0], tmp_path / "copy")

    def change(manifest: Manifest) -> Manifest:
        size = len(manifest)
        if damage == "classes":
            return replace(manifest, classes=(1, 2, 3))  # pyright: ignore[reportArgumentType]
        wrong = pa.array(["no hash"] * size) if damage == "hashes" else pa.array([None] * size, pa.string())
        return replace(manifest, **{damage: wrong})

    rewritten(copy, change)
    found = diff(runs[0], copy)
    assert any("manifest cannot be compared" in note for note in found.notes) and found.pictures is None


def test_one_page_has_all_runs(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    copies = [shutil.copytree(run, tmp_path / name) for run, name in zip(runs, ("a", "b<i>", "c"), strict=True)]
    summary = json.loads((copies[1] / "summary.json").read_text())
    (copies[1] / "summary.json").write_text(json.dumps(summary | {"name": "b<i>"}))
    (copies[0] / "report.html").write_text("x")
    written = write_comparison(copies)
    html = written.read_text()
    assert written == tmp_path / "comparison.html" and "3 runs compared" in html
    assert html.count('<svg class="key"') == 3 and html.count("<figure") == 5 and "<i>Each run" in html
    assert "b&lt;i&gt;" in html and "b<i>" not in html and '<a href="a/report.html">one</a>' in html
    assert "lr.peak" in html and "12 test" in html and "http-equiv" not in html
    own = write_comparison(copies[:2], tmp_path / "x.html")
    assert own == tmp_path / "x.html" and "2 runs compared" in own.read_text()


def test_wrong_lists_are_refused(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is given twice"):
        write_comparison([runs[0], runs[0].parent / "two" / ".." / "one"])
    with pytest.raises(RecipeError, match="1 runs to compare"):
        write_comparison(runs[:1])
    with pytest.raises(RecipeError, match=f"{MOST_RUNS + 1} runs to compare"):
        write_comparison([tmp_path / str(at) for at in range(MOST_RUNS + 1)])
