"""Runs native/fuzz.py briefly: it finds no bug in the decoder, and finds an inserted bug. Also tests bugs found by long runs."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagewright.data.images import native
from stagewright.data.images.stored import Stored

FUZZ = Path(__file__).parent.parent.parent.parent / "native" / "fuzz.py"
CLEAN, FINDING, NO_SANITIZER = 0, 1, 3
DONE, DAMAGED, OUTSIDE = 0, 2, 3

needs_native = pytest.mark.skipif(not native.available(), reason="the native decoder is not built on this machine")


def fuzz(count: int, findings: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ), "--count", str(count), "--jobs", "1", "--findings", str(findings), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == NO_SANITIZER:
        pytest.skip(done.stderr.strip())
    return done


def test_nothing_is_found(tmp_path: Path) -> None:
    done = fuzz(1500, tmp_path, "--awkward", "none")
    assert done.returncode == CLEAN, done.stdout + done.stderr
    assert "1,500 JPEG inputs and 375 raw ones" in done.stdout
    words = done.stdout.replace(",", "").split()
    counts = {name: int(words[words.index(name) + 1]) for name in ("done", "unusual", "damaged", "outside", "starved")}
    assert min(counts.values()) > 0, counts  # if the decoder refused all inputs at once, the run would test nothing
    assert counts["done"] > 100
    assert not list(tmp_path.iterdir())


def test_a_byte_read_behind_the_file_is_found(tmp_path: Path) -> None:
    done = fuzz(300, tmp_path, "--awkward", "none", "--planted")
    assert done.returncode == FINDING, done.stdout + done.stderr
    assert "heap-buffer-overflow" in done.stdout
    (saved,) = tmp_path.glob("finding-*.jpg")
    assert saved.name in done.stdout
    assert saved.read_bytes()[:2] == b"\xff\xd8"


def test_mutated_files_of_all_formats_are_read_or_explained(tmp_path: Path) -> None:
    """The short form of ``make test-long``: no other exception, no crash, no more than 10 s or 2 GB for one file."""
    script = FUZZ.parent.parent / "benchmarks" / "fuzz_images.py"
    command = [sys.executable, str(script), "--count", "300", "--findings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"300 files .*'read': (\d+)", done.stdout)
    assert found and int(found[1]) > 30, done.stdout  # if all were refused at once, the run would test nothing
    assert not list(tmp_path.iterdir())


def cropped(files: list[bytes], box: tuple[float, float, float, float]) -> tuple[np.ndarray, list[int]]:
    count = len(files)
    lengths = np.array([len(data) for data in files], np.int64)
    stored = Stored("encoded", files, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), lengths)
    out = np.full((count, 279, 279, 3), 77, np.uint8)
    codes = native.crop(stored, np.array([box] * count), np.zeros(count, bool), 279, "bilinear", False, out)
    return out, codes.tolist()


def jpeg(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def without(data: bytes, marker: int) -> bytes:
    """Returns the file without the segments of that marker that precede the scan."""
    at, kept = 2, data[:2]
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == marker else data[at:end]
        at = end
    return kept + data[at:]


@needs_native
def test_found_a_thin_box_that_mirrors_to_nothing() -> None:
    """An EXIF orientation mirrors the box 0..5e-265 to width..width, and the resize then read outside of its memory."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = jpeg(Image.new("RGB", (128, 96), (9, 99, 199)), exif=exif.tobytes())
    codes = [cropped([data], box)[1][0] for box in ((0, 31, 5e-265, 72), (31, 0, 72, 5e-265), (0, 31, 1e-3, 72))]
    assert codes == [OUTSIDE, OUTSIDE, DONE]


@needs_native
@pytest.mark.parametrize("marker", [0xC4, 0xDB], ids=["Huffman tables", "quantisation tables"])
def test_found_a_file_decoded_with_the_tables_of_the_one_before(marker: int) -> None:
    """libjpeg keeps tables from image to image, but the result of a file must not depend on the files before it."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = jpeg(Image.fromarray(pixels), quality=20, optimize=True)
    broken = without(whole, marker)
    box = (0.0, 0.0, 64.0, 64.0)
    alone, alone_codes = cropped([broken], box)
    after, after_codes = cropped([whole, broken], box)
    assert after_codes == [DONE, *alone_codes]
    assert alone_codes == [DAMAGED] or np.array_equal(alone[0], after[1])  # decoded with the default tables
