"""Compares two runs: in what recipe, data and versions differ, and the results, paired where both tested the same images.

It only reads the runs' files and needs no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright.data.manifest import SPLITS, Manifest
from stagewright.errors import StagewrightError
from stagewright.recipe.differences import differing
from stagewright.report.read import RunRecord, read_run
from stagewright.report.results import SPLIT_NAMES, Score, score
from stagewright.report.tables import Predictions
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import AgainstHead
from stagewright.rundir.initial_weights import origin_text
from stagewright.text import counted, some
from stagewright.training.paired import paired_difference

_COSMETIC = ("name", "description")
_ENVIRONMENT = (
    *("stagewright", "git_commit", "python", "torch", "torchvision", "timm", "numpy", "pillow", "decoder"),
    *("platform", "cpu", "cores", "device_name"),
)


@dataclass(frozen=True, slots=True)
class Different:
    """A field with different values in two runs; None where one does not have it."""

    name: str
    one: Any
    other: Any


@dataclass(frozen=True, slots=True)
class ResultPair:
    """The results of two runs on a split: each on its own images, and the difference on those that both evaluated."""

    split: str
    """``test`` or ``val``."""
    one: Score | None
    other: Score | None
    paired: AgainstHead | None
    """The second's top-1 minus the first's on the same images, with its interval; None if there are none."""


@dataclass(frozen=True)
class Difference:
    """What two runs have not in common."""

    one: str
    other: str
    """Their names."""
    recipe: tuple[Different, ...]
    """Fields of the recipes and the plans."""
    data: tuple[str, ...]
    """Sentences on the data sets."""
    versions: tuple[Different, ...]
    """Versions of libraries and code, and facts about the machines."""
    results: tuple[ResultPair, ...]
    notes: tuple[str, ...] = ()
    """What cannot be told, because files are damaged or missing."""

    def to_dict(self) -> dict[str, object]:
        """Returns everything as plain data for JSON; accuracies in percent, differences in percentage points."""
        return {
            **{name: getattr(self, name) for name in ("one", "other")},
            **{name: [asdict(found) for found in getattr(self, name)] for name in ("recipe", "versions")},
            "data": list(self.data),
            "results": [
                {
                    "split": pair.split,
                    **{name: _plain(getattr(pair, name)) for name in ("one", "other")},
                    "paired": None if pair.paired is None else asdict(pair.paired),
                }
                for pair in self.results
            ],
            "notes": list(self.notes),
        }


def diff(one: str | Path, other: str | Path) -> Difference:
    """Returns in what the run ``other`` differs from the run ``one``, finished or not.

    CheckpointError if one of them is not the directory of a run. Damaged and missing files are said in ``notes``.
    """
    return difference(read_run(one), read_run(other))


def difference(one: RunRecord, other: RunRecord) -> Difference:
    """Like :func:`diff`, of two runs that have been read."""
    names = (one.name, other.name) if one.name != other.name else (str(one.path), str(other.path))
    notes = [f"{name}: {problem}" for name, run in zip(names, (one, other), strict=True) for problem in run.problems]
    manifests: list[Manifest] = []
    for name, run in zip(names, (one, other), strict=True):
        try:
            manifests.append(Manifest.read(RunDir(run.path).manifest))
        except StagewrightError as error:
            notes.append(f"{name}: {error.given}")
    both = (manifests[0], manifests[1]) if len(manifests) == 2 else None
    results = [
        ResultPair(split, score(one, split), score(other, split), _paired(one, other, split, both))
        for split in ("test", "val")
    ]
    return Difference(
        *names,
        recipe=tuple(_recipe(one, other)),
        data=tuple(_data(*both, *names)) if both is not None else (),
        versions=tuple(_versions(one, other)),
        results=tuple(pair for pair in results if pair.one is not None or pair.other is not None),
        notes=tuple(notes),
    )


def _recipe(one: RunRecord, other: RunRecord) -> list[Different]:
    all_say = one.weights is not None and other.weights is not None  # runs of older versions do not

    def content(run: RunRecord) -> dict[str, Any]:
        recipe = {name: value for name, value in run.plan.get("recipe", {}).items() if name not in _COSMETIC}
        own: dict[str, Any] = {"(updates)": run.plan.get("total_steps"), "(precision)": run.summary.get("precision")}
        if run.weights is not None and all_say:
            own["(initial weights)"] = origin_text(run.weights)
        return recipe | own

    return [Different(*place) for place in differing(content(one), content(other))]


def _versions(one: RunRecord, other: RunRecord) -> list[Different]:
    def environment(run: RunRecord) -> dict[str, Any]:
        return {name: run.env.get(name) for name in _ENVIRONMENT}

    def code(run: RunRecord) -> dict[str, str]:
        return {name: (digest or "")[:12] for name, digest in run.env.get("functions", {}).items()}

    places = [*differing(environment(one), environment(other)), *_flat(code(one), code(other))]
    return [Different(*place) for place in places]


def _flat(one: dict[str, str], other: dict[str, str]) -> list[tuple[str, Any, Any]]:
    """Returns the functions whose code differs, by name; names have dots, so they are no paths."""
    return [(name, one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)]


def _data(one: Manifest, other: Manifest, first: str, second: str) -> list[str]:
    """Returns sentences on how two data sets differ, and whether a run was trained on what the other was tested on."""
    if one.digest == other.digest:
        return [f"the same {counted(len(one), 'picture')}, classes and parts"]
    sentences = []
    for name, mine, theirs in ((first, one, other), (second, other, one)):
        if only := [label for label in mine.classes if label not in theirs.classes]:
            sentences.append(f"classes only in {name}: {some(only)}")
    shared = len(np.intersect1d(one.content, other.content))
    sizes = (len(np.unique(one.content)), len(np.unique(other.content)))
    sentences.append(f"different pictures: {first} has {sizes[0]:,}, {second} {sizes[1]:,}, and {shared:,} are in both")
    for part in SPLITS:
        mine, theirs = (_contents(manifest, part) for manifest in (one, other))
        if len(mine) or len(theirs):
            both = len(np.intersect1d(mine, theirs))
            sentences.append(f"{SPLIT_NAMES[part]}: {len(mine):,} and {len(theirs):,}, {both:,} in both")
    for name, mine, rival, theirs in ((first, one, second, other), (second, other, first, one)):
        if leaked := len(np.intersect1d(_contents(mine, "train"), _contents(theirs, "test"))):
            sentences.append(f"{name} was trained on {counted(leaked, 'picture')} of the test of {rival}")
    return sentences


def _contents(manifest: Manifest, part: str) -> NDArray[np.uint64]:
    return np.unique(manifest.content[manifest.rows(part)])


def _paired(
    one: RunRecord, other: RunRecord, split: str, manifests: tuple[Manifest, Manifest] | None
) -> AgainstHead | None:
    """Returns the difference on the images that both runs have evaluated, with the same class; None if there are none.

    Images are known by their paths in the same data set, otherwise by content.
    """
    if manifests is None or split not in one.predictions or split not in other.predictions:
        return None
    same = manifests[0].digest == manifests[1].digest
    answers = [
        _answers(run.predictions[split], manifest, by_path=same)
        for run, manifest in zip((one, other), manifests, strict=True)
    ]
    shared = sorted(answers[0].keys() & answers[1].keys())
    first, second = (np.array([mine[key] for key in shared], np.bool_) for mine in answers)
    return paired_difference(second, first)


def _answers(predictions: Predictions, manifest: Manifest, *, by_path: bool) -> dict[tuple[str, str], bool]:
    """Returns whether the answer to each image is right, by its path or hash and the name of its class."""
    if predictions.paths is None:
        return {}
    paths = manifest.paths.to_pylist()
    keys = dict(zip(paths, paths if by_path else manifest.hashes.to_pylist(), strict=True))
    found: dict[tuple[str, str], bool] = {}
    for path, label, predicted in zip(
        predictions.paths.tolist(), predictions.labels.tolist(), predictions.predicted.tolist(), strict=True
    ):
        if path in keys and label < len(manifest.classes):
            found.setdefault((keys[path], manifest.classes[label]), label == predicted)
    return found


def _plain(found: Score | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {"top1": found.percent, "interval": list(found.interval), "correct": found.correct, "images": found.total}
