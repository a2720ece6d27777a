"""MLflow: metrics in batches, with times from our files. A point that the service has already is ignored there.

MLFLOW_TRACKING_URI says where: a server, or a SQLite file. MLFLOW_EXPERIMENT_NAME names the experiment, else ``stagewright``.
Users and passwords come from MLflow's own variables.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from stagewright.errors import CheckpointError
from stagewright.rundir.directory import RunDir
from stagewright.trackers.names import mlflow_uri, resend, without_secrets
from stagewright.trackers.service import About, Timed
from stagewright.trackers.source import Note

_MOST_METRICS, _MOST_PARAMS = 1000, 100
_LONGEST_PARAM, _LONGEST_NAME, _LONGEST_NOTE = 6000, 250, 4500
_ID, _DIRECTORY, _CREATED, _STUDY = (
    "stagewright.id",
    "stagewright.directory",
    "stagewright.created",
    "stagewright.study",
)
_FILE = "sqlite:///"
_PARENT = "mlflow.parentRunId"
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class MLflow:
    """The run at an MLflow server or in its file; see :class:`stagewright.trackers.service.Service`."""

    rewrites = False
    only_whole = False

    def __init__(self, run: RunDir) -> None:
        self._run_dir = run
        self._uri = mlflow_uri()
        self._client = MlflowClient(tracking_uri=self._uri)
        self._id = ""
        self._parent_id: str | None = None
        self._running = False

    def open(self, about: About) -> int | None:
        experiment = self._experiment()
        found = self._find(experiment, _ID, about.remote)
        if found is None:
            tags = {_ID: about.remote, _DIRECTORY: about.directory, _CREATED: about.created}
            if about.study is not None:
                self._parent_id = self._parent(experiment, about.study, about.began_ms)
                tags[_PARENT] = self._parent_id
            made = self._client.create_run(experiment, about.began_ms, tags, about.name)
            self._id = made.info.run_id
            self._params(about.settings)
            return 0
        run = self._client.get_run(found)
        theirs = run.data.tags
        if theirs.get(_CREATED, "") != about.created:
            raise CheckpointError(
                f"the MLflow run {about.remote} is of another run, begun {theirs.get(_CREATED)} in {theirs.get(_DIRECTORY)}",
                "one run under one id",
                f"{resend(about.run.root, 'mlflow')} sends this one under an id of its own",
            )
        self._id, self._parent_id = found, theirs.get(_PARENT)
        self._params({name: value for name, value in about.settings.items() if _key(name) not in run.data.params})
        return None if about.opened else self._last_step()

    def send(self, points: Sequence[Timed]) -> None:
        metrics = [
            Metric(tag, value, one.time_ms, one.point.step) for one in points for tag, value in one.point.values.items()
        ]
        if not self._running:  # a run that is only looked at stays finished
            self._client.update_run(self._id, status="RUNNING")
            self._running = True
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def annotate(self, notes: Sequence[Note], new: int) -> None:
        lines = [f"- step {note.step:,}, {note.kind}: {note.text}" for note in notes]
        while len("\n".join(lines)) > _LONGEST_NOTE:
            del lines[0]
        counts = {kind: sum(note.kind == kind for note in notes) for kind in ("rolled_back", "resumed")}
        tags = [RunTag("mlflow.note.content", "\n".join(lines))]
        tags += [RunTag(f"stagewright.{kind}", str(count)) for kind, count in counts.items() if count]
        stages = [note for note in notes if note.kind == "stage"]
        tags += [RunTag("stagewright.stage", stages[-1].text[:_LONGEST_NAME])] if stages else []
        self._client.log_batch(self._id, tags=tags)

    def result(self, values: Mapping[str, float], status: str, time_ms: int) -> None:
        step = int(values.get("final/step", 0))
        for part in _parts([Metric(tag, value, time_ms, step) for tag, value in values.items()], _MOST_METRICS):
            self._client.log_batch(self._id, metrics=part)
        self._client.set_tag(self._id, "stagewright.status", status)
        self._client.set_terminated(self._id, _STATUS.get(status, "KILLED"), time_ms)
        if self._parent_id is not None and status == "finished":
            with contextlib.suppress(MlflowException):  # it was deleted
                self._client.set_terminated(self._parent_id, "FINISHED", time_ms)

    def artifacts(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if path.is_dir():
                self._client.log_artifacts(self._id, str(path), path.name)
            else:
                self._client.log_artifact(self._id, str(path))

    def close(self) -> None:
        """Nothing waits: each call returns when the service has answered."""

    def confirm(self) -> None:
        """As for :meth:`close`."""

    def drop(self, remote: str) -> None:
        experiment = self._experiment()
        if (found := self._find(experiment, _ID, remote)) is not None:
            self._client.delete_run(found)  # which MLflow can restore

    def where(self) -> str:
        return f"{without_secrets(self._uri)}, run {self._id}"

    def _experiment(self) -> str:
        """Returns the id of the experiment, which is made if need be, and before it the database."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "stagewright"
        if not self._uri.startswith(_FILE):
            return self._made_experiment(name, None)
        folder = Path(self._uri.removeprefix(_FILE)).absolute().parent
        with _taking_turns(folder):  # two processes that make the tables at the same time fail
            return self._made_experiment(name, folder.joinpath("mlartifacts").as_uri())  # else in ./mlruns

    def _made_experiment(self, name: str, place: str | None) -> str:
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return self._client.create_experiment(name, artifact_location=place)
            except MlflowException:  # another process was faster
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        return found.experiment_id

    def _find(self, experiment: str, tag: str, value: str) -> str | None:
        quoted = value.replace("'", "\\'")
        oldest = ["attributes.start_time ASC"]
        found = self._client.search_runs([experiment], f"tags.`{tag}` = '{quoted}'", max_results=1, order_by=oldest)
        return found[0].info.run_id if found else None

    def _parent(self, experiment: str, study: Path, began_ms: int) -> str:
        """Returns the id of the run that stands for the study, which is made if need be, by one process at a time."""
        place = str(study.resolve())
        with _taking_turns(study):
            if (found := self._find(experiment, _STUDY, place)) is not None:
                return found
            return self._client.create_run(experiment, began_ms, {_STUDY: place}, study.name).info.run_id

    def _params(self, settings: Mapping[str, str]) -> None:
        params = [Param(_key(name), value[:_LONGEST_PARAM]) for name, value in settings.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])

    def _last_step(self) -> int:
        """Returns the last step that the service has; only asked where trackers/mlflow.json was lost."""
        found = [
            one.step for tag in ("train/loss", "val/loss") for one in self._client.get_metric_history(self._id, tag)
        ]
        return max(found, default=0)


@contextlib.contextmanager
def _taking_turns(folder: Path) -> Iterator[None]:
    """Context manager: one process of this host at a time is in it, for each ``folder``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks, or without locks on folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _key(name: str) -> str:
    return "".join(one if one.isalnum() or one in "_-./ :" else "_" for one in name)[:_LONGEST_NAME]


def _parts(metrics: Sequence[Metric], most: int) -> Iterator[list[Metric]]:
    """Yields ``metrics`` in parts of at most ``most``; those of one step stay together."""
    part: list[Metric] = []
    step: list[Metric] = []
    for one in metrics:
        if step and one.step != step[0].step:
            if len(part) + len(step) > most:
                yield part
                part = []
            part += step
            step = []
        step.append(one)
    if len(part) + len(step) > most:
        yield part
        part = []
    if part + step:
        yield part + step
