"""Says in what two runs differ, and whether anything that decides their results does: recipe, data, initial weights, how they
computed, hardware and versions; and the results, paired where both tested the same images.

It only reads the runs' files and needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.api.data_difference import data_sentences, decide_the_same
from stagewright.api.deciding import (
    Different,
    computing_differences,
    hardware_differences,
    recipe_differences,
    version_differences,
    weights_differences,
)
from stagewright.data.manifest import Manifest
from stagewright.data.picture_changes import PictureChanges, picture_changes
from stagewright.errors import StagewrightError
from stagewright.report.read import RunRecord, read_run
from stagewright.report.results import Score, score, stopped_text
from stagewright.report.tables import Predictions
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import AgainstHead
from stagewright.rundir.held_test import is_closed_by
from stagewright.storage.files import missing_or_unreadable, retry_io
from stagewright.storage.parquet import pc
from stagewright.text import done_text, some
from stagewright.training.paired import paired_difference

AREAS = {
    "recipe": "recipe",
    "data": "data",
    "weights": "initial weights",
    "computing": "computing",
    "hardware": "hardware",
    "versions": "versions",
}
"""What decides a result, by the fields of :class:`Difference`, with its name for people."""
_CHUNK = 2**20
_KEY = np.dtype([("picture", np.uint64), ("label", np.int64)])


@dataclass(frozen=True, slots=True)
class ResultPair:
    """The results of two runs on a split: each on its own images, and the difference on those that both evaluated."""

    split: str
    """``test`` or ``val``."""
    one: Score | None
    other: Score | None
    paired: AgainstHead | None
    """The second's top-1 minus the first's on the same images, with its interval; None if there are none."""


@dataclass(frozen=True, slots=True)
class SameBits:
    """Whether two finished runs have come to the same bits."""

    models: bool | None
    """Whether the files of their models' weights have the same bytes; None where one of them cannot be read."""
    answers: Mapping[str, bool]
    """By split, whether all answers and probabilities are the same; only splits that both have evaluated, on the same data."""


@dataclass(frozen=True)
class Difference:
    """What two runs have not in common."""

    one: str
    other: str
    """Their names."""
    recipe: tuple[Different, ...]
    """Fields of the recipes and the plans that decide the result."""
    without_effect: tuple[Different, ...]
    """Fields of the recipes that decide nothing, such as ``checkpoints.keep``."""
    data: tuple[str, ...]
    """Sentences on the data sets."""
    pictures: PictureChanges | None
    """What has become of the first one's pictures in the second; None where they are the same, or one's are not known."""
    weights: tuple[Different, ...]
    """Initial weights, and what the stages train of them."""
    computing: tuple[Different, ...]
    """Device, threads, precision, decoder, micro-batch size, and what was measured before the plan was made."""
    hardware: tuple[Different, ...]
    versions: tuple[Different, ...]
    """Versions of libraries and code."""
    areas: tuple[str, ...]
    """Which of recipe, data, initial weights, computing, hardware and versions differ."""
    same: tuple[str, ...]
    """Which of them are known to be the same."""
    unknown: tuple[str, ...]
    """What could not be compared, since one run has not recorded it or its files are damaged."""
    results: tuple[ResultPair, ...]
    bits: SameBits | None = None
    """None unless both runs are finished."""
    notes: tuple[str, ...] = ()
    """What cannot be told because files are damaged or missing, and what the runs have not done."""

    @property
    def equal(self) -> bool:
        """Whether everything that decides the result is known of both runs, and the same."""
        return not self.areas and not self.unknown

    @property
    def by_seed_alone(self) -> bool:
        """Whether the runs differ by the recipe's seed, and are known to differ by nothing else."""
        return self.areas == ("recipe",) and not self.unknown and [place.name for place in self.recipe] == ["seed"]

    @property
    def verdict(self) -> str:
        """The answer in one sentence, without a full stop."""
        if self.by_seed_alone:
            return f"they differ by the seed alone: {self.recipe[0].one} and {self.recipe[0].other}"
        missing = f"; not known: {some(self.unknown)}" if self.unknown else ""
        if not self.areas:
            return f"equal in all that {'both have recorded' if missing else 'decides the result'}{missing}"
        *most, last = self.areas
        return f"they differ in {', '.join(most)}{' and ' if most else ''}{last}{missing}"

    def to_dict(self) -> dict[str, object]:
        """Returns everything as plain data for JSON; accuracies in percent, differences in percentage points."""
        tables = ("recipe", "without_effect", "weights", "computing", "hardware", "versions")
        return {
            **{name: getattr(self, name) for name in ("one", "other", "equal", "by_seed_alone", "verdict")},
            **{name: list(getattr(self, name)) for name in ("areas", "same", "unknown", "data", "notes")},
            **{name: [asdict(found) for found in getattr(self, name)] for name in tables},
            "pictures": None if self.pictures is None else asdict(self.pictures),
            "results": [
                {
                    "split": pair.split,
                    **{name: _plain(getattr(pair, name)) for name in ("one", "other")},
                    "paired": None if pair.paired is None else asdict(pair.paired),
                }
                for pair in self.results
            ],
            "bits": None if self.bits is None else asdict(self.bits),
        }


def diff(one: str | Path, other: str | Path) -> Difference:
    """Returns in what the run ``other`` differs from the run ``one``, finished or not.

    CheckpointError if one of them is not the directory of a run. Damaged and missing files are said in ``notes``.
    """
    return difference(read_run(one), read_run(other))


def difference(one: RunRecord, other: RunRecord) -> Difference:
    """Like :func:`diff`, of two runs that have been read."""
    names = (one.name, other.name) if one.name != other.name else (str(one.path), str(other.path))
    notes, manifests = list[str](), list[Manifest]()
    for name, run in zip(names, (one, other), strict=True):
        problems = [*run.problems]
        manifests += _manifest(run, problems)
        notes += [f"{name}: {said}" for said in (*problems, *_undone(run))]
    both = (manifests[0], manifests[1]) if len(manifests) == 2 else None
    changes = None
    if both is not None and both[0].digest != both[1].digest:
        changes = picture_changes(*both, closed=(_is_closed(one), _is_closed(other)))
    same_data = _digests_equal(one, other) if both is None else decide_the_same(*both, changes)
    missing: dict[str, list[str]] = {name: [] for name in AREAS}
    missing["data"] += ["data"] * (same_data is None)
    recipe, without_effect = recipe_differences(one, other, same_data=bool(same_data), unknown=missing["recipe"])
    tables = {
        "recipe": tuple(recipe),
        "weights": tuple(weights_differences(one, other, missing["weights"])),
        "computing": tuple(computing_differences(one, other, missing["computing"])),
        "hardware": tuple(hardware_differences(one, other, missing["hardware"])),
        "versions": tuple(version_differences(one, other, missing["versions"])),
    }
    differ = {name for name, found in tables.items() if found} | ({"data"} if same_data is False else set())
    known = not differ and not any(missing.values())
    if (
        known
        and both is not None
        and both[0].digest == both[1].digest
        and one.plan.get("digest") != other.plan.get("digest")
    ):
        missing["recipe"].append("the plans, whose digests differ")
    bits = _same_bits(one, other, both)
    if known and bits is not None and bits.models is False and _is_unordered(one):
        notes.append("sums on a GPU have another order each time, unless the recipe says deterministic: true")
    results = [
        ResultPair(split, score(one, split), score(other, split), _paired(one, other, split, both))
        for split in ("test", "val")
    ]
    return Difference(
        *names,
        **tables,
        without_effect=tuple(without_effect),
        data=_data(both, changes, same_data, names),
        pictures=changes,
        areas=tuple(title for name, title in AREAS.items() if name in differ),
        same=tuple(title for name, title in AREAS.items() if name not in differ and not missing[name]),
        unknown=tuple(one for name in AREAS for one in missing[name]),
        results=tuple(pair for pair in results if pair.one is not None or pair.other is not None),
        bits=bits,
        notes=tuple(notes),
    )


def _manifest(run: RunRecord, problems: list[str]) -> list[Manifest]:
    """Returns a run's manifest; none, and appends to ``problems``, if it is missing or cannot be compared. Closed test parts are
    compared as well, by hashes alone."""
    try:
        manifest = Manifest.read(RunDir(run.path).manifest)
        sound = len(manifest.content) == len(manifest) and all(isinstance(name, str) for name in manifest.classes)
        if not sound or manifest.paths.null_count:
            raise ValueError("a picture without a path or a hash, or a class without a name")
        return [manifest]
    except StagewrightError as error:
        problems.append(error.given)
    except (ValueError, TypeError) as error:
        problems.append(f"the manifest cannot be compared: {error}")
    return []


def _is_closed(run: RunRecord) -> bool:
    return is_closed_by(run.env, run.summary)


def _undone(run: RunRecord) -> Iterator[str]:
    """Yields what a run has not done."""
    if run.status != "finished":
        yield f"{run.status} at {done_text(run.step, run.total_steps)}"
    elif stopped := stopped_text(run):
        yield stopped
    if _is_closed(run):
        yield "its test part is closed: none of its pictures is named here"


def _data(
    both: tuple[Manifest, Manifest] | None, changes: PictureChanges | None, same: bool | None, names: tuple[str, str]
) -> tuple[str, ...]:
    if both is not None:
        return tuple(data_sentences(*both, changes, *names))
    if same is None:
        return ()
    return (
        f"{'the same pictures, classes and' if same else 'other pictures, classes or'} parts, by the digests in the plans",
    )


def _digests_equal(one: RunRecord, other: RunRecord) -> bool | None:
    """Returns whether the plans name the same data set; None if one names none."""
    first, second = (run.plan.get("dataset", {}).get("digest") for run in (one, other))
    return None if first is None or second is None else first == second


def _is_unordered(run: RunRecord) -> bool:
    """Whether a run's sums may differ from those of an equal one: on a GPU, unless its recipe asks for the same bits."""
    return str(run.summary.get("device", "cpu")) != "cpu" and not run.plan["recipe"].get("deterministic")


def _same_bits(one: RunRecord, other: RunRecord, both: tuple[Manifest, Manifest] | None) -> SameBits | None:
    if one.status != "finished" or other.status != "finished":
        return None
    paths = [RunDir(run.path).bundle / "weights.safetensors" for run in (one, other)]
    models = _equal_files(*paths) if all(path.is_file() for path in paths) else None
    answers: dict[str, bool] = {}
    if both is not None and both[0].digest == both[1].digest:
        for split in ("val", "test"):
            if split in one.predictions and split in other.predictions:
                answers[split] = _equal_answers(one.predictions[split], other.predictions[split])
    return SameBits(models, answers)


def _equal_files(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes; Unreadable if that cannot be told now."""
    try:
        return retry_io(one, lambda path: _equal_bytes(path, other))
    except OSError as error:
        raise missing_or_unreadable(error.filename or one, error) from error


def _equal_bytes(one: str, other: Path) -> bool:
    with open(one, "rb") as first, open(other, "rb") as second:
        while (chunk := first.read(_CHUNK)) == second.read(_CHUNK):
            if not chunk:
                return True
    return False


def _equal_answers(one: Predictions, other: Predictions) -> bool:
    columns = ("paths", "labels", "predicted", "true_probability", "losses", "probabilities")
    pairs = [(getattr(one, name), getattr(other, name)) for name in columns]
    return all(a is b if a is None or b is None else np.array_equal(a, b) for a, b in pairs)


def _paired(
    one: RunRecord, other: RunRecord, split: str, manifests: tuple[Manifest, Manifest] | None
) -> AgainstHead | None:
    """Returns the difference on the images that both runs have evaluated, with the same class; None if there are none.

    Images are known by their paths in the same data set, otherwise by content.
    """
    if manifests is None or split not in one.predictions or split not in other.predictions:
        return None
    classes = sorted({*manifests[0].classes, *manifests[1].classes})
    same = manifests[0].digest == manifests[1].digest
    answers = [
        _answers(run.predictions[split], manifest, classes, by_path=same)
        for run, manifest in zip((one, other), manifests, strict=True)
    ]
    (first, mine), (second, theirs) = answers
    _, here, there = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return paired_difference(theirs[there], mine[here])


def _answers(
    predictions: Predictions, manifest: Manifest, classes: Sequence[str], *, by_path: bool
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Returns a key of each image that was evaluated, its row or content with its class in ``classes``, and whether the answer to
    it is right; of equal images only the first."""
    if predictions.paths is None:
        return np.empty(0, _KEY), np.empty(0, np.bool_)
    rows = pc.index_in(pa.array(predictions.paths, pa.string()), value_set=manifest.paths).fill_null(-1).to_numpy()
    numbers = {name: at for at, name in enumerate(classes)}
    places = np.array([numbers[name] for name in manifest.classes], np.int64)
    known = (rows >= 0) & (predictions.labels < len(places))
    keys = np.empty(int(np.count_nonzero(known)), _KEY)
    keys["picture"] = rows[known] if by_path else manifest.content[rows[known]]
    keys["label"] = places[predictions.labels[known]]
    found, at = np.unique(keys, return_index=True)
    return found, (predictions.labels == predictions.predicted)[known][at]


def _plain(found: Score | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {"top1": found.percent, "interval": list(found.interval), "correct": found.correct, "images": found.total}
