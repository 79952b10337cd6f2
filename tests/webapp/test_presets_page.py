"""Presets in a real Chromium: saved by name, put to use from a menu, changed in a dialog; by keyboard."""

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.timeout(60)


async def manage(tab, item: str):
    await tab.locator("#presets-open").press("Enter")
    await tab.get_by_role("menuitem", name=item).press("Enter")
    dialog = tab.get_by_role("dialog", name="Presets")
    await expect(dialog).to_be_visible()
    return dialog


async def system(tab, text: str) -> None:
    await tab.locator("#settings-open").click()
    await tab.get_by_label("System prompt", exact=False).and_(tab.get_by_role("textbox")).fill(text)
    await tab.keyboard.press("Escape")


async def test_a_preset_is_saved_used_written_over_renamed_and_deleted(visitor, tab):
    await system(tab, "Be brief.")
    dialog = await manage(tab, "Save these settings…")
    await dialog.get_by_role("textbox").fill("a/b 短")
    await tab.keyboard.press("Enter")
    await expect(dialog.locator(".preset-name")).to_have_text("a/b 短")
    await expect(dialog.locator(".preset-facts")).to_have_text("Be brief.")
    await dialog.get_by_role("textbox").fill("a/b 短")
    await expect(dialog.get_by_role("button", name="Overwrite", exact=True)).to_be_visible()
    await tab.keyboard.press("Escape")
    await expect(tab.locator("dialog[open]")).to_have_count(0)

    await tab.locator("#side-new").click()
    await expect(tab.locator("#system-set")).to_be_hidden()
    await tab.locator("#presets-open").press("Enter")
    await tab.get_by_role("menuitem", name="a/b 短").press("Enter")
    await expect(tab.locator("#system-set")).to_have_attribute("title", "Be brief.")

    await system(tab, "Be long.")
    dialog = await manage(tab, "Save and manage…")
    await dialog.get_by_role("button", name="Overwrite a/b 短").click()
    await expect(dialog.locator(".preset-facts")).to_have_text("Be long.")
    await dialog.get_by_role("button", name="Rename a/b 短").click()
    await dialog.get_by_label("New name of a/b 短").fill("long")
    await tab.keyboard.press("Enter")
    await expect(dialog.locator(".preset-name")).to_have_text("long")
    await dialog.get_by_role("button", name="Delete long").click()
    await expect(dialog.locator(".preset-name")).to_have_count(0)
    await expect(dialog.get_by_role("status")).to_have_text("Preset long is deleted.")


async def test_the_panel_stays_while_a_preset_is_picked_in_it(visitor, tab):
    await system(tab, "Be brief.")
    dialog = await manage(tab, "Save these settings…")
    await dialog.get_by_role("textbox").fill("brief")
    await tab.keyboard.press("Enter")
    await dialog.get_by_role("button", name="Done").click()
    await tab.locator("#side-new").click()
    await tab.set_viewport_size({"width": 390, "height": 844})
    await expect(tab.locator("#presets-open")).to_be_hidden()
    await tab.locator("#settings-open").click()
    panel = tab.get_by_role("dialog", name="Answer settings")
    await panel.get_by_role("button", name="Presets").click()
    await tab.get_by_role("menuitem", name="brief").click()
    await expect(panel.get_by_label("System prompt")).to_have_value("Be brief.")
