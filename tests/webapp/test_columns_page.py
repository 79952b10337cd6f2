"""Several models side by side in a real Chromium, and back to one."""

import re
from dataclasses import replace

import pytest
from playwright.async_api import expect

from webapp.state import BROKER

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def both(visitor, tab, worker_in):
    """Two columns, with echo and parrot."""
    async with worker_in(model="parrot=echo"):
        await expect(tab.locator("#models [data-name=parrot]")).to_have_count(1)
        await tab.locator("#column-add").click()
        await expect(tab.locator(".column")).to_have_count(2)
        yield visitor


def column(tab, i):
    return tab.locator(".column").nth(i)


def answer(tab, i):
    return column(tab, i).locator(".turn.answer .md").last


async def test_one_question_is_answered_in_each_column_by_its_own_model(both, tab, broker):
    await both.ask("hello")
    for i, model in enumerate(("echo", "parrot")):
        await expect(answer(tab, i)).to_have_text("hello")
        await expect(column(tab, i).locator(".facts")).to_contain_text(f"{model} ·")
        await expect(column(tab, i).locator(".versions-shown:visible")).to_have_text(f"{i + 1} / 2")
    await both.ask("more")
    for i in range(2):
        await expect(answer(tab, i)).to_have_text("more")
        await expect(column(tab, i).locator(".turn")).to_have_count(4)
    await expect(tab.locator("#conversations a")).to_have_count(1)


async def test_columns_come_back_after_a_reload_each_with_its_own_path(both, tab):
    await both.ask("hello")
    await expect(answer(tab, 1)).to_have_text("hello")
    again = column(tab, 1).get_by_role("button", name="Write the answer again")
    await again.click()
    await expect(column(tab, 1).locator(".versions-shown:visible")).to_have_text("3 / 3")
    await tab.reload()
    await expect(tab.locator(".column")).to_have_count(2)
    for i, at in enumerate(("1 / 3", "3 / 3")):
        await expect(answer(tab, i)).to_have_text("hello")
        await expect(column(tab, i).locator(".versions-shown:visible")).to_have_text(at)
    await expect(column(tab, 1).locator(".picker-name")).to_have_text("parrot")


async def test_each_column_is_stopped_by_itself_and_a_reload_takes_both_up_again(both, tab):
    await both.ask("/echo 3000 20ms")
    for i in range(2):
        await expect(answer(tab, i)).to_contain_text("9")
    await tab.reload()
    for i in range(2):
        await expect(answer(tab, i)).to_contain_text("20", timeout=15_000)
    await column(tab, 0).get_by_role("button", name="Stop this answer").click()
    await expect(column(tab, 0).locator(".mark")).to_have_text("Stopped")
    some = len((await answer(tab, 1).inner_text()).split())
    await expect(answer(tab, 1)).to_contain_text(str(some + 10))
    await tab.locator("#stop").click()
    await expect(column(tab, 1).locator(".mark")).to_have_text("Stopped")


async def test_keeping_one_leads_back_to_it(both, tab):
    await both.ask("hello")
    await expect(answer(tab, 1)).to_have_text("hello")
    await column(tab, 1).get_by_role("button", name="Keep this one").click()
    await expect(tab.locator(".column")).to_have_count(1)
    await expect(tab.locator("#picker-name")).to_have_text("parrot")
    await expect(column(tab, 0).locator(".versions-shown:visible")).to_have_text("2 / 2")
    await tab.reload()
    await expect(tab.locator(".column")).to_have_count(1)
    await expect(column(tab, 0).locator(".facts")).to_contain_text("parrot ·")
    await expect(column(tab, 0).locator(".versions-shown:visible")).to_have_text("2 / 2")


async def test_each_column_has_its_own_settings_and_model(both, tab):
    await column(tab, 1).get_by_role("button", name="Settings of this column").click()
    await tab.get_by_role("spinbutton", name="Token limit").fill("2")
    await tab.keyboard.press("Escape")
    await column(tab, 0).get_by_role("button", name="Settings of this column").click()
    await expect(tab.get_by_role("spinbutton", name="Token limit")).to_have_value("")
    await tab.keyboard.press("Escape")
    await column(tab, 0).get_by_role("button", name=re.compile("Model of column 1")).click()
    await tab.get_by_role("menuitem", name="parrot").press("Enter")
    await both.ask("one two three")
    await expect(answer(tab, 0)).to_have_text("one two three")
    await expect(answer(tab, 1)).to_have_text("one two")
    await expect(column(tab, 0).locator(".facts")).to_contain_text("parrot ·")
    await expect(column(tab, 0).locator(".versions-shown:visible")).to_have_text("1 / 2")
    await column(tab, 1).get_by_role("button", name="Settings of this column").click()
    await expect(tab.get_by_role("spinbutton", name="Token limit")).to_have_value("2")


async def test_another_tab_has_the_same_columns(both, tab):
    await both.ask("hello")
    await expect(answer(tab, 1)).to_have_text("hello")
    other = await tab.context.new_page()
    await other.goto(tab.url)
    await expect(other.locator(".column")).to_have_count(2)
    await both.ask("/echo 30 20ms")
    for i in range(2):
        await expect(answer(other, i)).to_contain_text("30", timeout=15_000)
    await column(tab, 1).get_by_role("button", name="Close this column").click()
    await expect(other.locator(".column")).to_have_count(1)
    await other.close()


async def test_columns_of_a_temporary_chat_and_no_more_than_four(both, tab, broker):
    await tab.locator("#temporary").click()
    await both.ask("hello")
    for i in range(2):
        await expect(answer(tab, i)).to_have_text("hello")
    for _ in range(2):
        await tab.locator("#column-add").click()
    await expect(tab.locator(".column")).to_have_count(4)
    await expect(tab.locator("#column-add")).to_be_disabled()
    await expect(answer(tab, 3)).to_have_text("hello")
    await both.ask("more")
    for i in range(4):
        await expect(answer(tab, i)).to_have_text("more")
    assert await broker.redis.keys("conversation*") == []


async def test_on_a_phone_one_column_is_in_view_and_tabs_lead_to_the_others(both, tab):
    await tab.set_viewport_size({"width": 390, "height": 800})
    await both.ask("hello")
    tabs = tab.locator("#column-tabs button")
    await expect(tabs).to_have_text(["echo", "parrot"])
    await tabs.nth(0).click()
    await expect(column(tab, 0)).to_be_in_viewport(ratio=0.9)
    await expect(column(tab, 1)).not_to_be_in_viewport()
    await tabs.nth(1).click()
    await expect(column(tab, 1)).to_be_in_viewport(ratio=0.9)
    await expect(tabs.nth(1)).to_have_attribute("aria-pressed", "true")
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 390


async def test_a_column_that_was_refused_tries_again_by_itself(both, tab):
    broker = both.server.app[BROKER]
    broker.config = replace(broker.config, user_limit=1)
    await both.ask("/echo 300 20ms")
    await expect(answer(tab, 0)).to_contain_text("9")
    problem = column(tab, 1).locator(".problem")
    await expect(problem).to_contain_text("all that you may have at once")
    await tab.locator("#stop").click()
    await expect(tab.locator("#stop")).to_be_hidden()
    broker.config = replace(broker.config, user_limit=8)
    await expect(column(tab, 1).locator(".turn.question")).to_have_count(1)
    await problem.get_by_role("button", name="Try again").click()
    await expect(answer(tab, 1)).to_contain_text("9")
    await tab.locator("#stop").click()
    await expect(column(tab, 1).locator(".versions-shown:visible")).to_have_text("2 / 2")
