"""What a study is expected to take on this machine, from one measurement for each kind of run that costs the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from stagewright.api.run import Say
from stagewright.data.batches.specs import has_fixed_views
from stagewright.plan.budget import Budget
from stagewright.plan.cost import Costs, forecast, noise_warning
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, eval_image_size
from stagewright.preflight.cost_probe import probe
from stagewright.study.checks import Checked
from stagewright.study.definition import Rungs
from stagewright.system.device import computing_with
from stagewright.text import count_text


@dataclass(frozen=True)
class Expected:
    """The expected time of a study, one run after the other; seconds of wall-clock time. Early stopping is ignored."""

    seconds: dict[str, float]
    """Of each job by its name; of a search of its examples."""
    runs_seconds: float
    """Of all runs but those of the confirmation; of a search an estimate from its examples."""
    confirm_seconds: float
    """Of the confirmation, if the longest variants are confirmed."""
    num_probes: int
    probe_seconds: float
    """Time that the measurements took."""
    warning: str
    """What makes them unreliable; empty if nothing does."""

    @property
    def total_seconds(self) -> float:
        return self.runs_seconds + self.confirm_seconds


def expected(checked: Checked, execution: Execution, folder: Path, say: Say) -> Expected:
    """Measures each kind of run once, by :func:`stagewright.preflight.cost_probe.probe` for ``execution.probe_seconds`` and its
    set-up, and returns what all runs take. Runs with the same network, sizes and batches cost the same here, whatever their
    optimizer and augmentation. ``folder`` is on the disk of the study; what is written there is removed. With ``equal: time``
    nothing is measured."""
    budget = checked.study.equal.budget
    if budget is not None:
        each = Budget.parse(budget).seconds
        return _summed(checked, {job.name: each for job in checked.jobs}, {})
    with computing_with(execution.threads):
        costs = _measured(checked, execution, folder, say)
    seconds = {job.name: forecast(job.plan, costs[_kind(job.plan)]).total_seconds for job in checked.jobs}
    return _summed(checked, seconds, costs)


def _measured(checked: Checked, execution: Execution, folder: Path, say: Say) -> dict[str, Costs]:
    """Returns the costs of each kind of run."""
    kinds = {}
    for job in checked.jobs:
        kinds.setdefault(_kind(job.plan), job)
    whole = execution.probe_seconds * len(kinds)
    say(f"Measuring this machine with {count_text(len(kinds), 'kind')} of run, for {whole:g} s and their set-up.")
    costs: dict[str, Costs] = {}
    for kind, job in kinds.items():
        costs[kind] = probe(
            job.plan,
            job.dataset,
            execution,
            folder,
            seconds=execution.probe_seconds,
            startup_seconds=checked.reading_seconds,
        )
    return costs


def _kind(plan: Plan) -> str:
    """Returns a text that is equal for plans whose steps take the same time."""
    recipe = plan.recipe
    stages = [
        (
            *(
                one.fit,
                one.image_size,
                one.batch_size,
                one.micro_batch_size,
                one.lanes,
                eval_image_size(plan, one),
                one.train,
            ),
            *(one.norm, one.cache_views, one.average.kind, one.average.recalibrate, one.augment.custom),
            # features of a frozen body are cached where the views are the same in each pass
            one.num_images if one.train != "all" and (one.cache_views or has_fixed_views(one)) else None,
        )
        for one in plan.stages
    ]
    own = [recipe.model.model_dump(mode="json", exclude={"weights"}), recipe.loss, recipe.compile, recipe.channels_last]
    return json.dumps(
        [stages, *own, plan.precision, plan.eval_precision, recipe.deterministic, len(plan.dataset.classes)]
    )


def _summed(checked: Checked, seconds: dict[str, float], costs: dict[str, Costs]) -> Expected:
    study = checked.study
    runs = sum(seconds.values())
    if study.search is not None:
        share = 1.0 if study.search.rungs is None else trained_share(study.search.rungs)
        runs = study.search.trials * mean(seconds.values()) * share
    confirming = 0.0
    if study.confirm is not None:
        longest = {job.variant.name: seconds[job.name] for job in checked.jobs}
        chosen = sorted(longest.values(), reverse=True)[: study.confirm.top]
        chosen += [max(chosen)] * (study.confirm.top - len(chosen))  # of a search only examples are known
        confirming = study.confirm.seeds * sum(chosen)
    noisy = [one for one in costs.values() if one.is_noisy]
    return Expected(
        seconds=seconds,
        runs_seconds=runs,
        confirm_seconds=confirming,
        num_probes=len(costs),
        probe_seconds=sum(one.probe_seconds for one in costs.values()),
        warning=noise_warning(max(noisy, key=lambda one: one.others_cores or 0.0)) if noisy else "",
    )


def trained_share(rungs: Rungs) -> float:
    """Returns the mean share of a run that a search trains, if one of ``eta`` runs goes on at each rung; in (0, 1]."""
    share, at, going = 0.0, 0.0, 1.0
    following = rungs.first
    while at < 1.0:
        share += going * (min(following, 1.0) - at)
        at, following, going = following, following * rungs.eta, going / rungs.eta
    return share
