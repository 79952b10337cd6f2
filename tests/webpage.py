"""A real Chromium before the site: its fixtures, and what a visitor does. A plugin, so that every test may have them.

`tab` is a page whose console must stay empty. `website` is a web app and an echo worker as processes, for tests that
hurt them; `visitor` has both inside this process, and is there in a moment.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from broker import embedded, registry
from broker.config import Config
from broker.connection import Broker
from fleet_process import wait_for_port, web, worker
from helpers import eventually
from webapp.app import create_app

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=8000)


class Visitor:
    """Somebody with a tab of the chat page at `url`."""

    def __init__(self, url: str, tab: Page) -> None:
        self.url, self.tab = url, tab

    async def open(self, model: str = "echo", path: str = "/") -> None:
        """Go to the page, and wait until it knows the model."""
        await self.tab.goto(self.url + path)
        await expect(self.tab.locator("#picker-name")).to_have_text(model)
        await expect(self.tab.locator("#picker-state")).to_contain_text(re.compile("ready", re.I))

    async def ask(self, text: str) -> None:
        await self.tab.locator("#prompt").fill(text)
        await self.tab.locator("#prompt").press("Enter")

    @property
    def answer(self) -> Locator:
        """The last answer's text."""
        return self.tab.locator(".turn.answer").last.locator(".md")

    async def words(self) -> list[str]:
        return (await self.answer.inner_text()).split()


class Site(Visitor):
    """A web app on a port that stays the same when it is killed and started again, and workers."""

    def __init__(self, redis_url: str, folder: Path, tab: Page, stack: AsyncExitStack) -> None:
        self.redis_url, self.folder = redis_url, folder
        self.port = embedded.free_port()
        super().__init__(f"http://127.0.0.1:{self.port}", tab)
        self._stack = stack
        self._web = self._start()

    def _start(self):
        process = self._stack.enter_context(web(self.redis_url, self.folder, self.port))
        wait_for_port(self.port)
        return process

    async def kill_and_restart(self) -> None:
        """The web app; the tab has noticed when this returns."""
        self._web.kill()
        await asyncio.to_thread(self._web.wait)
        await expect(self.tab.locator("#connection")).to_be_visible()
        self._web = await asyncio.to_thread(self._start)

    def worker(self, model: str, folder: str = "", **settings: object):
        """A worker's process; it may still be starting."""
        place = self.folder / (folder or model.partition("=")[0])
        place.mkdir(exist_ok=True)
        return self._stack.enter_context(worker(self.redis_url, place, model, **settings))


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One Chromium for the run."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def tab(chromium: Browser) -> AsyncIterator[Page]:
    """A page of a new visitor, whose console must stay empty; a test may add to `tab.forgiven` what it may say."""
    async with await chromium.new_context(viewport={"width": 1280, "height": 800}) as context:
        tab = await context.new_page()
        said = console(tab)
        # a page that reconnects cannot keep Chromium from noting that it could not yet
        tab.forgiven = ["WebSocket connection to"]
        yield tab
    assert [s for s in said if not any(known in s for known in tab.forgiven)] == []


@pytest.fixture
async def website(broker: Broker, valkey: str, tmp_path: Path, tab: Page) -> AsyncIterator[Site]:
    """A web app and an echo worker behind the tab, as processes."""
    async with AsyncExitStack() as stack:
        made = Site(valkey, tmp_path, tab, stack)
        made.first = made.worker("echo")
        await eventually(lambda: ready(broker, "echo"), 20)
        yield made
        await tab.goto("about:blank")  # so that it asks nothing of a server that has gone


@pytest.fixture
async def visitor(broker: Broker, config: Config, worker_in, tab: Page) -> AsyncIterator[Visitor]:
    """A web app and an echo worker behind the tab, in this process; the page is open."""
    server = TestServer(create_app(config), handler_cancellation=True)
    await server.start_server(shutdown_timeout=0.5)
    async with worker_in():
        made = Visitor(str(server.make_url("")).rstrip("/"), tab)
        made.server = server
        await made.open()
        yield made
        await tab.goto("about:blank")
    await server.close()


def console(tab: Page) -> list[str]:
    """The errors and warnings in a tab's console from now on: a list that grows."""
    said: list[str] = []
    tab.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda e: said.append(str(e)))
    return said


async def ready(broker: Broker, *names: str) -> bool:
    """Whether these models are ready, and no others."""
    return {m.card.name for m in await registry.models(broker) if m.state == "ready"} == set(names)
