"""Fingerprints: readable exactly if the scan can read the file; near duplicates are found, and nothing else is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from stagewright.data.images.decode import decode, measure
from stagewright.data.inspect import fingerprint as fingerprint_module
from stagewright.data.inspect.fingerprint import (
    SIDE,
    Fingerprint,
    Fingerprints,
    Pairs,
    blank,
    differ,
    fingerprint,
    joined,
    near_pairs,
)


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Returns a synthetic photo: blobs of colour at every scale, different for each seed."""
    random = np.random.default_rng(seed)
    picture = np.full((size[1], size[0], 3), 128.0)
    for cells in (2, 3, 5, 9, 17, 40):
        noise = random.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
        picture += np.stack([np.asarray(layer) for layer in layers], axis=-1) * 90 / cells**0.5
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def as_bytes(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def thumb(data: bytes) -> np.ndarray:
    found = fingerprint(data).thumb
    assert found is not None
    return found


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "quality 20": lambda p: as_bytes(p, quality=20),
    "as PNG": lambda p: as_bytes(p, "PNG"),
    "as WebP": lambda p: as_bytes(p, "WEBP", quality=60),
    "half the size": lambda p: as_bytes(p.resize((p.width // 2, p.height // 2)), quality=85),
    "twice the size": lambda p: as_bytes(p.resize((p.width * 2, p.height * 2)), quality=85),
    "a square": lambda p: as_bytes(p.resize((101, 101)), quality=85),
    "darker": lambda p: as_bytes(p.point([max(0, v - 12) for v in range(256)] * 3), quality=90),
    "less contrast": lambda p: as_bytes(p.point([int((v - 128) * 0.85 + 128) for v in range(256)] * 3), quality=90),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(change: str) -> None:
    pictures = [scene(seed) for seed in range(40)]
    thumbs = np.stack(
        [*(thumb(as_bytes(p, quality=92)) for p in pictures), *(thumb(CHANGES[change](p)) for p in pictures)]
    )
    pairs = near_pairs(thumbs)
    assert pairs.first.tolist() == list(range(40))
    assert pairs.second.tolist() == list(range(40, 80))
    assert not pairs.mirrored.any()
    assert pairs.complete


def test_mirrored_copies_are_found_as_such() -> None:
    pictures = [scene(seed) for seed in range(30)]
    mirrored = [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pictures]
    thumbs = np.stack([thumb(as_bytes(p, quality=80)) for p in (*pictures, *mirrored)])
    pairs = near_pairs(thumbs)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(at, at + 30) for at in range(30)]
    assert pairs.mirrored.all()


def test_a_small_new_object_makes_no_near_duplicate() -> None:
    empty = scene(1)
    visited = empty.copy()
    visited.paste((250, 240, 20), (110, 80, 130, 95))
    assert not len(near_pairs(np.stack([thumb(as_bytes(p, quality=90)) for p in (empty, visited)])).first)


def test_similar_backgrounds_are_no_near_duplicates() -> None:
    def ship(left: int, width: int, seed: int) -> Image.Image:
        rows = np.r_[np.linspace(220, 180, 60), np.linspace(90, 60, 60)]
        noise = np.random.default_rng(seed).normal(0, 2, (120, 160, 1))
        picture = Image.fromarray((rows[:, None, None] + [0, 5, 15] + noise).clip(0, 255).astype(np.uint8))
        picture.paste((120, 110, 110), (left, 56, left + width, 62))
        return picture

    ships = [ship(20, 40, 0), ship(90, 30, 1), ship(60, 60, 2)]
    thumbs = np.stack([thumb(as_bytes(p, quality=90)) for p in ships])
    assert not len(near_pairs(thumbs).first)
    again = np.concatenate([thumbs, thumb(as_bytes(ships[1], quality=40))[None]])
    assert [(int(a), int(b)) for a, b in zip(near_pairs(again).first, near_pairs(again).second, strict=True)] == [
        (1, 3)
    ]


def test_blank_images_are_ignored() -> None:
    random = np.random.default_rng(0)
    dusk = np.linspace(3, 8, 90)[:, None, None] + random.normal(0, 1.5, (20, 90, 120, 3))
    nights = [Image.fromarray(night.clip(0, 255).astype(np.uint8)) for night in dusk]
    thumbs = np.stack([thumb(as_bytes(night)) for night in nights])
    assert blank(thumbs).all()
    assert not len(near_pairs(thumbs).first)
    assert not blank(np.stack([thumb(as_bytes(scene(0)))])).any()


def test_the_tree_misses_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search finds the same pairs as a comparison of all pairs, on images with many pairs near the limits."""
    random = np.random.default_rng(3)
    base = np.stack([np.asarray(scene(seed, (SIDE, SIDE))) for seed in range(6)]).astype(float)
    base = np.concatenate([base, base[:, :, ::-1]])
    # Symmetric except for a slight slope to one side: the sign that decides the orientation is uncertain.
    slopes = (base[0] + base[6]) / 2 + np.linspace(-1, 1, SIDE)[:, None] * np.linspace(-16, 16, 24)[:, None, None, None]
    noise = random.normal(0, 1, (120, SIDE, SIDE, 3)) * random.uniform(2, 22, (120, 1, 1, 1))
    thumbs = np.concatenate([base[random.integers(0, 12, 96)] + noise[:96], slopes]).clip(0, 255).astype(np.uint8)
    found = near_pairs(thumbs)
    features = fingerprint_module._features(fingerprint_module._grey(thumbs))
    turned = fingerprint_module._features(fingerprint_module._grey(thumbs[:, :, ::-1]))
    one, two = np.triu_indices(120, 1)
    pairs = np.stack([one, two], axis=1)
    expected: dict[tuple[int, int], bool] = {}
    for mirrored, others in ((True, turned), (False, features)):
        near = np.linalg.norm(features[one] - others[two], axis=1) <= 0.25
        near &= fingerprint_module._pixels_agree(thumbs, pairs, np.full(len(pairs), mirrored))
        expected |= {(int(a), int(b)): mirrored for a, b in pairs[near]}
    got = {(int(a), int(b)): bool(m) for a, b, m in zip(found.first, found.second, found.mirrored, strict=True)}
    assert len(expected) > 100 and len(set(expected.values())) == 2
    assert got == expected


def test_many_equal_ones_and_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    one = thumb(as_bytes(scene(0)))
    pairs = near_pairs(np.stack([one] * 50))
    assert pairs.first.tolist() == [0] * 49 and pairs.second.tolist() == list(range(1, 50))
    monkeypatch.setattr(fingerprint_module, "_MOST_PAIRS", 3)
    monkeypatch.setattr(fingerprint_module, "_SAMPLE", 4)
    several = np.stack([thumb(as_bytes(scene(0), quality=quality)) for quality in range(50, 70)])
    assert not near_pairs(several).complete


def test_nothing_to_compare() -> None:
    pairs = near_pairs(np.zeros((0, SIDE, SIDE, 3), np.uint8))
    assert isinstance(pairs, Pairs) and not len(pairs.first) and pairs.complete


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.lists(st.integers(0, 9), max_size=20))
def test_joined_sets_are_the_connected_components(edges: list[tuple[int, int]], units: list[int]) -> None:
    units = [*units, *range(10)]
    sets = {at: {at} for at in range(10)}
    for a, b in edges:
        whole = sets[a] | sets[b]
        for at in whole:
            sets[at] = whole
    named = {at for edge in edges for at in edge}
    expected = {tuple(row for row, unit in enumerate(units) if unit in sets[at]) for at in named}
    one, two = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    found = joined(np.array(units, np.int64), one, two)
    assert [tuple(rows.tolist()) for rows in found] == sorted(expected)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 2)), min_size=1, max_size=20))
def test_differ_considers_all_rows_of_both_units(rows: list[tuple[int, int]]) -> None:
    units, values = (np.array([row[side] for row in rows], np.int64) for side in (0, 1))
    a, b = (grid.ravel() for grid in np.meshgrid(np.unique(units), np.unique(units)))
    held = {unit: {value for other, value in rows if other == unit and value >= 0} for unit in units.tolist()}
    expected = [len(held[one] | held[two]) > 1 for one, two in zip(a.tolist(), b.tolist(), strict=True)]
    assert differ(units, values, a, b).tolist() == expected


def test_properties_of_a_file(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    found = fingerprint(as_bytes(scene(0), exif=turned))
    assert (found.format, found.mode, found.width, found.height, found.orientation) == ("JPEG", "RGB", 120, 160, 6)
    upright = thumb(as_bytes(scene(0).transpose(Image.Transpose.ROTATE_270)))
    assert np.abs(thumb(as_bytes(scene(0), exif=turned)).astype(int) - upright).max() <= 6
    assert fingerprint(as_bytes(scene(0).convert("L"))).grey and not fingerprint(as_bytes(scene(0))).grey
    assert fingerprint(as_bytes(scene(0).convert("CMYK"))).mode == "CMYK"
    assert fingerprint(as_bytes(scene(0).convert("P"), "PNG")).mode == "P"
    assert fingerprint(as_bytes(scene(0).convert("RGBA"), "PNG")).alpha
    deep = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    assert fingerprint(as_bytes(deep, "PNG")).bits == 16
    frames = as_bytes(scene(0), "GIF", save_all=True, append_images=[scene(1)])
    assert fingerprint(frames).frames and not fingerprint(as_bytes(scene(0), "GIF")).frames
    assert fingerprint(as_bytes(scene(0))[:900]).reason and fingerprint(b"").reason == "the file is empty"


@pytest.mark.parametrize("size", [(500, 371), (333, 255), (257, 130)])
def test_jpegs_decoded_small_give_the_fingerprint_of_the_whole(size: tuple[int, int]) -> None:
    picture = scene(5, size)
    small, whole = thumb(as_bytes(picture, quality=95)), thumb(as_bytes(picture, "PNG"))
    assert np.abs(small.astype(int) - whole).mean() < 1.2


def test_handwritten_digits_are_not_copies_of_each_other() -> None:
    values, _ = load_digits(return_X_y=True)
    digits = (np.asarray(values).reshape(-1, 8, 8) * 15.9375).astype(np.uint8)
    thumbs = np.stack([thumb(as_bytes(Image.fromarray(digit), "PNG")) for digit in digits])
    assert len(near_pairs(thumbs).first) == 1


def test_grey_content_in_colour_files() -> None:
    pictures = (scene(0).convert("L").convert("RGB"), scene(0))
    fingerprints = Fingerprints.empty(3)
    for row, picture in enumerate(pictures):
        fingerprints.put(row, fingerprint(as_bytes(picture, quality=80)))
    fingerprints.put(2, Fingerprint(reason="damaged"))
    assert fingerprints.grey.tolist() == [True, False, False]
    assert fingerprints.readable.tolist() == [True, True, False]


def test_readable_exactly_if_the_scan_can_read_it(shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "awkward-images.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    readable = 0
    for name, data in files.items():
        found = fingerprint(data)
        try:
            size, reason = measure(data), ""
        except OSError as error:
            size, reason = (0, 0), str(error)
        assert ((found.width, found.height), found.reason) == (size, reason), name
        if not reason:
            readable += 1
            whole = np.asarray(decode(data).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)
            apart = np.abs(thumb(data).astype(int) - whole).mean()
            # One file is damaged in a way that libjpeg ignores; the pixels it fills in depend on the decoding scale.
            assert apart < 3 or name.endswith("hopper_bad_exif.jpg"), f"{name}: {apart:.1f} levels from the picture"
    assert readable > 60


def test_photos_are_told_apart_and_copies_found(shared_data: Path) -> None:
    """The recall in the module's docstring, on a small subset: at least 99 % of the copies are found, and no false pair."""
    with zipfile.ZipFile(shared_data / "photos-250.zip") as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".jpeg")][:80]
        photos = [archive.read(name) for name in names]
    thumbs = [thumb(data) for data in photos]
    assert not len(near_pairs(np.stack(thumbs)).first)
    for change in ("quality 20", "half the size", "darker"):
        copies = [thumb(CHANGES[change](Image.open(io.BytesIO(data)).convert("RGB"))) for data in photos]
        pairs = near_pairs(np.stack([*thumbs, *copies]))
        assert (pairs.second - pairs.first == len(photos)).all()
        assert len(pairs.first) >= 0.98 * len(photos), change
