"""A stand-in of W&B's service for its own client: keeps what the client sends over HTTP, and can fail for a while.

It knows four calls: RunResumeStatus, UpsertBucket, CreateRunFiles and the file stream. Like the service it keeps the lines of
history by their number, and tells a client that resumes how many there are and which was the last.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed: that they are gone is no news."""


class WandbService:
    """The stand-in, on a free port of the loopback."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        """Rows by run and line number."""
        self.overwritten: list[tuple[str, int]] = []
        """Lines that came again with other content."""
        self.buckets: dict[str, dict[str, Any]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.failing = False
        """Whether every request is answered with 500."""
        self.failures = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with service._lock:
                    code, content = service._answer(self.path, body)
                self._reply(code, content)

            do_PUT = do_POST

            def do_GET(self) -> None:
                self._reply(404, {})

            def _reply(self, code: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """The variables with which W&B's client finds this service."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "a" * 40, "WANDB_ERROR_REPORTING": "false"}

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run in the order of their lines."""
        return [row for _, row in sorted(self.history.get(run, {}).items())]

    def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.failing:
            self.failures += 1
            return 500, {"error": "down"}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
            return 200, {}
        if path != "/graphql":
            return (200 if path == "/upload" else 404), {}
        call = json.loads(body)
        given = call.get("variables") or {}
        answer = {
            "RunResumeStatus": self._resume_status,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": self._files,
        }.get(call.get("operationName", ""), lambda given: {})
        return 200, {"data": answer(given)}

    def _resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "someone"}}
        name = given["name"]
        if (bucket := self.buckets.get(name)) is None:
            return {"model": {**project, "bucket": None}}
        lines = self.history.get(name, {})
        tail = [json.dumps(lines[max(lines)])] if lines else []
        found = {
            "id": name,
            "name": name,
            "summaryMetrics": json.dumps(self.summaries.get(name, {})),
            "displayName": bucket.get("displayName") or name,
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": bucket.get("config") or "{}",
            "tags": bucket.get("tags") or [],
            "notes": bucket.get("notes") or "",
            "wandbConfig": '{"t": 1}',
        }
        return {"model": {**project, "bucket": found}}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        inserted = name not in self.buckets
        bucket = self.buckets.setdefault(name, {})
        bucket |= {key: value for key, value in given.items() if value is not None}
        about = {
            "id": name,
            "name": name,
            "displayName": bucket.get("displayName") or name,
            "description": None,
            "config": bucket.get("config") or "{}",
            "sweepName": None,
            "project": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "someone"}},
            "historyLineCount": len(self.history.get(name, {})),
        }
        return {"upsertBucket": {"bucket": about, "inserted": inserted}}

    def _files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                lines = self.history.setdefault(run, {})
                for number, text in enumerate(chunk["content"], start=chunk["offset"]):
                    row = json.loads(text)
                    if number in lines and lines[number] != row:
                        self.overwritten.append((run, number))
                    lines[number] = row
            elif name == "wandb-summary.json":
                self.summaries[run] = json.loads(chunk["content"][-1])
