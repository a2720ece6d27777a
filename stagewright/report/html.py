"""report.html: one self-contained page about a run, for small and large screens, in light and dark mode.

It needs no scripts and no network: figures are SVG inside the page and use its colours, and pictures are stored in its style.
During the run the browser reloads the page periodically. All text from the user (names, paths, commands) is escaped when it is
inserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stagewright.measures.overview import OF_CLASSES
from stagewright.plan import lr_curve
from stagewright.report import results
from stagewright.report.elements import document
from stagewright.report.elements import figure as _figure
from stagewright.report.elements import section as _section
from stagewright.report.elements import table as _table
from stagewright.report.elements import text as _text
from stagewright.report.gallery import Gallery
from stagewright.report.measures_page import measures_section, share_cell, units_of
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES, WEIGHT_NAMES, Score
from stagewright.report.theme import Drawing
from stagewright.rundir.event_kinds import InterimFinished, Notice, Resumed, RunStopped, Skipped
from stagewright.rundir.event_text import sentence
from stagewright.rundir.initial_weights import weights_sentence
from stagewright.text import ABSENT, count_text, number_text, percent_text, seconds_text, size_text

_REFRESH_SECONDS = 15
_SILENT_SECONDS = 600.0
_LISTED = 50


def page(record: RunRecord, drawings: Sequence[Drawing], gallery: Gallery) -> str:
    """Returns the HTML of the page. ``drawings`` come from :func:`stagewright.report.plots.draw`."""
    by_name = {drawing.name: drawing for drawing in drawings}
    refresh = f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">' if record.status == "running" else ""
    body = "".join(
        (
            _head(record),
            _section("Result", _result(record)),
            _section("Plan and what happened", _stages(record)),
            _section("Curves", _curves(by_name)),
            _section("What each stage was fed", gallery.fed),
            _section("Where it is wrong", mistakes_section(record, by_name, gallery)),
            _section("Measures", measures_section(record, by_name)),
            _section("Groups", groups_section(record)),
            _section("Data", _data(record)),
            _section("Events", _events(record)),
            _section("Time", _time(record)),
            _section("To do it again", _again(record)),
        )
    )
    return document(f"{record.name}: stagewright", body, head=refresh, style=gallery.style)


def _interval(score: Score) -> str:
    low, high = score.interval
    return f"{low:.1f} to {high:.1f}"


def _head(record: RunRecord) -> str:
    summary = record.summary
    status = record.status
    silent = status == "running" and record.silent_seconds > _SILENT_SECONDS
    said = f"running, but without output for {seconds_text(record.silent_seconds)}" if silent else status
    if stopped := results.stopped_text(record):
        said = f"{status}, {stopped.partition(' of its plan')[0]}"
    plan = record.plan.get("recipe", {})
    facts = [
        f"recipe {_text(summary.get('recipe') or plan.get('name', ABSENT))}",
        f"model {_text(summary.get('model') or plan.get('model', {}).get('name', ABSENT))}"
        f" ({size_text(summary.get('parameters'))} parameters)",
        f"data {_text(summary.get('data') or ABSENT)}",
        f"step {record.step:,} of {record.total_steps:,}",
        f"seed {_text(summary.get('seed', ABSENT))}",
        _machine(record),
    ]
    if summary.get("parent"):
        facts.append(f"forked from {_text(summary['parent'])}")
    done = 100.0 * record.step / max(1, record.total_steps)
    bar = f'<div class="bar"><span style="width:{done:.1f}%"></span></div>' if status != "finished" or stopped else ""
    error = f'<p class="bad">{_text(summary["error"])}</p>' if summary.get("error") else ""
    return (
        f'<header><h1>{_text(record.name)} <span class="status {escape(status)}">{_text(said)}</span></h1>'
        f"{bar}<p>{' · '.join(facts)}</p>{error}</header>"
    )


def _machine(record: RunRecord) -> str:
    """Returns the precisions and the device, as escaped text."""
    trained, evaluated = record.summary.get("precision") or ABSENT, record.plan.get("eval_precision")
    other = f", evaluated in {_text(evaluated)}" if evaluated not in (None, trained) else ""
    return f"{_text(trained)}{other} on {_text(record.env.get('device_name') or record.summary.get('device', ABSENT))}"


def _result(record: RunRecord) -> str:
    cards = []
    for split in ("test", "val"):
        score = results.score(record, split)
        if split == "test" and record.num_closed:
            cards.append(_closed_card(record))
        if score is None:
            continue
        note = (
            f"not used to choose the weights{_often(record)}"
            if split == "test"
            else "used to choose the weights, so slightly too high"
        )
        cards.append(
            f'<div class="card"><div class="big">{score.percent:.2f}<small> %</small></div>'
            f"<div><b>top-1 on {SPLIT_NAMES[split]}</b><br>{score.correct:,} of {score.total:,} pictures<br>"
            f"95 % interval {_accuracy_interval(record, split, score)} %<br><i>{note}</i></div></div>"
        )
    if not cards and record.status == "finished":
        sentence = _text(results.choice_sentence(record))
        return f"<p>Top-1 was not measured: no validation or test pictures.</p><p>{sentence}</p>"
    if not cards:
        return "<p>Nothing has been evaluated yet.</p>"
    warnings = "".join(f'<p class="bad">{_text(line)}</p>' for line in results.disagreements(record))
    if expected := record.env.get("expected"):
        warnings += f"<p>Expected on new pictures: {_text(expected)}.</p>"
    return (
        f'<div class="cards">{"".join(cards)}</div><p>{_text(results.choice_sentence(record))}</p>{_finalists(record)}{warnings}'
        f"<p><i>One run (n = 1): the intervals (Wilson, 95 %) describe only the random choice of {units_of(record)}, not the "
        f"variation between seeds, splits or places.</i></p>"
    )


def _closed_card(record: RunRecord) -> str:
    """The card in place of a score of the test part that the run leaves closed."""
    holder = record.env.get("hold_test")
    opens = holder if isinstance(holder, str) else "stagewright evaluate RUN --split test --record opens it, once"
    return (
        f'<div class="card"><div class="big">{ABSENT}</div><div><b>test part not opened</b><br>'
        f"{count_text(record.num_closed, 'picture')}<br><i>{_text(opens)}</i></div></div>"
    )


def _often(record: RunRecord) -> str:
    opened = int((record.summary.get("test") or {}).get("opened", 0))
    return f", but opened {opened} times" if opened > 1 else ""


def _accuracy_interval(record: RunRecord, split: str, score: Score) -> str:
    """The interval of a score, which is wider where images of a group are right or wrong together."""
    found = record.measures[split].means["accuracy"] if split in record.measures else None
    if found is None or found.low is None or found.high is None:
        return _interval(score)
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _finalists(record: RunRecord) -> str:
    """The weights that were compared at the end, and how the chosen ones differ from the head alone."""
    rows = [
        (
            f"<b>{_text(row.weights)}</b> (chosen)" if row.chosen else _text(row.weights),
            f"{row.step:,}",
            number_text(row.loss, ".4f"),
            percent_text(row.top1, 2),
        )
        for row in results.finalist_rows(record)
    ]
    if not rows:
        return ""
    sentence = results.head_sentence(record)
    note = (
        f"<p>{_text(sentence)} <i>Paired on the same pictures (Bonett and Price, adjusted Wald).</i></p>"
        if sentence
        else ""
    )
    return _table(("weights", "step", "calibrated validation loss", "validation top-1"), rows) + note


def _stages(record: RunRecord) -> str:
    rows = []
    for row in results.stage_rows(record):
        plan = row.plan
        asked, given = plan.get("epochs_asked"), plan.get("epochs_given")
        train = plan.get("train", "all")
        best = ABSENT
        if row.best_top1 is not None:
            best = f"{percent_text(row.best_top1, 2)} {WEIGHT_NAMES.get(row.best_weights, row.best_weights)}"
        rows.append(
            (
                f"<b>{_text(plan.get('name', plan.get('index', '')))}</b>",
                _text(train if isinstance(train, str) else ", ".join(train)),
                f"{row.steps_done:,} / {plan['num_steps']:,}",
                f"{number_text(asked, '.4g')} / {number_text(given, '.4g')}",
                number_text(plan.get("num_images")),
                number_text(plan.get("image_size")),
                number_text(plan.get("batch_size")),
                " &rsaquo; ".join(number_text(plan.get(key), ".2g") for key in ("lr_first", "lr_peak", "lr_last")),
                seconds_text(row.seconds),
                number_text(row.images_per_second),
                number_text(row.memory_gb, ".2f"),
                best,
            )
        )
    head = ("stage", "trains", "steps done / planned", "epochs requested / planned", "pictures", "px", "batch")
    start = "" if record.weights is None else f"<p>{_text(_capital(weights_sentence(record.weights)))}.</p>"
    return start + _table(
        (*head, "LR first &rsaquo; peak &rsaquo; last", "training", "img/s", "GB", "best val top-1"), rows, left=2
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _curves(drawings: dict[str, Drawing]) -> str:
    names = [f"{what}_{along}" for what in ("accuracy", "loss", "lr") for along in ("step", "minute")] + [lr_curve.NAME]
    shown = "".join(_figure(drawings[name]) for name in names if name in drawings)
    return f'<div class="figures">{shown}</div>' if shown else ""


def mistakes_section(record: RunRecord, drawings: dict[str, Drawing], gallery: Gallery) -> str:
    """Returns figures, a table of the classes and pictures of the errors; empty without predictions."""
    predictions = results.shown_split(record)
    if predictions is None or not len(predictions):
        return ""
    figures = "".join(_figure(drawings[name]) for name in ("confusion", "classes") if name in drawings)
    names, measures = record.classes, record.measures.get(predictions.split)
    kinds: list[str] = []
    if measures is not None:
        kinds = [kind for kind in _BY_CLASS if any(one.value is not None for one in measures.classes[kind])]
    rows = []
    for row in results.class_rows(record, predictions):
        wrong = ABSENT if row.mistaken_for is None else f"{_text(names[row.mistaken_for])} ({row.mistaken_count:,})"
        own = [share_cell(measures.classes[kind][row.label]) for kind in kinds] if measures else [_recall(row.score)]
        trained = [] if record.data is None else [number_text(row.train_count)]
        rows.append((_text(row.name), wrong, *trained, f"{row.score.total:,}", *own))
    trained = [] if record.data is None else ["train"]
    head = ("class", "most often predicted as", *trained, SPLIT_NAMES[predictions.split])
    table = _table((*head, *(f"{OF_CLASSES[kind]} %" for kind in kinds or ("recall",))), rows, left=2)
    folded = f"<details><summary>All {len(rows)} classes</summary>{table}</details>" if len(rows) > 30 else table
    pictures = f"{gallery.confident}{gallery.hard}{gallery.note}"
    return f'<div class="figures">{figures}</div>{gallery.pairs}{folded}<p><i>Small: 95 % intervals.</i></p>{pictures}'


_BY_CLASS = ("recall", "precision", "f1", "auc", "average_precision")


def _recall(score: Score) -> str:
    return f"{score.percent:.1f} <small>{_interval(score)}</small>" if score.total else ABSENT


def groups_section(record: RunRecord) -> str:
    """Returns a table of the groups of the held-out images, the worst first, and what groups mean for the score."""
    predictions = results.shown_split(record)
    rows = results.group_rows(predictions) if predictions is not None else []
    sentence = f"<p>{_text(results.group_sentence(record))}</p>" if record.data is not None else ""
    if not rows:
        return sentence
    cells = [(_text(name), f"{s.total:,}", f"{s.percent:.1f}", _interval(s)) for name, s in rows]
    table = _table(("group", "pictures", "top-1 %", "95 % interval"), cells)
    return sentence + (f"<details><summary>{len(rows)} groups, the worst first</summary>{table}</details>")


def _data(record: RunRecord) -> str:
    parts = [f"<li>{_text(note)}</li>" for note in record.env.get("data_notes", [])]
    content = f"<ul>{''.join(parts)}</ul>" if parts else ""
    excluded = record.data.excluded if record.data is not None else ()
    if excluded:
        content += _files(f"{count_text(len(excluded), 'file')} excluded when the data set was scanned", excluded)
    unread = [(path, "could not be read when it was needed") for path in results.unread_files(record.events)]
    if unread:
        content += _files(
            f"{count_text(len(unread), 'picture')} became unreadable during the run and were ignored", unread
        )
    return content


def _files(title: str, files: Sequence[tuple[str, str]]) -> str:
    rows = [(_text(path), _text(reason)) for path, reason in files[:_LISTED]]
    more = (
        f"<p>and {len(files) - _LISTED:,} more, see excluded.csv and events.jsonl</p>" if len(files) > _LISTED else ""
    )
    return f"<details><summary>{title}</summary>{_table(('file', 'reason'), rows, left=2)}{more}</details>"


def _events(record: RunRecord) -> str:
    lines: list[str] = []
    for event in (one.event for one in record.log):
        own_place = (
            isinstance(event, Notice) and event.already_shown
        )  # notes about the data, which the section Data shows
        if (
            isinstance(event, Resumed | RunStopped | InterimFinished | Skipped | Notice)
            and not own_place
            and (text := sentence(event))
        ):
            lines.append(text)
    lines += record.problems
    lost = len({event.step for event in record.superseded})
    if lost:
        lines.append(
            f"{count_text(lost, 'step')} with events were repeated after a kill; the curves show the valid ones"
        )
    shown = "".join(f"<li>{_text(line)}</li>" for line in lines[:_LISTED])
    more = f"<li>and {len(lines) - _LISTED:,} more in events.jsonl</li>" if len(lines) > _LISTED else ""
    return f"<ul>{shown}{more}</ul>" if lines else "<p>No restarts, no notices.</p>"


def _time(record: RunRecord) -> str:
    parts = results.time_split(record)
    total = sum(seconds for _, seconds in parts)
    if total <= 0:
        return ""
    rows = [(name, seconds_text(seconds), f"{100 * seconds / total:.0f} %") for name, seconds in parts]
    speed = record.summary.get("images_per_second")
    sentence = f"<p>{number_text(speed)} images/s in training, over all stages and restarts.</p>" if speed else ""
    budget = results.budget_sentence(record)
    sentence += f"<p>{_text(budget)}</p>" if budget else ""
    return _table(("what", "time", "share"), [*rows, ("all", seconds_text(total), "")]) + sentence


def _again(record: RunRecord) -> str:
    env = record.env
    command = f"<pre>{_text(env['command'])}</pre>" if env.get("command") else ""
    names = (
        "stagewright",
        "git_commit",
        "python",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pillow",
        "platform",
        "cpu",
    )
    rows = [
        (_text(name), _text(env[name]))
        for name in (*names, "cores", "ram_gb", "device_name", "created")
        if env.get(name)
    ]
    digests = [
        (f"{name} digest", _text(record.summary[f"{name}_digest"]))
        for name in ("plan", "dataset")
        if record.summary.get(f"{name}_digest")
    ]
    return command + _table(("environment", ""), [*rows, *digests], left=2)
