"""Changes files at random and reads them at every door: ``python tests/fuzzing/run.py --count 50000``.

Each input must give a value, or one StagewrightError that says where. Everything else is a finding: another exception, more
than 10 s, more than 2 GB. It is saved with its seed; ``--only "DOOR:NUMBER"`` tries it again. Ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch comes with it, which must not be imported before the cache has its place
    from fuzzing.doors import Door

_MOST_SECONDS, _MOST_BYTES = 10.0, 2 << 30


class _TooSlow(BaseException):
    """An input has taken too long. No Exception, so that nothing below takes it for damage."""


def main() -> int:
    """Runs the fuzzer; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one input, or one DOOR")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    given = parser.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="stagewright-fuzz-") as folder:
        os.environ.update(STAGEWRIGHT_CACHE=f"{folder}/cache", STAGEWRIGHT_OFFLINE="1")
        return _fuzz(Path(folder) / "files", given.count, given.seed, given.only, given.findings)


def _fuzz(folder: Path, count: int, seed: int, only: str | None, findings: Path) -> int:
    from fuzzing.corpus import build
    from fuzzing.doors import doors

    folder.mkdir()
    every = doors(build(folder))
    kept = _Kept(folder.parent)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _too_slow)
    _limit_memory()
    began, failed = time.monotonic(), 0
    for door, number in _inputs(every, count, seed, only):
        what = f"{door.name}:{number}"
        problem = _problem(door, random.Random(f"{seed}/{what}"))
        if problem is not None:
            failed += 1
            _save(findings, f"--seed {seed} --only {what!r}", door.file, problem)
            print(f"FOUND --seed {seed} --only {what!r}: {problem.strip().splitlines()[-1][:300]}", flush=True)
        kept.restore()
    seconds = time.monotonic() - began
    where = f", saved in {findings}" if failed else ""
    print(f"{count:,} inputs at {len(every)} doors in {seconds:.0f} s: {failed:,} findings{where}")
    return int(failed > 0)


def _inputs(every: list[Door], count: int, seed: int, only: str | None) -> Iterator[tuple[Door, int]]:
    """Yields each input as its door and its number at this door."""
    name, _, number = (only or "").partition(":")
    if number:
        yield next(door for door in every if door.name == name), int(number)
        return
    chosen = [door for door in every for _ in range(door.weight) if not only or door.name == name]
    random.Random(seed).shuffle(chosen)
    numbers = dict.fromkeys((door.name for door in chosen), 0)
    for at in range(count):
        door = chosen[at % len(chosen)]
        yield door, numbers[door.name]
        numbers[door.name] += 1


def _problem(door: Door, draw: random.Random) -> str | None:
    """Changes the file of ``door`` and reads it; returns what is wrong with that, or None."""
    from stagewright.errors import StagewrightError, Unreadable

    door.file.write_bytes(door.change(draw, door.file.read_bytes()))
    if door.reseal is not None:
        with suppress(
            ValueError, RecursionError, AttributeError, KeyError, TypeError
        ):  # no file that has a seal any more
            door.reseal()
    before = _peak_bytes()
    _set_timers(_MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            door.read(draw)
    except Unreadable as error:
        return f"a file that can be read is called unreadable: {error}"
    except StagewrightError as error:
        if not any(word in str(error) for word in door.where):
            return f"the error does not say where: {error}"
    except BaseException:
        return traceback.format_exc()
    finally:
        _set_timers(0)
    grown = _peak_bytes() - before
    return f"{grown / 2**30:.1f} GB of memory" if grown > _MOST_BYTES else None


class _Kept:
    """The files below ``folder`` as they were; brings back those that an input has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self._stamps = {path: self._stamp(path) for path in self._content}

    def restore(self) -> None:
        found = {Path(place, name) for place, _, names in os.walk(self._folder) for name in names}
        for path in found - self._content.keys():
            path.unlink()
        for path, content in self._content.items():
            if path not in found or self._stamp(path) != self._stamps[path]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                self._stamps[path] = self._stamp(path)

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int, int]:
        status = path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ino


def _save(findings: Path, how: str, file: Path, problem: str) -> None:
    folder = findings / hashlib.blake2b(how.encode(), digest_size=6).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / file.name)
    (folder / "problem.txt").write_text(f"{how}\n{problem}", "utf-8", "backslashreplace")


def _set_timers(seconds: float) -> None:
    """Raises _TooSlow after ``seconds`` of this process, or twelve times as long by the clock: others use the machine too."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise _TooSlow(f"more than {_MOST_SECONDS:g} s")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_memory() -> None:
    """Lets an input that asks for far too much memory fail, instead of the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * _MOST_BYTES, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
