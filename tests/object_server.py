"""An object store for tests: moto's S3 in a process of its own, behind a middleware that meets requests with faults on command.

As a script it is the server. A test has it as the fixture ``object_server`` (:class:`ObjectServer`), and takes a bucket of its
own from it. The faults are those of real stores and networks (:class:`Faults`).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

_CONTROL = "/-/"
_REFUSALS = {
    "slow": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "error": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "forbidden": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "expired": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
    "key": ("403 Forbidden", "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "region": (
        "400 Bad Request",
        "AuthorizationHeaderMalformed",
        "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'",
    ),
    "bucket": ("404 Not Found", "NoSuchBucket", "The specified bucket does not exist"),
}


class ObjectServer:
    """The server as a test sees it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self._buckets = itertools.count(1)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables by which a program finds the server, or what stands before it at ``endpoint``."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """Creates an empty bucket and returns its URL, ``s3://bucket-N``."""
        name = f"bucket-{os.getpid()}-{next(self._buckets)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            return f"s3://{name}"

    def delete_bucket(self, url: str) -> None:
        """Answers from now on that there is no such bucket."""
        self._ask("vanish", {"bucket": url.removeprefix("s3://").partition("/")[0]})

    @contextmanager
    def fault(self, do: str, **which: Any) -> Iterator[None]:
        """Within this context requests meet the fault ``do`` (:class:`Faults`); ``which`` as for :meth:`add_fault`."""
        number = self.add_fault(do, **which)
        try:
            yield
        finally:
            self.lift(number)

    def add_fault(self, do: str, **which: Any) -> int:
        """Adds a fault and returns its number; see :class:`Faults`."""
        return int(self._ask("fault", {"do": do, **which}))

    def lift(self, number: int | None = None) -> None:
        """Ends the fault of this number, or all."""
        self._ask("lift", {"number": number})

    def requests(self, *, clear: bool = False) -> list[dict[str, Any]]:
        """All requests so far: ``method``, ``path``, ``query``, ``range``, ``authorization``, ``sent`` and ``received``
        (bytes, as the server sees it), ``status`` (0 for a connection that was cut) and ``at`` (seconds)."""
        return self._ask("requests", {"clear": clear})

    def _ask(self, what: str, order: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.endpoint}{_CONTROL}{what}", json.dumps(order).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


@contextmanager
def start_object_server(log: Path) -> Iterator[ObjectServer]:
    """Context manager of a running server, which writes its errors to ``log``."""
    environment = {**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": "", "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__], stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        try:
            if not line:
                raise RuntimeError(f"the object server did not start: {log.read_text()[-2000:]}")
            yield ObjectServer(process, int(line))
        finally:
            process.kill()
            process.wait()


class Faults:
    """WSGI middleware that counts requests and lets some meet a fault.

    A fault is a mapping: ``do``, and which requests it meets: ``method`` and ``path`` (regular expressions, the path with its
    query), ``times`` (so many, then it is over), ``skip`` (so many go through first), ``share`` (0 to 1, at random).

    ``do`` is one of the refusals of S3 (``slow`` to ``bucket``; ``code`` replaces the code), or: ``reset`` (the connection is
    cut at once), ``truncate`` (half of the answer, then cut), ``stall`` (no answer for ``seconds``, or until the fault is
    lifted, then cut), ``delay`` (the answer comes ``seconds`` later), ``lost`` (carried out, but cut before the answer),
    ``unconditional`` (the conditions of a write are ignored).
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._faults: dict[int, dict[str, Any]] = {}
        self._numbers = itertools.count(1)
        self._requests: list[dict[str, Any]] = []
        self._lock, self._conditional = threading.Lock(), threading.Lock()
        self._random = random.Random(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        whole = environ.get("wsgi.input_terminated", False)
        body = environ["wsgi.input"].read(*(() if whole else (int(environ.get("CONTENT_LENGTH") or 0),)))
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        if environ["PATH_INFO"].startswith(_CONTROL):
            answer = json.dumps(self._obey(environ["PATH_INFO"].removeprefix(_CONTROL), json.loads(body))).encode()
            start_response("200 OK", [("Content-Length", str(len(answer)))])
            return [answer]
        record = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ.get("QUERY_STRING", ""),
            "range": environ.get("HTTP_RANGE", ""),
            "authorization": environ.get("HTTP_AUTHORIZATION", "").partition(", Signature")[0],
            "received": len(body),
            "sent": 0,
            "status": 0,
            "at": time.monotonic(),
        }
        with self._lock:
            self._requests.append(record)
        return self._meet(environ, start_response, record)

    def _meet(self, environ: dict[str, Any], start_response: Any, record: dict[str, Any]) -> Iterable[bytes]:
        number, fault = self._chosen(record)
        do = fault.get("do", "")
        if do in _REFUSALS:
            status, code, message = _REFUSALS[do]
            code = fault.get("code", code)
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
            record["status"] = int(status[:3])
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
            return [] if record["method"] == "HEAD" else [text]
        if do == "reset":
            _cut(environ)
        if do in ("stall", "delay"):
            end = time.monotonic() + fault.get("seconds", 3600)
            while number in self._faults and time.monotonic() < end:
                time.sleep(0.02)
            if do == "stall":
                _cut(environ)
        if do == "unconditional":
            environ.pop("HTTP_IF_MATCH", None)
            environ.pop("HTTP_IF_NONE_MATCH", None)
        status, headers, content = self._carried_out(environ)
        if do == "lost":
            _cut(environ)
        record["status"], record["sent"] = int(status[:3]), len(content)
        start_response(status, headers)
        return _half(content, environ) if do == "truncate" and len(content) > 1 else [content]

    def _carried_out(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        """What moto answers. Conditional writes go one at a time, since moto looks first and writes then."""
        told: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            told[:] = status, headers
            return lambda data: None

        writes = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
        with self._conditional if writes else nullcontext():
            answer = self._app(environ, start)
            try:
                content = b"".join(answer)
            finally:
                getattr(answer, "close", lambda: None)()
        return told[0], told[1], content

    def _chosen(self, record: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """The first fault that this request meets, and its number."""
        place = f"{record['path']}?{record['query']}"
        with self._lock:
            for number, fault in self._faults.items():
                if not re.fullmatch(fault.get("method", ".*"), record["method"]):
                    continue
                if not re.search(fault.get("path", ""), place) or self._random.random() >= fault.get("share", 1):
                    continue
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                    continue
                if fault.get("times") is not None:
                    if fault["times"] <= 0:
                        continue
                    fault["times"] -= 1
                return number, fault
        return 0, {}

    def _obey(self, what: str, order: dict[str, Any]) -> Any:
        with self._lock:
            if what == "fault":
                number = next(self._numbers)
                self._faults[number] = order
                return number
            if what == "lift":
                for number in [order["number"]] if order["number"] is not None else list(self._faults):
                    self._faults.pop(number, None)
                return None
            if what == "requests":
                found = list(self._requests)
                if order["clear"]:
                    self._requests.clear()
                return found
            if what == "vanish":
                self._faults[next(self._numbers)] = {"do": "bucket", "path": f"^/{order['bucket']}[/?]"}
                return None
        raise ValueError(what)


def _cut(environ: Mapping[str, Any]) -> None:
    """Cuts the connection, so that the client gets a reset."""
    own: socket.socket = environ["werkzeug.socket"]
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    os.close(own.detach())
    raise ConnectionResetError("a fault of the test")


def _half(content: bytes, environ: Mapping[str, Any]) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    _cut(environ)


def main(arguments: Sequence[str] = ()) -> None:
    """Serves until the process is killed; prints the port first."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_request(self, code: Any = "-", size: Any = "-") -> None: ...

    server = make_server(
        "127.0.0.1", 0, Faults(DomainDispatcherApplication(create_backend_app)), threaded=True, request_handler=Handler
    )
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
