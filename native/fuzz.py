"""Feeds damaged and hostile pictures to the native decoder, compiled with sanitizers (AddressSanitizer and UBSan).

    python native/fuzz.py --count 100000 --jobs 2

Makes seeds with Pillow, compiles fuzz.c beside the decoder's own sources, and runs it. The exit status is 0 where nothing
was found, 1 with a finding (its input and the sanitizer's report lie in --findings), 2 for a fault of the harness, and 3
where this machine has no C compiler, no sanitizers or no header of libjpeg.

The library itself is only looked into where it too was built with sanitizers, as with libjpeg-turbo's sources:
    cmake -DWITH_SIMD=0 -DENABLE_SHARED=0 -DCMAKE_C_FLAGS="-fsanitize=address -O1 -g" SOURCES && make jpeg-static
    python native/fuzz.py --include SOURCES/src --include . --library libjpeg.a
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NATIVE = Path(__file__).resolve().parent
SOURCES = ("fuzz.c", "jpeg.c", "resize.c", "exact.c", "huffman.c")
AWKWARD = NATIVE.parent.parent / "shared" / "data" / "awkward-images.zip"
FLAGS = ("-std=c11", "-g", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RESULTS = ("done", "unusual", "damaged", "outside", "no_memory", "starved")

CLEAN, FINDING, FAULT, NO_SANITIZER = 0, 1, 2, 3

PROBE = """
#include <stdio.h>
#include <jpeglib.h>
int main(void) { struct jpeg_error_mgr errors; return !jpeg_std_error(&errors); }
"""


@dataclass(frozen=True, slots=True)
class Library:
    """The compiler, and which libjpeg it takes: the system's where ``file`` is None."""

    compiler: str
    include: tuple[Path, ...]
    file: Path | None

    def command(self, sources: list[Path], target: Path, *extra: str) -> list[str]:
        headers = [f"-I{folder}" for folder in self.include]
        library = [str(self.file)] if self.file else ["-ljpeg"]
        return [self.compiler, *FLAGS, *extra, *headers, *map(str, sources), *library, "-lm", "-o", str(target)]


# ------------------------------------------------------------------------------------------------------------- seeds


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colour with texture."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((large + random.normal(0, 8, large.shape)).clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "JPEG", "quality": 80} | options))
    return buffer.getvalue()


def rgb_markers(data: bytes) -> bytes:
    """The same with an Adobe marker which says that no colour transform was made."""
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[2:]


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a camera"
    return exif.tobytes()


def made_seeds() -> Iterator[tuple[str, bytes]]:
    """Every kind of JPEG that Pillow can write, small; sound files, all of them."""
    picture = photo(61, 45, 0)
    for subsampling in (0, 1, 2):
        for kind, options in (("base", {}), ("prog", {"progressive": True}), ("opt", {"optimize": True})):
            yield f"{kind}-{subsampling}", jpeg(picture, subsampling=subsampling, **options)
        yield f"blocks-{subsampling}", jpeg(picture, subsampling=subsampling, restart_marker_blocks=2)
        yield f"rows-{subsampling}", jpeg(picture, subsampling=subsampling, progressive=True, restart_marker_rows=1)
        yield f"large-{subsampling}", jpeg(photo(331, 257, 1), subsampling=subsampling)
    for mode in ("L", "CMYK"):
        yield mode, jpeg(picture.convert(mode))
        yield f"{mode}-prog", jpeg(picture.convert(mode), progressive=True)
    yield "ycck", jpeg(picture.convert("CMYK")).replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
    yield "rgb", jpeg(picture, keep_rgb=True)
    yield "rgb-adobe", rgb_markers(jpeg(picture))
    for quality in (1, 30, 100):
        yield f"quality-{quality}", jpeg(picture, quality=quality)
    for width, height in ((1, 1), (1, 33), (33, 1), (7, 8), (8, 8), (9, 17), (16, 15), (640, 3), (3, 640), (64, 64)):
        yield f"size-{width}-{height}", jpeg(photo(width, height, 2))
    for orientation in range(10):
        yield f"exif-{orientation}", jpeg(picture, exif=with_exif(orientation))
        yield f"exif-prog-{orientation}", jpeg(photo(40, 90, 3), exif=with_exif(orientation), progressive=True)
    yield "xmp", jpeg(picture, xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    yield "xmp-plain", jpeg(picture, xmp=b"<x:xmpmeta/>")
    yield "comment", jpeg(picture, comment=b"a comment")
    yield "profile", jpeg(picture, icc_profile=bytes(range(256)) * 4)
    yield "thumbnail", jpeg(picture, exif=b"Exif\0\0" + with_exif(1)[6:] + jpeg(picture.resize((16, 12))))
    yield "mpo", jpeg(picture, format="MPO", save_all=True, append_images=[photo(50, 40, 4)])
    yield "streamed", jpeg(picture, streamtype=2)
    yield "tables-only", jpeg(picture, streamtype=1)
    for name, size in (("flat", (1500, 1100)), ("flat-wide", (16000, 9)), ("flat-tall", (9, 16000))):
        yield name, jpeg(Image.new("RGB", size, (180, 90, 40)))
        yield f"{name}-prog", jpeg(Image.new("RGB", size, (180, 90, 40)), progressive=True, optimize=True)


def write_seeds(folder: Path, awkward: Path | None) -> int:
    """All seeds as files; returns how many."""
    for name, data in made_seeds():
        (folder / name).write_bytes(data)
    if awkward:
        with zipfile.ZipFile(awkward) as archive:
            for at, name in enumerate(sorted(archive.namelist())):
                data = archive.read(name)
                if data[:2] == b"\xff\xd8":
                    (folder / f"awkward-{at:03d}").write_bytes(data)
    return len(list(folder.iterdir()))


# ------------------------------------------------------------------------------------------------------- compilation


def probe(folder: Path, library: Library) -> str:
    """Why nothing can be run here, else an empty string."""
    if not shutil.which(library.compiler):
        return f"no C compiler {library.compiler}"
    source, program = folder / "probe.c", folder / "probe"
    source.write_text(PROBE)
    made = subprocess.run(library.command([source], program), capture_output=True, text=True, errors="replace")
    if made.returncode:
        return f"no sanitizers or no libjpeg to compile with: {made.stderr.strip()[-600:]}"
    ran = subprocess.run([program], capture_output=True, text=True, errors="replace", env=environment())
    return f"a program with sanitizers does not run: {ran.stderr.strip()[-600:]}" if ran.returncode else ""


def build(folder: Path, library: Library, planted: bool) -> Path:
    """The program; SystemExit with the compiler's words where it does not compile."""
    program = folder / "fuzz"
    extra = ["-Wall", "-Wextra", "-Werror"]
    if sys.platform == "linux":
        extra += ["-DFAILING_MALLOC", "-Wl,--wrap=malloc", "-Wl,--wrap=calloc"]
    if planted:
        extra.append("-DPLANTED_BUG")
    command = library.command([NATIVE / name for name in SOURCES], program, *extra)
    made = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if made.returncode:
        print(made.stderr, file=sys.stderr)
        raise SystemExit(FAULT)
    return program


# -------------------------------------------------------------------------------------------------------------- runs


def environment() -> dict[str, str]:
    """Ours without options for the sanitizers, which the program sets itself."""
    return {name: value for name, value in os.environ.items() if name not in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one job came to; ``summary`` is None where it ended early."""

    seed: int
    summary: dict[str, float] | None
    status: int
    words: str


def run(program: Path, seeds: Path, count: int, seed: int, first: int, findings: Path) -> Outcome:
    command = [program, seeds, str(count), str(seed), str(first)]
    done = subprocess.run(command, cwd=findings, env=environment(), capture_output=True, text=True, errors="replace")
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    return Outcome(seed, summary if done.returncode == 0 else None, done.returncode, done.stderr)


def report(outcomes: list[Outcome], seconds: float, findings: Path) -> int:
    """Prints what came out; returns the exit status."""
    done = [outcome.summary for outcome in outcomes if outcome.summary]
    inputs = sum(int(summary["inputs"]) for summary in done)
    raw = sum(int(summary["raw"]) for summary in done)
    counts = "  ".join(f"{name} {sum(int(summary[name]) for summary in done):,}" for name in RESULTS)
    peak = max((int(summary["peak_mib"]) for summary in done), default=0)
    print(f"{inputs:,} JPEG inputs and {raw:,} raw ones in {seconds:.0f} s: {inputs / seconds:,.0f} a second")
    print(f"{counts}  peak memory {peak:,} MiB")
    status = CLEAN
    for outcome in outcomes:
        if outcome.summary:
            continue
        broken = outcome.status == FAULT
        status = max(status, FAULT if broken else FINDING)
        kept = findings / f"report-{outcome.seed}.txt"
        kept.write_text(outcome.words)
        print(f"{'FAULT' if broken else 'FINDING'} with seed {outcome.seed} (status {outcome.status}), see {kept}:")
        print(outcome.words[-6000:])
        if not broken:
            print(
                f"again: --seed {outcome.seed} --first N --count 64 --jobs 1, and the same library; N as in finding-SEED-N"
            )
    print("nothing found" if status == CLEAN else "see above")
    return status


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Feeds damaged pictures to the native decoder.")
    parser.add_argument("--count", type=int, default=100_000, help="JPEG inputs of all jobs together")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first job; the next ones count up")
    parser.add_argument("--first", type=int, default=0, help="number of the first input, to go back to a finding")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--awkward", type=Path, help="zip of odd files to begin from too; 'none' for none")
    parser.add_argument("--cc", default=os.environ.get("CC", "gcc"))
    parser.add_argument("--include", type=Path, action="append", default=[], help="folder of jpeglib.h")
    parser.add_argument("--library", type=Path, help="static libjpeg to link instead of the system's")
    parser.add_argument("--findings", type=Path, default=Path("."), help="folder for inputs that find something")
    parser.add_argument("--planted", action="store_true", help="puts a bug in: the harness must find it")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    library = Library(given.cc, tuple(given.include), given.library)
    awkward = given.awkward or (AWKWARD if AWKWARD.is_file() else None)
    given.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if reason := probe(folder, library):
            print(reason, file=sys.stderr)
            return NO_SANITIZER
        program = build(folder, library, given.planted)
        seeds = folder / "seeds"
        seeds.mkdir()
        num_seeds = write_seeds(seeds, None if str(awkward) == "none" else awkward)
        jobs = min(given.jobs, given.count)
        shares = [given.count // jobs + (at < given.count % jobs) for at in range(jobs)]
        print(f"{num_seeds} seed files, {jobs} jobs, libjpeg: {library.file or 'the system’s'}", flush=True)
        began = time.perf_counter()
        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(
                pool.map(
                    lambda at: run(program, seeds, shares[at], given.seed + at, given.first, given.findings),
                    range(jobs),
                )
            )
        return report(outcomes, time.perf_counter() - began, given.findings)


if __name__ == "__main__":
    raise SystemExit(main())
