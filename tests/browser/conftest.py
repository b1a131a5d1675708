"""A real Chromium, and what it did: every request that a page made and every complaint of its console."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.conftest import Server, run_server

KEY = "sk-browser-1234567890"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str:
    """$CHROMIUM, which scripts/test sets, or one on the PATH. A browser test that cannot run fails; it never skips."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.fail("no Chromium: run `scripts/test -m browser`, install Debian's `chromium`, or set CHROMIUM")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium that can resolve no name, so that a page which tries to leave is seen and gets nowhere."""
    flags = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium_path(), args=flags)
        yield opened
        opened.close()


@dataclass
class Visit:
    """A page, with all that it asked for and all that it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def origins(self) -> set[str]:
        """Where its requests went; what stands in the page itself (data:, blob:) is no request."""
        parts = [urlsplit(url) for url in self.requests]
        return {f"{each.scheme}://{each.netloc}" for each in parts if each.scheme not in ("data", "blob")}


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh profile's only page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    made = Visit(page)

    def on_request(request: Request) -> None:
        made.requests.append(request.url)

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            made.complaints.append(message.text)

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    yield made
    context.close()


@pytest.fixture(scope="session")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub with a key; its engine is not waited for."""
    with run_server(tmp_path_factory.mktemp("closed"), ready=False, HUB_API_KEYS=f"browser:{KEY}") as running:
        yield running
