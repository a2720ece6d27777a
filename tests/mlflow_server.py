"""A real MLflow server over SQLite on the loopback, in an environment of its own, which is made when it is first asked for.

The server needs older versions of libraries than the package (pyarrow below 26). Its environment lies in the user's cache folder,
outside the tree. Where it cannot be made, the tests that need it are skipped with the reason.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

VERSION = "3.17.2"


def server_python() -> Path:
    """The Python of the server's environment; skips the test where it cannot be made."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stagewright-tests"
    folder = home / f"mlflow-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, done = folder / "bin" / "python", folder / "complete"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / "mlflow.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                subprocess.run(
                    [sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=120
                )
                command = [str(python), "-m", "pip", "install", "--quiet", f"mlflow=={VERSION}"]
                if subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True).returncode == 0:
                    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), command[-1]]
                subprocess.run(command, check=True, capture_output=True, timeout=600)
                done.touch()
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        pytest.skip(f"mlflow {VERSION} cannot be installed: {told[-1] if told else error}")
    return python


class MlflowServer:
    """The server over one SQLite file; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.python, self.folder = server_python(), folder
        self.database = folder / "mlflow.db"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers."""
        command = [str(self.python), "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "files"), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)

    def kill(self) -> None:
        """Ends the server and its workers at once, as a power cut does."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def points(self) -> dict[str, list[tuple[str, int, float]]]:
        """What the database has of each live run by the run's id of ours: tag, step and value of every point."""
        return stored_points(self.database)


def stored_points(database: Path) -> dict[str, list[tuple[str, int, float]]]:
    """Tag, step and value of every point of each live run in an MLflow database, by the id that was given to the run."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute(
            "select tags.value, metrics.key, step, metrics.value, is_nan from runs join tags using (run_uuid) "
            "join metrics using (run_uuid) where tags.key = 'stagewright.id' and lifecycle_stage = 'active'"
        ).fetchall()
    finally:
        connection.close()
    found: dict[str, list[tuple[str, int, float]]] = {}
    for run, tag, step, value, is_nan in rows:
        found.setdefault(run, []).append((tag, step, float("nan") if is_nan else value))
    return found
