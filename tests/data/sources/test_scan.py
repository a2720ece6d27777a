"""scan: every file accounted for, quick the second time, and never wrong because of what it remembers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagewright.data.images.decode import measure
from stagewright.data.sources import scan as scanning
from stagewright.data.sources.scan import Scan, cache_folder, digest_of, hex_strings, scan


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(folder))
    return folder


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is decoded from here on."""
    seen: list[bytes] = []

    def noted(data: bytes, max_pixels: int) -> tuple[int, int]:
        seen.append(data)
        return measure(data, max_pixels)

    monkeypatch.setattr(scanning, "measure", noted)
    return seen


def write_pictures(folder: Path, count: int) -> pa.StringArray:
    names = [f"{at:03d}.png" for at in range(count)]
    folder.mkdir(exist_ok=True)
    for at, name in enumerate(names):
        Image.new("L", (at % 7 + 1, at % 5 + 1), at % 256).save(folder / name)
    return pa.array(names)


def same(one: Scan, two: Scan) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("digests", "widths", "heights"))
    return arrays and one.reasons == two.reasons and one.not_images == two.not_images


def test_what_is_found(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder, 3)
    whole = (folder / "002.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:48])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("notes")
    (folder / "Thumbs.db").write_bytes(bytes(range(256)))
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "picture.dat").write_bytes(whole)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    names = sorted(path.name for path in folder.iterdir())
    calls: list[tuple[int, int]] = []
    found = scan(str(folder), pa.array(names), progress=lambda done, total: calls.append((done, total)))
    rows = {name: row for row, name in enumerate(names)}
    reasons = {names[row]: reason for row, reason in found.reasons.items()}
    assert reasons == {
        "cut.png": "image file is truncated",
        "empty.jpg": "the file is empty",
        "notes.txt": "not a picture in any format that Pillow reads",
        "Thumbs.db": "not a picture in any format that Pillow reads",
        "page.jpg": "not a picture in any format that Pillow reads",
        "gone.png": "the file cannot be opened: No such file or directory",
    }
    assert {names[row] for row in found.not_images} == {"notes.txt", "Thumbs.db"}
    assert (found.widths[rows["002.png"]], found.heights[rows["002.png"]]) == (3, 3)
    assert found.digests[rows["picture.dat"]].tobytes() == hashlib.blake2b(whole, digest_size=16).digest()
    assert found.widths[rows["picture.dat"]] == 3
    assert calls[0] == (0, len(names)) and calls[-1] == (len(names), len(names))
    assert found.notes == []


def test_the_second_scan_opens_nothing(tmp_path: Path, cache: Path, looked_at: list[bytes]) -> None:
    paths = write_pictures(tmp_path / "pictures", 200)
    (tmp_path / "pictures" / "000.png").write_bytes(b"broken")
    first = scan(str(tmp_path / "pictures"), paths, workers=3)
    assert len(looked_at) == 200
    looked_at.clear()
    shuffled = paths.take(pa.array(np.random.default_rng(0).permutation(200)))
    again = scan(str(tmp_path / "pictures"), paths)
    assert looked_at == [b"broken"], "what was broken may have been repaired"
    assert same(first, again) and again.reasons[0].startswith("not a picture")
    other = scan(str(tmp_path / "pictures"), shuffled)
    assert looked_at == [b"broken"] * 2
    assert hex_strings(other.digests).to_pylist() != hex_strings(first.digests).to_pylist()
    assert sorted(hex_strings(other.digests).to_pylist()) == sorted(hex_strings(first.digests).to_pylist())


def test_a_changed_file_is_looked_at_again(tmp_path: Path, cache: Path, looked_at: list[bytes]) -> None:
    folder = tmp_path / "pictures"
    paths = write_pictures(folder, 10)
    first = scan(str(folder), paths)
    looked_at.clear()
    Image.new("L", (40, 30)).save(folder / "004.png")
    os.utime(folder / "007.png", ns=(1, 1))
    again = scan(str(folder), paths)
    assert len(looked_at) == 2
    assert (again.widths[4], again.heights[4]) == (40, 30)
    assert not np.array_equal(again.digests[4], first.digests[4])
    (folder / "004.png").unlink()
    assert "No such file" in scan(str(folder), paths).reasons[4]


def test_another_selection_keeps_what_the_first_knew(tmp_path: Path, cache: Path, looked_at: list[bytes]) -> None:
    paths = write_pictures(tmp_path / "pictures", 10)
    scan(str(tmp_path / "pictures"), paths[:6])
    scan(str(tmp_path / "pictures"), paths[4:])
    assert len(looked_at) == 10
    scan(str(tmp_path / "pictures"), paths)
    assert len(looked_at) == 10


def test_a_damaged_memory_is_no_memory(tmp_path: Path, cache: Path, looked_at: list[bytes]) -> None:
    paths = write_pictures(tmp_path / "pictures", 40)
    first = scan(str(tmp_path / "pictures"), paths)
    (file,) = (cache / "scans").iterdir()
    good = file.read_bytes()
    damages = [b"", b"nonsense", good[:-10], good[:100] + bytes(50) + good[150:]]
    for damage in damages:
        looked_at.clear()
        file.write_bytes(damage)
        assert same(scan(str(tmp_path / "pictures"), paths), first)
        assert len(looked_at) == 40
    assert [path.name for path in (cache / "scans").iterdir()] == [file.name]


@pytest.mark.parametrize("name", ["size", "width", "digest", "path"])
def test_a_memory_with_an_empty_cell_is_no_memory(tmp_path: Path, cache: Path, name: str) -> None:
    """Found by the fuzzer."""
    paths = write_pictures(tmp_path / "d", 6)
    first = scan(str(tmp_path / "d"), paths)
    (file,) = (cache / "scans").iterdir()
    table = pq.read_table(file)
    at = table.column_names.index(name)
    emptied = pa.array([None, *table.column(at).to_pylist()[1:]], table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), emptied), file)
    assert same(scan(str(tmp_path / "d"), paths), first)


def test_not_one_flipped_bit_is_believed(tmp_path: Path, cache: Path) -> None:
    paths = write_pictures(tmp_path / "pictures", 5)
    first = scan(str(tmp_path / "pictures"), paths)
    (file,) = (cache / "scans").iterdir()
    good = file.read_bytes()
    for at in range(0, len(good), 23):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert same(scan(str(tmp_path / "pictures"), paths), first), at


def test_another_pillow_looks_again(
    tmp_path: Path, cache: Path, looked_at: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_pictures(tmp_path / "pictures", 5)
    scan(str(tmp_path / "pictures"), paths)
    monkeypatch.setattr(scanning, "_VERSION", "1 pillow 99.0")
    scan(str(tmp_path / "pictures"), paths)
    assert len(looked_at) == 10


def test_an_interrupted_scan_keeps_what_it_did(tmp_path: Path, cache: Path, looked_at: list[bytes]) -> None:
    paths = write_pictures(tmp_path / "pictures", 300)

    def interrupt(done: int, total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(str(tmp_path / "pictures"), paths, workers=1, progress=interrupt)
    before = len(looked_at)
    assert before >= 128
    scan(str(tmp_path / "pictures"), paths)
    assert len(looked_at) == 300


def test_reasons_outside_of_the_file_are_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_pictures(tmp_path / "pictures", 3)

    def denied(path: str, size: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "read_image", denied)
        assert set(scan(str(tmp_path / "pictures"), paths).reasons.values()) == {
            "the file cannot be opened: Permission denied"
        }
    assert scan(str(tmp_path / "pictures"), paths).reasons == {}


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    found = scan(str(tmp_path / "pictures"), write_pictures(tmp_path / "pictures", 3))
    assert found.reasons == {}
    assert found.notes == [f"the results of the scan could not be cached in {cache / 'scans'}: Not a directory"]


def test_large_files_that_are_no_pictures_are_not_read(
    tmp_path: Path, cache: Path, looked_at: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_MAX_UNKNOWN_BYTES", 1000)
    Image.effect_noise((90, 90), 50).save(tmp_path / "picture", "PNG")
    (tmp_path / "film.mp4").write_bytes(bytes(5000))
    found = scan(str(tmp_path), pa.array(["film.mp4", "picture"]))
    assert len(looked_at) == 1
    assert found.not_images == {0} and set(found.reasons) == {0}
    assert found.widths.tolist() == [0, 90]


def test_no_files_at_all(tmp_path: Path, cache: Path) -> None:
    assert len(scan(str(tmp_path), pa.array([], pa.string())).widths) == 0


def test_hex_strings() -> None:
    digests = np.stack([np.frombuffer(digest_of(text), np.uint8) for text in (b"one", b"two")])
    assert hex_strings(digests).to_pylist() == [
        hashlib.blake2b(text, digest_size=16).hexdigest() for text in (b"one", b"two")
    ]
    assert hex_strings(digests[:0]).to_pylist() == []


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))
    assert cache_folder("a", "b") == tmp_path / "a" / "b"
    monkeypatch.delenv("STAGEWRIGHT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("a") == tmp_path / ".cache" / "stagewright" / "a"
