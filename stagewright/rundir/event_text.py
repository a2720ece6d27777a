"""Events in words: the sentences that the terminal, log.txt and the report share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

from stagewright.measures.metrics import TITLES
from stagewright.rundir.event_kinds import (
    AgainstHead,
    BadImages,
    EndedEarly,
    Evaluated,
    Event,
    Finished,
    InterimFinished,
    MemoryUse,
    Notice,
    OpenedTest,
    Resumed,
    RolledBack,
    RunStopped,
    Skipped,
    StageBegun,
    Started,
    Suspected,
)
from stagewright.text import count_text, done_text, number_text, percent_text, score_text, seconds_text


@singledispatch
def sentence(event: Event) -> str | None:
    """Returns the sentence for ``event``, or None for kinds without one (progress, saves)."""
    return None


@sentence.register
def _started(event: Started) -> str:
    several = f" in each of {event.processes} processes" if event.processes else ""
    return f"started on {event.device_name or event.device}{several}"


@sentence.register
def _stage_begun(event: StageBegun) -> str:
    frozen = f", {event.frozen:,} frozen" if event.frozen else ""
    return f"stage {event.stage + 1} {event.name!r}: {event.trainable:,} parameters train{frozen}"


@sentence.register
def _evaluated(event: Evaluated) -> str:
    """One line an evaluation, its columns aligned with those of the lines before and after."""
    parts = [f"epoch {event.epoch:6.2f} {event.stage_name:<8.8}"]
    if event.train_loss is not None:
        parts.append(f"train {number_text(event.train_loss, '.3f')} {percent_text(event.train_top1):>7}")
    for kind, result in event.results.items():
        name = "val" if kind == "raw" else kind
        parts.append(f"{name} {number_text(result.loss, '.3f')} {percent_text(result.top1, 2):>8}")
        if event.metric is not None and event.metric != "log_loss":  # the loss stands there already
            parts.append(f"{TITLES.get(event.metric, event.metric)} {number_text(result.metric, '.4f')}")
    parts.append("best" if event.best else "    ")
    if event.images_per_second:
        parts.append(f"{seconds_text(event.epoch_seconds):>6}  {number_text(event.images_per_second)} img/s")
    if event.eta_seconds:
        parts.append(f"ETA {seconds_text(event.eta_seconds)}")
    return "  ".join(parts).rstrip()


@sentence.register
def _resumed(event: Resumed) -> str:
    rejected = "".join(f"; passed over {one.name}: {one.reason}" for one in event.rejected)
    where = f"from {event.checkpoint}" if event.checkpoint else "from the beginning: no checkpoint to go on from"
    return f"resumed at step {event.step:,} {where}{rejected}"


@sentence.register
def _bad_images(event: BadImages) -> str:
    named = "; ".join(f"{path}: {why}" for path, why in zip(event.paths, event.reasons, strict=True))
    return f"step {event.step:,}: masked {len(event.paths)} that could not be read: {named}"


@sentence.register
def _rolled_back(event: RolledBack) -> str:
    return f"step {event.at:,}: {event.reason}. Back to step {event.step:,}: {event.remedy}"


@sentence.register
def _suspected(event: Suspected) -> str:
    named = ", ".join(event.paths[:5]) + (f" and {len(event.paths) - 5} more" if len(event.paths) > 5 else "")
    return f"step {event.step:,}: {event.verdict}: {named}"


@sentence.register
def _finished(event: Finished) -> str:
    return "\n".join([*_outcome("finished", event), *([event.loading] if event.loading else [])])


@sentence.register
def _interim_finished(event: InterimFinished) -> str:
    return "\n".join(_outcome(f"finished, stopped at {done_text(event.step, event.total_steps)}", event))


def _outcome(how: str, event: Finished | InterimFinished) -> list[str]:
    """Returns lines about the weights that became the model, what they score, and how they differ from the head alone."""
    chosen = event.chosen
    lines = [f"{how} with the {chosen.weights} weights of step {chosen.step:,}"]
    for split, name, top1 in (("val", "validation", event.val_top1), ("test", "test", event.test_top1)):
        known = (event.ranges or {}).get(split)
        if top1 is not None and known is not None:
            lines.append(score_text(top1, count_text(known.images, f"{name} picture"), known.low, known.high))
        elif top1 is not None:
            lines.append(score_text(top1, f"the {name} pictures"))
    if len(lines) == 1:
        lines.append(f"top-1 not measured: no validation {'' if event.test_held else 'or test '}pictures")
    if event.test_held:
        lines.append("test part not opened")
    against = against_head_sentence(chosen.weights, event.against_head)
    return [*lines, *([against] if against else [])]


@sentence.register
def _tested(event: OpenedTest) -> str:
    known, weights = event.range, event.weights
    often = f" again, {event.number} times in all" if event.number > 1 else ""
    score = score_text(event.top1, count_text(known.images, "test picture"), known.low, known.high)
    return f"test part opened{often}, with the {weights.weights} weights of step {weights.step:,}\n{score}"


def against_head_sentence(weights: str, differences: Mapping[str, AgainstHead] | None) -> str:
    """Returns a sentence about the chosen ``weights`` and the head alone, by split; empty where they were not compared."""
    if not differences:
        return ""
    if weights == "head":
        return "the head alone is chosen: what was trained further, and mixtures with it, have a higher validation loss"
    parts = [
        f"{split} {one.points:+.2f} points (95 % interval {one.low:+.2f} to {one.high:+.2f}; {one.gained:,} of "
        f"{one.images:,} pictures gained, {one.lost:,} lost)"
        for split, one in differences.items()
    ]
    return f"against the head alone: {', '.join(parts)}"


@sentence.register
def _memory_use(event: MemoryUse) -> str:
    """Memory in use at several points: allocated memory of a device, or resident memory of a process."""
    points = event.points
    parts = [f"{read.get('allocated_gb', read.get('resident_gb', 0.0)):.2f} GB {when}" for when, read in points.items()]
    peak = max((read.get("peak_gb", 0.0) for read in points.values()), default=0.0)
    return f"memory: {', '.join(parts)}; at most {peak:.2f} GB"


@sentence.register
def _notice(event: Notice) -> str:
    return event.text


@sentence.register
def _ended_early(event: EndedEarly) -> str:
    return f"ended early after step {event.step:,}: {event.reason}"


@sentence.register
def _skipped(event: Skipped) -> str:
    return f"step {event.step:,}: {event.reason}"


@sentence.register
def _run_stopped(event: RunStopped) -> str:
    return f"stopped at step {event.step:,}: {event.reason}"
