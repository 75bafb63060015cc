"""A local server that speaks the calls of the Hugging Face Hub that the tests use, for the real client library.

Datasets only, one branch, files in memory. Names that end in ``.parquet``, ``.npy`` or ``.h5ad`` are large files: the client
uploads them apart from the commit and downloads them by a redirect, as from the Hub. Answers can be made to fail, or to wait.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_LARGE = (".parquet", ".npy", ".h5ad")
_PAGE = 5  # entries of a listing per answer


@dataclass
class Dataset:
    """The commits of a dataset: per commit its files, path -> content."""

    private: bool = False
    writers: set[str] = field(default_factory=set)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def at(self, revision: str) -> dict[str, bytes] | None:
        return (
            self.files if revision == "main" else next((files for sha, files in self.commits if sha == revision), None)
        )

    def add(self, files: dict[str, bytes], message: str) -> None:
        sha = hashlib.sha1(f"{len(self.commits)}:{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, files))
        self.messages.append(message)


@dataclass
class Seen:
    """One request: its method, path, bytes of body, whether it had a token, and the first byte that it asked for."""

    method: str
    path: str
    size: int
    authorised: bool
    start: int


@dataclass
class Fault:
    """Requests like `pattern` (``METHOD /path``) are answered with `status`, `times` times; status 0: the connection is cut."""

    pattern: str
    status: int
    times: int = 1


class Hub:
    """The server. `url` is its address; `users` maps tokens to names."""

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.datasets: dict[str, Dataset] = {}
        self.large: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.cut = 0  # so many downloads of large files break off in the middle
        self.before: Callable[[str], None] = lambda request: None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def requests(self, pattern: str) -> list[Seen]:
        """Those seen so far that match ``METHOD /path``."""
        return [seen for seen in self.seen if re.search(pattern, f"{seen.method} {seen.path}")]

    def save(self, name: str, folder: Path) -> Path:
        """The newest files of a dataset as a folder, as `git clone` would give."""
        for path, content in self.datasets[name].files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return folder


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self._read_body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        request = f"{method} {unquote(parts.path)}"
        self.hub.before(request)
        with self.hub.lock:
            self.hub.seen.append(Seen(method, unquote(parts.path), len(self.body), bool(token), self._start()))
            fault = next((one for one in self.hub.faults if one.times and re.search(one.pattern, request)), None)
            if fault is not None:
                fault.times -= 1
                if not fault.status:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                self._send(fault.status, b"<html>not now</html>", {"Content-Type": "text/html"})
                return
            if token and self.user is None:
                self._send(401, {"error": "Invalid credentials in Authorization header"})
                return
            self._route(method, unquote(parts.path))

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, method: str, path: str) -> None:
        for pattern, handle in _ROUTES.items():
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                handle(self, *found.groups())
                return
        self._send(404, {"error": f"this server has no {method} {path}"})

    def _send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _dataset(self, name: str, *, write: bool = False) -> Dataset | None:
        """The dataset, if the user may; otherwise the answer is sent."""
        dataset = self.hub.datasets.get(name)
        if dataset is None or (dataset.private and self.user not in dataset.writers):
            status = 404 if self.user else 401
            self._send(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and self.user not in dataset.writers:
            self._send(403, {"error": "You don't have the required permissions"})
            return None
        return dataset

    def whoami(self) -> None:
        if self.user is None:
            self._send(401, {"error": "Invalid username or password."})
        else:
            self._send(200, {"type": "user", "name": self.user})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.user:
            self._send(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        elif name in self.hub.datasets:
            self._send(409, {"error": "You already created this dataset repo"})
        else:
            dataset = Dataset(private=asked.get("visibility") == "private", writers={self.user})
            dataset.add({".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
            self.hub.datasets[name] = dataset
            self._send(200, {"url": f"{self.hub.url}/datasets/{name}", "name": name})

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str = "main") -> None:
        dataset = self._dataset(name)
        if dataset is not None:
            self._send(200, {"id": name, "sha": dataset.head, "private": dataset.private, "siblings": []})

    def tree(self, name: str, revision: str) -> None:
        dataset = self._dataset(name)
        if dataset is None:
            return
        files = dataset.at(revision) or {}
        folders = sorted({"/".join(path.split("/")[:k]) for path in files for k in range(1, path.count("/") + 1)})
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]
        for path, content in files.items():
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": path}
            if path.endswith(_LARGE):
                entry |= {"oid": "f" * 40, "lfs": {"oid": _sha256(content), "size": len(content), "pointerSize": 130}}
            entries.append(entry)
        start = int(self.query.get("cursor", ["0"])[0])
        link = {}
        if start + _PAGE < len(entries):
            follow = f"{self.hub.url}/api/datasets/{name}/tree/{revision}?recursive=true&cursor={start + _PAGE}"
            link = {"Link": f'<{follow}>; rel="next"'}
        self._send(200, entries[start : start + _PAGE], link)

    def preupload(self, name: str, revision: str) -> None:
        dataset = self._dataset(name, write=True)
        if dataset is None:
            return
        files = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if asked["path"].endswith(_LARGE) else "regular"
            known = dataset.files.get(asked["path"])
            oid = (
                None if known is None or mode == "lfs" else hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest()
            )
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def batch(self, name: str) -> None:
        if self._dataset(name, write=True) is None:
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            there = asked["oid"] in self.hub.large
            upload = {"upload": {"href": f"{self.hub.url}/large/{asked['oid']}"}}
            objects.append(asked if there else {**asked, "actions": upload})
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            self._send(400, {"error": "another content than was said"})
        else:
            self.hub.large[oid] = self.body
            self._send(200)

    def commit(self, name: str, revision: str) -> None:
        dataset = self._dataset(name, write=True)
        if dataset is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", dataset.head) != dataset.head:
            self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(dataset.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        dataset.add(files, header["summary"])
        self._send(
            200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{dataset.head}", "commitOid": dataset.head}
        )

    def resolve(self, name: str, revision: str, path: str) -> None:
        dataset = self._dataset(name)
        if dataset is None:
            return
        content = (dataset.at(revision) or {}).get(path)
        if content is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": dataset.head if revision == "main" else revision, "ETag": f'"{_sha256(content)}"'}
        if not path.endswith(_LARGE):
            self._content(content, headers)
            return
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, which must not get the token
        linked = {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        self._send(
            302, b"", {**headers, **linked, "Location": f"{elsewhere}/large/{_sha256(content)}?name={quote(path)}"}
        )

    def download(self, oid: str) -> None:
        self._content(self.hub.large[oid], {})

    def _start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(asked[1]) if asked else 0

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        start = self._start()
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(206 if start else 200)
        content = content[start:]
        for name, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            breaks = self.path.startswith("/large/") and self.hub.cut > 0
            self.hub.cut -= breaks
            self.close_connection = self.close_connection or breaks
            self.wfile.write(content[: len(content) // 2] if breaks else content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., None]] = {
    r"GET /api/whoami-v2": _Handler.whoami,
    r"POST /api/repos/create": _Handler.create,
    r"POST /api/validate-yaml": _Handler.validate,
    rf"GET /api/datasets/{_NAME}": _Handler.info,
    rf"GET /api/datasets/{_NAME}/revision/([^/]+)": _Handler.info,
    rf"GET /api/datasets/{_NAME}/tree/([^/]+)/?": _Handler.tree,
    rf"POST /api/datasets/{_NAME}/preupload/([^/]+)": _Handler.preupload,
    rf"POST /api/datasets/{_NAME}/commit/([^/]+)": _Handler.commit,
    rf"POST /datasets/{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /large/([0-9a-f]{64})": _Handler.upload,
    r"(?:GET|HEAD) /large/([0-9a-f]{64})": _Handler.download,
    rf"(?:GET|HEAD) /datasets/{_NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
}
