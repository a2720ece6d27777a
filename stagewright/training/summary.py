"""Makes the content of summary.json, the result of a run for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stagewright.data.manifest import Manifest
from stagewright.engine.evaluate import Evaluation
from stagewright.engine.state import Score
from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.by_class import accuracy
from stagewright.measures.overview import overview
from stagewright.rundir.event_kinds import AgainstHead, BadImages, Evaluated, MemoryUse, Resumed, Saved
from stagewright.rundir.event_parts import ScoreRange
from stagewright.rundir.events import LoggedEvent, read_events
from stagewright.rundir.held_test import times_opened
from stagewright.rundir.summary import AgainstHeadSummary, FinalistSummary, Summary
from stagewright.training.session import Session


@dataclass(frozen=True, eq=False)
class Final:
    """The final weights of a finished run."""

    score: Score
    results: dict[str, Evaluation]
    """Their results by split."""
    finalists: list[FinalistSummary]
    """What they were compared with at the end; empty if there was nothing."""
    against_head: Mapping[str, AgainstHead] | None
    """How they differ from the head alone, by split; None if they were not compared."""
    interim: bool = False
    """Whether the run was finished before the end of its plan."""


def summarise(session: Session, status: str, *, final: Final | None = None, error: str | None = None) -> Summary:
    """Returns the summary of the run so far; used at the start of each process of a run and at its end.

    ``final`` is given once the run has finished; ``error`` is the error that ended it.
    """
    plan, state, run = session.plan, session.state, session.run
    results, interim = ({}, False) if final is None else (final.results, final.interim)
    session.clock.read("setup")  # charges the time up to now
    events = read_events(run.events)
    # Without those of steps that were repeated after an interruption, which would count twice.
    bad = {row for one in events if isinstance(one.event, BadImages) and not one.superseded for row in one.event.rows}
    images = sum(max(0, min(state.step, s.end_step) - s.first_step) * s.batch_size for s in plan.stages)
    environment = run.read_env()
    content: Summary = {
        "status": status,
        "name": run.root.resolve().name,
        "recipe": plan.recipe.name,
        "model": plan.recipe.model.name,
        "data": environment.get("data"),
        "classes": len(plan.dataset.classes),
        "plan_digest": plan.digest,
        "dataset_digest": plan.dataset.digest,
        "seed": plan.recipe.seed,
        "step": state.step,
        "total_steps": plan.total_steps,
        "stopped_at": round(100 * state.step / plan.total_steps, 2) if interim else None,
        "top1": {split: results[split].top1 if split in results else None for split in ("val", "test")},
        "top5": {split: results[split].top5 if split in results else None for split in ("val", "test")},
        "loss": {split: results[split].loss if split in results else None for split in ("val", "test")},
        "test": {"held": session.manifest.num_closed > 0, "opened": times_opened(events)}
        if plan.dataset.num_test
        else None,
        "metric": plan.recipe.eval.metric,
        "measures": {split: measures_of(session.manifest, split, result) for split, result in results.items()},
        "chosen": None,
        "candidates": _candidates(events),
        "finalists": [] if final is None else final.finalists,
        "against_head": None,
        "setup_seconds": round(state.seconds["setup"], 3),
        "train_seconds": round(state.seconds["train"], 3),
        "eval_seconds": round(state.seconds["eval"], 3),
        "checkpoint_seconds": round(state.seconds["checkpoint"], 3),
        "wall_seconds": round(sum(state.seconds.values()), 3),
        "images_per_second": round(images / max(state.seconds["train"], 1e-9), 2),
        "loading": session.batches.train_times.to_dict(state.seconds["train"] - session.trained_before),
        "restarts": sum(isinstance(one.event, Resumed) for one in events),
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "ended_early": state.step < plan.total_steps and session.is_finished and not interim,
        "guard": {
            "rollbacks": state.guard.rollbacks,
            "left_out_steps": [update + 1 for update in state.guard.left_out],
            "masked": [session.manifest.paths[row].as_py() for row in state.guard.masked],
            "micro_batch_size": state.guard.micro_batch_size,
        },
        "unreadable": len(bad) + sum(result.unreadable for result in results.values()),
        "precision": plan.precision,
        "device": str(state.device),
        "memory_gb": _stage_peaks(events, session),
        "budget": environment.get("budget"),
        "parent": environment.get("parent"),
        "error": error,
        "mirror": None if session.mirror is None else session.mirror.summary(),
    }
    if final is not None:
        content["chosen"] = {
            "step": final.score.step,
            "weights": final.score.weights,
            "stage": plan.stage_before(final.score.step).name,
            "select": plan.recipe.eval.select,
        }
        if final.against_head is not None:
            content["against_head"] = {split: _plain(one) for split, one in final.against_head.items()}
    return content


def measures_of(manifest: Manifest, split: str, result: Evaluation) -> dict[str, Any]:
    """Returns the measures of a split's result, as summary.json has them."""
    return overview(_answers(manifest, split, result)).to_dict()


def score_range(manifest: Manifest, split: str, result: Evaluation) -> ScoreRange:
    """Returns how sure the top-1 of a split's result is."""
    found = accuracy(_answers(manifest, split, result))
    low, high = (0.0, 1.0) if found.low is None or found.high is None else (found.low, found.high)
    return ScoreRange(images=result.images, low=100 * low, high=100 * high)


def _answers(manifest: Manifest, split: str, result: Evaluation) -> Answers:
    return result.answers(group_numbers(manifest.group_names(manifest.rows(split))))


def _plain(one: AgainstHead) -> AgainstHeadSummary:
    return {
        "points": one.points,
        "low": one.low,
        "high": one.high,
        "gained": one.gained,
        "lost": one.lost,
        "images": one.images,
    }


def _candidates(events: Iterable[LoggedEvent]) -> dict[str, float]:
    """Returns the best validation top-1 of each kind of weights, over all evaluations that are not superseded."""
    best: dict[str, float] = {}
    for one in events:
        if isinstance(one.event, Evaluated) and not one.superseded:
            for kind, result in one.event.results.items():
                best[kind] = max(best.get(kind, 0.0), result.top1)
    return best


def _stage_peaks(events: Iterable[LoggedEvent], session: Session) -> dict[str, float]:
    """Returns the peak memory in GiB by stage, over all processes of the run."""
    peaks: dict[str, float] = {}
    read = [(one.event.stage, one.event.peak_gb) for one in events if isinstance(one.event, Saved | MemoryUse)]
    for stage, peak in (*read, (session.stage_name, session.peak_gb())):
        if stage is not None and peak is not None:
            peaks[stage] = max(peaks.get(stage, 0.0), peak)
    return peaks
