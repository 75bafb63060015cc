"""The explorer over HTTP, for this machine only."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from datamodels.errors import DatamodelsError, RequestError, first_line
from datamodels.explorer import tables
from datamodels.explorer.content import Content, Shown, Side, check_side
from datamodels.explorer.guard import Guard
from datamodels.explorer.verify import Busy, Verifier
from datamodels.progress import note

HOST = "127.0.0.1"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_WORTH_PACKING = 4096
_TOLD = 3  # faults of a body
_BINARY = "application/octet-stream"


class WhatIf(BaseModel):
    """Examples to remove (or add), by an attribution's name."""

    model_config = ConfigDict(extra="forbid")

    attribution: StrictStr
    examples: list[StrictInt]
    add: StrictBool = False


class Verification(WhatIf):
    """The same, to be retrained."""

    runs: StrictInt = 5


def app(content: Content, *, verifier: Verifier | None = None) -> Guard:
    """The ASGI application that serves a content: the page at ``/``, its files at ``/static``, data at ``/api``.

    Parameters
    ----------
    content
        What `gather` returned.
    verifier
        Retrains for *Verify*; by default one of this content.
    """
    checks = Verifier(content) if verifier is None else verifier

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        yield
        checks.close()

    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @made.exception_handler(DatamodelsError)
    def refused(_: Request, error: DatamodelsError) -> JSONResponse:
        return JSONResponse({"detail": first_line(error)}, 409 if isinstance(error, Busy) else 400)

    @made.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:_TOLD]]
        return JSONResponse({"detail": "; ".join(wrong)}, 422)

    _add_pages(made, content)
    _add_data(made, content)
    _add_questions(made, content, checks)
    return Guard(made)


def _add_pages(made: FastAPI, content: Content) -> None:
    @made.get("/")
    def index(request: Request) -> Response:
        return _static(request, "index.html", content.version)

    @made.get("/static/{name}")
    def static(request: Request, name: str) -> Response:
        return _static(request, name, content.version)


def _add_data(made: FastAPI, content: Content) -> None:
    def answer(request: Request, body: bytes, kind: str) -> Response:
        return _answer(request, body, kind, content.version)

    def as_json(request: Request, value: Any) -> Response:
        return answer(request, json.dumps(value, allow_nan=False).encode(), "application/json")

    @made.get("/api/meta")
    def meta(request: Request) -> Response:
        return as_json(request, content.meta())

    @made.get("/api/groups")
    def groups(request: Request) -> Response:
        return as_json(request, content.groups)

    @made.get("/api/column/{side}/{number}")
    def column(request: Request, side: str, number: int) -> Response:
        columns = content.columns[_side(side)]
        return answer(request, columns[_within(number, len(columns))].packed.tobytes(), _BINARY)

    @made.get("/api/map/{number}")
    def map_(request: Request, number: int) -> Response:
        _within(number, len(content.maps()))
        return answer(request, content.map(number).astype("<f4").tobytes(), _BINARY)

    @made.get("/api/weights/{attribution}/{side}/{index}")
    def weights(request: Request, attribution: int, side: str, index: int) -> Response:
        shown, which = _shown(content, attribution), _side(side)
        indices, values = content.weights(shown, which, _within(index, content.size(which)))
        count = np.array([len(indices)], dtype="<i4")
        body = count.tobytes() + indices.astype("<i4").tobytes() + values.astype("<f4").tobytes()
        return answer(request, body, _BINARY)

    @made.get("/api/agreement/{first}/{second}")
    def agreement(request: Request, first: int, second: int) -> Response:
        found = content.agreement(_shown(content, first), _shown(content, second))
        return answer(request, found["overlap"].tobytes() + found["cosine"].tobytes(), _BINARY)

    @made.get("/api/details/{side}/{index}")
    def details(request: Request, side: str, index: int) -> Response:
        which = _side(side)
        return as_json(request, content.details(which, _within(index, content.size(which))))

    @made.get("/api/names/{side}")
    def names(request: Request, side: str) -> Response:
        return as_json(request, content.examples[_side(side)].snippets())

    @made.get("/api/sprite/{side}/{page}.png")
    def sprite(request: Request, side: str, page: int) -> Response:
        which = _side(side)
        sheets = content.examples[which].sheets()
        _within(page, 0 if sheets is None else len(sheets["pages"]))
        return answer(request, content.sprite(which, page), "image/png")

    @made.get("/api/table/{side}.parquet")
    def table(request: Request, side: str) -> Response:
        return _download(tables.to_parquet(content, _side(side)), f"{side}.parquet")

    @made.get("/api/atlas.parquet")
    def atlas(request: Request) -> Response:
        return _download(tables.to_atlas(content), "atlas.parquet")


def _add_questions(made: FastAPI, content: Content, verifier: Verifier) -> None:
    @made.post("/api/whatif")
    def whatif(asked: WhatIf) -> Response:
        found = content.whatif(content.attribution(asked.attribution), asked.examples, add=asked.add)
        return Response(found.astype("<f4").tobytes(), media_type=_BINARY, headers={"cache-control": "no-store"})

    @made.post("/api/verify")
    def verify(asked: Verification) -> dict[str, str]:
        return {"id": verifier.start(asked.attribution, asked.examples, add=asked.add, runs=asked.runs)}

    @made.get("/api/verification/{name}")
    def verification(name: str) -> JSONResponse:
        try:
            state = verifier.state(name)
        except RequestError as error:
            raise HTTPException(404, first_line(error)) from None
        return JSONResponse(state, headers={"cache-control": "no-store"})


def serve(
    content: Content, *, port: int = 0, open_browser: bool = True, on_start: Callable[[str], None] | None = None
) -> None:
    """Serve a content on 127.0.0.1 until interrupted.

    Parameters
    ----------
    content
        What `gather` returned.
    port
        By default one that is free.
    open_browser
        Whether to open the page in a browser.
    on_start
        Called with the page's address when it can be opened; by default it is printed on standard error.

    Raises
    ------
    RequestError
        when the port is taken.
    """
    import uvicorn

    # asyncio sends at once only on sockets whose protocol says TCP; others wait 40 ms for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise RequestError(f"cannot listen on port {port}: {first_line(error)}; leave it out for a free one") from None
    listening.listen(128)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    server = uvicorn.Server(
        uvicorn.Config(app(content), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    )
    (on_start or (lambda where: note(f"the explorer is at {where} (Ctrl-C ends it)")))(address)
    if open_browser:
        import webbrowser

        webbrowser.open(address)  # the socket listens already, so the page waits for the server
    threading.Thread(target=content.warm, daemon=True).start()
    with listening, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


# -- answers ----------------------------------------------------------------------------------------


def _side(side: str) -> Side:
    try:
        return check_side(side)
    except RequestError as error:
        raise HTTPException(404, first_line(error)) from None


def _within(number: int, size: int) -> int:
    if not 0 <= number < size:
        raise HTTPException(404, f"{number} is outside of 0..{size - 1}")
    return number


def _shown(content: Content, number: int) -> Shown:
    return content.attributions[_within(number, len(content.attributions))]


def _download(body: bytes, name: str) -> Response:
    about = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return Response(body, media_type="application/vnd.apache.parquet", headers=about)


@lru_cache(maxsize=64)
def _file(name: str) -> tuple[bytes, str] | None:
    """Content and type of a file of the page; None when there is none of this name."""
    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        return get_plotlyjs().encode(), _TYPES[".js"]
    known = {item.name: item for item in (files("datamodels.explorer") / "static").iterdir() if item.is_file()}
    kind = next((kind for suffix, kind in _TYPES.items() if name.endswith(suffix)), None)
    return (known[name].read_bytes(), kind) if name in known and kind is not None else None


def _static(request: Request, name: str, version: str) -> Response:
    found = _file(name)
    if found is None:
        raise HTTPException(404, f"there is no file {name!r}")
    body, kind = found
    return _answer(request, body, f"{kind}; charset=utf-8", version)


@lru_cache(maxsize=8)
def _packed(body: bytes) -> bytes:
    return gzip.compress(body, 1)


def _answer(request: Request, body: bytes, kind: str, version: str) -> Response:
    """A body with its ETag; 304 when the browser has it, a part when it asks for a range, packed when that pays."""
    etag = f'"{version}-{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
    headers = {"etag": etag, "cache-control": "private, no-cache", "accept-ranges": "bytes", "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked and any(asked.groups()) and request.headers.get("if-range", etag) == etag:
        first, last = asked.groups()
        start = int(first) if first else max(0, len(body) - int(last))
        stop = min(int(last) + 1, len(body)) if first and last else len(body)
        if start >= stop:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{len(body)}"})
        headers["content-range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return Response(body[start:stop], 206, headers, media_type=kind)
    text = kind != _BINARY and not kind.startswith("image/")
    if text and len(body) >= _WORTH_PACKING and "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        body = _packed(body)
    return Response(body, headers=headers, media_type=kind)
