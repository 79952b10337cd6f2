"""The sidebar in a browser: the list, what is done with a conversation, search, links, files in and out."""

import json
import re
import time

import pytest
from playwright.async_api import expect

from broker import conversations, keys, shelf
from broker.imports import Imported
from broker.transcripts import store

pytestmark = pytest.mark.timeout(60)

DAY_MS = 86_400_000


@pytest.fixture
async def owner(visitor, tab):
    """Who the visitor is."""
    (cookie,) = await tab.context.cookies()
    return cookie["value"].partition(".")[0]


@pytest.fixture
def keep(broker, owner):
    """`await keep((title, days ago) ...)`: conversations of the visitor's; gives their ids."""

    async def keep(*talks, answer="An *answer*.", **more):
        now = int(time.time() * 1000)

        def made(title, days):
            at = now - int(days * DAY_MS)
            asked = {"role": "user", "parent": "", "created": at, "parts": [{"kind": "text", "text": title}]}
            said = {"role": "assistant", "parent": "q", "created": at, "model": "echo", "parts": [{"kind": "text", "text": answer}]}  # fmt: skip
            return Imported(title, at, at, "a", {"q": asked, "a": said}, **more)

        return await store(broker, owner, [made(*one) for one in talks])

    return keep


def row(tab, title):
    return tab.locator("#conversations .side-item", has_text=title)


async def menu(tab, title, *path):
    """Choose from a conversation's menu."""
    await row(tab, title).locator(".side-menu").click()
    for name in path:
        await tab.get_by_role("menuitem", name=name, exact=True).click()


async def another(tab):
    """A second tab of the same visitor."""
    async with tab.expect_popup() as opened:
        await tab.evaluate("() => void window.open('/')")
    return await opened.value


async def titles(tab):
    return await tab.locator("#conversations .side-title").all_text_contents()


async def test_conversations_are_grouped_by_day(visitor, tab, keep, broker, owner):
    made = await keep(("now", 0), ("before", 1), ("some days ago", 4), ("long ago", 400), ("kept 📌", 40))
    await shelf.pin(broker, made[4], owner, True)
    headings = tab.locator("#conversations h2:visible")
    long_ago = time.strftime("%B %Y", time.localtime(time.time() - 400 * 86_400))
    await expect(headings).to_have_text(["Pinned", "Today", "Yesterday", "Previous 7 days", long_ago])
    assert await titles(tab) == ["kept 📌", "now", "before", "some days ago", "long ago"]
    pinned = tab.get_by_role("list", name="Pinned")
    await expect(pinned.get_by_role("link", name="kept 📌")).to_have_count(1)


async def test_renaming_pinning_and_archiving(visitor, tab, keep):
    await keep(("first", 1), ("second", 2))
    await menu(tab, "first", "Rename")
    field = tab.get_by_label("New name")
    await expect(field).to_be_focused()
    await field.fill("別的名字 🙂")
    await field.press("Enter")
    await expect(row(tab, "別的名字 🙂").locator("a")).to_be_focused()
    await menu(tab, "second", "Rename")
    await tab.get_by_label("New name").press("Escape")
    await menu(tab, "second", "Pin")
    await expect(tab.locator("#conversations h2:visible").first).to_have_text("Pinned")
    assert await titles(tab) == ["second", "別的名字 🙂"]
    await menu(tab, "second", "Unpin")
    await expect(tab.locator("#conversations .side-title")).to_have_text(["別的名字 🙂", "second"])
    await menu(tab, "second", "Archive")
    await expect(tab.locator("#conversations .side-title")).to_have_text(["別的名字 🙂"])
    await tab.locator("#data").click()
    await tab.get_by_role("menuitem", name="Archive").click()
    await expect(tab.locator("#conversations .side-title")).to_have_text(["second"])
    await menu(tab, "second", "Take out of the archive")
    await expect(tab.locator("#conversations")).to_contain_text("Nothing is archived.")
    await tab.locator("#where-back").click()
    await expect(tab.locator("#conversations .side-title")).to_have_text(["別的名字 🙂", "second"])
    await menu(tab, "second", "Archive")
    await tab.get_by_role("status").get_by_role("button", name="Undo").click()
    await expect(tab.locator("#conversations .side-title")).to_have_text(["別的名字 🙂", "second"])


async def test_a_deleted_one_is_gone_and_undo_brings_it_back_also_to_the_page(visitor, tab, keep):
    one, two = await keep(("stays", 1), ("goes", 2), answer="Hello **you**.")
    await tab.locator("#conversations a", has_text="goes").click()
    await expect(tab.locator(".turn.answer strong")).to_have_text("you")
    await menu(tab, "goes", "Delete")
    await expect(tab.locator("#conversations .side-title")).to_have_text(["stays"])
    await expect(tab.locator(".turn")).to_have_count(0)
    assert tab.url == visitor.url + "/"
    await tab.get_by_role("status").get_by_role("button", name="Undo").click()
    await expect(tab.locator("#conversations .side-title")).to_have_text(["stays", "goes"])
    await expect(tab.locator(".turn.answer strong")).to_have_text("you")
    assert tab.url == f"{visitor.url}/c/{two}"
    assert one != two


async def test_a_tab_that_closes_in_the_middle_leaves_nothing_half(visitor, tab, keep, broker, owner):
    (one,) = await keep(("goes", 1))
    other = await another(tab)
    await menu(other, "goes")
    async with other.expect_request(lambda r: r.method == "DELETE"):
        await other.get_by_role("menuitem", name="Delete").click()
    await other.close()
    assert await broker.redis.exists(keys.conversation(one)) + await broker.redis.exists(keys.deleted(one)) == 1
    if await broker.redis.exists(keys.conversation(one)):
        await shelf.delete(broker, one, owner)
    await shelf.restore(broker, one, owner)
    assert len((await conversations.load(broker, one, owner))[1]) == 2


async def test_tags_are_given_and_filter_the_list(visitor, tab, keep):
    await keep(("bread", 1), ("code", 2), ("cake", 3))
    await menu(tab, "bread", "Tags…")
    dialog = tab.get_by_role("dialog")
    await dialog.get_by_label("New tag").fill("#烘焙 x")
    await dialog.get_by_label("New tag").press("Enter")
    await expect(dialog.get_by_role("button", name="烘焙 x")).to_have_attribute("aria-pressed", "true")
    await dialog.get_by_role("button", name="Done").click()
    await menu(tab, "cake", "Tags…")
    await dialog.get_by_role("button", name="烘焙 x").click()
    await tab.keyboard.press("Escape")
    chip = tab.locator("#tags").get_by_role("button", name="烘焙 x")
    await chip.click()
    await expect(chip).to_have_attribute("aria-pressed", "true")
    await expect(tab.locator("#conversations .side-title")).to_have_text(["bread", "cake"])
    await chip.click()
    await expect(tab.locator("#conversations .side-title")).to_have_text(["bread", "code", "cake"])
    await menu(tab, "cake", "Tags…")
    await dialog.get_by_label("New tag").fill("x" * 40)
    await dialog.get_by_label("New tag").press("Enter")
    await dialog.get_by_role("button", name="烘焙 x").click()
    await tab.keyboard.press("Escape")
    await chip.click()
    await expect(tab.locator("#conversations .side-title")).to_have_text(["bread"])


async def test_searching_by_keyboard(visitor, tab, keep):
    made = await keep(("one", 1), ("two", 2), ("three", 3), answer="The <i>NEEDLE</i> 在這裡。")
    await keep(("other", 0), answer="hay")
    await expect(row(tab, "other")).to_have_count(1)
    await tab.locator("#prompt").focus()
    await tab.keyboard.press("Control+k")
    box = tab.get_by_role("combobox", name="Search your conversations")
    await expect(box).to_be_focused()
    await box.press_sequentially("needle")
    options = tab.locator("#found [role=option]")
    await expect(options).to_have_count(3)
    await expect(options.first.locator("mark")).to_have_text(["NEEDLE"])  # no more that of what was typed first
    await expect(options.first.locator(".found-text")).to_have_text("The <i>NEEDLE</i> 在這裡。")
    await expect(tab.locator("#found-status")).to_have_text("3 conversations")
    await box.press("ArrowDown")
    await box.press("ArrowDown")
    await expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    assert await box.get_attribute("aria-activedescendant") == await options.nth(1).get_attribute("id")
    await box.press("Enter")
    await tab.wait_for_url(f"**/c/{made[1]}")
    await expect(tab.locator(".turn.question")).to_contain_text("two")
    await box.fill("這裡")
    await expect(options.first.locator("mark")).to_have_text("這裡")
    await box.fill("nowhere")
    await expect(tab.locator("#found-status")).to_have_text("Nothing was found.")
    await expect(options).to_have_count(0)
    await box.press("Escape")
    await expect(tab.locator("#conversations")).to_be_visible()
    await expect(box).to_have_value("")
    await expect(tab.locator("#found-scroller")).to_be_hidden()


async def test_a_result_in_another_branch_opens_that_branch(visitor, tab, broker, owner):
    def message(role, parent, text):
        return {
            "role": role,
            "parent": parent,
            "created": 1,
            "model": "echo",
            "parts": [{"kind": "text", "text": text}],
        }

    messages = {"q": message("user", "", "hi"), "a": message("assistant", "q", "shown"), "b": message("assistant", "q", "hidden")}  # fmt: skip
    await store(broker, owner, [Imported("branches", 1, 1, "a", messages)])
    await tab.locator("#conversations a", has_text="branches").click()
    await expect(visitor.answer).to_have_text("shown")
    await tab.locator("#search").fill("hidden")
    await tab.locator("#found [role=option]").click()
    await expect(visitor.answer).to_have_text("hidden")


async def test_search_goes_on_where_a_call_ended(visitor, tab, keep, monkeypatch):
    monkeypatch.setattr("broker.search.find.__defaults__", ("", 0.0))
    await keep(*((f"talk {i}", i) for i in range(60)))
    await tab.locator("#search").fill("answer")
    options = tab.locator("#found [role=option]")
    await expect(options.nth(20)).to_be_attached()
    await tab.locator("#found-scroller").evaluate("e => e.scrollTo(0, e.scrollHeight)")
    await expect(options.nth(40)).to_be_attached()
    await tab.locator("#found-scroller").evaluate("e => e.scrollTo(0, e.scrollHeight)")
    await expect(options).to_have_count(60)
    await expect(tab.locator("#found-status")).to_have_text("60 conversations")


async def test_a_link_is_made_read_by_others_listed_and_revoked(visitor, tab, keep):
    await keep(("Where is **Rome**?", 1), answer="In *Italy*.\n\n```py\nprint(1)\n```")
    await menu(tab, "Where is", "Share…")
    dialog = tab.get_by_role("dialog")
    await dialog.get_by_role("button", name="Make a link").click()
    field = dialog.get_by_label("Link to")
    await expect(field).to_be_focused()
    address = await field.input_value()
    assert re.fullmatch(re.escape(visitor.url) + r"/s/[\w-]{22}", address)
    await tab.keyboard.press("Escape")

    stranger = await tab.context.browser.new_context(viewport={"width": 390, "height": 844})
    page = await stranger.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    await page.goto(address)
    await expect(page.locator(".md em")).to_have_text("Italy")
    await expect(page.locator("h1")).to_have_text("Where is **Rome**?")
    await expect(page.locator(".paper-turn.user")).to_contain_text("Where is **Rome**?")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    assert await stranger.cookies() == []
    assert said == []

    await tab.locator("#data").click()
    await tab.get_by_role("menuitem", name="Your links").click()
    await expect(dialog.get_by_label("Link to")).to_have_value(address)
    await dialog.get_by_role("button", name="Revoke").click()
    await expect(dialog).to_contain_text("You have no links.")
    await page.reload()
    await expect(page.locator("h1")).to_contain_text("revoked")
    await stranger.close()


async def test_files_out_and_in(visitor, tab, keep, tmp_path):
    await keep(("Ça va? 你好", 1), answer="- one\n- two")
    async with tab.expect_download() as download:
        await menu(tab, "Ça va", "Export…", "Markdown")
    file = await download.value
    assert file.suggested_filename == "Ça va 你好.md"
    await file.save_as(tmp_path / "one.md")
    assert "## echo\n\n- one\n- two" in (tmp_path / "one.md").read_text()
    async with tab.expect_download() as download:
        await tab.locator("#data").click()
        await tab.get_by_role("menuitem", name="Export everything").click()
    await (await download.value).save_as(tmp_path / "all.json")
    await menu(tab, "Ça va", "Delete")
    await expect(tab.locator("#conversations .side-item")).to_have_count(0)
    notice = tab.locator(".toast")
    for name, content, said in (
        ("all.json", None, "1 conversation was imported."),
        ("bad.jsonl", '{"messages": []}\n{"state": {}}\n', "bad.jsonl was not imported. line 2.state.roles: a list is expected."),
    ):  # fmt: skip
        if content:
            (tmp_path / name).write_text(content)
        async with tab.expect_file_chooser() as chooser:
            await tab.locator("#data").click()
            await tab.get_by_role("menuitem", name="Import a file…").click()
        if content:
            tab.forgiven.append("400 (Bad Request)")
        await (await chooser.value).set_files(tmp_path / name)
        await expect(notice).to_contain_text(said)
    await tab.locator("#conversations a", has_text="Ça va").click()
    await expect(tab.locator(".turn.answer li")).to_have_text(["one", "two"])


async def test_a_conversation_on_paper(visitor, tab, keep):
    (one,) = await keep(("Print me", 1), answer="| a | b |\n|---|---|\n| 1 | 2 |\n\n```\n" + "x" * 200 + "\n```")
    async with tab.context.expect_page() as opened:
        await menu(tab, "Print me", "Export…", "Print or PDF")
    page = await opened.value
    await expect(page.locator(".md td").first).to_have_text("1")
    await expect(page.get_by_role("button", name="Print")).to_be_visible()
    await page.emulate_media(media="print")
    await expect(page.get_by_role("button", name="Print")).to_be_hidden()
    wide = await page.evaluate("[...document.querySelectorAll('pre')].some(e => e.scrollWidth > e.clientWidth)")
    assert not wide, "a long line of code is cut off on paper"
    assert page.url == f"{visitor.url}/c/{one}/print"


async def test_what_is_being_answered_has_a_dot(visitor, tab):
    await visitor.ask("/echo 60 20ms")
    await expect(visitor.answer).to_contain_text("3")
    dot = row(tab, "/echo 60").locator(".side-busy")
    await expect(dot).to_be_visible()
    await tab.locator("#side-new").click()
    await expect(dot).to_be_visible()
    await expect(dot).to_be_hidden(timeout=10_000)


async def test_another_tab_shows_the_same_list(visitor, tab, keep):
    await keep(("old name", 1))
    await expect(row(tab, "old name")).to_have_count(1)
    other = await another(tab)
    await menu(other, "old name", "Rename")
    await other.get_by_label("New name").fill("new name")
    await other.get_by_label("New name").press("Enter")
    await expect(row(tab, "new name")).to_have_count(1)
    await menu(other, "new name", "Delete")
    await expect(tab.locator("#conversations .side-item")).to_have_count(0)
    await other.close()


async def test_the_list_has_no_end_and_does_not_jump(visitor, tab, keep, broker, owner):
    made = await keep(*((f"talk {i}", i / 10) for i in range(400)))
    items = tab.locator("#conversations .side-item")
    await expect(items).not_to_have_count(0)
    for _ in range(40):
        await tab.locator("#conversations").evaluate("e => e.scrollBy(0, 1500)")
        await tab.evaluate("() => new Promise(requestAnimationFrame)")
        if await items.count() == 400:
            break
        await tab.wait_for_timeout(30)
    await expect(items).to_have_count(400)
    middle = "() => { const list = document.getElementById('conversations').getBoundingClientRect(); const e = document.elementFromPoint(list.x + 40, list.y + list.height / 2).closest('.side-item'); return [e.dataset.id, Math.round(e.getBoundingClientRect().y)]; }"  # fmt: skip
    before = await tab.evaluate(middle)
    await shelf.rename(broker, made[300], owner, "renamed far below")
    await shelf.rename(broker, made[398], owner, "renamed at the end")
    await expect(row(tab, "renamed at the end")).to_have_count(1)
    assert await tab.evaluate(middle) == before
    assert await items.count() == 400
    assert (await titles(tab))[0] == "talk 0"


async def test_the_drawer_on_a_phone(visitor, tab, keep):
    await tab.set_viewport_size({"width": 390, "height": 844})
    await keep(("first", 1), ("second", 2))
    await tab.locator("#side-open").click()
    await tab.keyboard.press("Control+k")
    await tab.locator("#search").fill("second")
    await tab.locator("#found [role=option]").first.click()
    await expect(tab.locator("body")).not_to_have_class(re.compile("drawn"))
    await expect(tab.locator(".turn.question")).to_contain_text("second")
    await tab.keyboard.press("Control+k")
    await expect(tab.locator("#search")).to_be_focused()
    await tab.keyboard.press("Escape")  # back to the list
    await menu(tab, "first", "Delete")
    await expect(tab.get_by_role("button", name="Undo")).to_be_visible()
    await tab.locator("[data-language]").focus()
    await tab.keyboard.press("Tab")
    await expect(tab.get_by_role("button", name="Undo")).to_be_focused()
    await tab.keyboard.press("Enter")
    await expect(row(tab, "first")).to_have_count(1)
    await tab.locator("#search").focus()
    await tab.keyboard.press("Escape")
    await expect(tab.locator("body")).not_to_have_class(re.compile("drawn"))
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 390


async def test_a_list_that_is_loaded_says_what_is_in_it(visitor, tab, keep):
    await keep(("<b>bold</b> & 'quotes'", 1), tags=("<i>",))
    await expect(tab.locator("#conversations .side-title")).to_have_text("<b>bold</b> & 'quotes'")
    await expect(tab.locator("#tags .tag")).to_have_text("<i>")
    assert json.loads(await tab.evaluate("JSON.stringify([...document.querySelectorAll('#sidebar b, #sidebar i')].length)")) == 0  # fmt: skip
