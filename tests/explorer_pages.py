"""The explorer's pages in Chromium: an exported file and a served run, and what a test does with them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from datamodels.explorer import app, export
from datamodels.explorer.content import Content
from datamodels.explorer.verify import Verifier
from tests.browser import Browser

STATE = "explorer.state"
PLOT = "document.querySelector('.js-plotly-plot')"


class Opened(NamedTuple):
    """A page and where it may ask."""

    browser: Browser
    address: str
    origin: str

    def go(self, hash_: str = "") -> None:
        self.browser.call(
            "Page.navigate", url="about:blank"
        )  # an address that differs in its hash alone is not loaded again
        self.browser.events.clear()
        self.browser.open(f"{self.address}#/{hash_}")

    def show(self, hash_: str) -> None:
        """Another address without loading the page again."""
        drawn = self.run("explorer.drawn")
        self.run(f"location.hash = '#/about'; location.hash = {json.dumps('#/' + hash_)}")
        self.browser.until(
            f"explorer.drawn > {drawn} && explorer.addressOf({{}}).startsWith({json.dumps('#/' + hash_.split('?')[0])})"
        )

    def run(self, expression: str) -> Any:
        return self.browser.run(expression)

    def click(self, selector: str) -> None:
        """Click an element and wait for the view that it leads to."""
        drawn = self.run("explorer.drawn")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        self.browser.until(f"explorer.drawn > {drawn}")

    def point(self, i: int) -> tuple[float, float]:
        """Where a target is in the window."""
        return tuple(  # type: ignore[return-value]
            self.run(
                f"(() => {{ const p = {PLOT}, box = p.getBoundingClientRect(), at = (v, [a, b]) => (v - a) / (b - a);"
                f"return [box.left + at(p.data[0].x[{i}], p.layout.xaxis.range) * box.width,"
                f"box.top + (1 - at(p.data[0].y[{i}], p.layout.yaxis.range)) * box.height]; }})()"
            )
        )

    def quiet(self) -> None:
        assert self.browser.complaints(self.origin) == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def exported(content: Content, tmp_path_factory: pytest.TempPathFactory) -> str:
    return export(content, tmp_path_factory.mktemp("exported") / "out.html").as_uri()


@pytest.fixture(scope="module")
def served(content: Content) -> Iterator[str]:
    import uvicorn

    made = app(content, verifier=Verifier(content, executor="inline"))
    server = uvicorn.Server(uvicorn.Config(made, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["exported", "served"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Opened]:
    yield opened_at(browser, request.getfixturevalue(request.param))
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])


@pytest.fixture
def file(browser: Browser, exported: str) -> Opened:
    return opened_at(browser, exported)


@pytest.fixture
def site(browser: Browser, served: str) -> Opened:
    return opened_at(browser, served)


def opened_at(browser: Browser, address: str) -> Opened:
    return Opened(browser, address, "file:" if address.startswith("file:") else address)
