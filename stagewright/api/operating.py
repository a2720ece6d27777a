"""Chooses an operating point of a finished model on the validation images of its run, and stores it in the Bundle."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from stagewright.api.evaluate import EvaluationReport, evaluate
from stagewright.bundle.bundle import load_bundle
from stagewright.bundle.files import store_operating_point
from stagewright.data.sources.scan import Progress
from stagewright.errors import DataError
from stagewright.measures.curves import Curve
from stagewright.measures.operating import AIMS, NO_ANSWER, Aim, Choice, OperatingPoint, choose
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device
from stagewright.text import nearest, some

_SMALLEST = 1e-12
"""A threshold must be above 0, which a probability in float32 may be rounded to."""


@dataclass(frozen=True)
class Target:
    """What an operating point is to reach."""

    aim: Aim
    """``precision``: of the answers of the class, or without a class of all answers, the share that is right. ``recall``: the
    share of the images of the class that are answered with it."""
    value: float
    """In (0, 1]."""
    class_name: str | None = None
    """The class whose threshold is chosen; None: ``min_confidence``, for a precision."""

    @classmethod
    def parse(cls, text: str, class_name: str | None) -> Target:
        """Returns the target that ``precision=0.95`` means; DataError for anything else."""
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        aim: Aim | None = next((one for one in AIMS if one == name), None)
        if aim is None or not 0.0 < value <= 1.0:
            raise DataError(
                f"--at {text!r}",
                "precision=P or recall=P with P above 0, at most 1; none to remove what is stored",
                "write for example --at precision=0.95",
            )
        if aim == "recall" and class_name is None:
            raise DataError(
                f"--at {text!r} without --class: the recall of all classes together is that of answering always",
                "a recall of one class",
                "name the class with --class, or give --at precision=P",
            )
        return cls(aim, value, class_name)


def choose_operating_point(
    model: str | os.PathLike[str],
    target: Target | None,
    *,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> OperatingPoint:
    """Chooses on the validation images of the run ``model`` what reaches ``target``, stores it in the run's Bundle beside what is
    there, and returns all that is stored then. None removes what is stored.

    DataError if no threshold reaches the target, and for a class that the model does not have.
    """
    bundle = load_bundle(user_path(model), device=str(choose_device(device)))
    point = OperatingPoint()
    if target is not None:
        name = target.class_name
        if name is not None and name not in bundle.classes:
            raise DataError(
                f"--class {name!r} is no class of the model{nearest(name, bundle.classes)}",
                f"its classes: {some(bundle.classes, 20)}",
                "correct the name",
            )
        report = evaluate(model, split="val", device=device, workers=workers, progress=progress)
        point = _reaching(target, report, bundle.spec.operating)
    store_operating_point(bundle.folder, point)
    return point


def _reaching(target: Target, report: EvaluationReport, stored: OperatingPoint) -> OperatingPoint:
    """Returns ``stored`` with what reaches ``target`` on the images of ``report``."""
    answers, name = report.result.answers(), target.class_name
    shares = answers.probabilities
    if shares is None:
        raise DataError(
            f"{len(answers):,} validation pictures of {answers.num_classes:,} classes have too many probabilities to keep",
            "at most 10,000,000",
            "evaluate a run with a smaller validation part",
        )
    if name is not None:
        label = report.classes.index(name)
        positive, scores = answers.labels == label, shares[:, label]
    else:  # of the images that no threshold decides on
        own = [at for at, one in enumerate(report.classes) if one in stored.thresholds]
        decided = OperatingPoint(stored.thresholds).decide(shares, report.classes)
        free = (decided != NO_ANSWER) & ~np.isin(decided, own)
        positive = (decided == answers.labels)[free]
        scores = np.take_along_axis(shares[free], decided[free, None], axis=1)[:, 0]
    found = choose(target.aim, target.value, positive, scores)
    if found is None:
        raise _not_reached(target, Curve.of(positive, scores), name is None and bool(stored.thresholds))
    said = f"{target.aim} {target.value:g} on {len(positive):,} validation pictures: {_reached(found, name)}"
    threshold = max(found.threshold, _SMALLEST)
    point = stored.changed({name: threshold} if name else {}, None if name else threshold)
    return OperatingPoint(point.thresholds, point.min_confidence, {**point.reasons, name or "": said})


def _reached(found: Choice, name: str | None) -> str:
    if name is None:
        return f"{100 * found.precision:.1f} % of {found.images:,} answers are right"
    return f"precision {found.precision:.3f}, recall {found.recall:.3f}, {found.images:,} answered"


def _not_reached(target: Target, curve: Curve, stored: bool) -> DataError:
    of = "" if target.class_name is None else f" of {target.class_name!r}"
    if not curve.positives:
        given = f"there is no validation picture{of}" if of else "no answer on the validation pictures is right"
        if stored:
            given += ", among those that no stored threshold decides on"
        return DataError(
            given, "a right one to choose on", "name another class with --class; --at none removes what is stored"
        )
    at = int(curve.precision.argmax())
    return DataError(
        f"{target.aim} {target.value:g}{of} is not reached on the validation pictures at any threshold",
        f"up to {curve.precision[at]:.3f} (from a probability of {curve.thresholds[at]:.3g} on, {curve.hits[at]:,} right)",
        "give a lower value",
    )
