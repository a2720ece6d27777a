"""Near duplicates in splits: they stay together, and a chain of them does not swallow a class."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from stagewright.data.dataset import load_dataset
from stagewright.data.inspect.inspect import inspect
from stagewright.data.inspect.similar import group_similar
from stagewright.data.sources.folders import BY_LIKENESS
from stagewright.data.sources.local import list_source
from stagewright.data.splits.write import split
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


def scene(seed: int, width: int = 64, blot: float = 5) -> Image.Image:
    """An image of soft blots of colour, 64 pixels high; no two seeds are alike."""
    noise = np.random.default_rng(seed).normal(size=(64, width, 3))
    soft = np.stack([gaussian_filter(noise[..., channel], blot) for channel in range(3)], axis=-1)
    low, high = soft.min(), soft.max()
    return Image.fromarray(((soft - low) / (high - low) * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of 20 scenes, each with a copy of lower quality, a smaller one, a mirrored and an identical one."""
    root = tmp_path_factory.mktemp("copies")
    for at in range(40):
        folder = root / "ab"[at % 2]
        folder.mkdir(exist_ok=True)
        image = scene(at)
        image.save(folder / f"{at}.png")
        image.save(folder / f"{at}-same.png")
        image.save(folder / f"{at}-jpeg.jpg", quality=60)
        image.resize((40, 40)).save(folder / f"{at}-small.png")
        ImageEnhance.Brightness(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).enhance(0.9).save(
            folder / f"{at}-mirror.png"
        )
    return str(root)


def findings(source: str, settings: Data) -> set[str]:
    return {finding.kind for finding in inspect(source, settings).findings if finding.severity == "serious"}


def test_a_written_split_is_clean(copies: str, tmp_path: Path) -> None:
    for near in ("ignore", "together"):
        split(copies, Data.model_validate({"near": near}), out=tmp_path / f"{near}.csv")
    assert {"near-across-splits", "mirrored-across-splits"} <= findings(str(tmp_path / "ignore.csv"), Data())
    assert not findings(str(tmp_path / "together.csv"), Data())


def test_folds_keep_them_too(copies: str, tmp_path: Path) -> None:
    split(copies, Data(near="together"), out=tmp_path / "f.csv", folds=4)
    assert not findings(str(tmp_path / "f-fold2of4.csv"), Data())


def test_a_run_makes_the_same_split_as_inspect_says(copies: str) -> None:
    settings = Data(near="together")
    dataset, found = load_dataset(copies, settings), inspect(copies, settings)
    assert dataset.manifest.groups is not None
    assert len(set(dataset.manifest.groups.to_pylist())) == 40 and not dataset.manifest.groups.null_count
    assert np.array_equal(dataset.manifest.splits, found.evidence.parts)
    scenes = [Path(path).stem.partition("-")[0] for path in dataset.manifest.paths.to_pylist()]
    assert len(set(zip(scenes, dataset.manifest.splits.tolist(), strict=True))) == 40
    assert any("near duplicates too" in fact for fact in found.facts())
    assert not any("would be divided" in finding.why for finding in found.findings)


def test_no_effect_where_data_gives_the_parts(copies: str, tmp_path: Path) -> None:
    split(copies, Data(), out=tmp_path / "given.csv")
    assert load_dataset(str(tmp_path / "given.csv"), Data(near="together")).unused >= {"near"}
    with pytest.raises(DataError, match="--near together would change it"):
        split(str(tmp_path / "given.csv"), Data(near="together"), out=tmp_path / "more.csv")


def grouped(root: Path) -> tuple[dict[str, str | None], tuple[str, ...]]:
    listing, _ = group_similar(list_source(str(root), Data()), workers=1, progress=None, max_pixels=10**8)
    assert listing.groups is not None and listing.group_name == BY_LIKENESS
    return dict(zip(listing.paths.to_pylist(), listing.groups.to_pylist(), strict=True)), listing.notes


def pan(root: Path, name: str, seed: int, frames: int) -> None:
    """A class of one slow pan: each frame is like the next, the first and the last have nothing in common."""
    (root / name).mkdir()
    wide = scene(seed, 64 + 2 * frames, blot=16)
    for at in range(frames):
        wide.crop((2 * at, 0, 2 * at + 64, 64)).save(root / name / f"{at:03d}.png")


def test_a_chain_is_cut_into_pieces(tmp_path: Path) -> None:
    pan(tmp_path, "pan", 1000, 40)
    pan(tmp_path, "other", 2000, 40)
    groups, notes = grouped(tmp_path)
    for name in ("pan", "other"):
        own = [group for path, group in sorted(groups.items()) if path.startswith(name)]
        sizes = {group: own.count(group) for group in own if group is not None}
        assert sizes and max(sizes.values()) <= 10, "no piece holds more than a quarter of the class"
        changes = sum(one != two or one is None for one, two in pairwise(own))
        assert changes < 20, "pieces are runs of frames"
    assert any(note.startswith("2 chains of near duplicates, each with more than half of a class (") for note in notes)
    assert load_dataset(str(tmp_path), Data(near="together")).manifest.splits.tolist().count(1) > 5


def test_one_scene_is_not_cut(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for at in range(12):
            image = scene(seed if at < 9 else 100 * seed + at)
            ImageEnhance.Brightness(image).enhance(0.9 + 0.01 * at).save(tmp_path / name / f"{at:02d}.png")
    groups, notes = grouped(tmp_path)
    assert len({groups[f"a/{at:02d}.png"] for at in range(9)}) == 1 and groups["a/10.png"] is None
    assert any(
        "2 sets of near duplicates with more than half of a class (a, b): each shows one scene" in note
        for note in notes
    )


def test_groups_of_data_are_never_divided(tmp_path: Path) -> None:
    pan(tmp_path, "pan", 1000, 24)
    pan(tmp_path, "other", 2000, 24)
    rows = [
        f"{name}/{at:03d}.png,{name},{'long' if at < 16 else 'rest'}-{name}"
        for name in ("pan", "other")
        for at in range(24)
    ]
    (tmp_path / "t.csv").write_text("path,label,site\n" + "\n".join(rows) + "\n")
    listing, _ = group_similar(list_source(str(tmp_path / "t.csv"), Data()), workers=1, progress=None, max_pixels=10**8)
    assert listing.groups is not None
    found = dict(zip(listing.paths.to_pylist(), listing.groups.to_pylist(), strict=True))
    assert len({found[f"pan/{at:03d}.png"] for at in range(16)}) == 1
    assert len({found[f"pan/{at:03d}.png"] for at in range(16, 24)}) == 1
