"""The public function ``open_test``: scores the model of a finished run on its test part, and records that.

For a run that has left its test part closed (``train --hold-test``), or a further time. The event comes first, so that no opening
is lost; then answers, Bundle, summary and page, each whole. A process that is killed in between leaves a run whose summary says
what it said before, and whose events have one opening more: the next call completes that one and counts none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stagewright.api.carry_out import own_images, own_manifest
from stagewright.api.run import Run, Say
from stagewright.bundle.bundle import Bundle, load_bundle
from stagewright.bundle.files import store_test_score
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress
from stagewright.engine.evaluate import Evaluation
from stagewright.errors import CheckpointError, DataError
from stagewright.observers.text_log import TextLog
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, StagePlan
from stagewright.report.tables import read_predictions
from stagewright.report.write import write as write_page
from stagewright.rundir.claim import held
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluating, Event, OpenedTest
from stagewright.rundir.event_parts import ChosenWeights
from stagewright.rundir.event_text import sentence
from stagewright.rundir.events import append_event, read_events
from stagewright.rundir.held_test import hold_of, times_opened
from stagewright.rundir.summary import Summary, read_summary, write_summary
from stagewright.storage.files import user_path
from stagewright.system.device import computing_with
from stagewright.system.output import failsafe_notices
from stagewright.system.signals import StopSignal
from stagewright.text import counted
from stagewright.training.finished_model import evaluate_finished
from stagewright.training.predictions_file import about_predictions, write_predictions
from stagewright.training.setup import RunInputs
from stagewright.training.summary import measures_of, score_range


def open_test(
    run: str | os.PathLike[str],
    *,
    again: bool = False,
    held_by: str | None = None,
    execution: Execution | None = None,
    say: Say = print,
    progress: Progress = lambda done, total: None,
) -> Run:
    """Scores the model of the finished run ``run`` on its test images, as the run's own finish does, and records it.

    ``evaluations/test.parquet`` gets the rows that the finish would have written without ``--hold-test``, to the bit on the same
    machine, device and number of threads (``execution``). The event ``tested``, the summary, the description and the card of the
    model have the score, and how often the test part was opened; the report page is written again if there is one. The model is
    that in the run's folder ``model/``; no checkpoint is needed.

    A test part that was opened before, by a finish too, is opened once more only with ``again``. Where the run is held by
    someone (:attr:`stagewright.plan.execution.Execution.hold_test`), ``held_by`` must be that sentence. ``say`` is called with
    what was found, ``progress(done, total)`` counts the images.

    DataError for a run without test images, and if the test part must stay closed; CheckpointError if the run has not finished,
    or another process has locked it.
    """
    say = failsafe_notices(say)
    with contextlib.ExitStack() as holding:
        target = holding.enter_context(held(user_path(run)))
        summary, plan = _finished(target), target.read_plan()
        opening = _opening(target, plan, summary, again, held_by)
        execution = replace(execution or Execution(), keep_decoded=False)  # each image is read once
        holding.enter_context(computing_with(execution.threads))
        manifest, images, _ = own_images(target, own_manifest(target, plan), None, everything=False, quiet=True)
        bundle = _own_bundle(target, plan, opening.chosen)
        watch: Sequence[_Watch] = [_Watch(progress)]
        inputs = RunInputs(target, plan, manifest, images, execution, StopSignal(), observers=watch)
        least = (summary.get("guard") or {}).get("micro_batch_size")
        tensors = bundle.model.state_dict()
        result = evaluate_finished(inputs, tensors, "test", _evaluated_stage(plan, summary), least)
        target.check_held()
        _record(target, plan, manifest, summary, opening, bundle, result, say)
    return Run(target.root)


@dataclass(frozen=True)
class _Opening:
    """One time that the test part is scored."""

    number: int
    """Counted from 1, with those of finishes."""
    is_logged: bool
    """Whether an interrupted process has written the event of this opening, and not all of its results."""
    chosen: ChosenWeights


class _Watch:
    """An observer that passes on how many images were evaluated."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluating):
            self._progress(event.done, event.total)

    def close(self) -> None: ...


def _finished(run: RunDir) -> Summary:
    summary = read_summary(run)
    if summary.get("status") != "finished" or not summary.get("chosen"):
        raise CheckpointError(
            f"{run.root} has not finished, so that it has no model to score on its test part",
            "a finished run",
            f"stagewright resume {run.root} completes it; stagewright finish {run.root} makes a model of what is saved",
        )
    return summary


def _opening(run: RunDir, plan: Plan, summary: Summary, again: bool, held_by: str | None) -> _Opening:
    """Returns the opening that is asked for; DataError if it is refused."""
    if not plan.dataset.num_test:
        raise DataError(
            f"{run.root} has no test pictures", "a run with a test part", "evaluate it on other pictures: give DATA"
        )
    holder = hold_of(run)
    holder = holder if isinstance(holder, str) else None
    if holder != held_by:
        raise DataError(
            f"the test part of {run.root} "
            + (f"is not held by {held_by!r}" if holder is None else f"is not opened by hand: {holder}"),
            "what holds it opens it",
            "leave held_by out" if holder is None else "--split val evaluates the run on its validation pictures",
        )
    logged = times_opened(read_events(run.events)) if run.events.is_file() else 0
    said = (summary.get("test") or {}).get("opened", logged)
    chosen = summary.get("chosen")
    assert chosen is not None
    weights = ChosenWeights(step=chosen["step"], weights=chosen["weights"])
    if logged > said:
        return _Opening(logged, True, weights)
    before = max(logged, said)
    if before and not again:
        raise DataError(
            f"the test part of {run.root} was opened before ({counted(before, 'time')}): a score that is looked at again and "
            "again is no score on unseen pictures any more",
            "the score that is there, in summary.json and the report",
            "--again opens it once more, and counts that",
        )
    return _Opening(before + 1, False, weights)


def _own_bundle(run: RunDir, plan: Plan, chosen: ChosenWeights) -> Bundle:
    """Returns the model of the run; CheckpointError if it is that of another plan or of other weights than the summary says."""
    bundle = load_bundle(run.root)
    training = bundle.spec.training
    own = (plan.digest, chosen.step, chosen.weights)
    if tuple(training.get(name) for name in ("plan_digest", "step", "weights")) != own:
        raise CheckpointError(
            f"{run.bundle} is not the model of which {run.summary.name} tells ({chosen.weights} weights of step {chosen.step:,})",
            "the folder model/ that the run wrote",
            "restore it from a copy",
        )
    return bundle


def _evaluated_stage(plan: Plan, summary: Summary) -> StagePlan:
    """Returns the stage as which the finish has evaluated: that of the weights that ``eval.select`` selected, also where the head
    alone, of an earlier stage, was chosen in the end."""
    selected = [one["step"] for one in summary.get("finalists") or () if one["coefficient"] == 1.0]
    chosen = summary.get("chosen")
    assert chosen is not None
    return plan.stage_before(selected[0] if selected else chosen["step"])


def _record(
    run: RunDir,
    plan: Plan,
    manifest: Manifest,
    summary: Summary,
    opening: _Opening,
    bundle: Bundle,
    result: Evaluation,
    say: Say,
) -> None:
    event = OpenedTest(
        step=summary["step"],
        number=opening.number,
        weights=opening.chosen,
        top1=result.top1,
        range=score_range(manifest, "test", result),
    )
    lost_before = _unreadable(run) if summary["top1"].get("test") is not None else 0
    if not opening.is_logged:
        log = TextLog(run.log)
        log.see(append_event(run.events, event))
        log.close()
    write_predictions(run, manifest, "test", result, about_predictions(plan, opening.chosen, bundle.preprocessing))
    store_test_score(bundle.folder, result.top1, opening.number)
    for name, value in (("top1", result.top1), ("top5", result.top5), ("loss", result.loss)):
        before = summary.get(name)  # of the validation part, which is carried over as it is
        summary[name] = {**(before if isinstance(before, dict) else {}), "test": value}
    summary["measures"] = {**summary.get("measures", {}), "test": measures_of(manifest, "test", result)}
    summary["unreadable"] = max(0, summary.get("unreadable", 0) - lost_before) + result.unreadable
    summary["test"] = {"held": bool(hold_of(run)), "opened": opening.number}
    write_summary(run, summary)
    if run.report.is_file():
        write_page(run.root)
    for line in (sentence(event) or "").splitlines():
        say(line)


def _unreadable(run: RunDir) -> int:
    """Returns how many test images could not be read when they were scored before."""
    before = dict(read_predictions(run.evaluations, [])).get("test")
    return 0 if before is None else before.unreadable
