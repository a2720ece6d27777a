"""Formats what a study will do for the terminal: its runs, what their labels mean, and what they take."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from stagewright.cli.cost_view import bytes_text, money_text
from stagewright.measures.metrics import TITLES
from stagewright.recipe.duration import Duration
from stagewright.study.settings import value_label
from stagewright.system.tables import FittingTable
from stagewright.text import count_text, folded, percent_text, span_text

if TYPE_CHECKING:  # torch comes with them
    from stagewright.study.checks import Checked
    from stagewright.study.definition import Search, Study
    from stagewright.study.expected import Expected


def study_view(checked: Checked, times: Expected | None, price: float | None = None) -> RenderableType:
    """Returns a table with one row per run, one of what their labels mean, and sentences below them; ``times`` None: without
    times, ``price`` of an hour."""
    return Group(_runs(checked, times), _meanings(checked.study), *map(Text, _sentences(checked, times, price)))


def _runs(checked: Checked, times: Expected | None) -> RenderableType:
    study = checked.study
    kind = "runs" if study.search is None else "some of the trials, at the ends of the space"
    table = FittingTable(Text(f"Study {study.name}: {kind}"))
    table.add_column("run", no_wrap=True)
    for name in ("steps", *(["time"] if times is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("plan", no_wrap=True)
    for job in checked.jobs:
        steps = f"{job.plan.total_steps:,}" if study.equal.budget is None else f"in {study.equal.budget}"
        time = [] if times is None else [span_text(times.seconds[job.name])]
        table.add_row(job.name, steps, *time, job.plan.digest[:12])
    return table


def _meanings(study: Study) -> RenderableType:
    table = FittingTable()
    table.add_column("what differs", no_wrap=True)
    table.add_column("is")
    for name, meaning in _named(study.content):
        table.add_row(name, meaning)
    return table


def _named(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what differs between the runs, with its values; each label of a bundle on its own."""
    if content["variants"] is not None:
        yield from ((name, _sets(settings)) for name, settings in content["variants"].items())
    space = {} if content["search"] is None else content["search"]["space"]
    for name, values in (content["grid"] or space).items():
        known = isinstance(values, dict) and len(values) == 1
        if content["grid"] is None and known and "choice" not in values:
            yield name, _range(*next(iter(values.items())))
            continue
        choices = values["choice"] if content["grid"] is None else values
        if isinstance(choices, dict):
            yield from ((f"{name}: {label}", _sets(sets)) for label, sets in choices.items())
        else:
            yield name, ", ".join(map(value_label, choices))


def _sets(value: Any) -> str:
    """Returns what a label stands for: ``optimizer.name=adam, lr.peak=0.01``, or a single value."""
    if not isinstance(value, dict):
        return value_label(value)
    return ", ".join(f"{path}={value_label(one)}" for path, one in _flat(value, "")) or "the recipe as it is"


def _flat(value: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, one in value.items():
        if isinstance(one, dict) and one:
            yield from _flat(one, f"{before}{name}.")
        else:
            yield f"{before}{name}", one


def _range(form: str, ends: list[Any]) -> str:
    how = {"log": " (by factors)", "int": " (whole numbers)", "range": ""}[form]
    return f"{value_label(ends[0])} to {value_label(ends[1])}{how}"


def _sentences(checked: Checked, times: Expected | None, price: float | None) -> list[str]:
    study = checked.study
    lines = [_count_sentence(checked)]
    if study.search is not None and study.search.rungs is not None:
        lines.append(_rungs_sentence(study.search))
    info = checked.jobs[0].plan.dataset
    lines.append(f"Compared by {TITLES[study.metric]} on {count_text(info.num_val, 'validation picture')}.")
    if study.confirm is not None:
        top, seeds = study.confirm.top, study.confirm.seeds
        who = f"all {top}" if top == len(study.variants) else f"the best {top}"
        lines.append(
            f"Then {who} again with {count_text(seeds, 'fresh seed')} each, {count_text(top * seeds, 'run')}"
            + ("." if study.no_test else f", tested on {count_text(info.num_test, 'picture')} that nothing else opens.")
        )
    if study.no_test:
        lines.append("There is no test part (test: none): the result is by validation alone, and so too good.")
    elif study.confirm is None:
        lines.append("Without confirm the test part stays closed.")
    if times is not None:
        lines += _time_sentences(study, times, price)
    each = max(job.size.ended for job in checked.jobs)
    lines.append(f"On the disk: up to {bytes_text(checked.ended_bytes)}, {bytes_text(each)} for a run that has ended.")
    return lines


def _count_sentence(checked: Checked) -> str:
    study = checked.study
    length = _length(study) if not checked.tiny else "a few steps long, as a rehearsal"
    if study.search is not None:
        how = f"by {study.search.sampler} (seed {study.search.seed})"
        return f"{count_text(study.search.trials, 'trial')} {how}, each with seed {study.seeds[0]} and {length}."
    seeds = f"seed{'s' if len(study.seeds) > 1 else ''} {', '.join(map(str, study.seeds))}"
    runs = count_text(len(checked.jobs), "run")
    return f"{runs}: {count_text(len(study.variants), 'variant')} with {seeds}, each {length}."


def _rungs_sentence(search: Search) -> str:
    assert search.rungs is not None
    at, shares = search.rungs.first, list[str]()
    while at < 1:
        shares.append(percent_text(100 * at, 0))
        at *= search.rungs.eta
    best = f"in the best 1/{search.rungs.eta} of the trials so far"
    return f"A trial is paused at {', '.join(shares)} of its run unless it is {best} there."


def _length(study: Study) -> str:
    if study.equal.kind == "as_given":
        return "as long as its recipe says"
    if study.equal.kind == "time":
        return f"{study.equal.value} long"
    return f"{Duration.parse(study.equal.value).number:,} {study.equal.kind} long"


def _time_sentences(study: Study, times: Expected, price: float | None) -> list[str]:
    about = "" if study.search is None else "about "
    line = f"On this machine, one run after the other: {about}{span_text(times.runs_seconds)}"
    if study.confirm is not None:
        line += f", and up to {span_text(times.confirm_seconds)} for the confirmation"
    lines = [f"{line}. A run that stops early takes less."]
    if price is not None:
        money = times.total_seconds / 3600 * price
        lines.append(f"At ${price:g} an hour that is {money_text(money)} in all.")
    if times.warning:
        lines.append(times.warning)
    return lines


def study_in_json(checked: Checked, times: Expected | None, price: float | None) -> dict[str, Any]:
    """Returns the same for programs, with the command of each run."""
    study = checked.study
    runs = [
        {
            "name": job.name,
            "variant": job.variant.name,
            "labels": dict(job.variant.labels),
            "overrides": list(job.variant.overrides),
            "seed": job.seed,
            "steps": None if study.equal.budget is not None else job.plan.total_steps,
            "digest": job.plan.digest,
            "seconds": None if times is None else times.seconds[job.name],
            "bytes": job.size.ended,
            "command": shlex.join(study.command(job.variant, job.seed, f"runs/{study.name}/runs/{job.name}")),
        }
        for job in checked.jobs
    ]
    content = {"name": study.name, "study": dict(study.content), "runs": runs, "bytes": checked.ended_bytes}
    if times is None:
        return content
    money = None if price is None else times.total_seconds / 3600 * price
    return content | {
        "seconds": times.runs_seconds,
        "confirm_seconds": times.confirm_seconds,
        "probe_seconds": times.probe_seconds,
        "money": money,
    }


def study_list(width: int | None) -> str:
    """Returns the names of the shipped studies with their descriptions, in lines of at most ``width`` characters if given."""
    from stagewright.study.study_file import fields_of, shipped

    described = {name: fields_of(name).description for name in shipped()}
    indent = max(map(len, described)) + 2
    lines = [
        f"{name:<{indent}}{text if width is None else folded(text, max(20, width - indent))}".replace(
            "\n", "\n" + " " * indent
        )
        for name, text in described.items()
    ]
    return "\n".join(lines)
