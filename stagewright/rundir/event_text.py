"""Events in words: the sentences that the terminal, log.txt and the report share."""

from __future__ import annotations

from typing import Any

from stagewright.text import number_text, percent_text, seconds_text

Event = dict[str, Any]


def sentence(event: Event) -> str | None:
    """Returns the sentence for ``event``, or None for kinds without one (progress, saves)."""
    say = _SENTENCES.get(event["kind"])
    return say(event) if say else None


def _evaluated(event: Event) -> str:
    """One line an evaluation, its columns aligned with those of the lines before and after."""
    clock, results = event["clock"], event["results"]
    parts = [f"epoch {event['epoch']:6.2f} {event['stage_name']:<8.8}"]
    if event["train_loss"] is not None:
        parts.append(f"train {number_text(event['train_loss'], '.3f')} {percent_text(event['train_top1']):>7}")
    for kind, result in results.items():
        name = "val" if kind == "raw" else kind
        parts.append(f"{name} {number_text(result['loss'], '.3f')} {percent_text(result['top1'], 2):>8}")
    parts.append("best" if event["best"] else "    ")
    if clock.get("images_per_second"):
        parts.append(f"{seconds_text(clock['epoch_seconds']):>6}  {number_text(clock['images_per_second'])} img/s")
    if clock.get("eta_seconds"):
        parts.append(f"ETA {seconds_text(clock['eta_seconds'])}")
    return "  ".join(parts).rstrip()


def _stage(event: Event) -> str:
    frozen = f", {event['frozen']:,} frozen" if event["frozen"] else ""
    return f"stage {event['stage'] + 1} {event['name']!r}: {event['trainable']:,} parameters train{frozen}"


def _resumed(event: Event) -> str:
    rejected = "".join(f"; passed over {one['name']}: {one['reason']}" for one in event["rejected"])
    where = f"from {event['checkpoint']}" if event["checkpoint"] else "from the beginning: no checkpoint to go on from"
    return f"resumed at step {event['step']:,} {where}{rejected}"


def _bad_image(event: Event) -> str:
    named = "; ".join(f"{path}: {why}" for path, why in zip(event["paths"], event["reasons"], strict=True))
    return f"step {event['step']:,}: masked {len(event['paths'])} that could not be read: {named}"


def _rolled_back(event: Event) -> str:
    return f"step {event['at']:,}: {event['reason']}. Back to step {event['step']:,}: {event['remedy']}"


def _suspect(event: Event) -> str:
    named = ", ".join(event["paths"][:5]) + (f" and {len(event['paths']) - 5} more" if len(event["paths"]) > 5 else "")
    return f"step {event['step']:,}: {event['verdict']}: {named}"


def _finished(event: Event) -> str:
    chosen = event["chosen"]
    scores = ", ".join(
        f"{split} {percent_text(event[f'{split}_top1'], 2)}"
        for split in ("val", "test")
        if event[f"{split}_top1"] is not None
    )
    text = f"finished: top-1 {scores or 'not measured'} with the {chosen['weights']} weights of step {chosen['step']:,}"
    loading = event["clock"].get("loading")
    return f"{text}\n{loading}" if loading else text


def _memory(event: Event) -> str:
    """Memory in use at several points: allocated memory of a device, or resident memory of a process."""
    parts = [f"{read.get('allocated_gb', read.get('resident_gb', 0.0)):.2f} GB {when}" for when, read in _points(event)]
    peak = max(read["peak_gb"] for _, read in _points(event))
    return f"memory: {', '.join(parts)}; at most {peak:.2f} GB"


def _points(event: Event) -> list[tuple[str, dict[str, float]]]:
    return list(event["clock"]["points"].items())


_SENTENCES = {
    "started": lambda event: f"started on {event['clock'].get('device_name') or event['clock'].get('device')}",
    "stage": _stage,
    "evaluated": _evaluated,
    "resumed": _resumed,
    "bad_image": _bad_image,
    "rolled_back": _rolled_back,
    "suspect": _suspect,
    "ended_early": lambda event: f"ended early after step {event['step']:,}: {event['reason']}",
    "skipped": lambda event: f"step {event['step']:,}: {event['reason']}",
    "memory": _memory,
    "notice": lambda event: event["text"],
    "stopped": lambda event: f"stopped at step {event['step']:,}: {event['reason']}",
    "finished": _finished,
}
