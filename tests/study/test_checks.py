"""What is found before the first run of a study: its plans, which are those of the printed commands, and all that would fail."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import typed
from rich.console import Console

from stagewright.api.prepare import prepare, read_data
from stagewright.cli.main import app
from stagewright.cli.options import recipe_request
from stagewright.cli.study_view import study_view
from stagewright.data.dataset import Dataset
from stagewright.errors import DataError, ModelError, RecipeError, StagewrightError, StorageError
from stagewright.plan.execution import Execution
from stagewright.recipe.request import RecipeRequest
from stagewright.recipe.yaml_text import write_yaml
from stagewright.study import checks
from stagewright.study.checks import Checked, CheckedJob, Size, check_disk, check_study
from stagewright.study.definition import Study, read_study
from stagewright.study.expected import Expected, expected
from stagewright.study.study_file import shipped

QUIET = Execution(device="cpu", workers=0, pages=False, quiet=True, probe_seconds=0.2)
SMALL = {"model.options": {"width": 4}, "image_size": 16, "batch_size": 16}
LRS = {"lr.peak": [0.01, 0.1]}


def silent(text: str) -> None: ...


def study(folder: Path, data: Path, **changes: Any) -> Study:
    """A small study; None leaves a key out, and ``set`` adds to SMALL."""
    common = {**SMALL, **changes.pop("set", {})}
    common = {name: value for name, value in common.items() if value is not None}
    plain = {"data": str(data), "recipe": "quick", "equal": {"epochs": 2}, "seeds": [0, 1], "grid": LRS, "set": common}
    content = {name: value for name, value in {**plain, **changes}.items() if value is not None}
    (folder / "small.yaml").write_text(write_yaml(content))
    return read_study(str(folder / "small.yaml"))


def request_of(words: list[str]) -> RecipeRequest:
    """What ``stagewright train`` makes of a command."""
    assert words[:2] == ["stagewright", "train"]
    command: Any = typer.main.get_command(app)
    given = [word for word in words[2:] if word != "--hold-test"]
    found = command.commands["train"].make_context("train", given).params
    flags = ("model", "weights", "epochs", "batch_size", "lr", "img_size", "seed")
    return recipe_request(found["recipe"], found["overrides"], **{name: found[name] for name in flags})


@pytest.fixture(scope="module")
def dataset(picture_folder: Path) -> Dataset:
    return read_data(picture_folder, RecipeRequest("quick"), QUIET)


@pytest.mark.parametrize("name", shipped())
def test_the_printed_command_makes_the_same_plan(name: str, picture_folder: Path, dataset: Dataset) -> None:
    found = read_study(name, str(picture_folder))
    digests = set[str]()
    for at, variant in enumerate(found.variants):
        own = found.request(variant, at)
        printed = request_of(found.command(variant, at, "out/run", threads=2))
        plans = [prepare(picture_folder, one, QUIET, silent, known=dataset)[1] for one in (own, printed)]
        assert plans[0] == plans[1] and plans[0].recipe.seed == at
        digests.add(plans[0].digest)
    assert len(digests) == len(found.variants)


def test_a_number_of_a_search_reaches_the_plan_with_all_its_bits(
    tmp_path: Path, picture_folder: Path, dataset: Dataset
) -> None:
    search = {"space": {"lr.peak": {"log": [0.003, 0.3]}, "batch_size": {"choice": [8, 16]}}, "trials": 5}
    found = study(tmp_path, picture_folder, grid=None, search=search, set={"batch_size": None})
    variant = found.at({"lr.peak": 0.1 / 3, "batch_size": "8"})
    plans = [
        prepare(picture_folder, one, QUIET, silent, known=dataset)[1]
        for one in (found.request(variant, 5), request_of(found.command(variant, 5, "out/run")))
    ]
    assert plans[0].digest == plans[1].digest and plans[0].recipe.lr.peak == 0.1 / 3
    checked = check_study(found, QUIET, silent)
    assert [job.seed for job in checked.jobs] == [0] * 4, "the ends, one within, the other batch; with the first seed"


def test_each_job_has_the_plan_that_its_training_makes(tmp_path: Path, picture_folder: Path) -> None:
    found = study(tmp_path, picture_folder)
    said: list[str] = []
    checked = check_study(found, QUIET, said.append)
    assert [job.name for job in checked.jobs] == ["0.01-s0", "0.01-s1", "0.1-s0", "0.1-s1"]
    for job in checked.jobs:
        _, plan = prepare(picture_folder, found.request(job.variant, job.seed), QUIET, silent)
        assert job.plan == plan and job.plan.dataset.digest == job.dataset.manifest.info().digest
    assert sum("60 pictures" in line for line in said) == 1, "DATA is read and told once"


def test_data_that_variants_read_in_two_ways_are_read_twice(tmp_path: Path, picture_folder: Path) -> None:
    said: list[str] = []
    found = study(tmp_path, picture_folder, grid={**LRS, "data.val": [0.1, 0.3]})
    checked = check_study(found, QUIET, said.append)
    assert len({job.plan.dataset.digest for job in checked.jobs}) == 2
    assert sum("60 pictures" in line for line in said) == 2


@pytest.mark.parametrize(
    "equal, steps",
    [({"epochs": 2}, {8: 10, 16: 6}), ({"steps": 7}, {8: 7, 16: 7}), ({"images": 128}, {8: 16, 16: 8})],
)
def test_what_is_equal(tmp_path: Path, picture_folder: Path, equal: dict[str, int], steps: dict[int, int]) -> None:
    found = study(
        tmp_path, picture_folder, equal=equal, seeds=[0], grid={"batch_size": [8, 16]}, set={"batch_size": None}
    )
    checked = check_study(found, QUIET, silent)
    assert {job.plan.recipe.batch_size: job.plan.total_steps for job in checked.jobs} == steps


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The networks that a check builds."""
    found: list[str] = []
    real = checks.build_state

    def counted(plan: Any, *arguments: Any) -> Any:
        found.append(plan.recipe.model.name)
        return real(plan, *arguments)

    monkeypatch.setattr(checks, "build_state", counted)
    yield found


def test_each_network_is_built_once(tmp_path: Path, picture_folder: Path, built: list[str]) -> None:
    grid = {**LRS, "model.name": ["cifar_resnet18", "cifar_preact_resnet18"], "label_smoothing": [0.0, 0.1]}
    found = study(tmp_path, picture_folder, grid=grid, seeds=[0, 1, 2])
    checked = check_study(found, QUIET, silent)
    assert built == ["cifar_resnet18", "cifar_preact_resnet18"] and len(checked.jobs) == 24
    assert all(0 < job.size.ended < job.size.running for job in checked.jobs)


REFUSED: dict[str, tuple[dict[str, Any], type[StagewrightError], str]] = {
    "an unknown model": (
        {"grid": {"model.name": ["resnet18", "cifar_resnet81"]}, "set": {"model.options": None}},
        ModelError,
        "variant cifar_resnet81: model 'cifar_resnet81' is unknown; did you mean",
    ),
    "an option of no network": (
        {"grid": {"w": {"a": {"model.options.width": -4}}}, "set": {"model.options": None}},
        ModelError,
        "variant a: ",
    ),
    "a size of no network": (
        {"grid": {"model": {"v": {"name": "vit", "options": {"patch": 5}}}}, "set": {"model.options": None}},
        ModelError,
        "variant v: ",
    ),
    "a file that is not there": ({"grid": {"model.weights": ["no/such.pth"]}}, StagewrightError, "variant such.pth: "),
    "an unknown optimizer": ({"grid": {"optimizer.name": ["sgd", "adma"]}}, ModelError, "variant adma: "),
    "no plan": (
        {"grid": {"class_weights": {"x": {"acros": 2.0}}}},
        RecipeError,
        "variant x: class_weights: 'acros' is not a class of the data; did you mean 'across'",
    ),
    "patterns of another network": ({"grid": {"train": {"x": ["nolayer.*"]}}}, ModelError, "variant x: stage"),
    "two with one plan": (
        {"grid": {**LRS, "checkpoints.keep": [1, 2]}},
        RecipeError,
        "the runs 0.01-1-s0 and 0.01-2-s0 have the same plan",
    ),
    "two variants that are one": (
        {"grid": None, "variants": {"a": {}, "b": {"data.split_seed": 0}}},
        RecipeError,
        "the runs a-s0 and b-s0 have the same plan",
    ),
    "lr: auto": ({"grid": {"lr.peak": ["auto"]}}, RecipeError, "variant auto: lr: auto, which each run would measure"),
    "no validation part": ({"set": {"data.val": 0.0}}, DataError, "has no validation pictures"),
    "no test part and no decision": ({"set": {"data.test": 0.0}}, DataError, "has no test pictures"),
    "a test part in spite of none": ({"test": "none"}, DataError, "test: none, but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, picture_folder: Path, case: str) -> None:
    changes, kind, expected_text = REFUSED[case]
    found = study(tmp_path, picture_folder, **changes)
    with pytest.raises(kind) as caught:
        check_study(found, QUIET, silent)
    assert expected_text in str(caught.value)
    assert caught.value.given and caught.value.allowed and caught.value.remedy


def test_the_three_decisions_about_a_test_part(tmp_path: Path, picture_folder: Path) -> None:
    without = study(tmp_path, picture_folder, set={"data.test": 0.0}, test="none")
    assert check_study(without, QUIET, silent).jobs[0].plan.dataset.num_test == 0
    assert check_study(study(tmp_path, picture_folder, set={"data.test": 0.2}), QUIET, silent).jobs
    parts = tmp_path / "parts"
    for part in ("train", "val"):
        (parts / part).mkdir(parents=True)
        for folder in sorted(picture_folder.iterdir()):
            (parts / part / folder.name).mkdir()
            for image in sorted(folder.iterdir())[:: 1 if part == "train" else 2][: 10 if part == "train" else 5]:
                (parts / part / folder.name / f"{part}-{image.name}").write_bytes(image.read_bytes() + part.encode())
    with pytest.raises(DataError, match="has no test pictures"):
        check_study(study(tmp_path, parts), QUIET, silent)
    decided = check_study(study(tmp_path, parts, set={"data.val_is_test": True}), QUIET, silent)
    assert decided.jobs[0].plan.dataset.num_test == 15 and decided.jobs[0].plan.dataset.num_val > 0


def test_a_rehearsal_checks_the_same(tmp_path: Path, picture_folder: Path) -> None:
    found = study(tmp_path, picture_folder, grid={**LRS, "batch_size": [16, 32, 64]}, set={"batch_size": None})
    checked = check_study(found, QUIET, silent, tiny=True)
    assert checked.tiny and {job.plan.total_steps for job in checked.jobs} == {8} and len(checked.jobs) == 12


def with_sizes(checked: Checked, running: int, ended: int) -> Checked:
    def resized(job: CheckedJob) -> CheckedJob:
        return replace(job, size=Size(running, ended))

    return replace(checked, jobs=tuple(map(resized, checked.jobs)))


def test_room_on_the_disk(tmp_path: Path, picture_folder: Path) -> None:
    whole = check_study(study(tmp_path, picture_folder), QUIET, silent)
    confirmed = replace(whole, study=study(tmp_path, picture_folder, confirm={"top": 2, "seeds": 3}))
    search = {"space": {"lr.peak": {"log": [0.003, 0.3]}}, "trials": 50}
    searched = check_study(study(tmp_path, picture_folder, grid=None, search=search), QUIET, silent)
    assert with_sizes(whole, 30, 10).ended_bytes == 4 * 10 + 20
    assert with_sizes(confirmed, 30, 10).ended_bytes == (4 + 6) * 10 + 20
    assert with_sizes(searched, 30, 10).ended_bytes == 50 * 10 + 20
    assert with_sizes(whole, 30, 10).bytes_left({"0.01-s0", "0.1-s1"}) == 2 * 10 + 20
    check_disk(whole, tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    large = with_sizes(whole, 10**18, 10**17)
    with pytest.raises(StorageError, match="for the checkpoints and files of all runs of the study"):
        check_disk(large, tmp_path)
    everything = {job.name for job in whole.jobs}
    check_disk(with_sizes(whole, 10**17, 10**17), tmp_path, everything)


def test_what_costs_the_same_is_measured_once(tmp_path: Path, picture_folder: Path) -> None:
    grid = {**LRS, "augment.flip": [0.0, 0.5], "batch_size": [8, 16]}
    found = study(tmp_path, picture_folder, grid=grid, set={"batch_size": None}, confirm={"top": 2, "seeds": 2})
    checked, said = check_study(found, QUIET, silent), list[str]()
    before = sorted(tmp_path.iterdir())
    times = expected(checked, QUIET, tmp_path, said.append)
    assert times.num_probes == 2 and said == ["Measuring this machine with 2 kinds of run, for 0.4 s and their set-up."]
    assert set(times.seconds) == {job.name for job in checked.jobs} and min(times.seconds.values()) > 0
    assert times.runs_seconds == pytest.approx(sum(times.seconds.values()))
    longest = sorted({round(one, 9) for one in times.seconds.values()}, reverse=True)
    assert times.confirm_seconds == pytest.approx(2 * 2 * longest[0])
    assert sorted(tmp_path.iterdir()) == before, "nothing stays"


def test_times_that_are_given_are_not_measured(tmp_path: Path, picture_folder: Path) -> None:
    found = study(tmp_path, picture_folder, equal={"time": "20m"})
    times = expected(check_study(found, QUIET, silent), QUIET, tmp_path, silent)
    assert times.num_probes == 0 and times.runs_seconds == 4 * 1200


def test_a_search_takes_what_its_examples_take(tmp_path: Path, picture_folder: Path) -> None:
    search = {"space": {"lr.peak": {"log": [0.003, 0.3]}}, "trials": 10, "rungs": {"first": "50%", "eta": 2}}
    found = study(tmp_path, picture_folder, grid=None, search=search, equal={"time": "100s"})
    times = expected(check_study(found, QUIET, silent), QUIET, tmp_path, silent)
    assert times.runs_seconds == pytest.approx(10 * 100 * 0.75)


def test_the_command(
    tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path, picture_folder, confirm={"top": 2, "seeds": 3})
    common = ("study", "plan", "small.yaml", "--device", "cpu")
    code, out, _ = typed(capsys, monkeypatch, *common, "--price", 2, "--probe-seconds", 0.2)
    assert code == 0 and "60 pictures" in out
    for part in (
        "0.1-s1",
        "4 runs: 2 variants with seeds 0, 1, each 2 epochs long.",
        "fresh seeds each, 6 runs",
        "At $2",
    ):
        assert part in " ".join(out.split()), part
    code, out, _ = typed(capsys, monkeypatch, *common, "--no-probe", "--json")
    content = json.loads(out)
    assert code == 0 and [run["steps"] for run in content["runs"]] == [6] * 4 and "seconds" not in content
    assert content["runs"][0]["labels"] == {"lr.peak": "0.01"} and content["runs"][0]["seconds"] is None
    assert content["runs"][0]["command"].startswith(
        f"stagewright train {picture_folder} --recipe quick --epochs 2ep --set"
    )
    code, out, _ = typed(capsys, monkeypatch, *common, "--no-probe", "--tiny", "-q")
    assert code == 0 and "a few steps long, as a rehearsal" in " ".join(out.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"], "nothing is written"
    assert typed(capsys, monkeypatch, *common, "--no-probe", "--price", 2)[0] == 2
    study(tmp_path, picture_folder, grid={**LRS, "checkpoints.keep": [1, 2]})
    code, _, err = typed(capsys, monkeypatch, *common, "--no-probe")
    assert code == 2 and "have the same plan" in err and "Traceback" not in err


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_the_table_of_24_runs_fits_and_breaks_no_name(tmp_path: Path, picture_folder: Path, width: int) -> None:
    grid = {
        "model.name": ["cifar_resnet18", "cifar_preact_resnet18"],
        "optimizer": {"sgd": {"name": "sgd"}, "adam": {"name": "adam"}},
        "lr.peak": [0.01, 0.03, 0.1],
        "transforms": {"A": {"augment.rotation": 15}, "B": {"augment.erasing": 0.5, "augment.blur": 0.3}},
    }
    checked = check_study(
        study(tmp_path, picture_folder, grid=grid, seeds=[0], confirm={"top": 3, "seeds": 5}), QUIET, silent
    )
    times = Expected({job.name: 11_000.0 for job in checked.jobs}, 264_000.0, 165_000.0, 2, 10.0, "")
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(study_view(checked, times, 2.0))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    for job in checked.jobs:
        [row, *_] = [line.split() for line in lines if line.split()[:1] == [job.name]]
        assert row[1:] == ["6", *["3", "h", "3", "min"], *([job.plan.digest[:12]] if width > 60 else [])]
    text = " ".join(out.getvalue().split())
    assert "transforms: B augment.erasing=0.5, augment.blur=0.3" in text and "73 h 20 min" in text and "$238.33" in text


def test_shipped_studies_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = typed(capsys, monkeypatch, "study", "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == shipped()
    code, out, _ = typed(capsys, monkeypatch, "study", "print", "cifar-sweep")
    assert code == 0 and out.startswith("# Two residual networks") and "augment.copies: 1" in out
    code, _, err = typed(capsys, monkeypatch, "study", "plan", "cifar-sweep")
    assert code == 2 and "has no data" in err and "--data" in err
