"""Whom the explorer's server answers and what it refuses: hosts, origins, bodies, paths, ranges, and headers of every answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from datamodels.explorer import app
from datamodels.explorer.content import Content
from datamodels.explorer.guard import LARGEST_BODY
from tests.explorer_runs import ADDRESS, client, content, folder

__all__ = ["client", "content", "folder"]  # fixtures


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1:81", "localhost:8080", "127.0.0.1.evil.example", "", "[::1]"]
)
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/meta", headers={"host": host})
    assert answer.status_code == 400
    assert client.get("/api/meta", headers={"host": "localhost"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:99", None])
def test_other_origins_cannot_post(client: TestClient, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    answer = client.post("/api/whatif", json={"attribution": "lasso", "examples": [1], "add": False}, headers=headers)
    assert answer.status_code == 403


def test_bodies_are_json_and_small(client: TestClient) -> None:
    form = client.post("/api/whatif", content="a=1", headers={"origin": ADDRESS, "content-type": "text/plain"})
    assert form.status_code == 415
    large = client.post(
        "/api/whatif",
        content=b"x" * (LARGEST_BODY + 1),
        headers={"origin": ADDRESS, "content-type": "application/json"},
    )
    assert large.status_code == 413

    def pieces() -> Iterator[bytes]:
        yield b"{}"

    unknown = client.post(
        "/api/whatif", content=pieces(), headers={"origin": ADDRESS, "content-type": "application/json"}
    )
    assert unknown.status_code == 411


@pytest.mark.parametrize("length", ["9" * 5000, "\u00b2", "-1", "1e3"])
def test_lengths_that_are_no_numbers_are_refused(client: TestClient, length: str) -> None:
    headers = {"origin": ADDRESS, "content-type": "application/json", "content-length": length.encode("latin-1")}
    assert client.post("/api/whatif", content=b"{}", headers=headers).status_code == 411  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../content.py", "/static/..%2fcontent.py", "/static/%2e%2e/content.py", "/static/%2e%2e%2f%2e%2e%2frun.py",
        "/static//etc/passwd", "/static/content.py", "/../run.json", "/docs", "/openapi.json", "/api/none",
        "/api/column/other/0", "/api/column/targets/999", "/api/column/targets/-1", "/api/map/99", "/api/map/-1",
        "/api/weights/2/targets/0", "/api/weights/0/targets/40", "/api/weights/0/train/60", "/api/details/train/60",
        "/api/details/targets/-1", "/api/sprite/targets/1.png", "/api/sprite/other/0.png", "/api/agreement/0/2",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_answers_carry_security_headers(client: TestClient) -> None:
    for answer in (client.get("/api/meta"), client.get("/api/none"), client.get("/", headers={"host": "evil"})):
        policy = answer.headers["content-security-policy"]
        assert "connect-src 'self'" in policy
        assert "http" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_errors_carry_security_headers_too(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Content, "meta", lambda self: {}["nothing"])
    with TestClient(app(content), base_url=ADDRESS, raise_server_exceptions=False) as client:
        answer = client.get("/api/meta")
    assert answer.status_code == 500
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_ranges_etags_and_packing_give_parts_of_the_same_answer(client: TestClient) -> None:
    whole = client.get("/api/map/0")
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (
        ("bytes=8-15", whole.content[8:16]),
        ("bytes=-12", whole.content[-12:]),
        ("bytes=300-", whole.content[300:]),
    ):
        found = client.get("/api/map/0", headers={"range": asked})
        assert (found.status_code, found.content) == (206, part)
        assert found.headers["content-range"].endswith(f"/{len(whole.content)}")
    assert client.get("/api/map/0", headers={"range": "bytes=99999-"}).status_code == 416
    assert client.get("/api/map/0", headers={"range": "rows=1-2"}).content == whole.content
    etag = whole.headers["etag"]
    assert client.get("/api/map/0", headers={"if-none-match": etag}).status_code == 304
    assert client.get("/api/map/0", headers={"range": "bytes=0-3", "if-range": '"old"'}).status_code == 200
    assert client.get("/api/column/targets/0").headers["etag"] != etag
    packed = client.get("/api/meta", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == client.get("/api/meta", headers={"accept-encoding": "identity"}).json()


def test_no_request_makes_the_server_fail(content: Content) -> None:
    with TestClient(app(content), base_url=ADDRESS, raise_server_exceptions=False) as client:
        whole = client.get("/api/map/0").content
        for asked in ("9" * 5000 + "-", "0-" + "9" * 5000, "-" + "9" * 5000):
            found = client.get("/api/map/0", headers={"range": f"bytes={asked}"})
            assert (found.status_code, found.content) == (200, whole)
        headers = {"origin": ADDRESS, "content-type": "application/json"}
        for body in ('{"attribution": "lasso", "examples": [NaN]}', '{"attribution": NaN}', "[" * 100_000, "NaN"):
            answer = client.post("/api/whatif", content=body, headers=headers)
            assert answer.status_code in (400, 422)
            assert isinstance(answer.json()["detail"], str)
