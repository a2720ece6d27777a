"""Feeds mutated image files of ten formats to everything that reads images, and watches what comes out.

    python benchmarks/fuzz_images.py --count 50000 --jobs 2

Each file goes through ``measure``, ``decode``, ``fingerprint`` and ``crop_into``, in child processes. Accepted are an image or
an OSError of one line; and both ``measure`` and ``decode`` must agree. A finding is any other exception, a crash, more than 10
seconds of CPU for one file, or more than 2 GB of memory in a process. Findings are kept in --findings. Exit status 0: none.

The seeds are small files that Pillow writes, and those of --corpus (zip files of pictures). The native decoder alone, compiled
with AddressSanitizer, is fuzzed by ``native/fuzz.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import resource
import struct
import sys
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from stagewright.augment.geometry import Geometry
from stagewright.data.images.crop import crop_into
from stagewright.data.images.decode import FileImages, decode, measure
from stagewright.data.inspect.fingerprint import fingerprint

MOST_SECONDS = 10.0
MOST_BYTES = 2 << 30
BATCH = 100

Random = np.random.Generator


def seeds(corpus: list[Path]) -> list[bytes]:
    """Returns small files of every format and kind, and the files of the zips ``corpus`` that are no larger than 200 KB."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((53, 41), Image.Resampling.BICUBIC)
    grey, deep = photo.convert("L"), Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, str, dict[str, object]]] = [
        *((one, "JPEG", {"progressive": progressive}) for one in (photo, grey) for progressive in (False, True)),
        (photo, "JPEG", {"exif": exif, "restart_marker_blocks": 3}),
        *(
            (one, "PNG", {})
            for one in (photo, grey, deep, photo.convert("P"), photo.convert("RGBA"), photo.convert("1"))
        ),
        (photo, "PNG", {"exif": exif}),
        *((photo, "WEBP", {"lossless": lossless, "exif": exif}) for lossless in (False, True)),
        *((photo, "GIF", {"save_all": True, "append_images": [more]}) for more in (photo.rotate(90),)),
        *(
            (one, "TIFF", {"compression": kind})
            for one in (photo, deep)
            for kind in ("raw", "tiff_lzw", "tiff_deflate")
        ),
        *((photo, form, {}) for form in ("BMP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "MPO")),
    ]
    found = []
    for image, form, options in made:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        found.append(buffer.getvalue())
    for archive in corpus:
        with zipfile.ZipFile(archive) as opened:
            found += [opened.read(one) for one in opened.infolist() if 0 < one.file_size <= 200_000]
    return found


def parts(data: bytes) -> list[tuple[int, int]]:
    """Returns (begin, end) of the segments, chunks or blocks of a file; equal pieces for formats that are not known."""
    found: list[int] = []
    if data[:2] == b"\xff\xd8":
        found = [one.start() for one in re.finditer(rb"\xff[\xc0-\xcf\xda-\xfe]", data)]
    elif data[:4] in (b"\x89PNG", b"RIFF"):
        at, png = (8, True) if data[:4] == b"\x89PNG" else (12, False)
        while at + 8 <= len(data):
            found.append(at)
            length = struct.unpack(">I" if png else "<I", data[at : at + 4] if png else data[at + 4 : at + 8])[0]
            at += length + (12 if png else 8 + length % 2)
    elif data[:4] == b"GIF8":
        found = [one.start() for one in re.finditer(rb"[\x21\x2c\x3b]", data)]
    found = found or list(range(0, len(data), max(len(data) // 8, 1)))
    return list(zip(found, [*found[1:], len(data)], strict=True))


NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4095, 32767, 32768, 65500, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(data: bytes, pool: list[bytes], random: Random) -> bytes:
    """Returns ``data`` after one to eight changes of its structure or its bytes."""
    new = bytearray(data)
    for _ in range(int(random.choice([1, 1, 2, 3, 8]))):
        if len(new) < 16:
            break
        pieces = parts(bytes(new))
        begin, end = pieces[int(random.integers(len(pieces)))]
        near = min(begin + int(random.integers(0, max(min(end - begin, 24), 1))), len(new) - 1)
        at = near if random.random() < 0.6 else int(random.integers(len(new)))
        match int(random.integers(10)):
            case 0:
                new[at] ^= 1 << int(random.integers(8))
            case 1:
                new[at] = int(random.integers(256))
            case 2:
                width = int(random.choice([1, 2, 4]))
                value = int(random.choice(NUMBERS)) % (1 << 8 * width)
                new[at : at + width] = value.to_bytes(width, "big" if random.random() < 0.5 else "little")
            case 3:
                new[at:at] = bytes(new[begin:end]) * int(random.choice([1, 2, 200]))
            case 4:
                del new[begin:end]
            case 5:
                del new[at:]
            case 6:
                new[at:at] = bytes(random.integers(0, 256, int(random.integers(1, 64)), dtype=np.uint8))
            case 7:
                other = pool[int(random.integers(len(pool)))]
                first, last = (slices := parts(other))[int(random.integers(len(slices)))]
                new[begin:end] = other[first:last]
            case 8:
                new[at:at] = bytes([int(random.integers(256))]) * int(random.choice([10, 1000, 100_000]))
            case _:
                del new[at : at + int(random.integers(1, 100))]
        del new[1 << 21 :]  # now, since eight repetitions would take gigabytes
    result = bytes(new)
    return with_checksums(result) if random.random() < 0.7 else result


def with_checksums(data: bytes) -> bytes:
    """Returns a PNG with the checksums of its chunks made right, so that mutations are not refused by them alone."""
    if data[:4] != b"\x89PNG":
        return data
    new = bytearray(data)
    for begin, end in parts(data):
        if end - begin >= 12:
            new[end - 4 : end] = struct.pack(">I", zlib.crc32(new[begin + 4 : end - 4]))
    return bytes(new)


def look(data: bytes, folder: Path, random: Random) -> str:
    """Reads one file in every way; returns ``read``, ``unreadable``, or what is wrong."""
    (folder / "a.img").write_bytes(data)
    began = time.process_time()
    answers: list[object] = []
    readers: tuple[Callable[[bytes], object], ...] = (measure, lambda data: decode(data).size)
    for read in readers:
        try:
            answers.append(read(data))
        except OSError as error:
            if not str(error) or "\n" in str(error):
                return f"an error that is not one line: {error!r}"
            answers.append("unreadable")
    if answers[0] != answers[1]:
        return f"measure says {answers[0]}, decode {answers[1]}"
    if bool(fingerprint(data).reason) != (answers[0] == "unreadable"):
        return f"measure says {answers[0]}, fingerprint {fingerprint(data)}"
    box = np.array([[0.0, 0.0, 30.0, 20.0]])
    view, whole = np.empty((1, 16, 16, 3), np.uint8), Geometry(box, np.zeros((1, 2), np.int64), random.random(1) < 0.5)
    images = FileImages(str(folder), pa.array(["a.img"]))
    for exact in (False, True):
        crop_into(images, np.array([0]), whole, "bilinear", exact, view)
    seconds = time.process_time() - began
    if seconds > MOST_SECONDS:
        return f"{seconds:.1f} s of CPU"
    return "unreadable" if answers[0] == "unreadable" else "read"


def inputs(pool: list[bytes], seed: int, first: int) -> Iterator[bytes]:
    """Yields the mutated files of one batch, which depend on ``seed`` and the number ``first`` alone."""
    random = np.random.default_rng((seed, first))
    for _ in range(BATCH):
        yield mutated(pool[int(random.integers(len(pool)))], pool, random)


def child(pool: list[bytes], seed: int, first: int, count: int, folder: Path, out: int) -> None:
    """Looks at one batch and writes a line for each file to the descriptor ``out``: before, and after with the result."""
    random = np.random.default_rng(first)
    for at, data in enumerate(inputs(pool, seed, first)):
        if at == count:
            break
        os.write(out, f"{at} ".encode())
        try:
            result = look(data, folder, random)
        except BaseException:
            result = traceback.format_exc().strip().replace("\n", " | ")
        if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) > MOST_BYTES:
            result = f"{peak / 1e9:.1f} GB of memory"
        os.write(out, f"{result}\n".encode("utf-8", "replace"))


def batch(pool: list[bytes], seed: int, first: int, count: int, findings: Path) -> Counter[str]:
    """Runs one batch in a process of its own; returns how many files came to what, and keeps those of findings."""
    folder = findings / f".{seed}-{first}"
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes its warnings there
            child(pool, seed, first, count, folder, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, errors="replace") as lines:
        rows = [line.rstrip("\n").partition(" ") for line in lines]
    _, status = os.waitpid(pid, 0)
    if status:
        rows[-1] = (rows[-1][0], " ", f"the process ended with {os.waitstatus_to_exitcode(status)}")
    found = Counter(text if text in ("read", "unreadable") else "FINDING" for _, _, text in rows)
    files = list(inputs(pool, seed, first)) if found["FINDING"] else []
    for at, _, text in rows:
        if text not in ("read", "unreadable"):
            kept = findings / f"finding-{hashlib.blake2b(files[int(at)], digest_size=6).hexdigest()}"
            kept.write_bytes(files[int(at)])
            print(f"FINDING {kept}: {text[-2000:]}", flush=True)
    (folder / "a.img").unlink(missing_ok=True)
    folder.rmdir()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Feeds mutated image files to everything that reads images.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a zip of pictures to begin from too")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    given = parser.parse_args()
    given.findings.mkdir(parents=True, exist_ok=True)
    pool, began = seeds(given.corpus), time.perf_counter()
    firsts = range(0, given.count, BATCH)
    with ThreadPoolExecutor(given.jobs) as threads:
        found: Counter[str] = sum(
            threads.map(
                lambda first: batch(pool, given.seed, first, min(BATCH, given.count - first), given.findings), firsts
            ),
            Counter(),
        )
    print(f"{found.total():,} files of {len(pool)} seeds in {time.perf_counter() - began:.0f} s: {dict(found)}")
    return 1 if found["FINDING"] else 0


if __name__ == "__main__":
    sys.exit(main())
