"""The run directory: where every file of a run lies, how a new one gets its name, and what it says of its making."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from stagewright import recipes
from stagewright.data import native
from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, RecipeError, StorageError
from stagewright.machine import cores, memory_bytes
from stagewright.plan import Plan
from stagewright.storage.files import read_own, unwritable, user_path, write_json, write_whole
from stagewright.storage.lock import Lock

_LIBRARIES = ("stagewright", "torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "pyarrow")


@dataclass(frozen=True)
class RunDir:
    """Paths inside ``root``. Files are written whole (temporary name, then rename), logs are appended to."""

    root: Path
    lock: Lock | None = field(default=None, compare=False, repr=False)
    """What makes this process the only one that writes here; None for readers and for folders of the process's own."""

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
        root = user_path(root)
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
        """A new run directory in a folder that only this process uses; StorageError where it cannot be made."""
        try:
            root.mkdir(parents=True)
        except OSError as error:
            raise unwritable(root, error) from error
        return cls(root)

    def write_start(self, plan: Plan, manifest: Manifest, env: Mapping[str, Any]) -> None:
        """What stands before the first step. The plan comes last: a folder with a plan has all of it."""
        manifest.write(self.manifest)
        write_whole(self.recipe, recipes.to_yaml(plan.recipe))
        write_json(self.env, env)
        write_json(self.plan, plan.to_json())
        if self.lock is not None:
            self.lock.write(beginning=False)

    def read_plan(self) -> Plan:
        """The run's plan; CheckpointError where it was altered or is damaged, Unreadable where it cannot be read now."""
        try:
            return Plan.from_json(json.loads(read_own(self.plan)))
        except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.plan} is damaged or gone: {error}", "the file as train wrote it", "restore it from a copy"
            ) from None
        except RecipeError as error:
            raise CheckpointError(f"{self.plan}: {error.given}", error.allowed, error.remedy) from None

    def read_env(self) -> dict[str, Any]:
        """``env.json``, which is for people: empty where it is missing or damaged. Unreadable where it cannot be read now."""
        try:
            content = json.loads(read_own(self.env))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def check_held(self) -> None:
        """StorageError where the directory was moved, deleted or taken over by another process meanwhile."""
        if self.lock is not None:
            self.lock.check()


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


def own_command() -> list[str]:
    """The command line of this process as a person would type it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


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
