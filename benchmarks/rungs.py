"""Whether it hurts a search that it sees a continued run twice: paused at a rung with the score there, and finished.

Learning curves in place of trainings: score(t) rises to a height that depends on four settings, at a speed that depends on them
too, so that curves cross (what learns fast at a high rate ends lower). The queue, sampler and pruner are those of a study
(stagewright.study.queue). After every fourth new point the best paused one goes on to its end, as with ``study run --more 1`` and
a larger ``trials``; far more often than in practice, so that harm would show. Two ways, with equal seeds and numbers of
objective steps:

    both    the store has the paused trial and the finished one, and the sampler sees both
    last    the sampler does not see a paused trial that has gone on (as it is)

Regret: the best possible final score less the true one of the configuration with the best measured final score, in points of
top-1. Pairs by seed; 95 % intervals by 10,000 bootstrap samples.

    python benchmarks/rungs.py --seeds 60 --out benchmarks/results/rungs.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from stagewright.study.definition import Study, read_study
from stagewright.study.queue import (
    THOUSAND,
    _LastState,  # pyright: ignore[reportPrivateUsage]
    distributions,
    open_queue,
)
from stagewright.study.store import CONTINUES, JOB, job_of

STUDY = """\
data: none
recipe: quick
seed: {seed}
seeds: [0]
search:
  space:
    lr.peak: {{log: [0.001, 1.0]}}
    optimizer.weight_decay: {{log: [1.0e-6, 1.0e-2]}}
    mix.mixup: {{range: [0.0, 1.0]}}
    augment.rotation: {{range: [0.0, 30.0]}}
  trials: 1000
  sampler: tpe
  rungs: {{first: 10%, eta: 3}}
"""
EVALUATIONS = 20
"""In a run: every 50 thousandths of it."""
CONTINUE_EVERY = 4
"""Points between two continuations."""
BEST = 95.0
NOISE = 0.3
"""Standard deviation of a measured score, in points."""
WAYS = ("both", "last")


def curve(params: dict[str, Any], share: float) -> float:
    """Returns the true score in percent after ``share`` of a run."""
    rate, decay = np.log10(params["lr.peak"]) + 1.2, np.log10(params["optimizer.weight_decay"]) + 3.7
    mixup, rotation = params["mix.mixup"] - 0.35, (params["augment.rotation"] - 12.0) / 30.0
    height = BEST - 9.0 * rate**2 - 1.5 * (decay + 0.5 * rate) ** 2 - 12.0 * mixup**2 - 10.0 * rotation**2
    speed = 6.0 * 10.0 ** (0.45 * rate - 0.5 * params["mix.mixup"])  # fast at high rates, slow with much mixing
    at_end = 1.0 - np.exp(-speed)
    return float(max(10.0, 10.0 + (height - 10.0) * (1.0 - np.exp(-speed * share)) / at_end))


class Search:
    """One study of learning curves."""

    def __init__(self, study: Study, way: str, seed: int) -> None:
        self.study, self.way, self.storage = study, way, InMemoryStorage()
        self.noise = np.random.default_rng([seed, 1])
        self.spent = 0
        """Thousandths of a run."""
        self.finished: list[tuple[float, float]] = []
        """Measured and true final scores."""
        self.continued = 0

    def queue(self) -> optuna.Study:
        queue = open_queue(self.study, "study", self.storage)
        number = len(queue.get_trials(deepcopy=False))
        queue = open_queue(self.study, "study", self.storage, number=number)
        if self.way == "both":
            assert isinstance(queue.sampler, _LastState)
            queue.sampler = queue.sampler.inner
        return queue

    def run(self, budget: int) -> None:
        """Searches until ``budget`` runs' worth of steps are spent."""
        points = 0
        while self.spent < budget * THOUSAND:
            queue = self.queue()
            self._train(queue, to_its_end=False)
            points += 1
            if points % CONTINUE_EVERY == 0 and self._continue(queue):
                self._train(self.queue(), to_its_end=True)
                self.continued += 1

    def _train(self, queue: optuna.Study, *, to_its_end: bool) -> None:
        trial = queue.ask()
        for name, one in distributions(self.study).items():
            assert isinstance(one, FloatDistribution)
            trial.suggest_float(name, one.low, one.high, log=one.log)
        frozen = queue.get_trials(deepcopy=False)[trial.number]
        if JOB not in frozen.user_attrs:
            trial.set_user_attr(JOB, job_of(frozen))
        first, score = frozen.last_step or 0, 0.0
        for at in range(first + THOUSAND // EVALUATIONS, THOUSAND + 1, THOUSAND // EVALUATIONS):
            score = curve(trial.params, at / THOUSAND) + float(self.noise.normal(0.0, NOISE))
            self.spent += THOUSAND // EVALUATIONS
            trial.report(score, at)
            if at < THOUSAND and not to_its_end and trial.should_prune():
                queue.tell(trial, state=TrialState.PRUNED)
                return
        queue.tell(trial, score)
        self.finished.append((score, curve(trial.params, 1.0)))

    def _continue(self, queue: optuna.Study) -> bool:
        """Queues the best paused run as reconcile.continue_paused does; returns whether there is one."""
        trials = queue.get_trials(deepcopy=False)
        gone_on = {job_of(one) for one in trials if CONTINUES in one.user_attrs}
        paused = [one for one in trials if one.state == TrialState.PRUNED and job_of(one) not in gone_on]
        if not paused:
            return False
        best = max(paused, key=lambda one: (one.last_step or 0, one.value or 0.0))
        queue.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=best.params,
                distributions=best.distributions,
                user_attrs={JOB: job_of(best), CONTINUES: True},
                system_attrs={"fixed_params": best.params},
                intermediate_values=best.intermediate_values,
            )
        )
        return True

    @property
    def regret(self) -> float:
        return BEST - max(self.finished)[1]


def interval(values: np.ndarray) -> list[float]:
    """Returns the 95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    return [round(float(one), 4) for one in np.percentile(values[draws].mean(axis=1), (2.5, 97.5))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--budget", type=int, default=25, help="runs' worth of steps in a study")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    regrets: dict[str, list[float]] = {way: [] for way in WAYS}
    counts: dict[str, list[int]] = {"points": [], "finished": [], "continued": []}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            place = Path(folder) / f"{seed}.yaml"
            place.write_text(STUDY.format(seed=seed))
            study = read_study(str(place))
            for way in WAYS:
                search = Search(study, way, seed)
                search.run(args.budget)
                regrets[way].append(search.regret)
                counts["points"].append(len(search.storage.get_all_trials(0)) - search.continued)
                counts["finished"].append(len(search.finished))
                counts["continued"].append(search.continued)
            print(seed, *(f"{way} {regrets[way][-1]:.3f}" for way in WAYS), flush=True)
    both, last = (np.array(regrets[way]) for way in WAYS)
    result = {
        "command": shlex.join(["python", "benchmarks/rungs.py", *sys.argv[1:]]),
        "optuna": optuna.__version__,
        "seeds": args.seeds,
        "budget_runs": args.budget,
        "mean_counts": {name: round(float(np.mean(found)), 1) for name, found in counts.items()},
        "regret": {
            way: {"mean": round(float(np.mean(regrets[way])), 4), "interval": interval(np.array(regrets[way]))}
            for way in WAYS
        },
        "both_less_last": {"mean": round(float(np.mean(both - last)), 4), "interval": interval(both - last)},
        "both_worse_in": int(np.sum(both > last)),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
