"""What is around the chat in a real Chromium: contrast, keys, the installed app, every size of screen."""

import json
import re

import pytest
from playwright.async_api import expect

from helpers import eventually
from webapp.statics import STATICS

pytestmark = pytest.mark.timeout(90)


async def test_the_theme_goes_round_and_contrast_comes_by_itself(visitor, tab):
    root, label = tab.locator("html"), tab.locator("#theme-label")
    for name, theme in (("light", "light"), ("dark", "dark"), ("contrast", None), ("automatic", None)):
        await tab.locator("#theme").click()
        await expect(label).to_have_text(f"Theme: {name}")
        assert await root.get_attribute("data-theme") == theme
        assert (await root.get_attribute("data-contrast") is not None) == (name == "contrast")
    await tab.emulate_media(contrast="more")
    await expect(root).to_have_attribute("data-contrast", "")
    await tab.locator("#theme").click()  # light, because somebody wants it so
    await expect(root).not_to_have_attribute("data-contrast", "")


async def test_every_shortcut_does_what_the_sheet_says(visitor, tab):
    await visitor.ask("hello")
    await expect(tab.locator(".turn.answer [data-act=again]")).to_be_visible()
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await tab.keyboard.press("Control+Shift+C")
    await expect(tab.locator(".turn.answer [data-act=copy]")).to_have_class(re.compile("done"))
    assert (await tab.evaluate("navigator.clipboard.readText()")).split() == await visitor.words()
    await tab.keyboard.press("Control+Shift+G")
    await expect(tab.locator(".turn.answer .versions")).to_contain_text("2")
    await expect(tab.locator(".turn.answer [data-act=again]")).to_be_visible()
    await tab.keyboard.press("Control+Shift+S")
    await expect(tab.locator("#sidebar")).to_be_hidden()
    await tab.keyboard.press("Control+k")
    await expect(tab.locator("#search")).to_be_focused()
    await tab.keyboard.press("Control+,")
    await expect(tab.locator("#settings-open")).to_have_attribute("aria-expanded", "true")
    await tab.keyboard.press("Escape")
    await tab.keyboard.press("Control+Shift+M")
    await expect(tab.locator("#picker")).to_have_attribute("aria-expanded", "true")
    await tab.keyboard.press("Escape")
    await tab.keyboard.press("Control+Shift+O")
    await expect(tab.locator("#hero")).to_be_visible()
    await tab.locator("#picker").focus()
    await tab.keyboard.press("/")
    await expect(tab.locator("#prompt")).to_be_focused()
    await tab.keyboard.type("?")  # a sign like any other while one writes
    await expect(tab.locator("#prompt")).to_have_value("?")
    await tab.locator("#picker").focus()
    await tab.keyboard.press("?")
    rows = tab.locator("dialog.help .help-row")
    await expect(rows).to_have_count(12)
    await expect(rows.first).to_have_text(re.compile(r"New chat\s*Ctrl\s*Shift\s*O"))
    await tab.keyboard.press("Control+Shift+S")  # nothing happens behind the sheet
    await expect(tab.locator("#sidebar")).to_be_visible()
    await tab.keyboard.press("Escape")
    await expect(tab.locator("dialog")).to_have_count(0)


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
async def test_every_size_of_screen(visitor, tab, language):
    await tab.context.add_cookies([{"name": "language", "value": language, "url": visitor.url}])
    for width, height in ((360, 640), (390, 844), (768, 1024), (1280, 800), (3840, 2160)):
        await tab.set_viewport_size({"width": width, "height": height})
        await tab.reload()
        await expect(tab.locator("#picker-name")).to_have_text("echo")
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("#picker", "#settings-open", "#prompt", "#send"):
            box = await tab.locator(name).bounding_box()
            assert box["x"] >= 0, (width, name)
            assert box["x"] + box["width"] <= width, (width, name)
    await expect(tab.locator("html")).to_have_css("font-size", "28px")


async def test_the_site_can_be_installed(visitor, tab):
    await tab.evaluate("navigator.serviceWorker.ready.then(() => 0)")
    session = await tab.context.new_cdp_session(tab)
    said = await session.send("Page.getAppManifest")
    assert said["errors"] == []
    manifest = json.loads(said["data"])
    for icon in manifest["icons"]:
        assert await tab.evaluate("(address) => fetch(address).then((r) => r.ok)", icon["src"])
    errors = await session.send("Page.getInstallabilityErrors")
    assert [e["errorId"] for e in errors["installabilityErrors"] if e["errorId"] != "in-incognito"] == []


async def test_without_a_network_the_page_says_so_in_its_language(visitor, tab):
    await tab.evaluate("navigator.serviceWorker.ready.then(() => 0)")
    await tab.locator("[data-language=zh-Hant]").click()
    await expect(tab.locator("#side-new")).to_have_text("新對話")
    await eventually(lambda: tab.evaluate("navigator.serviceWorker.controller !== null"))
    tab.forgiven += ["Failed to load resource", "net::ERR"]
    await visitor.server.close()
    await tab.reload()
    await expect(tab.locator("h1")).to_have_text("目前離線")
    kept = await tab.evaluate("caches.keys().then(async (names) => (await (await caches.open(names[0])).keys()).map((r) => new URL(r.url).pathname))")  # fmt: skip
    prefix = visitor.server.app[STATICS].prefix
    assert sorted(kept) == sorted(
        ["/offline", *(f"{prefix}/{name}" for name in ("base.css", "theme.js", "favicon.svg"))]
    )


async def test_the_worker_changes_with_the_static_files_and_may_rule_the_whole_site(browser, site):
    async with browser.get("/sw.js") as answer:
        assert answer.content_type == "text/javascript"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert (await answer.text()).startswith(f'const STATIC = "{site.app[STATICS].prefix}";')
    async with browser.get("/manifest.webmanifest", headers={"Accept-Language": "zh-TW"}) as answer:
        assert answer.content_type == "application/manifest+json"
        assert json.loads(await answer.text())["lang"] == "zh-Hant"


async def test_the_skip_link_leads_to_the_message_box(visitor, tab):
    await tab.locator("#skip").focus()
    await expect(tab.locator("#skip")).to_be_in_viewport()
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#prompt")).to_be_focused()


async def test_reduced_motion_moves_nothing(visitor, tab):
    await tab.emulate_media(reduced_motion="reduce")
    await visitor.ask("/echo 40 20ms")
    await expect(tab.locator(".turn.answer")).to_be_visible()
    assert await tab.evaluate("document.getAnimations().length") == 0
