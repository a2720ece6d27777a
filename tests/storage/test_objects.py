"""The door to object stores: what it opens, what it refuses, and what its errors say, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import obstore
import pytest
from object_server import ObjectServer
from slow_link import slow_link

from stagewright.errors import StorageError
from stagewright.storage.objects import TIMEOUT, explain, is_missing, is_remote, open_store, part_bytes


@pytest.mark.parametrize(
    "url", ["s3://bucket/prefix", "gs://b", "az://account/container", "file:///tmp/x", "memory:///"]
)
def test_urls_of_stores_are_remote(url: str) -> None:
    assert is_remote(url)


@pytest.mark.parametrize(
    "text", ["photos/", "s3/", "/s3:/x", "digits", "hf:NAME", "torchvision:CIFAR100", "C:\\x", "http://x"]
)
def test_paths_and_names_are_not(text: str) -> None:
    assert not is_remote(text)


@pytest.mark.parametrize("url", ["s3://", "s3:///", "ftp://x/y", "s3:bucket", "photos/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match=r"not the URL of an object store[\s\S]*s3://BUCKET/PREFIX"):
        open_store(url)


def test_a_prefix_is_part_of_all_names(bucket: str) -> None:
    obstore.put(open_store(f"{bucket}/a/b"), "c.txt", b"1")
    assert obstore.get(open_store(f"{bucket}/a"), "b/c.txt").bytes() == b"1"


def test_an_endpoint_without_encryption_must_be_allowed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(
        StorageError, match=r"http://127.0.0.1:\d+ \(AWS_ENDPOINT_URL\) is not encrypted[\s\S]*--allow-http"
    ):
        open_store(bucket)
    obstore.put(open_store(bucket, allow_http=True), "x", b"1")


REASONS = {
    "bucket": "no such bucket",
    "forbidden": "no rights.*\n.*s3:PutObject",
    "expired": "the credentials have expired",
    "key": "no valid credentials.*InvalidAccessKeyId",
    "region": "another region\n.*AWS_REGION=eu-central-1",
    "slow": "asks to slow down",
    "error": "InternalError",
    "reset": "cannot be reached",
    "stall": "cannot be reached",
}


@pytest.mark.parametrize("fault", REASONS)
def test_errors_say_what_is_wrong(
    fault: str, bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "0.3")
    with object_server.fault(fault):
        for doing in (lambda store: obstore.put(store, "x", b"1"), lambda store: obstore.list(store).collect()):
            began = time.monotonic()
            with pytest.raises(Exception) as caught:
                doing(open_store(bucket))
            error = explain(caught.value, bucket, "writing x", "s3:PutObject")
            assert re.search(REASONS[fault], str(error)), error
            assert str(error).startswith(f"{bucket}: writing x failed") and "Debug" not in str(error)
            assert time.monotonic() - began < 10, "its own retries must be short"


def test_a_bucket_that_is_missing_is_not_an_object_that_is_missing(bucket: str, object_server: ObjectServer) -> None:
    for url, missing in ((bucket, True), ("s3://no-such-bucket", False)):
        with pytest.raises(FileNotFoundError) as caught:
            obstore.get(open_store(url), "x")
        assert is_missing(caught.value) is missing
    store = open_store(bucket)
    object_server.delete_bucket(bucket)
    with pytest.raises(FileNotFoundError) as caught:
        obstore.get(store, "x")
    assert not is_missing(caught.value)


def test_an_endpoint_that_nobody_serves(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Exception) as caught:
        obstore.put(open_store(bucket), "x", b"1")
    assert "cannot be reached" in str(explain(caught.value, bucket, "writing x"))


@pytest.mark.parametrize("value", ["no", "0", "-1", "nan", "1e9"])
def test_a_timeout_that_is_none(value: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, value)
    with pytest.raises(StorageError, match=f"{TIMEOUT}={value}"):
        open_store(bucket)


def test_parts_are_few_enough() -> None:
    assert part_bytes(0) == part_bytes(1 << 30) == 8 << 20
    assert (1 << 40) / part_bytes(1 << 40) < 10_000


def test_without_the_library_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["obstore"] = None
from stagewright.storage.objects import open_store
open_store("s3://b/x")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'stagewright[cloud]'" in done.stderr


def test_the_door_itself_imports_no_library() -> None:
    code = """
import sys
import stagewright.storage.objects
assert not {"obstore", "boto3", "botocore"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_profile_gives_credentials(
    bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    obstore.put(open_store(bucket), "x", b"1")
    assert "AKIALAB" in object_server.requests()[-1]["authorization"]
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StorageError, match="the profile other of AWS_PROFILE"):
        open_store(bucket)


def test_the_slow_link_is_slow(bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test support itself: a round trip costs its time, and bytes arrive whole."""
    data = os.urandom(3 << 20)
    with slow_link(object_server.port, round_trip=0.1, bits=8 * 10e6) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store(bucket)
        began = time.monotonic()
        obstore.put(store, "x", data, use_multipart=False)
        assert time.monotonic() - began > 0.3
        assert obstore.get(store, "x").bytes() == data
