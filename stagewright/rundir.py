"""The run directory: where every file of a run lies, how a new one gets its name, and what it says of its making."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stagewright import recipes
from stagewright.data import native
from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, RecipeError, StorageError
from stagewright.machine import cores, memory_bytes
from stagewright.plan import Plan

_LIBRARIES = ("stagewright", "torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "pyarrow")


@dataclass(frozen=True)
class RunDir:
    """Paths inside ``root``. Files are written whole (temporary name, then rename), logs are appended to."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    @property
    def env(self) -> Path:
        return self.root / "env.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def steps(self) -> Path:
        return self.root / "steps.csv"

    @property
    def timing(self) -> Path:
        return self.root / "timing.csv"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def bundle(self) -> Path:
        return self.root / "model"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @classmethod
    def existing(cls, root: Path) -> RunDir:
        """The run in ``root``; CheckpointError where there is none."""
        run = cls(root)
        if not run.plan.is_file():
            beside = [path.parent.name for path in root.parent.glob("*/plan.json")] if root.parent.is_dir() else []
            raise CheckpointError(
                f"{root} is not a run directory" + ("" if root.exists() else " (there is no such folder)"),
                "a folder that stagewright train made, with plan.json in it"
                + (f"; in {root.parent}: {', '.join(sorted(beside)[:8])}" if beside else ""),
                "give the folder that train printed, e.g. runs/quick-1",
            )
        return run

    @classmethod
    def create(cls, root: Path) -> RunDir:
        """An empty run directory; StorageError where it cannot be made or written, CheckpointError where one stands."""
        run = cls(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / ".probe"
            probe.write_bytes(b"stagewright")
            probe.unlink()
        except OSError as error:
            raise StorageError(
                f"{root} cannot be written: {error.strerror or error}",
                "a folder on a disk with room that this user may write",
                "give another place with --out",
            ) from None
        # What a process leaves that was killed while it wrote a run's beginning is no run yet, and none in the way.
        beginning = {path.name for path in (run.manifest, run.recipe, run.env)}
        if any(path.name not in beginning and not path.name.startswith(".") for path in root.iterdir()):
            what = "already holds a run" if (root / "plan.json").exists() else "is not empty"
            raise CheckpointError(
                f"{root} {what}",
                "a new or empty folder: a run never writes into another's",
                f"stagewright resume {root} goes on with it; another --out, or none, begins a new one",
            )
        return run

    def write_start(self, plan: Plan, manifest: Manifest, env: Mapping[str, Any]) -> None:
        """What stands before the first step. The plan comes last: a folder with a plan has all of it."""
        manifest.write(self.manifest)
        write_text(self.recipe, recipes.to_yaml(plan.recipe))
        write_json(self.env, env)
        write_json(self.plan, plan.to_json())

    def read_plan(self) -> Plan:
        """The run's plan; RecipeError where it was altered, CheckpointError where it is no JSON."""
        try:
            return Plan.from_json(json.loads(self.plan.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.plan} cannot be read: {error}", "the file as train wrote it", "restore it from a copy"
            ) from None
        except RecipeError as error:
            raise CheckpointError(f"{self.plan}: {error.given}", error.allowed, error.remedy) from None

    def read_env(self) -> dict[str, Any]:
        """``env.json``, empty where it is missing."""
        return json.loads(self.env.read_text("utf-8")) if self.env.is_file() else {}


def next_free(parent: Path, name: str) -> Path:
    """``parent/name-N`` with the lowest N above all that stand there, so that runs sort in the order they began."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    taken = [int(match[1]) for path in parent.glob(f"{name}-*") if (match := pattern.fullmatch(path.name))]
    return parent / f"{name}-{max(taken, default=0) + 1}"


def environment(data: str, command: Sequence[str], device: str, device_name: str) -> dict[str, Any]:
    """Versions, machine, commit and the exact command, for ``env.json``."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "decoder": native.describe(),
        "ram_gb": round(memory / 2**30, 1) if (memory := memory_bytes()) else None,
        **{library: _version(library) for library in _LIBRARIES},
        "git_commit": _git_commit(),
        "device": device,
        "device_name": device_name,
        "command": shlex.join(command),
        "cwd": str(Path.cwd()),
        "data": data,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def check_room(folder: Path, bytes_needed: int) -> None:
    """Raises StorageError unless the disk of ``folder``, which need not exist yet, has ``bytes_needed`` bytes free."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < bytes_needed:
        raise StorageError(
            f"{free / 1e9:.3g} GB are free in {there}",
            f"{bytes_needed / 1e9:.3g} GB, for the checkpoints and files of the run",
            f"free {(bytes_needed - free) / 1e9:.3g} GB, choose another disk with --out, or lower checkpoints.keep",
        )


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Holds the run directory ``run_dir``, which exists, for this process; the kernel lets go however the process ends.

    CheckpointError names the process that has it. On a file system without locks it warns in the log and goes on.
    """
    with open(run_dir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (run_dir / ".lock").read_text().strip() or "unknown"
            raise CheckpointError(
                f"{run_dir} is in use by process {holder}",
                "one process in a run directory",
                f"wait for it, or stop it (kill {holder}), or choose another --out",
            ) from error
        except OSError:
            logging.getLogger(__name__).warning(
                "%s: this file system has no locks; start no second process here", run_dir
            )
        file.truncate(0)
        os.write(file.fileno(), str(os.getpid()).encode())
        yield


def own_command() -> list[str]:
    """The command line of this process as a person would type it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes readable JSON whole."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Writes a text file whole: whoever reads it sees the old or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git_commit() -> str | None:
    """Commit of the checkout that stagewright runs from, with ``+`` where it has uncommitted changes."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return None if commit is None else commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
