"""Notices that a machine will be taken away, from stand-ins of the three metadata services."""

from __future__ import annotations

import threading
import time

import pytest
from metadata_service import metadata_service

from stagewright.system import notices
from stagewright.system.notices import Notice, find_service, watching

ENDPOINTS = {
    "AWS": "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "Google Cloud": "GCE_METADATA_HOST",
    "Azure": "AZURE_METADATA_HOST",
}
NOBODY = "127.0.0.1:9"


def environment(provider: str, host: str) -> dict[str, str]:
    """An environment in which the services are asked here, not at the address that they have in earnest."""
    found = {name: NOBODY for name in ENDPOINTS.values()}
    return found | {ENDPOINTS[provider]: f"http://{host}/" if provider == "AWS" else host}


@pytest.mark.parametrize(
    ("provider", "what", "seconds"),
    [("AWS", "terminate", 119), ("Google Cloud", "preempted", 30), ("Azure", "Preempt", 119)],
)
def test_the_notice_of_each_provider(provider: str, what: str, seconds: float) -> None:
    """Not before there is one; of Azure, not that of another machine, and not that it is frozen for a moment."""
    given = threading.Event()
    with metadata_service(provider, given.is_set) as host:
        service = find_service(environment(provider, host))
        assert service is not None and service.provider == provider
        assert service.ask() is None
        given.set()
        notice = service.ask()
        assert notice is not None and (notice.provider, notice.what) == (provider, what)
        assert seconds - 2 <= notice.seconds <= seconds + 1
        assert f"{provider} takes this machine away in" in str(notice)


@pytest.mark.parametrize("provider", list(ENDPOINTS))
@pytest.mark.parametrize(
    "broken", ["", "[]", "null", "{", "\0", '{"action": 5}', '{"Events": {"a": 1}}', '{"Events": [5]}', "[" * 50_000]
)
def test_what_is_no_notice(provider: str, broken: str) -> None:
    given = threading.Event()
    with metadata_service(provider, given.is_set, broken=broken or " ") as host:
        service = find_service(environment(provider, host))
        assert service is not None
        given.set()
        assert service.ask() is None


def test_a_time_that_is_none_is_the_shortest_that_the_provider_promises() -> None:
    given = threading.Event()
    with metadata_service("AWS", given.is_set, broken='{"action": "stop", "time": "soon"}') as host:
        service = find_service(environment("AWS", host))
        given.set()
        assert service is not None and service.ask() == Notice("AWS", "stop", 120.0)


def test_machines_without_a_metadata_service() -> None:
    assert find_service(dict.fromkeys(ENDPOINTS.values(), NOBODY)) is None
    with metadata_service("AWS", lambda: False) as host:
        asked = environment("AWS", host)
        assert find_service(asked | {"STAGEWRIGHT_NOTICES": "off"}) is None
        assert find_service(asked | {"AWS_EC2_METADATA_DISABLED": "true"}) is None
        assert find_service(asked) is not None


def test_watching_tells_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "EVERY", 0.05)
    given, told, found = threading.Event(), [], []
    with metadata_service("Google Cloud", given.is_set) as host:
        for name, value in environment("Google Cloud", host).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("STAGEWRIGHT_NOTICES", raising=False)
        with watching(told.append, found.append):
            time.sleep(0.3)
            assert told == [] and found == ["Google Cloud"]
            given.set()
            end = time.monotonic() + 5
            while not told and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.2)
        assert [one.provider for one in told] == ["Google Cloud"]


def test_a_service_that_fails_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "EVERY", 0.02)
    asked: list[int] = []

    class Failing:
        provider = "AWS"

        def ask(self) -> Notice | None:
            asked.append(1)
            if len(asked) < 4:
                raise OSError("gone")
            return Notice("AWS", "terminate", 100.0)

    monkeypatch.setattr(notices, "find_service", lambda: Failing())
    told: list[Notice] = []
    with watching(told.append):
        end = time.monotonic() + 5
        while not told and time.monotonic() < end:
            time.sleep(0.01)
    assert len(asked) == 4 and len(told) == 1
