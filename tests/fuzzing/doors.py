"""The doors through which text comes in, each with a real file to change and the code of the package that reads it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import mutate
from fuzzing.corpus import Corpus

from stagewright.bundle.bundle import load_bundle
from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.model.availability import architecture_of
from stagewright.model.weight_file import locate
from stagewright.plan.budget import Budget
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data, Recipe
from stagewright.report.gallery import Gallery
from stagewright.report.html import page
from stagewright.report.plots import draw
from stagewright.report.read import read_run
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import changed_code
from stagewright.rundir.events import comparable, live_events
from stagewright.rundir.logs import restore_logs
from stagewright.rundir.step_table import StepLog, read_rows
from stagewright.rundir.summary import read_summary, record_actual_seconds, recorded_choice

_DRAWN = 0.02
"""Share of the damaged runs whose figures are drawn as well, which takes a second."""


@dataclass(frozen=True)
class Door:
    """A file that is changed by ``change``, and ``read``, which must give a value or a StagewrightError."""

    name: str
    file: Path
    change: mutate.Mutator
    read: Callable[[Random], object]
    weight: int = 4
    """How often it is tried, compared with the others."""
    reseal: Callable[[], object] | None = None
    """Makes the checksums right again, for a file that an enemy has changed."""
    named: tuple[str, ...] = ()
    """What an error may say in place of the file's name."""

    @property
    def where(self) -> tuple[str, ...]:
        """Words of which an error must have one."""
        return (self.file.name, *self.named)


_FIELDS = ("recipe:", *Recipe.model_fields)


def doors(corpus: Corpus) -> list[Door]:
    """Returns all doors on the files of ``corpus``."""
    return [*_recipes(corpus), *_runs(corpus), *_reports(corpus), *_bundles(corpus), *_packs(corpus), *_tables(corpus)]


def _recipes(corpus: Corpus) -> Iterator[Door]:
    plan = RunDir(corpus.run).read_plan()
    known = plan.dataset

    def planned(recipe: Recipe) -> None:
        made = resolve(recipe, known)
        Plan.from_json(json.loads(json.dumps(made.to_json())))
        recipes.from_dict(recipe.to_dict())
        recipes.to_yaml(recipe)
        for step in (0, made.total_steps - 1):
            made.hyper(step)

    file = corpus.root / "recipe.yaml"
    file.write_text(recipes.to_yaml(plan.recipe), "utf-8")
    yield Door("recipe", file, mutate.as_yaml, lambda random: planned(recipes.load(str(file))), 16, named=_FIELDS)
    short = corpus.root / "short.yaml"
    short.write_text(recipes.text("progressive"), "utf-8")
    yield Door(
        "short recipe", short, mutate.as_yaml, lambda random: planned(recipes.load(str(short))), 8, named=_FIELDS
    )
    settings = corpus.root / "settings.txt"
    examples = [f"{path}={value}" for path, value in _settings(recipes.load("progressive").to_dict())]
    settings.write_text("epochs=3ep", "utf-8")

    def one_setting(random: Random, data: bytes) -> bytes:
        return mutate.as_settings(random, examples).encode("utf-8", "surrogatepass")

    def overridden(random: Random) -> None:
        text = settings.read_bytes().decode("utf-8", "surrogatepass")
        planned(recipes.override(recipes.load(random.choice(("quick", "progressive"))), [text]))

    yield Door("--set", settings, one_setting, overridden, 16, named=("--set", *_FIELDS))


def _settings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        yield f"{path}{key}", json.dumps(one)
        yield from _settings(one, f"{path}{key}.")


def _runs(corpus: Corpus) -> Iterator[Door]:
    run = RunDir(corpus.run)
    plan = run.read_plan()
    budget = Budget.parse("1h")

    def read_plan(random: Random) -> None:
        found = run.read_plan()
        for step in {0, found.total_steps - 1}:
            found.hyper(step)
            found.stage_at(step)

    def read_env(random: Random) -> None:
        changed_code(plan.recipe, run.read_env())
        recorded_choice(run, budget)

    def read_result(random: Random) -> None:
        read_summary(run)
        record_actual_seconds(run, budget)

    def read_steps(random: Random) -> None:
        read_rows(run.steps)
        header = b"step,stage,epoch,lr,momentum,loss,top1,grad_norm"
        StepLog(run.steps, header.decode().split(",")).close()

    def continued(random: Random) -> None:
        found, _ = checkpoint.newest(run.checkpoints, plan.digest)
        checkpoint.pointed(run.checkpoints, "best")
        if found is not None:
            restore_logs(run, found)

    def sealed_meta() -> None:
        meta = json.loads((newest / "meta.json").read_bytes())
        meta.pop("seal", None)
        seal = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        (newest / "meta.json").write_bytes(mutate.text_of({**meta, "seal": seal}))

    newest = sorted(run.checkpoints.glob("step_*"))[-1]
    yield Door("plan", run.plan, mutate.as_json, read_plan, 8)
    yield Door("env", run.env, mutate.as_json, read_env)
    yield Door("summary", run.summary, mutate.as_json, read_result)
    yield Door("events", run.events, mutate.as_json_lines, lambda random: comparable(live_events(run.events)), 8)
    yield Door("steps", run.steps, mutate.as_csv, read_steps)
    yield Door("metrics", run.metrics, mutate.as_csv, lambda random: read_rows(run.metrics), 2)
    yield Door("checkpoint", newest / "meta.json", mutate.as_json, continued, 2, named=(newest.name,))
    yield Door("sealed checkpoint", newest / "meta.json", mutate.as_json, continued, 2, sealed_meta, (newest.name,))
    yield Door("pointer", run.checkpoints / "best.json", mutate.as_json, continued, 1, named=(newest.name,))
    yield Door("manifest", run.manifest, mutate.as_parquet, lambda random: Manifest.read(run.manifest))


def _reports(corpus: Corpus) -> Iterator[Door]:
    run = corpus.run

    def report(random: Random) -> None:
        record = read_run(run)
        page(record, [], Gallery(record)).encode("utf-8")
        if random.random() < _DRAWN:
            list(draw(record))

    as_columns = (("steps.csv", 6), ("timing.csv", 2), ("excluded.csv", 1), ("lr-find/lr-find.csv", 2))
    as_objects = (
        ("summary.json", 8),
        ("plan.json", 8),
        ("env.json", 4),
        ("weights.json", 4),
        ("lr-find/lr-find.json", 3),
    )
    as_tables = (("evaluations/test.parquet", 4), ("evaluations/val.parquet", 2), ("manifest.parquet", 4))
    for files, change in ((as_columns, mutate.as_csv), (as_objects, mutate.as_json), (as_tables, mutate.as_parquet)):
        for name, weight in files:
            yield Door(f"report of {name}", run / name, change, report, weight)
    yield Door("report of events.jsonl", run / "events.jsonl", mutate.as_json_lines, report, 6)


def _bundles(corpus: Corpus) -> Iterator[Door]:
    folder = corpus.run / "model"
    card = folder / "model.json"

    def load(random: Random) -> None:
        architecture_of(folder)
        locate(folder)
        load_bundle(folder)

    def resealed() -> None:
        content = json.loads(original)
        for name in content["files"]:
            content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        card.write_text(json.dumps(content), "utf-8")

    original = card.read_text("utf-8")
    yield Door("model.json", card, mutate.as_json, load, 6, named=(str(folder),))
    for name in ("golden.safetensors", "weights.safetensors", "golden/00.jpg"):
        yield Door(f"sealed {name}", folder / name, mutate.as_bytes, load, 1, resealed, (str(folder),))


def _packs(corpus: Corpus) -> Iterator[Door]:
    folder = corpus.pack
    head = folder / "pack.json"
    originals = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def read(random: Random) -> None:
        dataset = load_dataset(str(folder), Data(), workers=1)
        with suppress(OSError):  # what it raises for a damaged image
            dataset.images.load(0)

    def again(random: Random) -> None:
        pack(str(corpus.pictures), folder, Data(), size=8, workers=1)
        for name, data in originals.items():
            (folder / name).write_bytes(data)

    def sealed_head() -> None:
        content = json.loads(head.read_bytes())
        content.pop("sha256", None)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        head.write_bytes(mutate.text_of({**content, "sha256": digest}))

    def sealed_files() -> None:
        content = json.loads(originals["pack.json"])
        content["index_crc32"] = zlib.crc32((folder / "index.parquet").read_bytes())
        for part in content["parts"]:
            data = (folder / part["file"]).read_bytes()
            part["bytes"], part["crc32"] = len(data), zlib.crc32(data)
        head.write_bytes(mutate.text_of(content))
        sealed_head()

    yield Door("pack.json", head, mutate.as_json, read, 2, named=(folder.name,))
    yield Door("sealed pack.json", head, mutate.as_json, read, 6, sealed_head, (folder.name,))
    yield Door("sealed index", folder / "index.parquet", mutate.as_parquet, read, 6, sealed_files, (folder.name,))
    yield Door("sealed part", folder / "part-00000.arrow", mutate.as_bytes, read, 2, sealed_files, (folder.name,))
    yield Door("packing again", head, mutate.as_json, again, 1, sealed_head, (folder.name,))
    yield Door("checked parts", corpus.pack_cache, mutate.as_json, read, 2, named=(folder.name,))
    yield Door(
        "scan cache",
        corpus.scan_cache,
        mutate.as_parquet,
        lambda random: _load(corpus.pictures, random),
        3,
        named=("pictures",),
    )


def _tables(corpus: Corpus) -> Iterator[Door]:
    for file, change in ((corpus.table, mutate.as_csv), (corpus.parquet, mutate.as_parquet)):
        yield Door(
            f"table {file.suffix}",
            file,
            change,
            lambda random, file=file: _load(file, random),
            10,
            named=("class", "pictures"),
        )


def _load(source: Path, random: Random) -> DatasetInfo:
    settings = random.choice((Data(), Data(), Data(group="none"), Data(split="none"), Data(label="label")))
    return load_dataset(str(source), settings, workers=1).manifest.info()
