"""The whole life of a round in a real Chromium: asked, answered, voted on, shared; on a desk and on a phone, in both languages."""

import re
import struct

import pytest
from playwright.async_api import expect

from broker import votes
from helpers import eventually
from webpage import ready

pytestmark = pytest.mark.timeout(90)

LONG = "/echo 4000 15ms"
SHIFTS = """() => {
    window.shifts = 0;
    new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (window.shifts += value))).observe({ type: "layout-shift" });
}"""


class Ring:
    """A page of the arena and what one does on it."""

    def __init__(self, url: str, tab) -> None:
        self.url, self.tab = url, tab

    async def open(self, path: str = "/arena", language: str = "en", width: int = 1280) -> None:
        await self.tab.context.add_cookies([{"name": "language", "value": language, "url": self.url}])
        await self.tab.set_viewport_size({"width": width, "height": 800})
        await self.tab.goto(self.url + path)

    async def ask(self, text: str) -> None:
        await self.tab.locator("#prompt").fill(text)
        await expect(self.tab.locator("#send")).to_have_attribute("aria-disabled", "false")
        await self.tab.locator("#prompt").press("Enter")

    def answer(self, side: str):
        return self.tab.locator(f".side[data-side={side}] .md").last

    def vote(self, winner: str):
        return self.tab.locator(f"#votes [data-winner={winner}]")

    async def finished(self) -> None:
        """Both answers are there, and the vote is open."""
        await expect(self.vote("a")).to_have_attribute("aria-disabled", "false", timeout=20_000)


@pytest.fixture
async def ring(visitor, tab, worker_in):
    async with worker_in(model="parrot=echo"):
        yield Ring(visitor.url, tab)


async def cast(broker) -> list[tuple[str, str]]:
    return [(vote.kind, vote.winner) async for batch in votes.read(broker) for _, vote in batch]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    ("language", "model", "won", "fresh"),
    [("en", "Model A", "You said: B is better.", "New round"), ("zh-Hant", "模型 A", "B 較好", "新的一局")],
)
async def test_the_whole_life_of_a_round(ring, tab, broker, width, language, model, won, fresh):
    await ring.open(language=language, width=width)
    await expect(tab.locator("#ballot")).to_be_hidden()
    await ring.ask("hello **there**")
    await expect(ring.answer("a").locator("strong")).to_have_text("there")
    await ring.finished()
    await expect(tab).to_have_url(re.compile(r"/arena/[0-9a-f]{26}$"))
    await ring.ask("and more")
    await expect(ring.answer("a")).to_have_text("and more")
    if width < 768:
        await expect(ring.answer("b")).to_be_hidden()
        await expect(tab.locator(".side-tab[data-side=a]")).to_have_text(f"A{model}")
        await tab.locator(".side-tab[data-side=b]").click()
        await expect(ring.answer("a")).to_be_hidden()
    else:
        await expect(tab.locator("p.side-name[data-side=a]")).to_have_text(f"A{model}")
    await expect(ring.answer("b")).to_have_text("and more")
    await ring.finished()
    page = await tab.content()
    assert "parrot" not in page
    assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await cast(broker) == []
    await ring.vote("b").click()
    await expect(tab.locator("#verdict")).to_contain_text(won)
    await expect(tab.locator("#verdict-text")).to_have_text(re.compile("(echo.*parrot|parrot.*echo)"))
    assert await cast(broker) == [("blind", "b")]
    names = [await tab.locator(f"p.side-name[data-side={side}] .side-label").text_content() for side in "ab"]
    assert sorted(names) == ["echo", "parrot"]
    await expect(tab.locator(".side-name.won")).to_have_count(2)  # its tab and its heading
    await tab.reload()
    await expect(tab.locator("#verdict")).to_contain_text(won)
    await expect(tab.locator(".bout")).to_have_count(2)
    await tab.get_by_role("button", name=fresh, exact=True).click()
    await expect(tab.locator("#hero")).to_be_visible()
    await expect(tab).to_have_url(re.compile(r"/arena$"))
    await ring.ask("again")
    await ring.finished()
    assert "parrot" not in await tab.locator("#arena").inner_html()
    await tab.go_back()
    await tab.go_back()
    await expect(tab.locator("#verdict")).to_contain_text(won)


async def test_all_of_it_without_a_pointer_and_by_ear(ring, tab, broker):
    await ring.open()
    await ring.ask("One sentence. Another one.")
    await expect(tab.locator("#live")).to_contain_text("Model A: One sentence. Another one.")
    await expect(tab.locator("#live")).to_contain_text("Model B: One sentence. Another one.")
    await expect(tab.locator("#live")).to_contain_text("Both answers are complete. You can vote now.")
    await ring.finished()
    await tab.keyboard.press("3")
    assert await tab.locator("#prompt").input_value() == "3", "in the message box it is what one writes"
    await tab.locator("#prompt").fill("")
    await tab.keyboard.press("Escape")
    await expect(ring.vote("a")).to_be_focused()
    await expect(tab.get_by_role("group", name="Which answer is better?")).to_be_visible()
    await tab.keyboard.press("?")
    await expect(tab.locator("dialog.help")).to_contain_text("Both are bad")
    await tab.keyboard.press("Escape")
    await expect(tab.locator("dialog")).to_have_count(0)
    await tab.keyboard.press("3")
    await expect(tab.locator("#verdict")).to_contain_text("You said: a tie.")
    await expect(tab.locator("#live")).to_contain_text("You said: a tie.")
    assert await cast(broker) == [("blind", "tie")]
    await expect(tab.locator("#verdict-new")).to_be_focused()
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#prompt")).to_be_focused()


async def test_nothing_moves_while_both_are_written(ring, tab):
    await ring.open()
    await tab.emulate_media(reduced_motion="reduce")
    await ring.ask("first")
    await ring.finished()
    await tab.evaluate(SHIFTS)
    await ring.ask("/echo 60 20ms")
    await expect(ring.answer("b")).to_contain_text("20")
    assert await tab.evaluate("document.getAnimations().filter((a) => a.playState === 'running').length") == 0
    await ring.finished()
    await ring.vote("a").click()
    await expect(tab.locator("#verdict")).to_be_visible()
    assert await tab.evaluate("window.shifts") < 0.01


async def test_stop_both_again_and_a_reload_in_the_middle(ring, tab, broker):
    await ring.open()
    await ring.ask(LONG)
    await expect(ring.answer("b")).to_contain_text("20")
    await tab.keyboard.press("Escape")
    for side in "ab":
        await expect(tab.locator(f".side[data-side={side}] .mark")).to_have_text("Stopped")
    assert len(await ring.answer("a").inner_text()) == len(await ring.answer("b").inner_text())
    await expect(ring.vote("a")).to_have_attribute("aria-disabled", "true")
    await tab.locator("#again").click()
    await expect(ring.answer("b")).to_contain_text("20")
    await expect(tab.locator(".bout")).to_have_count(1)
    await tab.reload()
    for side in "ab":
        await expect(ring.answer(side)).to_contain_text("20")
        await expect(tab.locator(f".side[data-side={side}] .mark")).to_have_text("Stopped")
    await ring.ask("short")
    await ring.finished()
    await ring.vote("bad").click()
    await expect(tab.locator("#verdict")).to_contain_text("both are bad")
    assert await cast(broker) == [("blind", "bad")]


async def test_a_void_round_says_so_and_takes_no_vote(ring, tab, monkeypatch):
    monkeypatch.setenv("FLEETCHAT_ECHO_FAULTS", "1")
    await ring.open()
    await ring.ask("/echo 5 10ms fail")
    await expect(tab.locator("#verdict")).to_contain_text("One of the two answers has failed, so this round is void.")
    await expect(tab.locator("#votes")).to_be_hidden()
    assert "parrot" not in await tab.content()
    await tab.locator("#verdict-new").click()
    await ring.ask("fine")
    await ring.finished()


async def test_names_without_a_vote_and_then_one_that_does_not_count(ring, tab, broker):
    await ring.open()
    await ring.ask("hello")
    await ring.finished()
    await tab.locator("#more").click()
    await tab.get_by_role("menuitem", name=re.compile("Show the names")).click()
    await expect(tab.locator("p.side-name .side-label")).to_have_text([re.compile("echo|parrot")] * 2)
    await ring.vote("a").click()
    await expect(tab.locator("#verdict")).to_contain_text("A is better")
    assert await cast(broker) == [("late", "a")]


async def test_named_models_side_by_side(ring, tab, broker, worker_in):
    await ring.open("/compare")
    await expect(tab.locator("#model-a")).to_have_value("echo")
    await expect(tab.locator("#model-b")).to_have_value("parrot")
    await tab.locator("#model-b").select_option("echo")
    await tab.locator("#prompt").fill("hello")
    await expect(tab.locator("#hint")).to_have_text("Pick two different models.")
    await expect(tab.locator("#send")).to_have_attribute("aria-disabled", "true")
    await tab.locator("#model-b").select_option("parrot")
    await ring.ask("hello")
    await expect(tab.locator(".side[data-side=b] .facts")).to_contain_text("parrot · 1 token")
    await ring.finished()
    await ring.vote("a").click()
    await expect(tab.locator("#verdict")).to_contain_text("You said: A is better.")
    await ring.ask("more")
    await ring.finished()
    await expect(tab.locator(".bout")).to_have_count(2)
    assert await cast(broker) == [("named", "a")]
    await tab.locator("#model-a").select_option("parrot")
    await expect(tab.locator(".bout")).to_have_count(0)
    await expect(tab).to_have_url(re.compile("/compare$"))
    await tab.reload()
    await expect(tab.locator("#model-a")).to_have_value("parrot")


async def test_a_round_is_shared_as_a_link_and_as_a_picture(ring, tab):
    await ring.open()
    await ring.ask("hello **there**, 這是一個沒有空格的句子" + "很長" * 200)
    await ring.finished()
    await ring.vote("a").click()
    await expect(tab.locator("#verdict")).to_be_visible()
    await tab.locator("#more").click()
    async with tab.expect_download() as download:
        await tab.get_by_role("menuitem", name="Save as a picture").click()
    data = (await (await download.value).path()).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width == 1200
    assert 400 < height < 4000
    await tab.locator("#more").click()
    await tab.get_by_role("menuitem", name="Share a link…").click()
    await tab.get_by_role("button", name="Make a link").click()
    link = await tab.locator("dialog .share input").first.input_value()
    await tab.goto(link)
    await expect(tab.locator(".paper-pair .paper-turn")).to_have_count(2)
    await expect(tab.locator(".paper-pair .md strong").first).to_have_text("there")
    await expect(tab.locator(".paper-pair h2").first).to_have_text(re.compile("A · (echo|parrot)"))
    await expect(tab.locator(".paper-verdict")).to_have_text("Vote: A is better.")


async def test_without_two_models_the_page_says_so(visitor, tab):
    ring = Ring(visitor.url, tab)
    await ring.open()
    await ring.ask("hello")
    await expect(tab.locator("#notice")).to_contain_text("A battle needs two models")
    assert await tab.locator("#prompt").input_value() == "hello", "what was written is not lost"
    await expect(tab.locator("#hero")).to_be_visible()
    await ring.open("/compare")
    await tab.locator("#prompt").fill("hello")
    await expect(tab.locator("#hint")).to_have_text("Two models are needed, and fewer are running.")


async def test_a_round_survives_its_web_process(broker, website, tab):
    """Killed while both are written, and again between the answers and the vote."""
    website.worker("parrot=echo", "second")
    await eventually(lambda: ready(broker, "echo", "parrot"), 20)
    ring = Ring(website.url, tab)
    tab.forgiven.append("Failed to load resource")
    await ring.open()
    await ring.ask("/echo 100 20ms")
    await expect(ring.answer("b")).to_contain_text("10")
    await website.kill_and_restart()
    await ring.finished()
    for side in "ab":
        await expect(ring.answer(side)).to_contain_text("100")
    assert "parrot" not in await tab.content()
    await website.kill_and_restart()
    await expect(tab.locator("#connection")).to_be_hidden(timeout=15_000)
    await ring.vote("b").click()
    await expect(tab.locator("#verdict")).to_contain_text("B is better")
    assert await cast(broker) == [("blind", "b")]


@pytest.mark.parametrize("width", [1280, 390])
async def test_named_models_answer_by_the_settings_that_one_chooses(ring, tab, width):
    await ring.open("/compare", width=width)
    await tab.locator("#settings-open").click()
    panel = tab.locator(".panel.settings")
    await panel.get_by_role("spinbutton", name="Token limit").fill("2")
    await panel.get_by_role("button", name="Done").click()
    await expect(tab.locator("#settings-open")).to_have_attribute("aria-label", "Answer settings, changed")
    await ring.ask("one two three")
    for side in "ab":
        await expect(ring.answer(side)).to_have_text("one two")
    await ring.finished()
    await tab.keyboard.press("Control+,")
    await panel.get_by_role("button", name="Reset", exact=True).click()
    await panel.get_by_role("button", name="Done").click()
    await tab.locator("#again").click()
    for side in "ab":
        await expect(ring.answer(side)).to_have_text("one two three")
    await ring.open("/arena", width=width)
    await expect(tab.locator("#settings-open")).to_have_count(0)
