"""The pages' languages: who gets which, and that no sentence is left in English."""

import re
import string
from pathlib import Path

import pytest
from playwright.async_api import expect

from broker.errors import BadRequest
from helpers import eventually
from webapp import languages
from webapp.languages import LANGUAGES
from workers.engine.remote_refusal import Complaint, refusal

CHINESE = LANGUAGES[1]
ROOT = Path(languages.__file__).parent
SAME = {
    "Markdown",
    "JSON",
    "MT-bench",
    "MMLU",
    "Top-p",
    "Top-k",
    "Min-p",
    "Ctrl K",
    "Ctrl + Enter",
    "{count} B",
    "{count} KB",
    "{count} MB",
}
ATTRIBUTE = re.compile(r'\b(?:aria-label|title|placeholder|alt)="([^"]*)"')


def names(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_sentence_is_translated_with_all_its_names():
    catalog = CHINESE.read()
    said = [message for message in languages.extract() if message.id]
    assert len(said) > 150
    for message in said:
        found = catalog.get(message.id if isinstance(message.id, str) else message.id[0])
        assert found is not None, f"{message.id!r} is not in the catalogue: python -m webapp.languages"
        ours = found.string if isinstance(message.id, str) else found.string[0]
        assert ours, f"{message.id!r} has no translation"
        theirs = message.id if isinstance(message.id, str) else message.id[1]
        assert names(ours) == names(theirs), theirs
        assert not set('<>&"') & set(ours), "templates take it as it is"
        assert re.search(r"[\u4e00-\u9fff]", ours) or theirs in SAME or not re.sub(r"\{\w+\}|\W", "", theirs), ours


def test_the_catalogue_holds_nothing_that_nobody_says():
    said = {message.id for message in languages.extract()}
    assert [message.id for message in CHINESE.read() if message.id not in said] == []


def test_what_a_module_says_is_written_out_where_it_is_said():
    for path in (ROOT / "static").glob("*.js"):
        if path.name != "i18n.js":
            assert re.findall(r"(?<![\w.#])[tn]\((?!\s*\")[^)]*\)", path.read_text()) == [], path.name


def test_templates_say_nothing_without_the_catalogue():
    for path in (ROOT / "templates").glob("*.html"):
        if path.name in ("docs.html", "icons.html", "icon.html", "sandbox.html"):  # the API's page is in English
            continue
        source = re.sub(r"\{#.*?#\}", "", path.read_text(), flags=re.S)
        plain = [text for text in ATTRIBUTE.findall(source) if "{{" not in text and re.search("[A-Za-z]{2}", text)]
        text = re.sub(r"<code.*?</code>|<!doctype html>|\{\{.*?\}\}|\{%.*?%\}", "", source, flags=re.S | re.I)
        plain += [one.strip() for one in re.findall(r">([^<>]+)<", text) if re.search("[A-Za-z]{2}", one)]
        assert [one for one in plain if one != "FleetChat"] == [], path.name


@pytest.mark.parametrize(
    ("accepted", "cookie", "tag"),
    [
        ("", "", "en"),
        ("zh-TW,zh;q=0.9,en;q=0.8", "", "zh-Hant"),
        ("zh", "", "zh-Hant"),
        ("zh-HK", "", "zh-Hant"),
        ("zh-Hant-TW", "", "zh-Hant"),
        ("zh-CN,zh-Hans;q=0.9", "", "en"),
        ("de, en-GB;q=0.9, zh-TW;q=0.8", "", "en"),
        ("de, fr;q=0.9, zh-TW;q=0.8", "", "zh-Hant"),
        ("en;q=0.1, zh-TW;q=0.2", "", "zh-Hant"),
        ("zh-TW;q=nonsense, *", "", "en"),
        ("en", "zh-Hant", "zh-Hant"),
        ("zh-TW", "en", "en"),
        ("zh-TW", "xx", "zh-Hant"),
    ],
)
async def test_the_reader_gets_a_language(browser, accepted, cookie, tag):
    headers = {"Accept-Language": accepted, "Cookie": f"language={cookie}", "Accept": "text/html"}
    for path in ("/", "/nowhere"):
        async with browser.get(path, headers=headers) as answer:
            assert f'<html lang="{tag}">' in await answer.text()
            assert answer.headers["Content-Language"] == tag


async def test_an_error_page_speaks_the_language_too(browser):
    headers = {"Accept-Language": "zh-TW", "Accept": "text/html"}
    async with browser.get("/s/nothing", headers=headers) as answer:
        assert answer.status == 404
        assert re.search(r"<h1>[^<]*[\u4e00-\u9fff]", await answer.text())


def refused(status: int, sentence: str) -> str:
    """What is said when the server behind the model `m` has refused."""
    return str(refusal("m", status, Complaint(sentence), {}, (), None))


VALUES = {
    "No worker serves a.b+c (new) right now. Pick another model, or start a worker for it.": "目前沒有工作程序提供 a.b+c (new)。",
    "You have 50 links, which is all that may be. Revoke one first.": "你已有 50 個連結",
    "m cannot be served: two\nlines": "無法提供 m：two\nlines",
    refused(401, ""): "m 背後的伺服器拒絕了我們的金鑰或帳號（401）。",
    refused(
        400, "adapter foo cannot be served: it is too big"
    ): 'm 背後的伺服器拒絕了請求: "adapter foo cannot be served',
    refused(503, refused(503, "")): 'm 背後的伺服器失敗或負載過重（503）: "The server behind m failed',
    "Something that nobody ever said of 7 things.": "（Something that nobody ever said of 7 things.）",
}


async def test_values_in_an_error_are_in_its_translation(visitor):
    tab = visitor.tab
    await tab.context.add_cookies([{"name": "language", "value": "zh-Hant", "url": visitor.url}])
    await tab.reload()
    links = await tab.evaluate("[...document.querySelectorAll('link')].map((link) => link.href)")
    (module,) = {link for link in links if link.endswith("/i18n.js")}
    assert await tab.evaluate("'@' in catalogue") is False  # a first visit is lighter without
    await tab.keyboard.press("Shift")
    await eventually(lambda: tab.evaluate("'@' in catalogue"))
    ours = languages.Pages.load().environments["zh-Hant"].globals["told"]
    for message, expected in VALUES.items():
        told = await tab.evaluate(
            "async ([module, error]) => (await import(module)).told(error)",
            [module, {"code": "bad_request", "message": message}],
        )
        assert expected in told
        assert ours(BadRequest(message)) == told
    await visitor.ask("hello")
    await tab.wait_for_url("**/c/*")
    await tab.reload()
    assert await tab.evaluate("'@' in catalogue"), "a conversation may begin with what an answer failed with"


async def test_english_costs_nothing_and_the_api_page_stays_english(browser):
    async with browser.get("/", headers={"Accept-Language": "en"}) as answer:
        assert "/language/" not in await answer.text()
    async with browser.get("/docs/api", headers={"Accept-Language": "zh-TW"}) as answer:
        assert '<html lang="en">' in await answer.text()


@pytest.mark.timeout(40)
async def test_the_switch_at_the_foot_changes_the_language_for_good(visitor):
    tab = visitor.tab
    await visitor.open()
    await tab.locator("[data-language=zh-Hant]").click()
    await expect(tab.locator("html")).to_have_attribute("lang", "zh-Hant")
    await expect(tab.locator("#side-new")).to_have_text("新對話")
    await expect(tab.locator("#hero-title")).to_have_text("問問 echo")
    await tab.reload()
    await expect(tab.locator("#theme-label")).to_have_text("外觀：自動")
    await expect(tab.locator("#picker-name")).to_have_text("echo")
    await visitor.ask("hello")
    await expect(tab.locator(".turn.answer").last.get_by_role("button", name="重新產生回答")).to_be_visible()
    await tab.locator("[data-language=en]").click()
    await expect(tab.locator("#side-new")).to_have_text("New chat")
