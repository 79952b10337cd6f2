"""Browser -> socket -> queue -> worker -> frames -> browser, with real processes and a real Chromium."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from broker import embedded, registry
from broker.connection import Broker
from fleet_process import wait_for_port, web, worker
from helpers import eventually

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

pytestmark = pytest.mark.timeout(90)
expect.set_options(timeout=8000)


class Site:
    """A web app on a port that stays the same when it is killed and started again."""

    def __init__(self, url: str, folder: Path, page: Page, stack: AsyncExitStack) -> None:
        self.url, self.folder, self.page = url, folder, page
        self.port = embedded.free_port()
        self._stack = stack
        self._web = self._start()

    def _start(self):
        process = self._stack.enter_context(web(self.url, self.folder, self.port))
        wait_for_port(self.port)
        return process

    async def kill_and_restart(self) -> None:
        self._web.kill()
        await asyncio.to_thread(self._web.wait)
        await expect(self.page.locator("#connection")).to_be_visible()
        self._web = await asyncio.to_thread(self._start)

    def worker(self, model: str, **settings: object):
        (self.folder / model.partition("=")[0]).mkdir(exist_ok=True)
        return self._stack.enter_context(worker(self.url, self.folder / model.partition("=")[0], model, **settings))

    async def open(self, model: str = "echo") -> None:
        await self.page.goto(f"http://127.0.0.1:{self.port}/")
        await expect(self.page.locator("#picker-name")).to_have_text(model)
        await expect(self.page.locator("#picker-state")).to_contain_text(re.compile("ready", re.I))

    async def ask(self, text: str) -> None:
        await self.page.locator("#prompt").fill(text)
        await self.page.locator("#prompt").press("Enter")

    @property
    def answer(self):
        return self.page.locator(".turn.answer").last.locator(".md")

    async def words(self) -> list[str]:
        return (await self.answer.inner_text()).split()


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page whose console must stay empty."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        said: list[str] = []
        page.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        yield page
        await browser.close()
    # a page that reconnects cannot keep Chromium from noting that it could not yet
    assert [s for s in said if "WebSocket connection to" not in s] == []


@pytest.fixture
async def site(broker: Broker, valkey: str, tmp_path: Path, page: Page) -> AsyncIterator[Site]:
    """A web app and an echo worker behind the page."""
    async with AsyncExitStack() as stack:
        made = Site(valkey, tmp_path, page, stack)
        made.first = made.worker("echo")
        await eventually(lambda: _ready(broker, "echo"), 20)
        yield made


async def _ready(broker: Broker, *names: str) -> bool:
    return {m.card.name for m in await registry.models(broker) if m.state == "ready"} == set(names)


async def test_ask_watch_it_grow_stop_and_ask_again(site, page):
    await site.open()
    await site.ask("/echo 2000 20ms")
    await expect(site.answer).to_contain_text("5")
    some = len(await site.words())
    await expect(site.answer).to_contain_text(str(some + 10))
    await page.locator("#stop").click()
    await expect(page.locator("#stop")).to_be_hidden()
    stopped = await site.words()
    assert stopped == [str(i) for i in range(1, len(stopped) + 1)]
    await expect(page.locator(".turn.answer .mark")).to_have_text(re.compile("stopped", re.I))
    await site.ask("**bold** and `code`")
    await expect(site.answer.locator("strong")).to_have_text("bold")
    await expect(page.locator(".turn.question")).to_have_count(2)


async def test_a_reload_in_the_middle_continues_without_a_gap(site, page):
    await site.open()
    await site.ask("/echo 150 20ms")
    await expect(site.answer).to_contain_text("20")
    assert "/c/" in page.url
    await page.reload()
    await expect(site.answer).to_contain_text("40")
    await expect(site.answer).to_contain_text("150", timeout=15_000)
    assert await site.words() == [str(i) for i in range(1, 151)]
    await expect(page.locator("#conversations a")).to_have_count(1)
    await page.reload()
    assert await eventually(site.words) == [str(i) for i in range(1, 151)]


async def test_the_web_app_is_killed_and_the_page_continues_where_it_stood(site, page):
    await site.open()
    await site.ask("/echo 200 25ms")
    await expect(site.answer).to_contain_text("20")
    await site.kill_and_restart()
    await expect(page.locator("#connection")).to_be_hidden()
    await expect(site.answer).to_contain_text("200", timeout=15_000)
    assert await site.words() == [str(i) for i in range(1, 201)]


async def test_the_connection_is_cut_and_the_page_continues_where_it_stood(site, page):
    await site.open()
    await site.ask("/echo 120 25ms")
    await expect(site.answer).to_contain_text("20")
    await page.context.set_offline(True)
    await page.evaluate("window.dispatchEvent(new Event('offline'))")
    await page.context.set_offline(False)
    await expect(site.answer).to_contain_text("120", timeout=15_000)
    assert await site.words() == [str(i) for i in range(1, 121)]


async def test_a_second_worker_joins_and_the_first_leaves(site, page, broker):
    await site.open()
    site.worker("parrot=echo")
    await eventually(lambda: _ready(broker, "echo", "parrot"), 20)
    await page.locator("#picker").click()
    parrot = page.locator("#models [role=option][data-name=parrot]")
    await expect(parrot).to_contain_text(re.compile("ready", re.I), timeout=3000)
    await parrot.click()
    await expect(page.locator("#picker-name")).to_have_text("parrot")
    await site.ask("hello parrot")
    await expect(site.answer).to_have_text("hello parrot")
    site.first.terminate()
    await page.locator("#picker").click()
    echo = page.locator("#models [role=option][data-name=echo]")
    await expect(echo).to_have_count(0, timeout=3000)


async def test_an_answer_survives_the_worker_that_writes_it(site, page, broker):
    await site.open()
    (site.folder / "second").mkdir()
    site._stack.enter_context(worker(site.url, site.folder / "second"))
    await eventually(lambda: _two_workers(broker), 20)
    await site.ask("/echo 300 25ms")
    await expect(site.answer).to_contain_text("10")
    busy = await eventually(lambda: _busy(broker))
    os.kill(busy, signal.SIGKILL)
    await expect(site.answer).to_contain_text("300", timeout=25_000)
    assert await site.words() == [str(i) for i in range(1, 301)]


async def _two_workers(broker: Broker) -> bool:
    return [w.fields["state"] for w in await registry.workers(broker)] == ["ready", "ready"]


async def _busy(broker: Broker) -> int | None:
    return next((int(w.fields["pid"]) for w in await registry.workers(broker) if w.fields["busy"] == "1"), None)


async def test_waiting_shows_the_place_and_conversations_can_be_deleted(site, page, broker):
    site.first.terminate()
    await asyncio.to_thread(site.first.wait)
    site.worker("one=echo", slots=1)
    await eventually(lambda: _ready(broker, "one"), 20)
    await site.open("one")
    await site.ask("/echo 1000 20ms")
    await expect(site.answer).to_contain_text("3")
    await page.locator("#side-new").click()
    await site.ask("second")
    await expect(page.locator(".turn.answer").last.locator(".wait-text")).to_contain_text(re.compile("next", re.I))
    await page.locator("#stop").click()
    await expect(page.locator("#conversations a")).to_have_count(2)
    await page.locator("#conversations .side-menu").first.click()
    await page.locator("#menu-delete").click()
    await page.locator("dialog[open] .danger, dialog[open] button.danger").first.click()
    await expect(page.locator("#conversations a")).to_have_count(1)


async def test_regenerate_writes_another_answer_in_its_place(site, page):
    await site.open()
    await site.ask("same again")
    await expect(site.answer).to_have_text("same again")
    await page.get_by_role("button", name="Write the answer again").click()
    await expect(page.locator(".turn.answer")).to_have_count(1)
    await expect(site.answer).to_have_text("same again")


async def test_nothing_that_a_model_says_is_run_or_loaded(site, page):
    await site.open()
    requests: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    await site.ask(
        "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> [a](javascript:window.hacked=1) "
        "![pixel](http://127.0.0.1:9/pixel.png) <iframe src=//evil></iframe> [b](data:text/html,x) <svg onload=window.hacked=1>"
    )
    await expect(site.answer).to_contain_text("iframe")
    assert await page.evaluate("window.hacked") is None
    assert (
        await site.answer.locator(
            "script, iframe, img[src^=http], svg, [onerror], a[href^=javascript], a[href^=data]"
        ).count()
        == 0
    )
    assert not [r for r in requests if ":9/" in r]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_a_phone(site, page, scheme):
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": 390, "height": 844})
    await site.open()
    await site.ask(
        "word " * 50 + "\n\n```\n" + "x" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "wide " * 60 + " | 2 |"
    )
    await expect(site.answer.locator("pre")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
