"""A pool that can be left behind: what it does, and that neither a stop nor the end of the process waits for a dead mount."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from stagewright.system.threads import Pool


def test_results_and_errors_come_to_whoever_asked() -> None:
    begun: list[str] = []
    with Pool(3, "test", lambda: begun.append(threading.current_thread().name)) as pool:
        futures = [pool.submit(divmod, number, 3) for number in range(20)]
        failing = pool.submit(divmod, 1, 0)
        assert [future.result() for future in futures] == [divmod(number, 3) for number in range(20)]
        with pytest.raises(ZeroDivisionError):
            failing.result()
    assert sorted(begun) == ["test-0", "test-1", "test-2"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]


def test_closing_cancels_what_is_not_begun_and_leaves_what_hangs() -> None:
    release = threading.Event()
    pool = Pool(1, "hanging")
    hanging, waiting = pool.submit(release.wait), pool.submit(int)
    began = time.monotonic()
    time.sleep(0.05)
    pool.close(patience=0.2)
    assert time.monotonic() - began < 5 and not hanging.done()
    with pytest.raises(CancelledError):
        waiting.result(0)
    release.set()


def test_a_process_ends_though_a_read_hangs() -> None:
    code = (
        "import os, time; from stagewright.system.threads import Pool\n"
        "hole, _ = os.pipe(); pool = Pool(1, 'hang'); pool.submit(os.read, hole, 1); time.sleep(0.2); pool.close(0.1)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
