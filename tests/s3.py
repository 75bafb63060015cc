"""A real S3 protocol server on this machine, and a proxy before it that fails as networks do."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tester",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
}


@dataclass
class S3:
    """Where the server listens; `bucket` makes a bucket and returns the address of a folder in it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def bucket(self) -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()
        return f"s3://{name}/runs"


@contextlib.contextmanager
def server() -> Iterator[S3]:
    """moto's server in a process of its own."""
    code = (
        "import sys; from werkzeug.serving import make_server; from moto.server import DomainDispatcherApplication, create_backend_app\n"
        "import logging; logging.getLogger('werkzeug').disabled = True\n"
        "s = make_server('127.0.0.1', 0, DomainDispatcherApplication(create_backend_app), threaded=True)\n"
        "print(s.server_port, flush=True); s.serve_forever()"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield S3(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """The server, with its credentials in the environment."""
    with server() as running:
        before = {name: os.environ.get(name) for name in running.environment}
        os.environ.update(running.environment)
        yield running
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@dataclass
class Faults:
    """What a proxy does to requests: shares of 503, of connections that end before the request is passed on or after it
    was done but before its answer, of answers that are cut, and of answers that come late."""

    refused: float = 0.0
    lost_before: float = 0.0
    lost_after: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def draw(self) -> str:
        with self._lock:
            number = self._random.random()
            for name in ("refused", "lost_before", "lost_after", "cut", "slow"):
                number -= getattr(self, name)
                if number < 0:
                    self.counts[name] = self.counts.get(name, 0) + 1
                    return name
            self.counts["passed"] = self.counts.get("passed", 0) + 1
            return "passed"


@contextlib.contextmanager
def proxy(to: S3, faults: Faults) -> Iterator[S3]:
    """Passes requests on to a server, with faults."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.draw()
            if fault == "refused":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "lost_before":
                self._hang_up()
                return
            connection = http.client.HTTPConnection("127.0.0.1", to.port, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if fault == "lost_after":
                self._hang_up()
                return
            if fault == "slow":
                time.sleep(0.3)
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = int(answer.getheader("Content-Length") or 0) if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if fault == "cut" and len(data) > 1:
                self.wfile.write(data[: len(data) // 2])
                self._hang_up()
                return
            self.wfile.write(data)

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up too

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield S3(running.server_port)
        finally:
            running.shutdown()
            thread.join()
