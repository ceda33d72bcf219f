"""A W&B server on the loopback interface, just complete enough for one run to be logged, resumed and finished."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<html><body>Please log in to the hotel's network</body></html>"


@dataclass
class Run:
    """What the server was told about one run."""

    fields: dict = field(default_factory=dict)  # displayName, groupName, jobType, tags
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None


class WandbServer:
    """Serves on a free port until the `with` block ends.

    The modes are "ok", "error" (status 500), "hang" (no answer), "reset" (the connection is cut) and "html" (an answer
    that is not W&B's). `after_start` is the mode from the moment on when a run was started.
    """

    def __init__(self, mode: str = "ok", after_start: str = "ok"):
        self.mode, self.after_start = mode, after_start
        self.runs: dict[str, Run] = {}
        self.views: list[dict] = []  # saved views of the project
        self.requests: list[str] = []
        self.refused = 0  # requests that were not answered as W&B does
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"wandb": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients may hang up at any time
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes, host: str) -> dict:
        """Records one request and returns the JSON answer."""
        if path == "/graphql":
            request = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"]).group(1)
            self.requests.append(name)
            variables = request.get("variables") or {}
            if name == "RunResumeStatus":
                return {"data": self._resume_status(variables)}
            if name == "UpsertBucket":
                self.mode = self.after_start
                return {"data": self._upsert_run(variables)}
            if name == "Viewer":
                return {"data": {"viewer": {"id": "me", "entity": "me", "username": "me", "flags": "{}"}}}
            if name == "UpsertView2":
                self.views.append(variables)
                return {"data": {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}}
            if name == "CreateRunFiles":
                return {"data": self._upload_urls(variables, host)}
            return {"data": None}
        self.requests.append(path)
        if path.startswith("/storage/"):
            _, _, run_id, name = path.split("/", 3)
            self.runs[run_id].files[name] = body
        elif path.endswith("/file_stream"):
            self._stream(self.runs[path.split("/")[4]], json.loads(body))
        return {}

    def _stream(self, run: Run, body: dict) -> None:
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = map(json.loads, chunk["content"])
            elif name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if body.get("complete"):
            run.exit_code = body["exitcode"]

    def _resume_status(self, variables: dict) -> dict:
        run = self.runs.get(variables["name"])
        bucket = run and {
            **_bucket(variables["name"]),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": run.fields.get("tags") or [],
            "wandbConfig": '{"t": 1}',
        }
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def _upsert_run(self, variables: dict) -> dict:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run())
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        config = json.loads(variables.get("config") or "{}")
        run.config |= {key: item["value"] for key, item in config.items() if key != "_wandb"}
        return {"upsertBucket": {"bucket": _bucket(name), "inserted": inserted}}

    def _upload_urls(self, variables: dict, host: str) -> dict:
        urls = [f"http://{host}/storage/{variables['run']}/{name}" for name in variables["files"]]
        files = [{"name": name, "uploadUrl": url} for name, url in zip(variables["files"], urls, strict=True)]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


def _bucket(name: str) -> dict:
    project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
    return {"id": name, "name": name, "displayName": name, "config": "{}", "historyLineCount": 0, "project": project}


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mode = self.wandb.mode
        self.wandb.refused += mode != "ok"
        if mode == "hang":
            self.wandb.closing.wait()
        if mode in ("hang", "reset"):
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)  # a reset instead of an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        answer = json.dumps(self.wandb.answer(self.path, body, self.headers["Host"]) if mode == "ok" else {}).encode()
        data = PAGE if mode == "html" else answer
        self.send_response(500 if mode == "error" else 200)
        self.send_header("Content-Type", "text/html" if mode == "html" else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _reply  # noqa: N815

    def log_message(self, *args) -> None:
        pass
