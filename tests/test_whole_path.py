"""Browser -> socket -> queue -> worker -> frames -> browser, with real processes and a real Chromium."""

import asyncio
import os
import re
import signal

import pytest
from playwright.async_api import expect

from broker import keys, registry
from broker.connection import Broker
from helpers import eventually
from webpage import ready

pytestmark = pytest.mark.timeout(90)


async def test_ask_watch_it_grow_stop_and_ask_again(website, tab):
    await website.open()
    await website.ask("/echo 2000 20ms")
    await expect(website.answer).to_contain_text("5")
    some = len(await website.words())
    await expect(website.answer).to_contain_text(str(some + 10))
    await tab.locator("#stop").click()
    await expect(tab.locator("#stop")).to_be_hidden()
    stopped = await website.words()
    assert stopped == [str(i) for i in range(1, len(stopped) + 1)]
    await expect(tab.locator(".turn.answer .mark")).to_have_text(re.compile("stopped", re.I))
    await website.ask("**bold** and `code`")
    await expect(website.answer.locator("strong")).to_have_text("bold")
    await expect(tab.locator(".turn.question")).to_have_count(2)


async def test_a_reload_in_the_middle_continues_without_a_gap(website, tab):
    await website.open()
    await website.ask("/echo 150 20ms")
    await expect(website.answer).to_contain_text("20")
    assert "/c/" in tab.url
    await tab.reload()
    await expect(website.answer).to_contain_text("40")
    await expect(website.answer).to_contain_text("150", timeout=15_000)
    assert await website.words() == [str(i) for i in range(1, 151)]
    await expect(tab.locator("#conversations a")).to_have_count(1)
    await tab.reload()
    assert await eventually(website.words) == [str(i) for i in range(1, 151)]


async def test_the_web_app_is_killed_and_the_page_continues_where_it_stood(website, tab):
    tab.forgiven.append("ERR_CONNECTION_REFUSED")  # of a fetch while it was away
    await website.open()
    await website.ask("/echo 200 25ms")
    await expect(website.answer).to_contain_text("20")
    await website.kill_and_restart()
    await expect(tab.locator("#connection")).to_be_hidden()
    await expect(website.answer).to_contain_text("200", timeout=15_000)
    assert await website.words() == [str(i) for i in range(1, 201)]


async def test_the_connection_is_cut_and_the_page_continues_where_it_stood(website, tab):
    await website.open()
    await website.ask("/echo 120 25ms")
    await expect(website.answer).to_contain_text("20")
    await tab.context.set_offline(True)
    await tab.evaluate("window.dispatchEvent(new Event('offline'))")
    await tab.context.set_offline(False)
    await expect(website.answer).to_contain_text("120", timeout=15_000)
    assert await website.words() == [str(i) for i in range(1, 121)]


async def test_a_second_worker_joins_and_the_first_leaves(website, tab, broker):
    await website.open()
    website.worker("parrot=echo")
    await eventually(lambda: ready(broker, "echo", "parrot"), 20)
    await tab.locator("#picker").click()
    parrot = tab.locator("#models [role=option][data-name=parrot]")
    await expect(parrot).to_contain_text(re.compile("ready", re.I), timeout=3000)
    await parrot.click()
    await expect(tab.locator("#picker-name")).to_have_text("parrot")
    await website.ask("hello parrot")
    await expect(website.answer).to_have_text("hello parrot")
    website.first.terminate()
    await tab.locator("#picker").click()
    echo = tab.locator("#models [role=option][data-name=echo]")
    await expect(echo).to_have_count(0, timeout=3000)


async def test_an_answer_survives_the_worker_that_writes_it(website, tab, broker):
    await website.open()
    website.worker("echo", folder="second")
    await eventually(lambda: _two_workers(broker), 20)
    await website.ask("/echo 300 25ms")
    await expect(website.answer).to_contain_text("10")
    busy = await eventually(lambda: _busy(broker))
    os.kill(busy, signal.SIGKILL)
    await expect(website.answer).to_contain_text("300", timeout=25_000)
    assert await website.words() == [str(i) for i in range(1, 301)]


async def _two_workers(broker: Broker) -> bool:
    return [w.fields["state"] for w in await registry.workers(broker)] == ["ready", "ready"]


async def _busy(broker: Broker) -> int | None:
    return next((int(w.fields["pid"]) for w in await registry.workers(broker) if w.fields["busy"] == "1"), None)


async def test_waiting_shows_the_place_and_conversations_can_be_deleted(website, tab, broker):
    website.first.terminate()
    await asyncio.to_thread(website.first.wait)
    website.worker("one=echo", slots=1)
    await eventually(lambda: ready(broker, "one"), 20)
    await website.open("one")
    await website.ask("/echo 1000 20ms")
    await expect(website.answer).to_contain_text("3")
    await broker.redis.hset(keys.pace("one"), "seconds", "30")
    await tab.locator("#side-new").click()
    await website.ask("second")
    await expect(tab.locator(".turn.answer").last.locator(".wait-text")).to_have_text(
        "You are next in line, about 30 s"
    )
    await tab.locator("#stop").click()
    await expect(tab.locator("#conversations a")).to_have_count(2)
    await tab.locator("#conversations .side-menu").first.click()
    await tab.get_by_role("menuitem", name="Delete").click()
    await expect(tab.locator("#conversations a")).to_have_count(1)


async def test_regenerate_writes_another_answer_in_its_place(website, tab):
    await website.open()
    await website.ask("same again")
    await expect(website.answer).to_have_text("same again")
    await tab.get_by_role("button", name="Write the answer again").click()
    await expect(tab.locator(".turn.answer")).to_have_count(1)
    await expect(website.answer).to_have_text("same again")


async def test_nothing_that_a_model_says_is_run_or_loaded(website, tab):
    await website.open()
    requests: list[str] = []
    tab.on("request", lambda r: requests.append(r.url))
    await website.ask(
        "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> [a](javascript:window.hacked=1) "
        "![pixel](http://127.0.0.1:9/pixel.png) <iframe src=//evil></iframe> [b](data:text/html,x) <svg onload=window.hacked=1>"
    )
    await expect(website.answer).to_contain_text("iframe")
    assert await tab.evaluate("window.hacked") is None
    assert (
        await website.answer.locator(
            "script, iframe, img[src^=http], svg, [onerror], a[href^=javascript], a[href^=data]"
        ).count()
        == 0
    )
    assert not [r for r in requests if ":9/" in r]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_a_phone(website, tab, scheme):
    await tab.emulate_media(color_scheme=scheme)
    await tab.set_viewport_size({"width": 390, "height": 844})
    await website.open()
    await website.ask(
        "word " * 50 + "\n\n```\n" + "x" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "wide " * 60 + " | 2 |"
    )
    await expect(website.answer.locator("pre")).to_be_visible()
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
