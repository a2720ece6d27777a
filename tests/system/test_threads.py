"""A pool that can be left behind: what it does, and that neither a stop nor the end of the process waits for a dead mount."""

from __future__ import annotations

import _thread
import gc
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from stagewright.system.threads import Pool, as_finished


def test_results_and_errors_come_to_whoever_asked() -> None:
    begun: list[str] = []
    with Pool(3, "test", lambda: begun.append(threading.current_thread().name)) as pool:
        tasks = [pool.submit(divmod, number, 3) for number in range(20)]
        failing = pool.submit(divmod, 1, 0)
        assert [task.result() for task in tasks] == [divmod(number, 3) for number in range(20)]
        with pytest.raises(ZeroDivisionError):
            failing.result()
        assert sorted(task.result() for task in as_finished(tasks)) == [divmod(number, 3) for number in range(20)]
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


def test_ctrl_c_at_any_moment_leaves_no_thread_waiting_for_ever(request: pytest.FixtureRequest) -> None:
    """With the locks of concurrent.futures, one of a hundred such stops leaves a thread that never ends."""

    def interrupt_soon(seconds: float) -> None:
        time.sleep(seconds)
        _thread.interrupt_main()

    interval = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-5)
    # An interrupt that arrives while a callback of the garbage collector runs (Hypothesis has one) is lost with it.
    request.addfinalizer(gc.enable)
    gc.disable()
    for _ in range(400):
        with pytest.raises(KeyboardInterrupt), Pool(2, "stopped") as pool:
            pool.submit(interrupt_soon, random.uniform(0, 2e-3))
            ends = time.monotonic() + 10
            while time.monotonic() < ends:
                list(as_finished([pool.submit(int), pool.submit(int)]))
                pool.submit(int).wait(0.2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stopped-")]


def test_a_process_ends_though_a_read_hangs() -> None:
    code = (
        "import os, time; from stagewright.system.threads import Pool\n"
        "hole, _ = os.pipe(); pool = Pool(1, 'hang'); pool.submit(os.read, hole, 1); time.sleep(0.2); pool.close(0.1)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
