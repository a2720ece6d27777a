"""summary.json, the result of a run for programs: its fields; reads and writes it."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from stagewright.errors import CheckpointError
from stagewright.plan.budget import Budget, Choice
from stagewright.rundir.directory import RunDir
from stagewright.rundir.json_fields import SummaryFields
from stagewright.storage.files import read_own, write_json
from stagewright.storage.json_text import fitting, parse_object
from stagewright.text import span_text


class ChosenSummary(TypedDict):
    """The weights that became the model."""

    step: int
    """Number of finished updates that they come from."""
    weights: str
    """``raw``, ``ema``, ``swa``, ``head`` (the head alone), or a mixture such as ``0.75 ema + 0.25 head``."""
    stage: str
    """Name of the stage of that step."""
    select: str
    """How the recipe chooses: ``best`` or ``last``."""


class FinalistSummary(TypedDict):
    """Weights that were compared at the end of a run whose first stages train only the head (``eval.consider_head``)."""

    weights: str
    """As in :class:`ChosenSummary`."""
    step: int
    """Number of finished updates that they come from; of a mixture, those of the weights that are not the head alone."""
    coefficient: float
    """Share of these weights in the mixture, in [0, 1]; 0 is the head alone, 1 is what ``eval.select`` selects."""
    loss: float | None
    """Mean cross-entropy on the validation images at the temperature that suits these weights best; None if it is not
    finite."""
    top1: float | None
    """Top-1 on the validation images in percent; None as for ``loss``."""


class AgainstHeadSummary(TypedDict):
    """Top-1 of the chosen weights minus that of the head alone on the same images, in percentage points
    (:class:`stagewright.rundir.event_kinds.AgainstHead`)."""

    points: float
    low: float
    """Lower end of the 95 % interval (:func:`stagewright.training.paired.paired_difference`)."""
    high: float
    gained: int
    """Images that only the chosen weights answer correctly."""
    lost: int
    """Images that only the head alone answers correctly."""
    images: int


class _MeasureSummary(TypedDict):
    """A measure of the chosen weights on one split (:mod:`stagewright.measures.overview`): log loss in nats, overconfidence in
    [-1, 1], all others in [0, 1]. None where it is not defined."""

    value: float | None
    low: NotRequired[float | None]
    """Lower end of the 95 % interval, over the choice of images, or of groups where the data set has them."""
    high: NotRequired[float | None]
    by_chance: NotRequired[float]
    """Of the calibration error: what perfectly calibrated probabilities would be expected to have with so few images."""


class _TestSummary(TypedDict):
    """Whether the test part is closed (:mod:`stagewright.rundir.held_test`)."""

    held: bool
    """Whether the run leaves it closed (``train --hold-test``)."""
    opened: int
    """How often the run has scored it: at a finish, and by ``evaluate --record``."""


class _GuardSummary(TypedDict):
    """What the guard did."""

    rollbacks: int
    left_out_steps: list[int]
    """Updates that were left out, counted from 1."""
    masked: list[str]
    """Paths of images that were left out."""
    micro_batch_size: int | None
    """Images at a time where more did not fit into memory; None: as planned."""


class _BudgetSummary(TypedDict):
    """What a budget chose."""

    asked: str
    """The budget as it was given."""
    seconds: float
    """Its length."""
    price: float | None
    """Money per hour."""
    predicted_seconds: float
    """From its beginning until all of the run is written."""
    probe_seconds: float
    """How long the machine was measured."""
    steps: int
    """Updates of the plan."""
    choice: dict[str, float | None]
    """What was changed in the recipe (:class:`stagewright.plan.budget.Choice`)."""
    text: str
    """All of it in words."""
    actual_seconds: NotRequired[float]
    """What was taken in the end; only in a finished run."""


class MirrorSummary(TypedDict):
    """The run's copy in an object store (``--mirror``)."""

    url: str
    missing: list[str]
    """What was missing there: checkpoints and files."""
    error: str | None
    """Why the last attempt to upload has failed; None if it has not."""


class Summary(TypedDict):
    """``summary.json``. Accuracies are percentages in [0, 100], times are seconds over all processes of the run."""

    status: str
    """``running``, ``stopped``, ``paused``, ``finished`` or ``failed``."""
    name: str
    """Name of the run's directory."""
    recipe: str
    model: str
    data: str | None
    """DATA as it was given."""
    classes: int
    """How many."""
    plan_digest: str
    dataset_digest: str
    seed: int
    step: int
    """Number of finished updates."""
    total_steps: int
    """Updates of the plan."""
    stopped_at: float | None
    """Percentage of the plan's updates that were done when the run was finished before its end (``stagewright finish``); None
    elsewhere."""
    top1: dict[str, float | None]
    """Of the chosen weights by split, ``val`` and ``test``; None where it was not measured."""
    top5: dict[str, float | None]
    loss: dict[str, float | None]
    test: NotRequired[_TestSummary | None]
    """None without test images; absent in runs of earlier versions."""
    metric: str
    """``eval.metric``, by which weights were selected."""
    measures: dict[str, dict[str, _MeasureSummary]]
    """Of the chosen weights by split and name, such as ``macro_f1``; empty until the run is finished."""
    chosen: ChosenSummary | None
    """None until the run is finished."""
    candidates: dict[str, float]
    """Highest validation top-1 by kind of weights."""
    finalists: list[FinalistSummary]
    """The weights that were compared at the end, by coefficient; empty where there was nothing to compare."""
    against_head: dict[str, AgainstHeadSummary] | None
    """By split, how the chosen weights differ from the head alone; None where they were not compared."""
    setup_seconds: float
    train_seconds: float
    eval_seconds: float
    checkpoint_seconds: float
    wall_seconds: float
    """The sum of the four."""
    images_per_second: float
    """In training."""
    loading: dict[str, object]
    """Whether reading images held the training up, for this process (:class:`stagewright.data.load_times.LoadTimes`)."""
    restarts: int
    parameters: int
    """Of the network."""
    ended_early: bool
    guard: _GuardSummary
    unreadable: int
    """Images that could not be read when they were needed."""
    precision: str
    device: str
    memory_gb: dict[str, float]
    """Highest use of memory by stage, in GiB."""
    budget: _BudgetSummary | None
    parent: str | None
    """Directory of the run that this one was forked from."""
    error: str | None
    """What ended a failed run."""
    mirror: NotRequired[MirrorSummary | None]
    """None without a mirror; absent in runs of earlier versions."""


def write_summary(run: RunDir, summary: Summary) -> None:
    """Writes ``summary.json``, whole."""
    write_json(run.summary, summary)


def read_summary(run: RunDir) -> Summary:
    """Returns the content of ``summary.json``, or {} if there is none yet; CheckpointError if it is damaged."""
    try:
        content, wrong = fitting(parse_object(read_own(run.summary)), SummaryFields)
        if wrong:
            raise ValueError(wrong[0])
        if content.get("status") == "finished" and (missing := {"top1", "chosen", "step"} - content.keys()):
            raise ValueError(f"it has no {min(missing)}")
        return cast(Summary, content)
    except FileNotFoundError:
        return cast(Summary, {})
    except ValueError as error:
        raise CheckpointError(
            f"{run.summary} is damaged: {error}",
            "the file as it was written",
            f"stagewright resume {run.root} writes it again",
        ) from None


def recorded_choice(run: RunDir, budget: Budget) -> Choice | None:
    """Returns the choice that ``run`` recorded for the same budget when it began, or None if there is none."""
    account = run.read_env().get("budget") or {}
    return Choice.from_dict(account["choice"]) if account.get("asked") == budget.text and "choice" in account else None


def record_actual_seconds(run: RunDir, budget: Budget) -> str | None:
    """Records in the summary of a finished run the seconds it took; returns a sentence for the user.

    Returns None if the run has no budget or is not finished.
    """
    summary = read_summary(run)
    account = summary.get("budget")
    if not account or summary.get("status") != "finished":
        return None
    actual = account["actual_seconds"] = round(budget.spent_seconds, 2)
    write_summary(run, summary)
    share = 100 * actual / budget.seconds
    return (
        f"Budget {budget.text}: {span_text(account['predicted_seconds'])} predicted, "
        f"{span_text(actual)} taken ({share:.1f} %)"
    )
