"""The chat page in a real Chromium: what a person does with the messages of one conversation."""

import asyncio
import re
from dataclasses import replace

import pytest
from playwright.async_api import Locator, Page, expect

from broker import conversations, keys, registry, streams
from broker.imports import Imported
from broker.messages import Frame, ModelCard, new_id, pack
from broker.streams import Written
from broker.transcripts import store
from helpers import claim, eventually
from webapp.state import BROKER

pytestmark = pytest.mark.timeout(60)


RENAME = """() => fetch(`/conversations/${location.pathname.slice(3)}`, {
    method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ title: "renamed" }),
})"""


def act(turn: Locator, name: str) -> Locator:
    """A button of a message."""
    return turn.get_by_role("button", name=name, exact=True)


def questions(tab: Page) -> Locator:
    return tab.locator(".turn.question")


def answers(tab: Page) -> Locator:
    return tab.locator(".turn.answer")


async def press(button: Locator) -> None:
    """By keyboard, so that it need not be hovered first."""
    await button.focus()
    await button.press("Enter")


async def test_an_answer_appears_under_its_question_with_its_figures(visitor, tab):
    await visitor.ask("**bold** words")
    await expect(visitor.answer.locator("strong")).to_have_text("bold")
    await expect(questions(tab)).to_have_count(1)
    await expect(answers(tab).locator(".facts")).to_have_text(
        re.compile(r"echo · 2\stokens · first\safter\s.*\sin\sall")
    )
    await expect(tab.locator("#gauge")).to_have_attribute("aria-label", re.compile("4 of 131,072 tokens used"))


async def test_a_question_is_edited_and_its_versions_stay(visitor, tab):
    await visitor.ask("one")
    await expect(visitor.answer).to_have_text("one")
    await press(act(questions(tab), "Edit this message"))
    field = questions(tab).locator("textarea")
    await field.press("Escape")
    await expect(questions(tab).locator(".question-text")).to_have_text("one")
    await press(act(questions(tab), "Edit this message"))
    await field.fill("two")
    await field.press("Control+Enter")
    await expect(visitor.answer).to_have_text("two")
    await expect(questions(tab)).to_have_count(1)
    await expect(questions(tab).locator(".versions-shown")).to_have_text("2 / 2")
    await press(act(questions(tab), "Version before"))
    await expect(visitor.answer).to_have_text("one")
    await expect(questions(tab).locator(".versions-shown")).to_have_text("1 / 2")
    await expect(act(questions(tab), "Version after")).to_be_focused()
    await expect(tab.locator("#live")).to_contain_text("Version 1 of 2")
    await tab.reload()
    await expect(visitor.answer).to_have_text("one")
    await tab.keyboard.press("Escape")
    await press(act(questions(tab), "Version after"))
    await expect(visitor.answer).to_have_text("two")


async def test_an_edit_that_is_refused_can_be_mended(visitor, tab):
    await visitor.ask("one")
    await expect(visitor.answer).to_have_text("one")
    broker = visitor.server.app[BROKER]
    broker.config = replace(broker.config, prompt_bytes=10)
    await press(act(questions(tab), "Edit this message"))
    field = questions(tab).locator("textarea")
    await field.fill("too long for this server")
    await field.press("Control+Enter")
    await expect(tab.locator("#notice")).to_contain_text("FLEETCHAT_PROMPT_BYTES")
    await expect(visitor.answer).to_have_text("one")
    await expect(field).to_have_value("too long for this server")
    await field.fill("short")
    await field.press("Control+Enter")
    await expect(visitor.answer).to_have_text("short")


async def test_another_answer_is_a_version_beside_the_first_also_in_the_middle(visitor, tab):
    for text in ("first", "second"):
        await visitor.ask(text)
        await expect(visitor.answer).to_have_text(text)
    await press(act(answers(tab).first, "Write the answer again"))
    await expect(questions(tab)).to_have_count(1)
    await expect(answers(tab).locator(".versions-shown")).to_have_text("2 / 2")
    await expect(visitor.answer).to_have_text("first")
    await press(act(answers(tab), "Version before"))
    await expect(questions(tab)).to_have_count(2)
    await expect(visitor.answer).to_have_text("second")
    await expect(answers(tab).first.locator(".versions-shown")).to_have_text("1 / 2")


async def test_another_model_answers_from_the_menu(visitor, tab, worker_in):
    await visitor.ask("hello")
    await expect(visitor.answer).to_have_text("hello")
    async with worker_in(model="parrot=echo"):
        await expect(tab.locator("#models [data-name=parrot]")).to_have_count(1)
        await press(act(answers(tab), "More"))
        await tab.get_by_role("menuitem", name="Write again with parrot").press("Enter")
        await expect(answers(tab).locator(".facts")).to_contain_text("parrot · 1 token")
        await expect(answers(tab).locator(".versions-shown")).to_have_text("2 / 2")


async def test_a_menu_that_was_open_while_the_path_was_read_anew_still_works(visitor, tab, worker_in):
    await visitor.ask("hello")
    await expect(visitor.answer).to_have_text("hello")
    async with worker_in(model="parrot=echo"):
        await expect(tab.locator("#models [data-name=parrot]")).to_have_count(1)
        await press(act(answers(tab), "More"))
        async with tab.expect_response(re.compile(r"/conversations/\w+\?leaf=")) as read:
            await tab.evaluate(RENAME)
        await (await read.value).finished()
        await tab.evaluate("new Promise((done) => setTimeout(done))")  # until it is shown
        await tab.get_by_role("menuitem", name="Write again with parrot").press("Enter")
        await expect(answers(tab).locator(".versions-shown")).to_have_text("2 / 2")


async def test_an_answer_that_ended_too_early_goes_on(visitor, tab):
    await tab.get_by_role("button", name="Answer settings").click()
    await tab.get_by_role("spinbutton", name="Token limit").fill("3")
    await tab.keyboard.press("Escape")
    await visitor.ask("/echo 6")
    await expect(answers(tab).locator(".mark")).to_have_text("Ended at the token limit")
    await expect(visitor.answer).to_have_text("1 2 3")
    await answers(tab).get_by_role("button", name="Continue").click()
    await expect(visitor.answer).to_have_text("1 2 3 4 5 6")
    await expect(answers(tab).locator(".versions-shown")).to_have_text("2 / 2")
    await tab.reload()
    await expect(visitor.answer).to_have_text("1 2 3 4 5 6")
    await expect(answers(tab).get_by_role("button", name="Continue")).to_be_hidden()


async def test_a_reload_while_an_answer_goes_on_shows_all_of_it(visitor, tab):
    await visitor.ask("/echo 400 20ms")
    await expect(visitor.answer).to_contain_text("9")
    await tab.keyboard.press("Escape")
    await answers(tab).get_by_role("button", name="Continue").click()
    await expect(answers(tab).locator(".turn-foot")).to_be_hidden()
    await tab.reload()
    await expect(visitor.answer).to_contain_text("1 2 3 4 5 6 7 8 9 10")
    await tab.locator("#stop").click()
    await expect(answers(tab).locator(".versions-shown")).to_have_text("2 / 2")
    stopped = await visitor.words()
    assert stopped == [str(i) for i in range(1, len(stopped) + 1)]


async def test_an_answer_is_rated_with_a_note(visitor, tab, broker):
    await visitor.ask("hello")
    await expect(visitor.answer).to_have_text("hello")
    bad = act(answers(tab), "Bad answer")
    await press(bad)
    await expect(bad).to_have_attribute("aria-pressed", "true")
    await tab.get_by_label("Note", exact=True).fill("too short")
    await tab.keyboard.press("Enter")
    await expect(bad).to_be_focused()
    await eventually(lambda: _ratings(broker, 2))
    await tab.reload()
    await expect(bad).to_have_attribute("aria-pressed", "true")
    await press(bad)
    await expect(bad).to_have_attribute("aria-pressed", "false")
    (entries,) = [await eventually(lambda: _ratings(broker, 3))]
    assert [(e[b"rating"], e[b"note"]) for _, e in entries] == [(b"down", b""), (b"down", b"too short"), (b"", b"")]


async def test_a_rating_arrives_also_if_the_page_is_left_in_the_same_moment(visitor, tab, broker):
    await visitor.ask("hello")
    await expect(act(answers(tab), "Good answer")).to_be_visible()
    left = asyncio.Event()

    async def later(route):
        await left.wait()
        await route.continue_()

    await tab.route("**/rating", later)
    await act(answers(tab), "Good answer").evaluate("(button) => { button.click(); location = 'about:blank'; }")
    await tab.wait_for_url("about:blank")
    left.set()
    await eventually(lambda: _ratings(broker, 1))


async def _ratings(broker, count):
    entries = await broker.redis.xrange(keys.RATINGS)
    return entries if len(entries) == count else None


async def test_deleting_asks_first_and_takes_what_is_below(visitor, tab):
    for text in ("first", "second"):
        await visitor.ask(text)
        await expect(visitor.answer).to_have_text(text)
    await press(act(questions(tab).last, "Delete from here"))
    await tab.get_by_role("button", name="Keep it").click()
    await expect(questions(tab)).to_have_count(2)
    await press(act(questions(tab).last, "Delete from here"))
    await tab.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(questions(tab)).to_have_count(1)
    await expect(visitor.answer).to_have_text("first")
    await visitor.ask("third")
    await expect(visitor.answer).to_have_text("third")
    await tab.reload()
    await expect(questions(tab).locator(".question-text")).to_have_text(["first", "third"])


async def test_reasoning_and_calls_of_tools_are_folded(visitor, tab, broker):
    await visitor.ask("hello")
    await expect(visitor.answer).to_have_text("hello")
    conversation = tab.url.rpartition("/")[2]
    owner = (await broker.redis.hget(keys.conversation(conversation), "owner")).decode()
    record, messages = await conversations.load(broker, conversation, owner)
    answer = messages[record.leaf].to_map()
    parts = [
        {"kind": "reasoning", "text": "Let me see."},
        {"kind": "tool", "name": "sum", "text": '{"x":1}'},
        {"kind": "text", "text": "It is **one**."},
    ]
    answer |= {"parts": parts, "timings": {"first": 0.5, "total": 20.0, "reasoning": 12.2}}
    await broker.redis.hset(keys.messages(conversation), record.leaf, pack(answer))
    await tab.reload()
    await expect(visitor.answer.locator("strong")).to_have_text("one")
    thoughts = answers(tab).locator(".thoughts")
    await expect(thoughts.locator("summary")).to_have_text("Thought for 12 s")
    await expect(thoughts.locator(".thoughts-text")).to_be_hidden()
    await thoughts.locator("summary").click()
    await expect(thoughts.locator(".thoughts-text")).to_have_text("Let me see.")
    call = answers(tab).locator(".call")
    await expect(call.locator("summary")).to_have_text("Calls sum")
    await call.locator("summary").click()
    await expect(call.locator("pre")).to_have_text('{\n  "x": 1\n}')


async def test_a_temporary_chat_leaves_nothing_behind(visitor, tab, broker):
    await tab.get_by_role("button", name="Temporary chat").click()
    await expect(tab.locator("#temporary-note")).to_be_visible()
    for text in ("first", "second"):
        await visitor.ask(text)
        await expect(visitor.answer).to_have_text(text)
    await press(act(questions(tab).last, "Edit this message"))
    await questions(tab).last.locator("textarea").fill("third")
    await tab.keyboard.press("Control+Enter")
    await expect(visitor.answer).to_have_text("third")
    await press(act(answers(tab).last, "Write the answer again"))
    await expect(visitor.answer).to_have_text("third")
    await expect(questions(tab).locator(".question-text")).to_have_text(["first", "third"])
    await press(act(answers(tab).last, "More"))
    await tab.get_by_role("menuitem", name="Delete this answer").press("Enter")
    await tab.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await answers(tab).last.get_by_role("button", name="Try again").click()
    await expect(visitor.answer).to_have_text("third")
    assert tab.url.endswith("/")
    assert await broker.redis.keys("conversation*") == []
    assert await broker.redis.keys("messages*") == []
    await tab.locator("#side-new").click()
    await expect(tab.locator("#temporary-note")).to_be_hidden()
    await expect(tab.locator("#hero")).to_be_visible()


async def test_a_long_chat_opens_at_its_end_and_earlier_messages_come_without_a_jump(visitor, tab, broker):
    await visitor.ask("hello")
    await expect(visitor.answer).to_have_text("hello")
    conversation = tab.url.rpartition("/")[2]
    stored, parent = {}, ""
    for i in range(1000):
        message = new_id()
        role = ("user", "assistant")[i % 2]
        text = f"message {i} " + "with some words " * (1 + 7 * (i % 9))
        stored[message] = pack(
            {"role": role, "parent": parent, "parts": [{"kind": "text", "text": text}], "created": i, "model": "echo"}
        )
        parent = message
    await broker.redis.delete(keys.messages(conversation))
    await broker.redis.hset(keys.messages(conversation), mapping=stored)
    await broker.redis.hset(keys.conversation(conversation), "leaf", parent)
    await tab.reload()
    await expect(visitor.answer).to_contain_text("message 999")
    scroller = tab.locator(".scroller")
    await eventually(lambda: scroller.evaluate("s => s.scrollTop > 600"))  # what comes by itself has come
    shown = await tab.locator(".turn").count()
    assert shown < 60
    top = tab.locator(".turn").first
    await scroller.evaluate("s => s.scrollTo(0, 300)")
    before = await top.evaluate("e => ({text: e.textContent, y: e.getBoundingClientRect().y})")
    await expect(tab.locator(".turn")).not_to_have_count(shown)
    same = tab.locator(".turn", has_text=re.search(r"message \d+ ", before["text"])[0]).first
    assert abs((await same.bounding_box())["y"] - before["y"]) < 2
    for _ in range(4):
        shown = await tab.locator(".turn").count()
        await scroller.evaluate("s => s.scrollTo(0, 0)")
        await expect(tab.locator(".turn")).not_to_have_count(shown)
    numbers = [int(re.search(r"message (\d+) ", text)[1]) for text in await tab.locator(".turn").all_text_contents()]
    assert numbers == list(range(1000 - len(numbers), 1000))


async def test_far_from_view_messages_rest_and_are_there_again_when_one_comes_back(visitor, tab, broker):
    await visitor.ask("hello")
    await expect(visitor.answer).to_have_text("hello")
    messages = {}
    for i in range(300):
        parts = [{"kind": "text", "text": f"message {i} " + "with some words " * (1 + 17 * (i % 9))}]
        role = ("user", "assistant")[i % 2]
        messages[str(i)] = {
            "role": role,
            "parent": str(i - 1) if i else "",
            "created": i,
            "parts": parts,
            "model": "echo",
        }
    (cookie,) = await tab.context.cookies()
    await store(broker, cookie["value"].partition(".")[0], [Imported("A long one", 1, 1, "299", messages)])
    await tab.reload()
    await tab.get_by_role("link", name="A long one").click()
    await expect(visitor.answer).to_contain_text("message 299")
    scroller, turns, resting = tab.locator(".scroller"), tab.locator(".turn"), tab.locator(".turn.question.resting")
    while await turns.count() < 140:
        shown = await turns.count()
        await scroller.evaluate("s => s.scrollTo(0, 0)")
        await expect(turns).not_to_have_count(shown)
    await expect(resting.last).to_be_empty()
    at = await resting.last.evaluate("e => [...e.parentNode.children].indexOf(e)")
    height = await turns.nth(at).evaluate("e => e.offsetHeight")
    await turns.nth(at).evaluate("e => e.scrollIntoView()")
    number = 300 - await turns.count() + at
    await expect(turns.nth(at)).to_contain_text(f"message {number} ")
    assert abs(await turns.nth(at).evaluate("e => e.offsetHeight") - height) < 1
    await turns.nth(at).get_by_role("button", name="Edit this message").click()  # what has woken is as it was
    await expect(turns.nth(at).locator("textarea")).to_have_value(re.compile(f"message {number} "))


async def test_scrolling_up_is_not_fought_and_nothing_shifts(visitor, tab):
    await tab.evaluate(
        "window.shifts = 0; new PerformanceObserver(l => l.getEntries().forEach(e => { window.shifts += e.value }))"
        ".observe({type: 'layout-shift', buffered: false})"
    )
    await visitor.ask("/echo 900 2ms")
    await expect(visitor.answer).to_contain_text("600", timeout=20_000)
    await tab.mouse.move(600, 300)
    await tab.mouse.wheel(0, -400)
    scroller = tab.locator(".scroller")
    at = await scroller.evaluate("s => new Promise(r => setTimeout(() => r(s.scrollTop), 200))")
    await expect(visitor.answer).to_contain_text("900", timeout=20_000)
    assert abs(await scroller.evaluate("s => s.scrollTop") - at) < 2
    assert await tab.evaluate("window.shifts") < 0.01
    await tab.get_by_role("button", name="Jump to the latest").click()
    await expect(tab.get_by_role("button", name="Jump to the latest")).to_be_hidden()


async def test_two_tabs_stay_in_step(visitor, tab):
    await visitor.ask("/echo 200 20ms")
    await expect(visitor.answer).to_contain_text("5")
    other = await tab.context.new_page()
    await other.goto(tab.url)
    await expect(other.locator(".turn.answer .md")).to_contain_text("20")
    await other.locator("#stop").click()
    await expect(tab.locator("#stop")).to_be_hidden()
    await visitor.ask("more")
    await expect(other.locator(".turn.answer .md").last).to_have_text("more")
    await press(act(questions(tab).last, "Delete from here"))
    await tab.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(other.locator(".turn.question")).to_have_count(1)
    await other.close()


async def test_what_the_server_said_before_an_answer_does_not_take_it_away(visitor, tab, worker_in):
    """A late reading of the conversation, in which the second answer is not yet, while its menu is open."""
    asked, release = asyncio.Event(), asyncio.Event()

    async def late(route):
        response = await route.fetch()
        asked.set()
        await release.wait()
        await route.fulfill(response=response)

    async with worker_in(model="parrot=echo"):
        await visitor.ask("hello")
        await expect(visitor.answer).to_have_text("hello")
        address = f"/conversations/{tab.url.rpartition('/')[2]}"
        await tab.route(f"**{address}?*", late, times=1)
        options = {"method": "PATCH", "headers": {"Content-Type": "application/json"}, "body": '{"title": "Named"}'}
        await tab.evaluate("async ([address, options]) => (await fetch(address, options)).status", [address, options])
        await asked.wait()
        shown = answers(tab).last.locator(".versions-shown")
        await press(act(answers(tab).last, "Write the answer again"))
        await expect(shown).to_have_text("2 / 2")
        await expect(answers(tab).last).to_have_class(re.compile("done"))
        await press(act(answers(tab).last, "More"))
        release.set()
        await expect(tab).to_have_title("Named · FleetChat")
        await expect(shown).to_have_text("2 / 2")
        await tab.get_by_role("menuitem", name="Write again with parrot").click()
        await expect(shown).to_have_text("3 / 3")


async def test_a_link_brings_a_question_and_a_model(visitor, tab, worker_in):
    async with worker_in(model="parrot=echo"):
        await tab.goto(visitor.url + "/?model=parrot&q=What%20now%3F")
        await expect(tab.locator("#picker-name")).to_have_text("parrot")
        await expect(tab.locator("#prompt")).to_have_value("What now?")


async def test_an_answer_that_the_server_has_lost_is_written_anew(visitor, tab, broker):
    await visitor.ask("/echo 200 20ms")
    await expect(visitor.answer).to_contain_text("9")
    conversation = keys.conversation(tab.url.rpartition("/")[2])
    request_id = (await broker.redis.hget(conversation, "requests")).decode()
    tab.forgiven.append("ERR_INTERNET_DISCONNECTED")
    await tab.context.set_offline(True)
    await tab.evaluate("window.dispatchEvent(new Event('offline'))")
    await expect(tab.locator("#connection")).to_be_visible()
    await broker.redis.delete(keys.request(request_id), keys.frames(request_id))
    await tab.context.set_offline(False)
    await expect(answers(tab).locator(".problem")).to_contain_text("This answer got lost", timeout=15_000)
    await answers(tab).get_by_role("button", name="Try again").click()
    await expect(visitor.answer).to_contain_text("9")
    await expect(answers(tab)).to_have_count(1)
    await tab.keyboard.press("Escape")
    await expect(answers(tab).locator(".mark")).to_have_text("Stopped")


async def test_leaving_a_chat_and_coming_back_finds_its_answer_growing(visitor, tab):
    await visitor.ask("/echo 300 20ms")
    await expect(visitor.answer).to_contain_text("9")
    await tab.locator("#side-new").click()
    await expect(tab.locator(".turn")).to_have_count(0)
    await visitor.ask("another")
    await expect(visitor.answer).to_have_text("another")
    await tab.go_back()
    await tab.go_back()
    await expect(questions(tab).locator(".question-text")).to_have_text("/echo 300 20ms")
    some = len(await visitor.words())
    await expect(visitor.answer).to_contain_text(str(some + 10))
    await tab.keyboard.press("Escape")
    await expect(answers(tab).locator(".mark")).to_have_text("Stopped")
    stopped = await visitor.words()
    assert stopped == [str(i) for i in range(1, len(stopped) + 1)]
    await tab.go_forward()
    await tab.go_forward()
    await expect(visitor.answer).to_have_text("another")


async def test_thinking_is_shown_while_it_lasts(visitor, tab, broker):
    """The test plays the worker of a model that thinks."""
    await registry.beat(broker, "w", "ready", {"models": "m", "slots": 4}, [ModelCard("m", state="ready")])
    await tab.goto(visitor.url + "/?model=m")
    await expect(tab.locator("#picker-name")).to_have_text("m")
    await visitor.ask("Think!")
    (held,) = await eventually(lambda: claim(broker))

    async def write(seq: int, text: str, kind: str = "text", **end: object) -> None:
        frame = Frame(held.request_id, seq, 1, text, kind, **end)
        await streams.append(broker, [Written(held.request_id, held.token, seq, frame.encode(), last=bool(end))])

    await write(0, "Let me ", "reasoning")
    thoughts = answers(tab).locator(".thoughts")
    await expect(thoughts.locator("summary")).to_have_text("Thinking…")
    await write(1, "see.", "reasoning")
    await write(2, "It is ")
    await expect(thoughts.locator("summary")).to_have_text("Thoughts")
    await expect(visitor.answer).to_have_text("It is")
    timings = {"waited": 0.1, "first": 0.2, "total": 70.0, "reasoning": 65.0}
    await write(3, "one.", end={"reason": "stop", "usage": {}, "timings": timings})
    await expect(thoughts.locator("summary")).to_have_text("Thought for 1 min 5 s")
    await expect(visitor.answer).to_have_text("It is one.")


async def test_a_screen_reader_hears_sentences_not_words(visitor, tab):
    await tab.evaluate("""() => {
        window.heard = [];
        const note = (changes) => heard.push(...changes.flatMap((one) => [...one.addedNodes].map((p) => p.textContent)));
        new MutationObserver(note).observe(document.getElementById("live"), { childList: true });
    }""")
    said = " ".join(f"This is sentence number {i}." for i in range(1, 11))
    await visitor.ask(f"/echo 100ms\n{said}")
    await expect(tab.locator("#live")).to_contain_text("number 10.")
    heard = [line for line in await tab.evaluate("heard") if line.startswith("This")]
    assert " ".join(heard) == said, "all of it, once"
    assert 1 < len(heard) <= 4, "as it comes, and seldom enough to be listened to"


async def test_first_words_become_a_title_by_the_model(visitor, tab, broker):
    """The test plays the worker."""
    await registry.beat(broker, "w", "ready", {"models": "m", "slots": 4}, [ModelCard("m", state="ready")])
    await visitor.open("m", "/?model=m")
    await visitor.ask("羅馬在哪裡？")

    async def write(text: str) -> None:
        (held,) = await eventually(lambda: claim(broker))
        frame = Frame(held.request_id, 0, 1, text, end={"reason": "stop", "usage": {}})
        await streams.append(broker, [Written(held.request_id, held.token, 0, frame.encode(), last=True)])

    await write("在義大利。")
    title = tab.locator("#conversations .side-title")
    await expect(title).to_have_text(["羅馬在哪裡？"])
    await write("《羅馬之旅》")
    await expect(title).to_have_text(["羅馬之旅"])
    await expect(tab).to_have_title(re.compile("羅馬之旅"))
