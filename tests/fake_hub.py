"""A Hub of one process for tests: speaks the calls that a push makes, keeps what it was sent, and fails on demand.

with FakeHub() as hub:
    hub.fail("commit", status=500)
    ...                       # endpoint: hub.url
    hub.files["user/name"]    # path in the repository → bytes
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_SECRETdoNotShowThisAnywhere0123456789"
USER = "ann"

_ROUTES = (
    ("create", "POST", r"/api/repos/create"),
    ("validate-yaml", "POST", r"/api/validate-yaml"),
    ("whoami", "GET", r"/api/whoami-v2"),
    ("preupload", "POST", r"/api/models/(?P<repo>.+)/preupload/main"),
    ("commit", "POST", r"/api/models/(?P<repo>.+)/commit/main"),
    ("lfs-batch", "POST", r"/(?P<repo>.+)\.git/info/lfs/objects/batch"),
    ("lfs-put", "PUT", r"/lfs/(?P<oid>[0-9a-f]+)"),
    ("info", "GET", r"/api/models/(?P<repo>.+)"),
    ("download", "HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)"),
    ("download", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)"),
)


@dataclass
class Failure:
    """What a call answers instead of doing its work: an HTTP status, `"drop"` the connection, or `"hang"` until the server closes."""

    status: int | str
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1_000_000
    html: bool = False


class FakeHub:
    """The server; used as a context manager.

    Attributes:
        url: Its endpoint, `http://127.0.0.1:PORT`.
        calls: Names of the calls received, in order, see `_ROUTES`.
        files: Repository → path → contents, after its commits.
        private: Repository → whether it was made private.
        commits: One list of changed paths a commit.
        authorizations: Every `Authorization` header received.
        lfs: Whether binary files are to be sent through large-file storage.
    """

    def __init__(self, *, lfs: bool = False) -> None:
        self.calls: list[str] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[list[str]] = []
        self.authorizations: set[str] = set()
        self.lfs = lfs
        self.objects: dict[str, bytes] = {}
        self.closing = threading.Event()
        self._failures: dict[str, Failure] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, call: str, status: int | str, message: str = "", *, times: int = 1_000_000, html: bool = False, **headers: str) -> None:
        """Let the next `times` calls named `call` fail."""
        self._failures[call] = Failure(status, message, {name.replace("_", "-"): value for name, value in headers.items()}, times, html)

    def heal(self) -> None:
        """Forget all failures."""
        self._failures.clear()

    def add_repository(self, name: str, *, private: bool = False, files: dict[str, bytes] | None = None) -> None:
        """Let a repository exist already."""
        self.files[name], self.private[name] = dict(files or {}), private

    def failure_for(self, call: str) -> Failure | None:
        """Take the failure that the next `call` must show, if any."""
        failure = self._failures.get(call)
        if failure is None or failure.times <= 0:
            return None
        failure.times -= 1
        return failure

    # each call: what it was sent → (status, JSON)

    def create(self, body: Any, **_: str) -> tuple[int, Any]:
        name = f"{body['organization'] or USER}/{body['name']}"
        exists = name in self.files
        self.files.setdefault(name, {})
        self.private.setdefault(name, body.get("visibility") == "private")
        answer = {"url": f"{self.url}/{name}", "id": name, "name": name}
        return (409, answer | {"error": "You already created this model repo"}) if exists else (200, answer)

    def validate_yaml(self, body: Any, **_: str) -> tuple[int, Any]:
        return 200, {"errors": [], "warnings": []}

    def whoami(self, body: Any, **_: str) -> tuple[int, Any]:
        return 200, {"type": "user", "name": USER, "orgs": []}

    def info(self, body: Any, repo: str) -> tuple[int, Any]:
        siblings = [{"rfilename": path} for path in self.files[repo]]
        return 200, {"id": repo, "modelId": repo, "private": self.private[repo], "siblings": siblings, "sha": "1" * 40, "tags": []}

    def preupload(self, body: Any, repo: str) -> tuple[int, Any]:
        def mode(path: str) -> str:
            return "lfs" if self.lfs and path.endswith((".safetensors", ".png")) else "regular"

        return 200, {"files": [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in body["files"]]}

    def lfs_batch(self, body: Any, repo: str) -> tuple[int, Any]:
        objects = [item | {"actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}} for item in body["objects"]]
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_put(self, body: bytes, oid: str) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "wrong checksum"}
        self.objects[oid] = body
        return 200, {}

    def commit(self, body: list[Any], repo: str) -> tuple[int, Any]:
        changed = []
        for line in body:
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[repo][value["path"]]
            if "path" in value:
                changed.append(value["path"])
        self.commits.append(changed)
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer_call(self) -> None:
            path = urlsplit(self.path).path
            matches = ((name, re.fullmatch(pattern, path)) for name, method, pattern in _ROUTES if method == self.command)
            name, match = next(((name, match) for name, match in matches if match), ("other", None))
            hub.calls.append(name)
            hub.authorizations.add(self.headers.get("authorization", ""))
            failure = hub.failure_for(name)
            if failure is not None and failure.status == "drop":
                self.break_connection()
                return
            raw = self.body()
            if failure is not None:
                self.show(failure)
            elif match is None:
                self.send(404, {"error": "no such call"})
            elif name == "download":
                self.download(**match.groupdict())
            elif "repo" in match.groupdict() and match["repo"] not in hub.files:
                self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            else:
                self.send(*getattr(hub, name.replace("-", "_"))(self.parsed(raw), **match.groupdict()))

        do_GET = do_POST = do_PUT = do_HEAD = answer_call

        def parsed(self, raw: bytes) -> Any:
            kind = self.headers.get("content-type", "")
            if "x-ndjson" in kind:
                return [json.loads(line) for line in raw.splitlines()]
            return json.loads(raw) if "json" in kind else raw

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") == "chunked":
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def show(self, failure: Failure) -> None:
            if failure.status == "hang":
                hub.closing.wait(60)
                self.close_connection = True
            else:
                self.send(int(failure.status), {"error": failure.message}, failure.headers, html=failure.html)

        def break_connection(self) -> None:
            """Read a little of the body, then reset the connection, as a cable that is pulled out."""
            self.rfile.read(min(64, int(self.headers.get("content-length", 0))))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def download(self, repo: str, path: str) -> None:
            content = hub.files.get(repo, {}).get(path)
            if content is None:
                self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "1" * 40})
                return
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "1" * 40}
            self.send(200, content, etag)

        def send(self, status: int, content: Any, headers: dict[str, str] | None = None, html: bool = False) -> None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            if html:
                raw = b"<html>something else</html>"
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if html else "application/json")
            self.send_header("Content-Length", str(len(raw)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ValueError):
                # the test broke this connection on purpose, or the client went away
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (ConnectionError, ValueError, OSError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
