"""Checks a study on DATA and this machine before its first run: every plan and every network, the parts of DATA, the disk.

What is found here would otherwise be found by the job that it concerns, hours later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stagewright.api.prepare import prepare, read_data
from stagewright.api.run import Say
from stagewright.data.dataset import Dataset
from stagewright.engine.build import build_state, checkpoint_bytes
from stagewright.errors import DataError, RecipeError, StagewrightError, StorageError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, eval_image_size
from stagewright.plan.resolve import resolve
from stagewright.preflight.auto_fields import asks_for_lr
from stagewright.recipe.request import RecipeRequest
from stagewright.storage.files import check_room
from stagewright.study.definition import Study, job_name
from stagewright.study.jobs import silent
from stagewright.study.variants import Variant
from stagewright.system.device import computing_with
from stagewright.system.isolation import preserve_global_state
from stagewright.system.memory import num_bytes
from stagewright.text import count_text

_STAYING = 2
"""Checkpoints that stay after a run has ended: the best and the last."""
_FILES_BYTES = 5_000_000
"""Logs, tables and plan of a run."""


@dataclass(frozen=True)
class Size:
    """Bytes of a run on the disk."""

    running: int
    """While it trains."""
    ended: int
    """After it has ended."""


@dataclass(frozen=True, eq=False)
class CheckedJob:
    """A run that a study will make, with its plan."""

    name: str
    """Also of its directory."""
    variant: Variant
    seed: int
    plan: Plan
    """With ``equal: time`` that of the recipe's own length, which the run changes when it has measured the machine."""
    dataset: Dataset
    """As the run will see it: a sample for a rehearsal."""
    size: Size


@dataclass(frozen=True, eq=False)
class Checked:
    """A study that can be carried out."""

    study: Study
    jobs: tuple[CheckedJob, ...]
    """Each variant with each seed; of a search only its examples (:attr:`~stagewright.study.definition.Study.examples`)."""
    tiny: bool
    """Whether all this is a rehearsal in a few steps."""
    reading_seconds: float
    """Time to read DATA once, when its files are known."""

    @property
    def ended_bytes(self) -> int:
        """Bytes of all runs on the disk when they have ended, with those of the confirmation."""
        return self.bytes_left(())

    def bytes_left(self, finished: Collection[str]) -> int:
        """Returns the bytes of the runs that are still to come, of all but the jobs ``finished``: as ended ones, of which one
        still trains."""
        sizes, study = [job.size.ended for job in self.jobs if job.name not in finished], self.study
        most = max(job.size.ended for job in self.jobs)
        if study.search is not None:
            sizes = [most] * max(0, study.search.trials - len(finished))
        confirming = 0 if study.confirm is None else study.confirm.top * study.confirm.seeds
        training = max(job.size.running - job.size.ended for job in self.jobs)
        return sum(sizes) + confirming * most + max(0, training)


def check_study(study: Study, execution: Execution, say: Say, *, tiny: bool = False) -> Checked:
    """Returns the plans of all runs of ``study``; reads DATA once for all that read it in the same way, and builds each distinct
    network once. Writes nothing.

    StagewrightError for a run that cannot be carried out, which it names, for two that are the same, and for DATA without a
    validation part, or without a test part where the study does not say ``test: none``. ``tiny`` checks the rehearsal.
    """
    with computing_with(execution.threads):
        return _checked(study, execution, say, tiny)


def _checked(study: Study, execution: Execution, say: Say, tiny: bool) -> Checked:
    sizes: dict[str, Size] = {}
    jobs: list[CheckedJob] = []
    data = _Data(study, execution, say)
    seeds = study.seeds[:1] if study.search is not None else study.seeds
    for variant in study.examples:
        with_seed = study.request(variant, seeds[0])
        try:
            dataset, plan = data.prepared(with_seed, tiny)
            _check_parts(study, plan)
            key = _network_key(plan)
            if key not in sizes:
                sizes[key] = _size(plan)
        except StagewrightError as error:
            raise _named(error, f"variant {variant.name}") from error
        for seed in seeds:
            recipe = plan.recipe.changed(seed=seed)
            own = resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)
            jobs.append(CheckedJob(job_name(variant, seed), variant, seed, own, dataset, sizes[key]))
    if study.search is None and not tiny:  # a rehearsal has one size for all
        _refuse_twins(jobs)
    return Checked(study, tuple(jobs), tiny, data.seconds)


def check_disk(checked: Checked, folder: Path, finished: Collection[str] = ()) -> None:
    """StorageError unless the disk of ``folder``, which need not exist, has room for all runs of a study but the jobs
    ``finished``, which are there."""
    try:
        check_room(folder, checked.bytes_left(finished))
    except StorageError as error:
        raise StorageError(
            error.given,
            error.allowed.replace("of the run", "of all runs of the study"),
            "free some, choose another disk with --out, or leave out variants or seeds",
        ) from None


class _Data:
    """DATA, read once for each way in which variants read it."""

    def __init__(self, study: Study, execution: Execution, say: Say) -> None:
        self.study, self.execution, self.say = study, execution, say
        self.read: dict[str, Dataset] = {}
        self.seconds = 0.0

    def prepared(self, request: RecipeRequest, tiny: bool) -> tuple[Dataset, Plan]:
        """Returns the data set of a run, and its plan; what is said of DATA is said once."""
        if asks_for_lr(request.preliminary):
            raise RecipeError(
                "lr: auto, which each run would measure for itself",
                "numbers, so that runs differ in nothing but what the study says",
                f"stagewright lr-find {self.study.data} finds one; write it as lr.peak",
            )
        key = json.dumps(request.preliminary.data.model_dump(mode="json"), sort_keys=True)
        first = key not in self.read
        if first:
            began = time.perf_counter()
            self.read[key] = read_data(self.study.data, request, self.execution)
            self.seconds = time.perf_counter() - began
        say = self.say if first else silent
        return prepare(self.study.data, request, self.execution, say, tiny=tiny, known=self.read[key])


def _named(error: StagewrightError, what: str) -> StagewrightError:
    """Returns the same error with ``what`` it is about in front."""
    if error.given.startswith(what):
        return error
    try:
        return type(error)(f"{what}: {error.given}", error.allowed, error.remedy)
    except TypeError:  # an error with arguments of its own
        return error


def _check_parts(study: Study, plan: Plan) -> None:
    """DataError where DATA has not the parts that a study needs."""
    info = plan.dataset
    if not info.num_val:
        raise DataError(
            f"{study.data} has no validation pictures with these settings",
            "a validation part: a study chooses by it, and never by the test part",
            "write set: {data.val: 0.15}, or give DATA a val part",
        )
    if not info.num_test and not study.no_test:
        raise DataError(
            f"{study.data} has no test pictures with these settings",
            "a test part, which stays closed until the confirmation; or the decision to do without",
            "write test: none; or set: {data.test: 0.15}; or for train/ and val/ set: {data.val_is_test: true}",
        )
    if info.num_test and study.no_test:
        raise DataError(
            f"test: none, but {study.data} has {count_text(info.num_test, 'test picture')}",
            "test: none where there is no test part",
            "leave it out: the test part stays closed until the confirmation anyway; or write set: {data.test: 0}",
        )


def _network_key(plan: Plan) -> str:
    """Returns a text that is equal for plans with the same network, optimizer and checkpoints."""
    recipe = plan.recipe
    stages = [
        (
            one.train,
            one.norm,
            one.fit,
            one.image_size,
            eval_image_size(plan, one),
            one.average.kind,
            one.batch_size // one.lanes == 1,
        )
        for one in plan.stages
    ]
    own = [
        recipe.model.model_dump(mode="json"),
        recipe.optimizer.model_dump(mode="json", exclude={"weight_decay"}),
        recipe.loss,
        stages,
    ]
    rest = [recipe.checkpoints.keep, plan.compares_head, len(plan.dataset.classes), recipe.channels_last]
    return json.dumps([*own, *rest, plan.precision])


def _size(plan: Plan) -> Size:
    """Builds the network of ``plan`` with its weights and optimizer, and returns what its runs take on the disk."""
    plain = plan.model_copy(update={"recipe": plan.recipe.changed(compile=False)})
    with preserve_global_state():
        state, _ = build_state(plain, torch.device("cpu"))
        running, own = checkpoint_bytes(state, plan), num_bytes(state.model.state_dict())
    each = running // (plan.recipe.checkpoints.keep + 2 + plan.compares_head)
    return Size(running + own + _FILES_BYTES, _STAYING * each + own + _FILES_BYTES)


def _refuse_twins(jobs: Collection[CheckedJob]) -> None:
    """RecipeError if two jobs have the same plan."""
    for one, other in _twins(jobs):
        raise RecipeError(
            f"the runs {one.name} and {other.name} have the same plan {one.plan.digest[:12]}: they would train the same",
            "runs that differ in more than names and checkpoints",
            f"leave one of them out: {_labels(one.variant.labels)} or {_labels(other.variant.labels)}",
        )


def _twins(jobs: Collection[CheckedJob]) -> Iterator[tuple[CheckedJob, CheckedJob]]:
    found: dict[str, CheckedJob] = {}
    for job in jobs:
        other = found.setdefault(job.plan.digest, job)
        if other is not job:
            yield other, job


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())
