"""A stand-in for the metadata services of AWS, Google Cloud and Azure, for tests; as a script it serves until it is ended.

python metadata_service.py AWS 169.254.169.254 80 FILE       # the notice is given once FILE exists
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "AQAEAL-token=="


def answer(
    provider: str, method: str, path: str, headers: Any, noticed: bool, seconds: float
) -> tuple[int, dict[str, str], str]:
    """What the service of ``provider`` answers: status, headers, text."""
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    if provider == "AWS":
        if method == "PUT" and path == "/latest/api/token":
            return (200, {}, TOKEN) if headers.get("X-aws-ec2-metadata-token-ttl-seconds") else (400, {}, "")
        if headers.get("X-aws-ec2-metadata-token") != TOKEN:
            return 401, {}, ""
        if path == "/latest/meta-data/spot/instance-action" and noticed:
            return 200, {}, json.dumps({"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"})
    if (
        provider == "Google Cloud"
        and headers.get("Metadata-Flavor") == "Google"
        and path.endswith("/v1/instance/preempted")
    ):
        return 200, {"Metadata-Flavor": "Google"}, "TRUE" if noticed else "FALSE"
    if provider == "Azure" and headers.get("Metadata") == "true":
        if path.startswith("/metadata/instance/compute/name?"):
            return 200, {}, "vm-7"
        if path.startswith("/metadata/scheduledevents?"):
            others = {"EventId": "a", "EventType": "Preempt", "ResourceType": "VirtualMachine", "Resources": ["vm-8"]}
            frozen = {**others, "EventType": "Freeze", "Resources": ["vm-7"]}
            own = {**others, "Resources": ["vm-7"], "NotBefore": f"{at:%a, %d %b %Y %H:%M:%S} GMT"}
            return (
                200,
                {},
                json.dumps({"DocumentIncarnation": 1, "Events": [others, frozen, *([own] if noticed else [])]}),
            )
    return 404, {}, ""


def server_of(
    provider: str, address: tuple[str, int], noticed: Callable[[], bool], seconds: float = 120.0, broken: str = ""
) -> ThreadingHTTPServer:
    """Returns a server, which does not serve yet. ``broken``: what it answers to everything once there is a notice."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            now = noticed()
            status, headers, text = answer(provider, self.command, self.path, self.headers, now, seconds)
            if broken and now:
                text = broken
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    return ThreadingHTTPServer(address, Handler)


@contextmanager
def metadata_service(
    provider: str, noticed: Callable[[], bool], seconds: float = 120.0, broken: str = ""
) -> Iterator[str]:
    """Context of a server on the loopback; gives its HOST:PORT."""
    server = server_of(provider, ("127.0.0.1", 0), noticed, seconds, broken)
    thread = threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    name, host, port, file = sys.argv[1:5]
    server_of(name, (host, int(port)), Path(file).exists).serve_forever(0.05)
