"""The kinds of events of a run: one frozen dataclass each, with the fields that its line in ``events.jsonl`` has.

A field is either a function of the plan, and then equal in every run of it, or a *clock* field (``metadata=CLOCK``): it depends
on the time or on the machine, and is left out when two runs are compared. Events cannot be changed: lists are tuples here,
and mappings are read-only. How they are written and read is the business of :mod:`stagewright.rundir.event_lines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import ClassVar

from stagewright.rundir.event_parts import IF_KNOWN, AgainstHead, ChosenWeights, Rejected, Result, ScoreRange

CLOCK: Mapping[str, object] = {"clock": True}
"""Marks a field that depends on the time or on the machine. It is written within ``clock``, unless it is None or False."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run. Its subclasses are the kinds of events; their docstrings say when each happens."""

    kind: ClassVar[str]
    """How the kind is called in ``events.jsonl``."""
    by_process: ClassVar[bool] = False
    """Whether such events depend on how often the run was interrupted; they are left out when runs are compared."""
    in_file: ClassVar[bool] = True
    """Whether ``events.jsonl`` keeps such events; observers see the others too."""
    supersedes: ClassVar[bool] = False
    """Whether such an event supersedes the events of later steps that stand before it."""

    step: int
    """Number of finished updates."""
    time: str | None = field(default=None, metadata={**CLOCK, "key": "at"})
    """When it was emitted: ISO-8601 in UTC, with milliseconds. Set by the log; ``at`` in the file."""

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, _read_only(getattr(self, one.name)))


def _read_only(value: object) -> object:
    """``value`` with lists as tuples, and mappings as read-only copies, at every depth."""
    if isinstance(value, Mapping):
        return MappingProxyType({name: _read_only(one) for name, one in value.items()})
    return tuple(map(_read_only, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A new run has begun; the first event of every run."""

    kind = "started"
    by_process = True

    device: str | None = field(default=None, metadata=CLOCK)
    """Where the network is trained, in the words of torch: ``cpu``, ``cuda:0``."""
    device_name: str | None = field(default=None, metadata=CLOCK)
    """The name of the device, for people."""
    processes: int | None = field(default=None, metadata=CLOCK)
    """Number of processes that carry out the run together, each on such a device; None: one."""


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """A process has taken the run up again, with the state of ``step``."""

    kind = "resumed"
    by_process = True
    supersedes = True

    checkpoint: str | None
    """The folder of the checkpoint; None where the run starts over, since it had saved none."""
    rejected: tuple[Rejected, ...]
    """Newer checkpoints that could not be used."""
    device: str | None = field(default=None, metadata=CLOCK)
    """As in ``started``."""
    device_name: str | None = field(default=None, metadata=CLOCK)
    processes: int | None = field(default=None, metadata=CLOCK)


@dataclass(frozen=True, kw_only=True)
class StageBegun(Event):
    """The first update of a stage is about to be made."""

    kind = "stage"

    stage: int
    """Index of the stage, from 0."""
    name: str
    """Name of the stage."""
    trainable: int
    """Number of parameters that are trained in the stage."""
    frozen: int
    """Number of parameters that are frozen in the stage."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Raw and averaged weights were evaluated on the validation split."""

    kind = "evaluated"

    stage: int
    """Index of the stage, from 0."""
    stage_name: str
    """Name of the stage."""
    epoch: float
    """Epochs that are done, over all stages."""
    split: str
    """The split that was evaluated: ``val``."""
    train_loss: float | None
    """Mean loss of the updates since the last evaluation; None where there was none that counts."""
    train_top1: float | None
    """Mean top-1 of the training images since the last evaluation, in percent; None as for ``train_loss``."""
    results: Mapping[str, Result]
    """The results by kind of weights: ``raw``, and ``ema`` or ``swa`` where the stage averages."""
    chosen: str
    """The kind of weights that is better here."""
    best: bool
    """Whether they are the best of the run so far."""
    metric: str | None = field(default=None, metadata=IF_KNOWN)
    """The recipe's ``eval.metric``, by which weights are compared; None where that is top-1."""
    train_seconds: float | None = field(default=None, metadata=CLOCK)
    """Seconds of training in the run so far, over all processes."""
    memory_gb: float | None = field(default=None, metadata=CLOCK)
    """Memory in use, in GiB: the peak of a CUDA device, or what the process holds."""
    epoch_seconds: float | None = field(default=None, metadata=CLOCK)
    """Seconds of training since the last evaluation of this process."""
    images_per_second: float | None = field(default=None, metadata=CLOCK)
    """Training images per second since the last evaluation of this process."""
    eval_seconds: float | None = field(default=None, metadata=CLOCK)
    """Seconds that the evaluation took."""
    eta_seconds: float | None = field(default=None, metadata=CLOCK)
    """Seconds until the model is chosen, with the evaluations of the finish, as far as that can be estimated."""


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint was written, and is on the disk."""

    kind = "saved"
    by_process = True

    checkpoint: str
    """Its folder, such as ``step_000200``."""
    stage: str | None = field(default=None, metadata=CLOCK)
    """Name of the stage that ``peak_gb`` belongs to."""
    peak_gb: float | None = field(default=None, metadata=CLOCK)
    """Highest use of memory in the stage so far, in GiB, of this process."""
    seconds: float | None = field(default=None, metadata=CLOCK)
    """How long the saving took."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse(Event):
    """Memory in use was read: at the start of each process, and around each evaluation. All of it depends on the machine.
    log.txt has it, the terminal does not."""

    kind = "memory"
    by_process = True

    stage: str | None = field(default=None, metadata=CLOCK)
    """Name of the stage that ``peak_gb`` belongs to."""
    peak_gb: float | None = field(default=None, metadata=CLOCK)
    """Highest use of memory in the stage so far, in GiB, of this process."""
    points: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]], metadata=CLOCK)
    """Readings in GiB by moment, such as ``before the model``; each as :func:`stagewright.system.memory.memory_in_use`."""


@dataclass(frozen=True, kw_only=True)
class BadImages(Event):
    """Images of an update could not be read; they were masked and count for nothing."""

    kind = "bad_image"

    rows: tuple[int, ...]
    """Their rows in manifest.parquet."""
    paths: tuple[str, ...]
    """Their paths, as in the manifest."""
    reasons: tuple[str, ...]
    """Why each could not be read."""


@dataclass(frozen=True, kw_only=True)
class Skipped(Event):
    """An update was left out, since its gradients overflowed in fp16."""

    kind = "skipped"

    reason: str
    """Why, in words."""


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """The guard has found a fault, and the run goes on from an earlier ``step`` with a remedy."""

    kind = "rolled_back"
    supersedes = True

    number: int | None = None
    """Counts the rollbacks of the run, from 1; None in runs of the first versions."""
    at: int
    """The update with the fault, counted from 1."""
    found: int
    """Number of finished updates when the fault was found."""
    fault: str
    """What was found: ``not finite``, ``spike`` or ``memory``."""
    reason: str
    """What was found, in words."""
    remedy: str
    """What is done about it, in words."""


@dataclass(frozen=True, kw_only=True)
class Suspected(Event):
    """The images of an update whose loss was not finite were looked at one by one."""

    kind = "suspect"

    update: int
    """The update, counted from 1."""
    rows: tuple[int, ...]
    """Rows in manifest.parquet of the images to blame, or of all images of the update where none is."""
    paths: tuple[str, ...]
    """Their paths, as in the manifest."""
    verdict: str
    """What is done about it, in words."""
    guilty: bool
    """Whether single images are to blame."""


@dataclass(frozen=True, kw_only=True)
class EndedEarly(Event):
    """The run ends before its plan does: evaluations no longer improve, or the head alone is so good that nothing better could
    be told apart from it."""

    kind = "ended_early"

    reason: str
    """Which metric has not improved and for how long, or how many errors the head alone makes."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Anything else that is worth a sentence."""

    kind = "notice"
    by_process = True

    text: str
    """The sentence."""
    already_shown: bool = field(default=False, metadata={**CLOCK, "formerly": "told"})
    """Whether the terminal has shown it before the run began: the console then leaves it out, and so do the events of
    report.html, which has a place of its own for it."""


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event):
    """This process ends before the run is finished: a stop was asked for, or there was an error."""

    kind = "stopped"
    by_process = True

    reason: str
    """The signal, or the error in words."""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The model is chosen, evaluated and written; the last event of a finished run."""

    kind = "finished"

    chosen: ChosenWeights
    """The weights that became the model."""
    val_top1: float | None
    """Their top-1 on the validation split, in percent; None without validation images."""
    test_top1: float | None
    """Their top-1 on the test split, in percent; None without test images, or if these stay closed."""
    against_head: Mapping[str, AgainstHead] | None = None
    """By split, ``val`` and ``test``, how they differ from the head alone; None where the two were not compared."""
    ranges: Mapping[str, ScoreRange] | None = field(default=None, metadata=IF_KNOWN)
    """By split, the numbers of images and the 95 % intervals of the top-1; None in runs of earlier versions."""
    test_held: bool | None = field(default=None, metadata=IF_KNOWN)
    """True where the run has test images and leaves them closed (``train --hold-test``); else None."""
    loading: str | None = field(default=None, metadata=CLOCK)
    """Whether reading images held the training up, in words."""


@dataclass(frozen=True, kw_only=True)
class InterimFinished(Event):
    """The run was finished before the end of its plan by the command ``finish``: a model is chosen, evaluated and written. If a
    resume goes on, the model moves to the folder ``interim/``."""

    kind = "interim_finished"
    by_process = True

    total_steps: int
    """Number of updates of the plan."""
    chosen: ChosenWeights
    """The weights that became the model."""
    val_top1: float | None
    """Their top-1 on the validation split, in percent; None without validation images."""
    test_top1: float | None
    """Their top-1 on the test split, in percent; None without test images, or if these stay closed."""
    against_head: Mapping[str, AgainstHead] | None = None
    """By split, ``val`` and ``test``, how they differ from the head alone; None where the two were not compared."""
    ranges: Mapping[str, ScoreRange] | None = field(default=None, metadata=IF_KNOWN)
    """By split, the numbers of images and the 95 % intervals of the top-1; None in runs of earlier versions."""
    test_held: bool | None = field(default=None, metadata=IF_KNOWN)
    """True where the run has test images and leaves them closed (``train --hold-test``); else None."""


@dataclass(frozen=True, kw_only=True)
class OpenedTest(Event):
    """The model of a finished run was scored on the test images by ``evaluate --record``."""

    kind = "tested"
    by_process = True

    number: int
    """How often the run has scored its test images, this time included; a finish that scores them counts too."""
    weights: ChosenWeights
    """The weights that were scored: those of the model."""
    top1: float
    """Top-1 on the test images, in percent."""
    range: ScoreRange
    """The number of images and the 95 % interval of the top-1."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Training goes on; about twice a second."""

    kind = "progress"
    in_file = False

    stage: int
    """Index of the stage, from 0."""
    loss: float
    """Loss of the newest update."""
    top1: float
    """Top-1 of the newest update's images, in percent."""
    lr: float
    """Learning rate of the newest update."""
    images_per_second: float = field(default=0.0, metadata=CLOCK)
    """Training images per second since the last such event; 0 while it is not known."""
    memory_gb: float = field(default=0.0, metadata=CLOCK)
    """Memory in use, in GiB."""
    eta_seconds: float | None = field(default=None, metadata=CLOCK)
    """Seconds until the model is chosen, with the evaluations of the finish, as far as that can be estimated."""
    train_seconds: float | None = field(default=None, metadata=CLOCK)
    """Seconds of training in the run so far, over all processes."""
    mirror: str | None = field(default=None, metadata=CLOCK)
    """What the run's mirror lacks, in a few words; None if there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class Evaluating(Event):
    """An evaluation goes on; after each batch."""

    kind = "evaluating"
    in_file = False

    done: int
    """Images that were evaluated."""
    total: int
    """Images of the split."""


@dataclass(frozen=True, kw_only=True)
class Computing(Event):
    """Something else that takes long goes on; after each batch."""

    kind = "computing"
    in_file = False

    done: int
    """Images, or fits of a head, that are done."""
    total: int
    """Images in all, or the most fits that may be needed."""
    what: str
    """What is computed, in words."""


KINDS: Mapping[str, type[Event]] = MappingProxyType({one.kind: one for one in Event.__subclasses__()})
"""The classes by the name of their kind in ``events.jsonl``."""
