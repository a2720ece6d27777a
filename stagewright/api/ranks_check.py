"""The check of several processes: a shortened run of the user's recipe and data is carried out by each number of processes, and
compared with that of one process bit for bit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stagewright.api.prepare import prepare
from stagewright.api.resume_check import differences, refuse_in_memory, sampled, shortened, start_run
from stagewright.api.run import Say
from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request

MOST_RANKS = 64


def check_ranks(
    data: str,
    recipe: str | Path | Recipe | RecipeRequest,
    *,
    steps: int,
    ranks: Sequence[int],
    device: str = "auto",
    workers: int | None = None,
    say: Say = print,
) -> bool:
    """Runs ``recipe`` on a part of ``data`` in about ``steps`` updates, with one process and with each number in ``ranks``, and
    once with several of these numbers after each other; returns whether every bit is equal.

    Each process computes with one thread, as sums depend on their number. A recipe whose ``spread`` is below the largest number
    is checked with that spread. ``say`` is called with the progress and the differences found. RuntimeError if a run fails.
    """
    execution = Execution(device=device, workers=workers, pages=False, quiet=True, save_minutes=1e9, threads=1)
    dataset, asked = prepare(data, as_request(recipe), execution, say)
    refuse_in_memory(dataset)
    with tempfile.TemporaryDirectory(prefix="stagewright-check-") as folder:
        manifest = sampled(dataset)
        short, most = shortened(asked.recipe, steps), max(ranks)
        if short.spread < most:
            say(f"spread is {most} for this check, the largest number of processes.")
            short = short.changed(spread=most)
        plan = resolve(short, manifest.info(), precision=asked.precision, measured=asked.measured)
        if (lanes := plan.most_devices) < most:
            raise RecipeError(f"{most} processes", f"1 to {lanes}, the lanes of the recipe", "check fewer processes")
        say(f"Rehearsal: {plan.total_steps} steps in {len(plan.stages)} stages on {len(manifest)} of the pictures.")
        one = start_run(Path(folder) / "one", plan, manifest, data)
        _resume(one.root, 1, execution)
        same = True
        for number in ranks:
            other = start_run(Path(folder) / f"ranks-{number}", plan, manifest, data)
            _resume(other.root, number, execution)
            same &= _told(f"{number} process{'es' if number > 1 else ''}", differences(one, other), say)
        pauses = _pauses(plan, len(ranks) - 1)
        if pauses:
            other = start_run(Path(folder) / "in-turn", plan, manifest, data)
            for number, until in zip(ranks, [*pauses, None], strict=False):
                _resume(other.root, number, execution, until)
            used = ", ".join(map(str, ranks[: len(pauses) + 1]))
            same &= _told(f"{used} processes after each other", differences(one, other), say)
    return same


def _told(what: str, found: list[str], say: Say) -> bool:
    for line in found:
        say(f"DIFFERENT with {what}: {line}")
    if not found:
        say(f"Equal bit for bit with {what}.")
    return not found


def _pauses(plan: Plan, count: int) -> list[int]:
    """Returns at most ``count`` steps at which a run is handed on: planned evaluations but the last, evenly spread."""
    steps = plan.eval_steps[:-1]
    return sorted({steps[at * len(steps) // count] for at in range(count)}) if steps and count else []


def _resume(run: Path, processes: int, execution: Execution, until: int | None = None) -> None:
    """Carries out ``run`` with so many processes, to its end or to the evaluation at step ``until``."""
    command = [sys.executable, "-m", "stagewright", "resume", str(run), "--device", execution.device, "--threads", "1"]
    command += ["--nproc", str(processes), "--quiet", "--no-pages"]
    command += [] if execution.workers is None else ["--workers", str(execution.workers)]
    command += [] if until is None else ["--until", f"{until}st"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{processes} processes in {run} ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
