"""W&B: one row a step, under an id made from plan and directory, so that whoever sends the run goes on with the same one.

The service says which row was its last. With WANDB_MODE=offline a finished run is written as one whole folder, never in pieces.
WANDB_PROJECT and WANDB_ENTITY say where to; the key comes from WANDB_API_KEY or ``wandb login``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb
from wandb.sdk.wandb_run import Run

from stagewright.errors import CheckpointError
from stagewright.rundir.directory import RunDir
from stagewright.trackers.names import is_wandb_offline, resend
from stagewright.trackers.service import About, Timed
from stagewright.trackers.source import Note

_CREATED, _DIRECTORY = "stagewright.created", "stagewright.directory"
_CONNECT_SECONDS, _FINISH_SECONDS = 30.0, 600.0
_LONGEST_WAIT_SECONDS = 10.0
"""Between two attempts of W&B's own process, so that the minute at the end of a run is enough."""
_LONGEST_NOTES = 10_000
_TAGS = {"rolled_back": "rolled back", "resumed": "resumed", "ended_early": "ended early"}


class WandB:
    """The run at W&B; see :class:`stagewright.trackers.service.Service`."""

    rewrites = False

    def __init__(self, run: RunDir) -> None:
        self.only_whole = is_wandb_offline()
        self._offline = run.root / "trackers" / "wandb"
        self._live = run.root / "trackers" / "wandb-live"
        self._wandb: Run | None = None
        self._about: About | None = None
        self._last: int | None = None
        self._folder = ""

    def open(self, about: About) -> int | None:
        self._about = about
        if self.only_whole:
            _clear(self._offline)
            self._wandb = self._begin(about, about.run.root / "trackers")
            self._folder = str(Path(self._wandb.dir).parent)
            self._describe(about)
            return 0
        run = self._wandb = self._begin(about, self._emptied())
        if (theirs := run.config.get(_CREATED)) not in (None, about.created):
            where = run.config.get(_DIRECTORY)
            raise CheckpointError(
                f"the W&B run {about.remote} is of another run, begun {theirs} in {where}",
                "one run under one id",
                f"{resend(about.run.root, 'wandb')} sends this one under an id of its own",
            )
        self._describe(about)
        return max(0, run.starting_step - 1)

    def send(self, points: Sequence[Timed]) -> None:
        run = self._open_run()
        for one in points:
            run.log({**one.point.values, "_timestamp": one.time_ms / 1000}, step=one.point.step, commit=True)
            self._last = one.point.step

    def annotate(self, notes: Sequence[Note], new: int) -> None:
        run = self._open_run()
        lines = [f"- step {note.step:,}, {note.kind}: {note.text}" for note in notes]
        while len("\n".join(lines)) > _LONGEST_NOTES:
            del lines[0]
        run.notes = "\n".join(lines)
        kinds = {note.kind for note in notes}
        run.tags = tuple(sorted({*(run.tags or ()), *(tag for kind, tag in _TAGS.items() if kind in kinds)}))

    def result(self, values: Mapping[str, float], status: str, time_ms: int) -> None:
        self._open_run().summary.update({**values, "status": status})

    def artifacts(self, paths: Sequence[Path]) -> None:
        about = self._about
        assert about is not None
        found = wandb.Artifact(f"model-{about.remote}", "model")
        for path in paths:
            if path.is_dir():
                found.add_dir(str(path), name=path.name)
            else:
                found.add_file(str(path))
        self._open_run().log_artifact(found)

    def close(self) -> None:
        """Returns when W&B's own process has sent what it was given; TimeoutError if that takes too long."""
        run, self._wandb = self._wandb, None
        try:
            if run is not None:
                run.finish()
        finally:
            shutil.rmtree(self._live, ignore_errors=True)

    def confirm(self) -> None:
        """Raises ConnectionError if the service does not have the last row; call it after :meth:`close`."""
        if self._last is None or self.only_whole or (about := self._about) is None:
            return
        last, self._last = self._last, None
        try:
            run = self._begin(about, self._emptied())
            step = run.starting_step
            run.finish()
        finally:
            shutil.rmtree(self._live, ignore_errors=True)
        if step <= last:
            raise ConnectionError(f"W&B has the rows up to step {step - 1}, not yet those up to {last}")

    def drop(self, remote: str) -> str:
        return f"wandb: what was sent under the id {remote} stays there; delete it at W&B if you do not want it"

    def where(self) -> str:
        if self.only_whole:
            return f"to upload it: wandb sync {self._folder}"
        return f"W&B run {self._about.remote}" if self._about else "W&B"

    def _emptied(self) -> Path:
        """The folder for what W&B's own process keeps while it sends, without what a killed one left."""
        _clear(self._live)
        self._live.mkdir(parents=True)
        return self._live

    def _begin(self, about: About, folder: Path) -> Run:
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=_CONNECT_SECONDS,
            x_file_stream_retry_wait_min_seconds=1.0,
            x_file_stream_retry_wait_max_seconds=_LONGEST_WAIT_SECONDS,
            x_graphql_retry_wait_min_seconds=1.0,
            x_graphql_retry_wait_max_seconds=_LONGEST_WAIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "stagewright",
            id=about.remote,
            group=about.group,
            resume=None if self.only_whole else "allow",
            mode="offline" if self.only_whole else "online",
            dir=str(folder),
            settings=settings,
        )

    def _describe(self, about: About) -> None:
        run = self._open_run()
        if run.name != about.name:
            run.name = about.name
        known = {_CREATED: about.created, _DIRECTORY: about.directory, **about.settings}
        run.config.update(known, allow_val_change=True)

    def _open_run(self) -> Run:
        assert self._wandb is not None
        return self._wandb


def _clear(folder: Path) -> None:
    """Removes ``folder``; where it is a link, which may lead out of the run, only the link."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
