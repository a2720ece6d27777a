"""What a mirror needs is tried before the first step, and a right that is missing is named."""

from __future__ import annotations

import json
import time
from pathlib import Path

import obstore
import pytest
from commands import typed
from object_server import ObjectServer

from stagewright.errors import StorageError
from stagewright.mirror.trial import clock_ahead, try_rights
from stagewright.storage import objects
from stagewright.storage.objects import open_store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: None)


def test_a_store_that_can_all_of_it_keeps_nothing(bucket: str) -> None:
    store = open_store(f"{bucket}/run")
    assert try_rights(store, bucket) is True
    assert [one for part in obstore.list(store) for one in part] == []


RIGHTS = {
    "PUT": ("writing an object", "s3:PutObject"),
    "GET .*trial": ("reading an object", "s3:GetObject"),
    "GET .*list-type": ("listing an object", "s3:ListBucket"),
    "POST|DELETE": ("deleting an object", "s3:DeleteObject"),
}


@pytest.mark.parametrize("request_", RIGHTS)
def test_a_right_that_is_missing_is_named(request_: str, bucket: str, object_server: ObjectServer) -> None:
    method, _, path = request_.partition(" ")
    doing, right = RIGHTS[request_]
    with object_server.fault("forbidden", method=method, path=path), pytest.raises(StorageError) as caught:
        try_rights(open_store(f"{bucket}/run"), f"{bucket}/run")
    told = str(caught.value)
    assert f"{bucket}/run: {doing} failed: no rights" in told and right in told


@pytest.mark.parametrize("fault", ["slow", "error", "reset"])
def test_a_store_that_is_busy_for_a_moment_is_tried_again(fault: str, bucket: str, object_server: ObjectServer) -> None:
    with object_server.fault(fault, times=5):
        assert try_rights(open_store(bucket), bucket) is True


def test_a_store_that_ignores_conditions_is_found_out(bucket: str, object_server: ObjectServer) -> None:
    with object_server.fault("unconditional"):
        with pytest.raises(StorageError, match=r"ignores the conditions of a write[\s\S]*--mirror-unfenced"):
            try_rights(open_store(bucket), bucket)
        assert try_rights(open_store(bucket), bucket, unfenced=True) is False


def test_a_store_that_ignores_one_of_the_two_conditions_is_found_out(bucket: str, object_server: ObjectServer) -> None:
    with (
        object_server.fault("unconditional", only="HTTP_IF_MATCH"),
        pytest.raises(StorageError, match="--mirror-unfenced"),
    ):
        try_rights(open_store(bucket), bucket)


def test_a_store_that_refuses_conditions_is_found_out(tmp_path: Path) -> None:
    """A folder can create, but not replace on a condition."""
    url = f"file://{tmp_path}/mirror"
    with pytest.raises(StorageError, match="--mirror-unfenced"):
        try_rights(open_store(url), url)
    assert try_rights(open_store(url), url, unfenced=True) is False


def test_doctor_tries_a_store(
    bucket: str, object_server: ObjectServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the rest of the machine, which takes time: as ``doctor --mirror URL`` does."""
    monkeypatch.setattr("stagewright.preflight.doctor.run_checks", lambda: [])
    monkeypatch.setattr("stagewright.preflight.doctor_machine.machine_checks", lambda *_, **__: [])
    code, out, _ = typed(capsys, monkeypatch, "doctor", "--mirror", f"{bucket}/run", "--json")
    assert code == 0 and "conditional writes work" in out
    assert [(one["name"], one["verdict"]) for one in json.loads(out)] == [("mirror", "ok"), ("clock", "ok")]
    with object_server.fault("forbidden", method="PUT"):
        code, out, _ = typed(capsys, monkeypatch, "doctor", "--mirror", f"{bucket}/run", "--json")
    assert code == 2 and [one["name"] for one in json.loads(out)] == ["mirror"] and "no rights" in out
    code, out, _ = typed(capsys, monkeypatch, "doctor", "--mirror", "s3://no-such-bucket-at-all", "--json")
    assert code == 2 and "no such bucket" in out


def test_a_clock_is_compared_with_that_of_the_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{bucket}/clock")
    ahead, inexact = clock_ahead(store, bucket)
    assert abs(ahead) <= inexact + 0.5 and inexact < 5
    right = time.time
    monkeypatch.setattr("stagewright.mirror.trial.time.time", lambda: right() - 100)
    behind, inexact = clock_ahead(store, bucket)
    assert -100 - inexact - 0.5 <= behind <= -100 + inexact + 0.5
    assert [one for part in obstore.list(store) for one in part] == []
