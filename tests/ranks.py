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
from collections.abc import Iterator, Mapping, Sequence
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

    def until(self, name: str, seconds: float = 60) -> str:
        """Waits until a job has written the file ``name``, and returns its text."""
        return self._read(name, seconds)

    def wait(self, seconds: float = 90) -> list[int]:
        """Waits for the end of all processes; returns their exit codes, -9 after a SIGKILL."""
        return json.loads(self._read("codes", seconds))

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
def start_worlds(
    folder: Path, job: str, size: int, worlds: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Ranks]]:
    """Starts a world of ``size`` processes for each of ``worlds``, all at the same time; each process calls ``job`` with the
    settings of its world. Ends what is left at the end of the context."""
    parent = _start(folder, [[name, job, size, dict(settings)] for name, settings in worlds.items()], together=True)
    try:
        yield {name: Ranks(folder / name, size, parent) for name in worlds}
    finally:
        for path in folder.glob("*/*.pid"):
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


def run_sizes(folder: Path, job: str, sizes: Sequence[int]) -> dict[int, list[Any]]:
    """Calls ``job`` in worlds of each of ``sizes``, one world after the other; returns what every rank returned."""
    parent = _start(folder, [[str(size), job, size, {}] for size in sizes], together=False)
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


def _start(folder: Path, worlds: list[list[Any]], together: bool) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    arguments = [str(folder), json.dumps(worlds), json.dumps(together)]
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

    folder, worlds, together = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    started: list[tuple[Path, list[int]]] = []
    for name, job, size, settings in worlds:
        own = folder / name
        own.mkdir()
        started.append((own, _fork_world(own, job, size, settings)))
        if not together:
            _reap(started)
    _reap(started)


def _fork_world(own: Path, job: str, size: int, settings: dict[str, Any]) -> list[int]:
    """Starts the processes of one world; returns their numbers."""
    os.environ |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pids = []
    for rank in range(size):
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        os.environ["LOCAL_WORLD_SIZE"] = str(size)
        if (pid := os.fork()) == 0:
            _rank(own, job, rank, settings)
        pids.append(pid)
    return pids


def _reap(started: list[tuple[Path, list[int]]]) -> None:
    """Waits for all processes as they end, and writes down their exit codes."""
    codes: dict[int, int] = {}
    while started:
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        for own, pids in list(started):
            if pid in pids:
                (own / f"{pids.index(pid)}.ended").touch()
            if all(one in codes for one in pids):
                (own / "codes.writing").write_text(json.dumps([codes[one] for one in pids]))
                (own / "codes.writing").rename(own / "codes")
                started.remove((own, pids))


if __name__ == "__main__":
    _main()
