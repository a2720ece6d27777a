"""The queue of a study: Optuna's study of its trials, with its sampler, its rungs, and the score that it is told."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from stagewright.errors import StorageError
from stagewright.study.definition import Study
from stagewright.study.ledger import Phase
from stagewright.study.scores import direction
from stagewright.study.space import Dimension
from stagewright.study.store import CONTINUES, job_of, queue_name
from stagewright.study.study_file import FIRST_CONFIRMATION_SEED

T = TypeVar("T")
THOUSAND = 1000
"""Parts of a run in which rungs and reports count, since runs differ in their numbers of steps."""
STORE_ERRORS = (SQLAlchemyError, StorageInternalError, StorageError, OSError)
"""What a store that is away raises."""
_MOST_SEED = 2 * FIRST_CONFIRMATION_SEED
_TELL_SECONDS = 600.0
_RETRY_SECONDS = 2.0


def open_queue(
    study: Study, phase: Phase, storage: BaseStorage, *, number: int = 0, create: bool = True
) -> optuna.Study:
    """Returns Optuna's study of the queue of ``phase``. ``number`` is of the next trial: a sampler of each process is seeded by
    the study's seed and by it."""
    sampler: BaseSampler = RandomSampler(seed=0)
    pruner: BasePruner = NopPruner()
    if study.search is not None and phase == "study":
        sampler = _sampler(study.search.sampler, study.search.seed, number)
        if study.search.rungs is not None:
            rungs = study.search.rungs
            sampler = _LastState(sampler) if study.search.sampler in ("tpe", "gp") else sampler
            pruner = SuccessiveHalvingPruner(
                min_resource=max(1, round(THOUSAND * rungs.first)), reduction_factor=rungs.eta
            )
    name = queue_name(study, phase)
    if not create:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    return optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        direction=direction(study),
        load_if_exists=True,
    )


def _sampler(name: str, seed: int, number: int) -> BaseSampler:
    if name == "qmc":  # one sequence for all processes, which the store counts
        return QMCSampler(scramble=True, seed=seed)
    own = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
    if name == "tpe":
        return TPESampler(seed=own, multivariate=True, constant_liar=True)
    return GPSampler(seed=own) if name == "gp" else RandomSampler(seed=own)


class _LastState(BaseSampler):
    """A sampler that does not see a paused trial whose run has gone on: it would take the same point for a bad and a good one
    (measured by benchmarks/rungs.py)."""

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner

    def _view(self, study: optuna.Study) -> optuna.Study:
        gone_on = {job_of(one) for one in study.get_trials(deepcopy=False) if CONTINUES in one.user_attrs}
        view = copy.copy(study)

        def seen(*args: Any, **words: Any) -> list[FrozenTrial]:
            trials = optuna.Study._get_trials(study, *args, **words)  # pyright: ignore[reportPrivateUsage]
            return [one for one in trials if not (one.state == TrialState.PRUNED and job_of(one) in gone_on)]

        view._get_trials = seen  # pyright: ignore[reportPrivateUsage]
        return view

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(self._view(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(self._view(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(self._view(study), trial, param_name, param_distribution)


def distributions(study: Study) -> dict[str, BaseDistribution]:
    """Returns Optuna's dimensions of the study, for its table: those of the space, or the axes with labels; and the seed."""
    found: dict[str, BaseDistribution] = {}
    if study.search is not None:
        return {name: _distribution(dimension) for name, dimension in study.search.space.items()}
    for axis in study.variants[0].labels:
        if all(axis in variant.labels for variant in study.variants):
            found[axis] = CategoricalDistribution(list(dict.fromkeys(one.labels[axis] for one in study.variants)))
    return {**found, "seed": IntDistribution(0, _MOST_SEED)}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.labels)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def originals(trials: Iterable[FrozenTrial]) -> int:
    """Returns how many points of a search were chosen: trials that neither try again nor go on with a paused run."""
    return sum("failed_trial" not in trial.system_attrs and CONTINUES not in trial.user_attrs for trial in trials)


def patient(work: Callable[[], T], seconds: float = _TELL_SECONDS) -> T:
    """Returns ``work()``, which is tried again for ``seconds`` while the store is away."""
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except STORE_ERRORS:
            if time.monotonic() > until:
                raise
            time.sleep(_RETRY_SECONDS)
