"""The first moments of the command: Ctrl-C ends it without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

START = """
import sys
class Slow:  # an import that takes long, as on a cold disk
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            print("here", flush=True)
            import time; time.sleep(30)
sys.meta_path.insert(0, Slow())
sys.argv = ["stagewright", "--help"]
from stagewright.__main__ import run
run()
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_the_command_is_imported(ignored: bool) -> None:
    start = ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if ignored else "") + START
    process = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert (process.poll() is None) == ignored, "a signal that was ignored stays ignored"
    process.kill()
    _, said = process.communicate()
    assert process.returncode == (-signal.SIGKILL if ignored else -signal.SIGINT) and said == ""
