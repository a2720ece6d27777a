"""The run directory: where every file of a run lies, how a new one gets its name, and what it says of its making."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, RecipeError
from stagewright.plan.plan import Plan
from stagewright.recipe import recipes
from stagewright.storage.files import read_own, unwritable, user_path, write_json, write_whole
from stagewright.storage.lock import Lock


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
