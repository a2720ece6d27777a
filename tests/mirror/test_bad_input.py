"""Mirrors that cannot be used: what is wrong is said before anything is trained, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from commands import typed
from mirror_runs import lacks, mirror_recipe, same_results
from object_server import ObjectServer
from rank_runs import QUIET

from stagewright.mirror.names import complete_steps
from stagewright.mirror.owner import read_owner
from stagewright.mirror.record import read_record
from stagewright.mirror.remote import names_in
from stagewright.storage import objects
from stagewright.storage.objects import open_store

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Type:
    monkeypatch.setattr(objects, "PAUSES", (0.01,) * 5)
    monkeypatch.chdir(tmp_path)

    def type_(*words: object) -> tuple[int, str, str]:
        return typed(capsys, monkeypatch, *words)

    return type_


@pytest.fixture
def train(type_: Type, pictures: Path, tmp_path: Path) -> Type:
    """Types ``train`` with the short recipe; further words come behind."""

    def train(url: str, *more: object, out: str = "run", **fields: Any) -> tuple[int, str, str]:
        recipe = mirror_recipe(tmp_path, 2, spread=1, **fields)
        return type_("train", pictures, "-r", recipe, "--out", tmp_path / out, "--mirror", url, *QUIET, *more)

    return train


def test_a_bucket_that_does_not_exist(train: Type, bucket: str, tmp_path: Path) -> None:
    code, _, said = train("s3://no-such-bucket/run")
    assert code == 2 and "s3://no-such-bucket/run: writing an object failed: no such bucket" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "which", "expected"),
    [
        (
            "forbidden",
            {"method": "PUT"},
            "no rights (access denied)\n  allowed: credentials with the right to write objects",
        ),
        ("forbidden", {"path": "list-type"}, "the right to list the bucket (s3:ListBucket)"),
        ("region", {}, "the bucket is in another region\n  allowed: AWS_REGION=eu-central-1"),
        ("key", {}, "there are no valid credentials (InvalidAccessKeyId"),
        ("expired", {}, "the credentials have expired"),
        ("slow", {}, "the store asks to slow down"),
        ("unconditional", {}, "ignores the conditions of a write"),
    ],
)
def test_what_the_store_refuses_is_named_before_the_first_step(
    fault: str,
    which: dict[str, str],
    expected: str,
    train: Type,
    bucket: str,
    object_server: ObjectServer,
    tmp_path: Path,
) -> None:
    with object_server.fault(fault, **which):
        code, _, said = train(f"{bucket}/run")
    assert code == 2 and expected in said, said
    assert not (tmp_path / "run").exists()


def test_an_endpoint_without_encryption(train: Type, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    code, _, said = train(f"{bucket}/run")
    assert code == 2 and "is not encrypted" in said and "--allow-http" in said
    assert train(f"{bucket}/run", "--allow-http")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--mirror", "photos"), "--mirror photos\n  allowed: s3://BUCKET/PREFIX"),
        (("--mirror", "s3://"), "s3:// is not the URL of an object store"),
        (("--mirror", "s3://b/x", "--mirror-wait", "soon"), "--mirror-wait soon"),
        (("--mirror", "s3://b/x", "--folds", "3"), "--mirror without a single run"),
    ],
)
def test_options_that_are_none(words: tuple[str, ...], expected: str, type_: Type, pictures: Path, bucket: str) -> None:
    code, _, said = type_("train", pictures, *words, *QUIET)
    assert code == 2 and expected in said, said


def test_a_mirror_of_another_plan_is_refused_by_name_and_digest(
    train: Type, type_: Type, bucket: str, tmp_path: Path
) -> None:
    url = f"{bucket}/run"
    assert train(url)[0] == 0
    owner = read_owner(open_store(url), url)
    assert owner is not None
    before = names_in(open_store(url), url)
    code, _, said = train(url, "--resume", "auto", out="other", seed=7)
    assert (
        code == 2
        and f"is the mirror of the run 'run' with the plan {owner[0].plan_digest[:12]}, not of this plan" in said
    )
    code, _, said = train(f"{bucket}/second", out="second", seed=7)
    assert code == 0
    code, _, said = type_("resume", tmp_path / "second", "--mirror", url, *QUIET)
    assert code == 2 and "not of this plan" in said
    code, _, said = type_("resume", url, "--out", tmp_path / "second", *QUIET)
    assert code == 2 and "a directory and a mirror of the same run" in said
    assert names_in(open_store(url), url) == before


def test_a_mirror_that_holds_a_run_is_not_written_by_a_new_one(train: Type, bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/run"
    assert train(url)[0] == 0
    code, _, said = train(url, out="again")
    assert code == 2 and "already holds the run 'run' with the plan" in said and f"stagewright resume {url}" in said
    assert not (tmp_path / "again").exists()


def test_a_prefix_with_other_things_is_refused(train: Type, bucket: str) -> None:
    obstore.put(open_store(f"{bucket}/data"), "photo.jpg", b"1")
    code, _, said = train(f"{bucket}/data")
    assert code == 2 and "is not empty, and not a mirror: it holds photo.jpg and no owner.json" in said
    assert list(names_in(open_store(f"{bucket}/data"), bucket)) == ["photo.jpg"]


def test_a_url_without_a_run_cannot_be_resumed(type_: Type, bucket: str) -> None:
    code, _, said = type_("resume", f"{bucket}/nothing", *QUIET)
    assert code == 2 and f"{bucket}/nothing holds no run yet" in said


def test_a_mirror_comes_back_to_where_the_run_was_named(train: Type, type_: Type, bucket: str, tmp_path: Path) -> None:
    """Without --out: runs/NAME; on the next call the same directory is brought up to date; another run is left alone."""
    url = f"{bucket}/run"
    assert train(url, "--until", "2st", out="named", eval={"every": "2st"})[0] == 0
    code, _, said = type_("resume", url, *QUIET)
    assert code == 0, said
    first = tmp_path / "runs" / "named"
    assert (first / "model" / "model.json").is_file() and lacks(first) == []
    assert train(f"{bucket}/unbroken", out="unbroken", eval={"every": "2st"})[0] == 0
    assert same_results(first, tmp_path / "unbroken") == []
    assert train(f"{bucket}/other", out="other/named", seed=3)[0] == 0
    assert type_("resume", f"{bucket}/other", *QUIET)[0] == 0
    assert sorted(os.listdir(tmp_path / "runs")) == ["named", "named-1"]


def test_a_mirror_can_be_ended_and_begun_at_any_resume(train: Type, type_: Type, bucket: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("none", "--until", "2st", eval={"every": "1st"})[0] == 0
    assert read_record(run) is None
    code, _, said = type_("resume", run, "--mirror", f"{bucket}/late", "--until", "3st", *QUIET)
    assert code == 0, said
    record = read_record(run)
    assert record is not None and record.url == f"{bucket}/late"
    assert type_("resume", run, "--mirror", "none", *QUIET)[0] == 0
    assert read_record(run) is None
    assert complete_steps(names_in(open_store(f"{bucket}/late"), bucket))[0] == 3


@pytest.mark.long
def test_a_start_at_step_0_is_not_hidden_behind_a_newer_mirror(
    train: Type, type_: Type, bucket: str, tmp_path: Path
) -> None:
    assert train(f"{bucket}/run", "--until", "2st", eval={"every": "2st"})[0] == 0
    code, _, said = type_("resume", tmp_path / "run", "--from-start", *QUIET)
    assert code == 2 and "--mirror none" in said
    assert type_("resume", tmp_path / "run", "--from-start", "--mirror", "none", *QUIET)[0] == 0


def test_a_plan_that_somebody_has_changed(train: Type, type_: Type, bucket: str) -> None:
    url = f"{bucket}/run"
    assert train(url)[0] == 0
    store = open_store(url)
    plan = bytes(obstore.get(store, "plan.json").bytes())
    for content in (plan.replace(b'"seed": 0', b'"seed": 1'), b"{}", plan[:100]):
        obstore.put(store, "plan.json", content)
        code, _, said = type_("resume", url, "--out", "elsewhere", *QUIET)
        assert code == 2 and f"{url}/plan.json" in said, said
        assert not Path("elsewhere").exists()


def test_names_that_lead_out_of_the_directory_are_not_written(
    train: Type, type_: Type, bucket: str, tmp_path: Path
) -> None:
    url = f"{bucket}/run"
    assert train(url, "--until", "2st", eval={"every": "2st"})[0] == 0
    store = open_store(url)
    for name in ("plots/.hidden", "model/deep/a/b/c/d/e", "other.txt"):
        obstore.put(store, name, b"bad")
    assert type_("resume", url, "--out", tmp_path / "deep" / "fetched", *QUIET)[0] == 0
    found = {path.name for path in (tmp_path / "deep").rglob("*")}
    assert not {".hidden", "e", "other.txt"} & found


@pytest.mark.long
def test_an_old_run_forks_without_its_mirror(train: Type, type_: Type, bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/run"
    assert train(url)[0] == 0
    before = names_in(open_store(url), url)
    assert type_("resume", tmp_path / "run", "--set", "lr.peak=0.01", *QUIET)[0] == 0
    assert read_record(tmp_path / "run-1") is None and names_in(open_store(url), url).keys() == before.keys()
    code, _, said = type_("resume", tmp_path / "run", "--set", "lr.peak=0.02", "--mirror", url, *QUIET)
    assert code == 2 and "not of this plan" in said
    assert type_("resume", tmp_path / "run", "--set", "lr.peak=0.02", "--mirror", f"{bucket}/fork", *QUIET)[0] == 0
    assert "model/model.json" in names_in(open_store(f"{bucket}/fork"), bucket)


def test_a_folder_as_a_store_needs_to_be_unfenced(train: Type, type_: Type, bucket: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store/run"
    code, _, said = train(url)
    assert code == 2 and "--mirror-unfenced" in said
    assert train(url, "--mirror-unfenced", "--until", "2st", eval={"every": "2st"})[0] == 0
    code, _, said = type_("resume", url, "--out", tmp_path / "fetched", "--mirror-unfenced", *QUIET)
    assert code == 0 and lacks(tmp_path / "fetched") == [], said
    assert type_("resume", tmp_path / "fetched", *QUIET)[0] == 0, "the record knows that it is unfenced"
