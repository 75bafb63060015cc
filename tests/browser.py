"""Chromium for the tests that look at a page."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any


class Browser:
    """A page in Chromium, driven by its DevTools protocol."""

    def __init__(self, folder: Path) -> None:
        from websockets.sync.client import connect

        binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert binary, "install chromium to run the browser tests"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = [
            "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
            f"--user-data-dir={folder / 'profile'}", f"--remote-debugging-port={port}", "--window-size=1200,900",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [binary, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=2) as answer:
                    pages = json.load(answer)
                target = next(page for page in pages if page["type"] == "page")
                break
            except (OSError, StopIteration):
                assert time.monotonic() < end, "chromium did not start"
                time.sleep(0.1)
        self.open_things = contextlib.ExitStack()
        self.socket = self.open_things.enter_context(connect(target["webSocketDebuggerUrl"], max_size=None))
        self.events: list[dict[str, Any]] = []
        self.count = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path | str) -> None:
        """Open a file or an address and wait until it has drawn."""
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.until("document.body && document.body.dataset.ready === 'true'")

    def until(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, (condition, self.complaints())
            time.sleep(0.03)

    def press(self, *keys: str) -> None:
        """Press keys by their DOM names, such as ArrowRight, or characters."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
            code = {"Enter": 13, "Escape": 27, "Tab": 9}.get(key, 0)
            for kind in ("keyDown", "keyUp"):
                more = text if kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def drag(self, start: tuple[float, float], *further: tuple[float, float]) -> None:
        """Press the mouse at a point of the window, move it along further ones and let it go at the last; with none, a click."""
        self._mouse("mouseMoved", start, "none")
        self._mouse("mousePressed", start, "left")
        here = start
        for there in further:
            for share in (0.3, 0.6, 1.0):
                at = (here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1]))
                self._mouse("mouseMoved", at, "left")
            here = there
        self._mouse("mouseReleased", here, "left")

    def _mouse(self, kind: str, at: tuple[float, float], button: str) -> None:
        pressed = int(button == "left" and kind != "mouseReleased")
        self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button=button, buttons=pressed, clickCount=1)

    def complaints(self, origin: str = "file:") -> list[str]:
        """Console errors, uncaught exceptions, and requests that leave the machine or the `origin`."""
        out = []
        for event in self.events:
            name, content = event["method"], event["params"]
            if name == "Runtime.exceptionThrown" or (name == "Runtime.consoleAPICalled" and content["type"] == "error"):
                out.append(json.dumps(content)[:500])
            if name == "Log.entryAdded" and content["entry"]["level"] == "error":
                out.append(content["entry"]["text"])
            if name == "Network.requestWillBeSent" and not content["request"]["url"].startswith(
                (origin, "data:", "about:", "blob:")
            ):
                out.append(content["request"]["url"])
        return out

    def close(self) -> None:
        self.open_things.close()
        self.process.terminate()
        self.process.wait(10)
