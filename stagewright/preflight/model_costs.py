"""Measures what the networks of several runs cost, alone and in turns, so that their figures can be compared.

A machine that grows warm, or whose other users come and go, is not the same an hour later. So the runs take turns: one
measurement of each, in a process of its own (:mod:`stagewright.preflight.one_measurement`), round after round; the medians over
the rounds go to costs.json of each run. Nothing may train meanwhile: the locks of these runs are held, and others beside them
must be free.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from stagewright import errors
from stagewright.errors import CheckpointError, RecipeError, StagewrightError
from stagewright.plan.cost import DISTURBED_CORES
from stagewright.plan.execution import Execution
from stagewright.rundir.claim import held
from stagewright.rundir.costs import CostsFields, write_costs
from stagewright.rundir.directory import RunDir
from stagewright.storage.json_text import parse_object
from stagewright.storage.lock import is_held, is_locked
from stagewright.system.children import module_command
from stagewright.text import number_text, shortened, some

MOST_ROUNDS = 100
_MEDIANS = ("train_images_per_second", "epoch_seconds", "train_gb", "latency_ms", "images_per_second")
_PATIENCE_SECONDS = 10.0
"""How long a process that is stopped may take to remove its temporary folder."""


def measure_costs(
    runs: Sequence[Path],
    *,
    rounds: int = 3,
    seconds: float = 5.0,
    execution: Execution | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[CostsFields]:
    """Measures each of ``runs``, the directories of runs that have at least begun, ``rounds`` times in turns, writes costs.json
    of each, and returns their contents in the same order. Nothing else of a run changes.

    A measurement takes about 1.4 times ``seconds`` and its set-up; ``execution`` says on which device and with how many threads.
    ``say`` is called with one line after each. Of runs that differ only in their seed, give one. A run whose pictures are gone
    has no figures of training, with the reason. All runs are written at the end, none if the measurement ends before.

    CheckpointError if one is no run, or if a process uses it or a run beside it: measurements must be alone. ModelError if a
    network cannot be built, StorageError if a file cannot be written.
    """
    _check(rounds, seconds)
    places = list(dict.fromkeys(_place(run) for run in runs))
    execution = execution or Execution()
    found: dict[Path, list[CostsFields]] = {place: [] for place in places}
    with contextlib.ExitStack() as holding:
        _refuse_company(places)
        targets = {place: holding.enter_context(held(place)) for place in places}
        for number in range(rounds):
            for place, target in targets.items():
                _refuse_company(places, own=True)
                trains = number == 0 or found[place][0].training_problem is None
                one = _in_process(target, execution, seconds, counts=number == 0, trains=trains)
                found[place].append(one)
                say(_line(place, number, rounds, one))
        costs = {place: _summed(measured) for place, measured in found.items()}
        for place, target in targets.items():
            target.check_held()
            write_costs(target, costs[place])
    return [costs[_place(run)] for run in runs]


def _place(run: Path) -> Path:
    """Returns the directory ``run`` by its real path, with a plan that can be read."""
    found = RunDir.existing(run)
    found.read_plan()
    return found.root.resolve()


def _check(rounds: int, seconds: float) -> None:
    if not 1 <= rounds <= MOST_ROUNDS:
        raise RecipeError(f"{rounds} rounds of measurements", f"1 to {MOST_ROUNDS}", "3 are usual")
    if not 0 < seconds <= 3600:
        raise RecipeError(f"{seconds:g} s for a measurement", "above 0, at most 3,600", "5 are usual")


def _refuse_company(places: Iterable[Path], *, own: bool = False) -> None:
    """CheckpointError if a process uses a run beside one of ``places``, or works at the study that they belong to. ``own``: these
    themselves are locked by this process."""
    mine = set(places)
    busy: list[Path] = []
    for folder in {place.parent for place in mine}:
        with contextlib.suppress(OSError):
            beside = [one for one in folder.iterdir() if one.is_dir() and not (own and one.resolve() in mine)]
            busy += [one for one in (*beside, folder) if is_held(one)]
            # A worker of a study has a lock there as long as it lives, also between two runs (stagewright.study.store).
            workers = folder.parent / "processes"
            busy += [folder.parent for one in (workers.iterdir() if workers.is_dir() else ()) if is_locked(one)][:1]
    if busy:
        raise _in_company(busy)


def _in_company(busy: Sequence[Path]) -> CheckpointError:
    return CheckpointError(
        f"{some(sorted(str(one) for one in busy), 4)}: a process works there now, and costs are measured alone",
        "a time at which no process trains at these runs or at others of their study",
        "wait until it has ended, or stop it, and give the command again",
    )


def _in_process(run: RunDir, execution: Execution, seconds: float, *, counts: bool, trains: bool) -> CostsFields:
    """Returns one measurement, made by a process of its own, which ends with this one."""
    with tempfile.TemporaryDirectory(prefix="stagewright-costs-") as folder:
        request = Path(folder) / "request.json"
        content = {"run": str(run.root), "execution": asdict(execution), "seconds": seconds, "counts": counts}
        request.write_text(json.dumps({**content, "trains": trains}))
        command = module_command("stagewright.preflight.one_measurement", [str(request)])
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
        )  # Ctrl-C comes to this process alone, which then ends the other
        try:
            said = process.communicate()[1].decode(errors="replace").strip()
        finally:
            _end(process)
        try:
            result = parse_object(request.with_name("result.json").read_bytes())
        except (FileNotFoundError, ValueError):
            raise _ended(run, process.returncode, said) from None
    if "error" in result:
        raise getattr(errors, result["kind"])(*result["error"])
    return CostsFields.model_validate(result["costs"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stops the process if it still runs; it has a moment to remove its temporary folder."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ended(run: RunDir, code: int, said: str) -> StagewrightError:
    why = shortened(said.splitlines()[-1], 300) if said else ("was killed: is there enough memory?" if code < 0 else "")
    return StagewrightError(
        f"the process that measured {run.root} ended with {code}{f': {why}' if why else ''}",
        "a network that trains and predicts on this machine",
        f"look at what stagewright resume {run.root} says",
    )


def _summed(measured: Sequence[CostsFields]) -> CostsFields:
    """Returns the medians over the rounds; what is counted comes from the first."""
    first = measured[0]
    medians = {
        name: median(values)
        if (values := [value for one in measured if (value := getattr(one, name)) is not None])
        else None
        for name in _MEDIANS
    }
    others = [one.others_cores for one in measured if one.others_cores is not None]
    problems = {
        name: next((text for one in measured if (text := getattr(one, name)) is not None), None)
        for name in ("training_problem", "inference_problem")
    }
    return first.model_copy(
        update={
            **medians,
            **problems,
            "rounds": len(measured),
            "others_cores": max(others, default=None),
            "is_disturbed": max(others) > DISTURBED_CORES if others else None,
            "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )


def _line(place: Path, number: int, rounds: int, one: CostsFields) -> str:
    """``Round 1 of 3, swin-1: trains 312 images/s, latency 14.2 ms, 410 images/s at batch 64.``"""
    parts = [
        f"trains {number_text(one.train_images_per_second)} images/s"
        if one.train_images_per_second is not None
        else "training is not measured",
        *([] if one.latency_ms is None else [f"latency {number_text(one.latency_ms, ',.2f')} ms"]),
        *([] if one.images_per_second is None else [f"{number_text(one.images_per_second)} images/s at batch 64"]),
    ]
    if one.others_cores is not None and one.others_cores > DISTURBED_CORES:
        parts.append(f"disturbed: other processes used {one.others_cores:.1f} cores")
    return f"Round {number + 1} of {rounds}, {place.name}: {', '.join(parts)}."
