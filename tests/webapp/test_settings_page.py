"""The answer settings in a real Chromium: what is chosen, what counts, and what an ask carries."""

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from broker import keys

pytestmark = pytest.mark.timeout(60)

LISTED = """[models.echo]
source = "echo"
[models.echo.defaults]
max_tokens = 2
temperature = 0.2
system = "Be brief."
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(LISTED)
    return file


async def open_panel(tab, more: bool = False):
    await tab.get_by_role("button", name=re.compile("^Answer settings")).click()
    panel = tab.get_by_role("dialog", name="Answer settings")
    await expect(panel).to_be_visible()
    if more:
        await panel.get_by_text("More", exact=True).click()
    return panel


async def carried(visitor, broker) -> dict:
    """The settings that the next ask carries, as its conversation keeps them."""
    await visitor.ask("one two three four")
    await expect(visitor.answer).to_contain_text("one")
    await expect(visitor.tab.locator("#stop")).to_be_hidden()
    conversation = visitor.tab.url.rpartition("/")[2]
    return json.loads(await broker.redis.hget(keys.conversation(conversation), "settings"))


async def test_nothing_is_carried_that_nobody_chose(visitor, broker):
    assert await carried(visitor, broker) == {}


async def test_every_control_reaches_the_ask_and_comes_back_with_the_conversation(visitor, tab, broker):
    panel = await open_panel(tab, more=True)
    numbers = {
        "Temperature": "1.35", "Top-p": "0.5", "Token limit": "40", "Top-k": "20", "Min-p": "0.01",
        "Repetition penalty": "1.1", "Presence penalty": "-0.5", "Frequency penalty": "0.3", "Minimum tokens": "1", "Seed": "7",
    }  # fmt: skip
    for name, value in numbers.items():
        await panel.get_by_role("spinbutton", name=re.compile(f"^{name}")).fill(value)
    await panel.get_by_label("System prompt").fill("Be kind.")
    await panel.get_by_label("Stop strings").fill("\\nUser:")
    await panel.get_by_label("Stop strings").press("Enter")
    await panel.get_by_label("Ignore the end").check()
    await panel.get_by_label("Thinking").select_option("Off")
    await panel.get_by_label("Answer form").select_option("Choice")
    await panel.get_by_label("What the form is").fill("one two three four\nno")
    await expect(panel.locator(".setting.changed")).to_have_count(15)
    await panel.get_by_role("button", name="Done").click()
    await expect(tab.get_by_role("button", name="Answer settings, changed")).to_be_visible()
    await expect(tab.get_by_role("button", name="System prompt")).to_be_visible()
    assert await carried(visitor, broker) == {
        "temperature": 1.35, "top_p": 0.5, "max_tokens": 40, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1,
        "presence_penalty": -0.5, "frequency_penalty": 0.3, "min_tokens": 1, "seed": 7, "system": "Be kind.",
        "stop": ["\nUser:"], "ignore_eos": True, "thinking": False,
        "structure": {"kind": "choice", "value": '["one two three four","no"]'},
    }  # fmt: skip
    await tab.reload()
    await expect(tab.get_by_role("button", name="Answer settings, changed")).to_be_visible()
    panel = await open_panel(tab, more=True)
    await expect(panel.get_by_role("spinbutton", name=re.compile("^Seed"))).to_have_value("7")
    await expect(panel.get_by_label("System prompt")).to_have_value("Be kind.")
    await expect(panel.locator(".stops .chip")).to_have_text("\\nUser:")
    await expect(panel.get_by_label("What the form is")).to_have_value("one two three four\nno")
    await panel.get_by_role("button", name="Take away \\nUser:").click()
    await expect(panel.locator(".stops .chip")).to_have_count(0)
    await panel.get_by_role("button", name="Reset", exact=True).click()
    await expect(panel.locator(".setting.changed")).to_have_count(0)
    await expect(panel.get_by_role("spinbutton", name="Temperature")).to_have_value("0.7")
    await tab.locator("#side-new").click()
    await expect(tab.get_by_role("button", name="System prompt")).to_be_hidden()


async def test_what_is_wrong_does_not_count(visitor, tab, broker):
    panel = await open_panel(tab, more=True)
    await panel.get_by_role("spinbutton", name="Temperature").fill("3")
    await panel.get_by_role("spinbutton", name="Top-k").fill("1.5")
    await panel.get_by_label("Answer form").select_option("JSON schema")
    await panel.get_by_label("What the form is").fill('{"type": ')
    await expect(panel.locator(".remark")).to_contain_text("not JSON yet")
    await panel.get_by_label("What the form is").fill("[]")
    await expect(panel.locator(".remark")).to_contain_text("object in braces")
    await tab.keyboard.press("Escape")
    await expect(tab.get_by_role("button", name="Answer settings", exact=True)).to_be_focused()
    panel = await open_panel(tab)
    await expect(panel.get_by_role("spinbutton", name="Temperature")).to_have_value("0.7")
    await tab.keyboard.press("Escape")
    assert await carried(visitor, broker) == {}


async def test_sliders_and_boxes_go_together_by_keyboard(visitor, tab):
    panel = await open_panel(tab)
    slider, box = panel.get_by_role("slider", name="Token limit"), panel.get_by_role("spinbutton", name="Token limit")
    await expect(slider).to_have_attribute("aria-valuetext", "none")
    await slider.press("Home")
    await expect(box).to_have_value("16")
    await box.fill("5000")
    await expect(slider).to_have_attribute("aria-valuetext", re.compile("5.?000"))
    await slider.press("End")
    await expect(box).to_have_value("")
    await panel.get_by_role("spinbutton", name="Temperature").press("ArrowUp")
    await expect(panel.get_by_role("slider", name="Temperature")).to_have_value("0.75")
    await panel.get_by_role("spinbutton", name="Temperature").press("Enter")
    await expect(panel).to_be_hidden()


async def test_the_models_file_comes_before_what_is_built_in(tab, website, listed, broker):
    website.first.terminate()
    website.first.wait()
    website.worker("echo", folder="listed", models_file=listed)
    await website.open()
    await expect(tab.get_by_role("button", name="System prompt")).to_be_visible()
    await expect(tab.get_by_role("button", name="Answer settings", exact=True)).to_be_visible()
    assert await carried(website, broker) == {"max_tokens": 2, "temperature": 0.2, "system": "Be brief."}
    await expect(website.answer).to_have_text("one two")
    panel = await open_panel(tab)
    await expect(panel.get_by_role("spinbutton", name="Temperature")).to_have_value("0.2")
    await panel.get_by_role("spinbutton", name="Temperature").fill("0.7")
    await panel.get_by_label("System prompt").fill("")
    await panel.get_by_role("spinbutton", name="Token limit").fill("3")
    await tab.keyboard.press("Escape")
    chosen = {"max_tokens": 3, "temperature": 0.7, "system": ""}
    assert await carried(website, broker) == chosen
    await expect(website.answer).to_have_text("one two three")
    await tab.reload()
    await expect(tab.get_by_role("button", name="Answer settings, changed")).to_be_visible()
    await expect(tab.get_by_role("button", name="System prompt")).to_be_hidden()
    panel = await open_panel(tab)
    await panel.get_by_role("button", name="Use these for echo from now on").click()
    await expect(panel.locator(".setting.changed")).to_have_count(0)
    await tab.keyboard.press("Escape")
    await website.open()
    assert await carried(website, broker) == {"max_tokens": 3}
    panel = await open_panel(tab)
    await panel.get_by_role("button", name="Forget my defaults for echo").click()
    await expect(panel.get_by_role("spinbutton", name="Temperature")).to_have_value("0.2")
