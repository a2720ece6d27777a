"""The run directory: paths of all files of a run, and the files that are written before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, RecipeError
from stagewright.plan.plan import Plan
from stagewright.recipe import recipes
from stagewright.rundir.json_fields import EnvFields
from stagewright.storage.files import read_own, unwritable, user_path, write_json, write_whole
from stagewright.storage.json_text import fitting, parse_object
from stagewright.storage.lock import Lock


@dataclass(frozen=True)
class RunDir:
    """Paths of a run's files in ``root``. Files are replaced as a whole (temporary name, then rename); logs are appended to."""

    root: Path
    lock: Lock | None = field(default=None, compare=False, repr=False)
    """The lock that makes this process the only writer; None for readers and for temporary folders of this process."""

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
    def weights(self) -> Path:
        return self.root / "weights.json"

    @property
    def costs(self) -> Path:
        return self.root / "costs.json"

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
    def fed(self) -> Path:
        """Folder with what each stage's network was fed first, one JSON file for each stage."""
        return self.root / "fed"

    @property
    def bundle(self) -> Path:
        return self.root / "model"

    @property
    def interim(self) -> Path:
        return self.root / "interim"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @classmethod
    def existing(cls, root: Path) -> RunDir:
        """Returns the run in ``root``; CheckpointError if there is none."""
        root = user_path(root)
        run = cls(root)
        if not run.plan.is_file():
            others = [path.parent.name for path in root.parent.glob("*/plan.json")] if root.parent.is_dir() else []
            raise CheckpointError(
                f"{root} is not a run directory" + ("" if root.exists() else " (there is no such folder)"),
                "a folder written by stagewright train, with plan.json in it"
                + (f"; in {root.parent}: {', '.join(sorted(others)[:8])}" if others else ""),
                "give the folder that train printed, e.g. runs/quick-1",
            )
        return run

    @classmethod
    def create(cls, root: Path) -> RunDir:
        """Creates a run directory without a lock, in a folder that only this process uses; StorageError if that fails."""
        try:
            root.mkdir(parents=True)
        except OSError as error:
            raise unwritable(root, error) from error
        return cls(root)

    def write_start(self, plan: Plan, manifest: Manifest, env: Mapping[str, Any]) -> None:
        """Writes all files that exist before the first step. The plan comes last: a folder with a plan has all of them."""
        manifest.write(self.manifest)
        write_whole(self.recipe, recipes.to_yaml(plan.recipe))
        write_json(self.env, env)
        write_json(self.plan, plan.to_json())
        if self.lock is not None:
            self.lock.write(beginning=False)

    def read_plan(self) -> Plan:
        """Returns the run's plan; CheckpointError if it was changed or is damaged, Unreadable if it cannot be read now."""
        try:
            return Plan.from_json(parse_object(read_own(self.plan)))
        except (FileNotFoundError, ValueError) as error:
            raise CheckpointError(
                f"{self.plan} is damaged or missing: {error}", "the file as train wrote it", "restore it from a copy"
            ) from None
        except RecipeError as error:
            raise CheckpointError(f"{self.plan}: {error.given}", error.allowed, error.remedy) from None

    def read_env(self) -> dict[str, Any]:
        """Returns the content of ``env.json``, or {} if it is missing or damaged; Unreadable if it cannot be read now.

        Fields whose value has the wrong type are left out.

        A run works without this file, which is information for the user.
        """
        try:
            return fitting(parse_object(read_own(self.env)), EnvFields)[0]
        except (FileNotFoundError, ValueError):
            return {}

    def check_held(self) -> None:
        """Raises StorageError if the directory was moved, deleted or locked by another process in the meantime."""
        if self.lock is not None:
            self.lock.check()
