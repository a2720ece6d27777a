"""Notices that a rented machine will be taken away, from the metadata service of AWS, Google Cloud or Azure.

Each service answers at 169.254.169.254, on its own machines alone. AWS: IMDSv2, ``spot/instance-action``, two minutes before.
Google Cloud: ``instance/preempted``, 30 s before. Azure: scheduled events, at least 30 s before. What they answer is a stranger's
text until it is checked. The services are asked by the standard library, past any proxy: they are reached from this machine only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

Provider = Literal["AWS", "Google Cloud", "Azure"]

OFF = "STAGEWRIGHT_NOTICES"
"""Variable: ``off`` asks no metadata service."""
ADDRESS = "169.254.169.254"
EVERY = 5.0
"""Seconds between two questions."""
_ANSWER = 2.0
"""Seconds in which a metadata service answers."""
_LONGEST = 1 << 16
"""Bytes of the longest answer that is read."""
_TOKEN_SECONDS = 21_600
SECONDS: dict[Provider, float] = {"AWS": 120.0, "Google Cloud": 30.0, "Azure": 30.0}
"""Seconds between a notice and the end of the machine, where the notice does not say when that is."""
_ENDINGS = ("Preempt", "Terminate", "Reboot", "Redeploy")
"""Azure's kinds of events after which no process runs on."""


@dataclass(frozen=True)
class Notice:
    """A machine will be taken away."""

    provider: Provider
    what: str
    """What will happen, in the provider's word: ``terminate``, ``stop``, ``preempted``, ``Preempt``."""
    seconds: float
    """Seconds from now until it happens."""

    def __str__(self) -> str:
        return f"{self.provider} takes this machine away in {max(0, round(self.seconds))} s ({self.what})"


class _Service(Protocol):
    """A metadata service."""

    provider: Provider

    def ask(self) -> Notice | None:
        """Returns the notice, or None if there is none. OSError or HTTPException if the service does not answer."""
        ...


def slow_save(saving: float, notice: float) -> str:
    """Returns the sentence for a save that takes ``saving`` seconds, more than the ``notice`` that this machine gives."""
    return (
        f"saving a checkpoint takes {saving:.0f} s, and this machine is taken away {notice:.0f} s after its notice: what is not "
        "saved by then is lost; save more often (--save-minutes), or to a faster disk"
    )


def find_service(environment: Mapping[str, str] = os.environ) -> _Service | None:
    """Returns the metadata service of this machine, or None if none answers; takes at most some seconds."""
    if environment.get(OFF, "").lower() in ("off", "0", "false", "no"):
        return None
    for make in (_Aws, _GoogleCloud, _Azure):
        with contextlib.suppress(OSError, http.client.HTTPException):
            if (found := make.found(environment)) is not None:
                return found
    return None


@contextmanager
def watching(
    on_notice: Callable[[Notice], object], on_found: Callable[[Provider], object] = lambda _: None
) -> Iterator[None]:
    """Context in which a thread asks the metadata service of this machine, if there is one, and calls ``on_notice`` at the first
    notice, once; ``on_found`` when a service has answered. Both are called in the thread."""
    ends = threading.Event()
    thread = threading.Thread(target=_watch, args=(ends, on_notice, on_found), name="notices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()


def _watch(
    ends: threading.Event, on_notice: Callable[[Notice], object], on_found: Callable[[Provider], object]
) -> None:
    service = find_service()
    if service is None or ends.is_set():
        return
    on_found(service.provider)
    while not ends.is_set():
        with contextlib.suppress(OSError, http.client.HTTPException):  # it is asked again soon
            if (notice := service.ask()) is not None:
                on_notice(notice)
                return
        ends.wait(EVERY)


class _Aws:
    """Spot instances of EC2 (docs: "Spot Instance interruption notices")."""

    provider: Provider = "AWS"

    def __init__(self, host: str) -> None:
        self._host, self._token, self._until = host, "", 0.0

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> _Aws | None:
        """Returns the service if it answers as IMDSv2."""
        if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return None
        given = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
        service = cls(re.sub(r"^http://|/$", "", given) or ADDRESS)
        return service if service._has_token() else None

    def ask(self) -> Notice | None:
        """Returns what ``spot/instance-action`` says; 404 means that nothing is planned."""
        if not self._has_token():
            return None
        header = {"X-aws-ec2-metadata-token": self._token}
        status, _, text = _request(self._host, "/latest/meta-data/spot/instance-action", header)
        if status == 401:  # the token has expired
            self._token = ""
        fields = _object(text) if status == 200 else {}
        action, when = fields.get("action"), fields.get("time")
        if action not in ("terminate", "stop", "hibernate"):
            return None
        return Notice("AWS", str(action), _seconds_until(when, SECONDS["AWS"]))

    def _has_token(self) -> bool:
        if not self._token or time.monotonic() > self._until:
            header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            status, _, text = _request(self._host, "/latest/api/token", header, method="PUT")
            self._token = text if status == 200 and re.fullmatch(r"[\w=+/-]{8,400}", text) else ""
            self._until = time.monotonic() + _TOKEN_SECONDS / 2
        return bool(self._token)


class _GoogleCloud:
    """Spot and preemptible machines of Compute Engine (docs: "Spot VMs", preemption process)."""

    provider: Provider = "Google Cloud"

    def __init__(self, host: str) -> None:
        self._host = host

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> _GoogleCloud | None:
        """Returns the service if it answers with Google's header."""
        service = cls(environment.get("GCE_METADATA_HOST") or ADDRESS)
        status, headers, _ = service._preempted()
        return service if status == 200 and headers.get("Metadata-Flavor") == "Google" else None

    def ask(self) -> Notice | None:
        """Returns the notice if ``instance/preempted`` is TRUE."""
        status, _, text = self._preempted()
        if status != 200 or text.strip().upper() != "TRUE":
            return None
        return Notice("Google Cloud", "preempted", SECONDS["Google Cloud"])

    def _preempted(self) -> tuple[int, Message, str]:
        return _request(self._host, "/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})


class _Azure:
    """Virtual machines of Azure (docs: "Scheduled Events for Linux VMs")."""

    provider: Provider = "Azure"

    def __init__(self, host: str) -> None:
        self._host, self._name = host, ""

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> _Azure | None:
        """Returns the service if it answers with scheduled events."""
        service = cls(environment.get("AZURE_METADATA_HOST") or ADDRESS)
        if service._events() is None:
            return None
        status, _, text = service._get("/metadata/instance/compute/name?api-version=2021-02-01&format=text")
        service._name = text.strip() if status == 200 else ""
        return service

    def ask(self) -> Notice | None:
        """Returns the first event that ends this machine."""
        for event in self._events() or []:
            kind, names = event.get("EventType"), event.get("Resources")
            # Machines of a scale set are told of each other's events.
            own = not self._name or not isinstance(names, list) or self._name in names
            if kind in _ENDINGS and own:
                return Notice("Azure", str(kind), _seconds_until(event.get("NotBefore"), SECONDS["Azure"]))
        return None

    def _events(self) -> list[dict[str, Any]] | None:
        status, _, text = self._get("/metadata/scheduledevents?api-version=2020-07-01")
        events = _object(text).get("Events") if status == 200 else None
        return [one for one in events if isinstance(one, dict)] if isinstance(events, list) else None

    def _get(self, path: str) -> tuple[int, Message, str]:
        return _request(self._host, path, {"Metadata": "true"})


def _request(host: str, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, Message, str]:
    """Returns status, headers and text of an answer. OSError or HTTPException if there is none in time."""
    connection = http.client.HTTPConnection(host, timeout=_ANSWER)
    try:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        text = answer.read(_LONGEST).decode("utf-8", "replace")
        return answer.status, answer.headers, text
    except ValueError as error:  # a host or token that cannot be in a request
        raise OSError(str(error)) from error
    finally:
        connection.close()


def _object(text: str) -> dict[str, Any]:
    """Returns the JSON object in ``text``; an empty one if it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _seconds_until(when: object, otherwise: float) -> float:
    """Returns the seconds until the time ``when``, in ISO-8601 or as in HTTP; ``otherwise`` if it is none."""
    if isinstance(when, str) and when.strip():
        for parse in (datetime.fromisoformat, parsedate_to_datetime):
            with contextlib.suppress(ValueError, TypeError):
                found = parse(when.strip())
                found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
                return (found - datetime.now(UTC)).total_seconds()
    return otherwise
