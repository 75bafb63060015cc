"""The page in a real headless Chromium: it draws, it stays quiet, and nothing leaves the machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser


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

    def open(self, file: Path) -> None:
        self.call("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + 30
        while self.run("document.body && document.body.dataset.ready") != "true":
            assert time.monotonic() < end, self.complaints()
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Console errors, uncaught exceptions, and requests that are not of this machine."""
        out = []
        for event in self.events:
            name, content = event["method"], event["params"]
            if name == "Runtime.exceptionThrown" or (name == "Runtime.consoleAPICalled" and content["type"] == "error"):
                out.append(json.dumps(content)[:500])
            if name == "Log.entryAdded" and content["entry"]["level"] == "error":
                out.append(content["entry"]["text"])
            if name == "Network.requestWillBeSent" and not content["request"]["url"].startswith(
                ("file:", "data:", "about:", "blob:")
            ):
                out.append(content["request"]["url"])
        return out

    def close(self) -> None:
        self.open_things.close()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small demo, or of the folder that DATAMODELS_DEMO names."""
    if "DATAMODELS_DEMO" in os.environ:
        return Path(os.environ["DATAMODELS_DEMO"]) / "index.html"
    from datamodels.demo import run_demo

    return Path(run_demo(tmp_path_factory.mktemp("runs") / "demo", models=320, progress=False)["page"])


def test_the_demo_page_draws_everything_and_asks_nobody(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.querySelectorAll('#map .point').length") == 497
    assert browser.run("document.querySelectorAll('#curve .scatterlayer .trace').length") >= 3
    assert browser.run("document.querySelectorAll('#histogram .bars').length") == 2
    assert browser.run("[...document.querySelectorAll('.picture')].every(p => p.offsetWidth > 40)")
    assert browser.complaints() == []


def test_hovering_shows_the_digit_and_colours_change(browser: Browser, page: Path) -> None:
    browser.open(page)
    hover = "Plotly.Fx.hover(document.getElementById('map'), [{curveNumber: 0, pointNumber: 7}])"
    box = "document.getElementById('hover')"
    browser.run(
        f"document.getElementById('map').emit('plotly_hover', {{points: [{{pointIndex: 7}}], event: {{clientX: 5, clientY: 5}}}}); {hover}"
    )
    assert "target 7: " in browser.run(f"{box}.textContent")
    assert browser.run(f"!{box}.hidden && {box}.querySelector('.picture').offsetWidth") == 72
    colours = "JSON.stringify(document.getElementById('map').data[0].marker.color)"
    before = browser.run(colours)
    browser.run(
        "const s = document.getElementById('colour'); s.value = 'cluster'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.run(colours) != before
    assert browser.run("document.getElementById('legend').children.length") == 10
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_window(browser: Browser, page: Path, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_hostile_labels_do_nothing(browser: Browser, tmp_path: Path) -> None:
    from tests.test_demo import HOSTILE, hostile_page

    file = tmp_path / "hostile.html"
    file.write_text(hostile_page())
    browser.open(file)
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("[...document.querySelectorAll('.target .label')].map(e => e.textContent)") == HOSTILE * 2
    assert browser.complaints() == []
