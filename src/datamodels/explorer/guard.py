"""What stands before the app: only this machine's own page may ask. Pure ASGI."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_NAMES = ("127.0.0.1", "localhost")
LARGEST_BODY = 8 << 20
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self' data:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)  # Plotly's WebGL builds functions and its styles are inline
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Stands outside of all that answers, so that its errors pass here too. Refuses requests by another host name than this machine's (400: DNS rebinding), POST from another origin (403), of another
    type than JSON (415) or too large (413), and puts security headers on every answer."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        refused = _refusal(scope, headers)
        if refused is None:
            await self.app(scope, receive, guarded)
            return
        status, text = refused
        body = json.dumps({"detail": text}).encode()
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await guarded({"type": "http.response.start", "status": status, "headers": about})
        await send({"type": "http.response.body", "body": body})


def _refusal(scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
    host = headers.get("host", "")
    name, _, port = host.partition(":")
    if name.lower() not in _NAMES or (port or "80") != str(scope["server"][1]):
        return 400, "this server answers to 127.0.0.1 and localhost only"
    if scope["method"] in ("GET", "HEAD"):
        return None
    if headers.get("origin", "").lower() != f"http://{host.lower()}":
        return 403, "only this server's own page may post"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "the body must be application/json"
    length = headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,18}", length):
        return 411, "the body's length must be given"
    if int(length) > LARGEST_BODY:
        return 413, f"the body is larger than {LARGEST_BODY} bytes"
    return None
