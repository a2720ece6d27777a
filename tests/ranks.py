"""Runs a function of :mod:`rank_jobs` in several processes that find each other on the loopback, for tests of ``distributed``.

As a script it is the parent of the processes: it imports torch once and forks them, which costs a tenth of what starting
them costs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Ranks:
    """The processes of one world, as the test sees them."""

    def __init__(self, folder: Path, size: int, parent: subprocess.Popen[bytes]) -> None:
        self.folder, self.size, self._parent = folder, size, parent

    def pid(self, rank: int) -> int:
        return int(self._read(f"{rank}.pid"))

    def kill(self, rank: int, number: int) -> None:
        os.kill(self.pid(rank), number)

    def until(self, name: str, seconds: float = 30) -> str:
        """Waits until a job has written the file ``name``, and returns its text."""
        return self._read(name, seconds)

    def wait(self, seconds: float = 60) -> list[int]:
        """Waits for the end of all processes; returns their exit codes, -9 after a SIGKILL."""
        self._parent.wait(seconds)
        return json.loads(self._read("codes"))

    def result(self, rank: int) -> Any:
        """What the job returned at ``rank``."""
        return json.loads(self._read(f"{rank}.json", 0))

    def said(self, rank: int) -> str:
        """What ``rank`` wrote to standard error."""
        return (self.folder / f"{rank}.err").read_text()

    def _read(self, name: str, seconds: float = 30) -> str:
        path, end = self.folder / name, time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{name} is not there after {seconds} s: {self._errors()}")
            time.sleep(0.02)
        return path.read_text()

    def _errors(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.err")))


@contextmanager
def start_ranks(folder: Path, job: str, size: int, **settings: Any) -> Iterator[Ranks]:
    """Starts ``size`` processes that call the function ``job`` with ``settings``; ends them at the end of the context."""
    parent = _start(folder, job, [size], settings)
    ranks = Ranks(folder / str(size), size, parent)
    try:
        yield ranks
    finally:
        for path in (folder / str(size)).glob("*.pid"):
            if not path.with_suffix(".ended").exists():
                try:
                    os.kill(int(path.read_text()), signal.SIGKILL)
                except ProcessLookupError:
                    continue
        try:
            parent.wait(10)
        except subprocess.TimeoutExpired:
            parent.kill()
            parent.wait()


def run_sizes(folder: Path, job: str, sizes: Sequence[int], **settings: Any) -> dict[int, list[Any]]:
    """Calls ``job`` in worlds of each of ``sizes``, one world after the other; returns what every rank returned."""
    parent = _start(folder, job, sizes, settings)
    try:
        parent.wait(100)
    finally:
        parent.kill()
    found: dict[int, list[Any]] = {}
    for size in sizes:
        ranks = Ranks(folder / str(size), size, parent)
        codes = ranks.wait(1)
        assert codes == [0] * size, ranks._errors()
        found[size] = [ranks.result(rank) for rank in range(size)]
    return found


def _start(folder: Path, job: str, sizes: Sequence[int], settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), job, json.dumps(list(sizes)), json.dumps(settings)]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment)


def _rank(folder: Path, job: str, rank: int, settings: dict[str, Any]) -> None:
    """The life of one process, from the fork to its end."""
    import rank_jobs

    with (folder / f"{rank}.err").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    (folder / f"{rank}.writing").write_text(str(os.getpid()))
    (folder / f"{rank}.writing").rename(folder / f"{rank}.pid")
    code = 1
    try:
        result = getattr(rank_jobs, job)(folder=folder, **settings)
        (folder / f"{rank}.json").write_text(json.dumps(result))
        code = 0
    except SystemExit as ending:
        code = int(ending.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _main() -> None:
    import rank_jobs  # noqa: F401  before the fork, with all of torch

    folder, job, sizes, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
    for size in sizes:
        own = folder / str(size)
        own.mkdir()
        os.environ |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        pids = []
        for rank in range(size):
            os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
            os.environ["LOCAL_WORLD_SIZE"] = str(size)
            if (pid := os.fork()) == 0:
                _rank(own, job, rank, settings)
            pids.append(pid)
        codes = []
        for rank, pid in enumerate(pids):
            _, status = os.waitpid(pid, 0)
            (own / f"{rank}.ended").touch()
            codes.append(os.waitstatus_to_exitcode(status))
        (own / "codes.writing").write_text(json.dumps(codes))
        (own / "codes.writing").rename(own / "codes")


if __name__ == "__main__":
    _main()
