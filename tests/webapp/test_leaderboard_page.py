"""The leaderboard in a real Chromium: what follows the votes, what is sorted and filtered, and the figures."""

import re
import time

import pytest
from playwright.async_api import expect

from broker import leaderboard
from broker.leaderboard import BoardRequest
from helpers import cast, eventually

pytestmark = pytest.mark.timeout(90)

DAY_MS = 86_400_000
FIRST = 1_770_000_000_000  # 2026-02-02
MODELS = ("tern", "gull", "plover", "heron", "skua")  # the best first
FIGURES = ("intervals", "average", "win", "count", "history")
VOTES = 10 * 16  # of the league


async def league(broker):
    """All have met 16 times; the better one of a pair has won 10 times, and one in four battles was about code."""
    long, short = (300, 2, 8, 4), (90, 0, 1, 0)
    for i, better in enumerate(MODELS):
        for worse in MODELS[i + 1 :]:
            for k in range(4):
                fields = {"a": better, "b": worse, "style_a": long if k % 2 else short, "style_b": short}
                fields |= {"at": FIRST + k * DAY_MS, "categories": ("coding",) if k == 0 else ("en",)}
                await cast(broker, 3 if k < 2 else 2, **fields)
                await cast(broker, 1, winner="b", **fields)
                await cast(broker, 0 if k < 2 else 1, winner="tie", **fields)
    await cast(broker, 3, kind="late")


@pytest.fixture
async def board(site, broker, worker_in, tab):
    """The address of a leaderboard of five models."""
    await league(broker)
    async with worker_in(role="jobs"):

        async def counted():
            boards = [await leaderboard.load(broker, BoardRequest(style=style)) for style in (False, True)]
            return all(one and one["votes"] == VOTES for one in boards)

        await eventually(counted, 20)
        yield str(site.make_url("/leaderboard"))
        await tab.goto("about:blank")


async def rows(tab):
    return await tab.locator("tbody tr[data-name]:not([hidden])").evaluate_all("all => all.map((r) => r.dataset.name)")


async def drawn(tab):
    """Wait until all figures are."""
    for name in FIGURES:
        await expect(tab.locator(f"#figure-{name} .figure-plot > *").first).to_be_attached()


async def test_a_vote_moves_the_numbers_and_nothing_else(board, broker, tab):
    await tab.set_viewport_size({"width": 1000, "height": 300})
    await tab.goto(board)
    await drawn(tab)
    assert await rows(tab) == list(MODELS)
    frame = tab.locator("#table-frame")
    await frame.evaluate("frame => frame.scrollTo(150, 60)")
    await tab.evaluate("scrollTo(0, 240)")
    await tab.locator("#sort-votes").focus()
    await tab.locator("#figure-win .plot-frame").evaluate("frame => (frame.seen = true)")
    places = """() => [scrollX, scrollY, document.activeElement.id, document.getElementById("table-frame").scrollLeft,
        document.getElementById("table-frame").scrollTop, ...[...document.querySelectorAll(".figure, .table-frame, #filters")]
        .flatMap((e) => Object.values(e.getBoundingClientRect().toJSON()))]"""
    before = await tab.evaluate(places)
    assert before[1] == 240
    assert before[4] > 0
    await cast(broker, 40, a="skua", b="tern", at=FIRST + 5 * DAY_MS)
    await expect(tab.locator("tr[data-name=skua] .c-votes")).to_have_text("104")
    await expect(tab.locator("#board-facts")).to_contain_text("Votes: 200")
    await expect(tab.locator("#figure-count td[data-i='0']").first).to_have_attribute("data-j", "1")
    assert (await rows(tab))[-1] != "skua"
    assert await tab.evaluate(places) == before
    assert await tab.locator("#figure-win .plot-frame").evaluate("frame => frame.seen")
    async with tab.expect_response(lambda r: "/leaderboard" in r.url) as looked:
        pass
    assert (await looked.value).status == 304


async def test_a_vote_is_seen_within_two_seconds(board, broker, tab):
    await tab.goto(board)
    seconds = []
    for votes in range(VOTES + 1, VOTES + 6):
        begun = time.monotonic()
        await cast(broker, a="tern", b="gull", at=FIRST + 5 * DAY_MS)
        await expect(tab.locator("#board-facts")).to_contain_text(f"Votes: {votes}")
        seconds.append(time.monotonic() - begun)
    assert sorted(seconds)[2] < 2, seconds


async def test_columns_are_sorted_by_key_and_the_order_is_in_the_address(board, tab):
    await tab.goto(board)
    head = tab.locator("#sort-win_rate")
    await head.focus()
    await tab.keyboard.press("Enter")
    await expect(tab.locator("th.c-win_rate")).to_have_attribute("aria-sort", "descending")
    await expect(head).to_be_focused()
    assert tab.url.endswith("?sort=win_rate")
    await tab.keyboard.press("Enter")
    await expect(tab.locator("th.c-win_rate")).to_have_attribute("aria-sort", "ascending")
    assert await rows(tab) == list(reversed(MODELS))
    await tab.reload()
    await expect(tab.locator("th.c-win_rate")).to_have_attribute("aria-sort", "ascending")
    assert await rows(tab) == list(reversed(MODELS))
    await tab.go_back()
    await tab.go_back()
    await expect(tab.locator("th.c-rank")).to_have_attribute("aria-sort", "ascending")
    assert await rows(tab) == list(MODELS)


async def test_filters_are_in_the_address_and_need_no_new_page(board, tab):
    await tab.goto(board)
    await tab.evaluate("window.same = true")
    await tab.locator("#style").check()
    await expect(tab.locator("th.c-change")).to_be_visible()
    await expect(tab.locator("#style")).to_be_focused()
    assert tab.url.endswith("?style=1")
    await tab.locator("#category").select_option("coding")
    await expect(tab.locator("#board-facts")).to_contain_text("Votes: 40")
    assert re.search(r"category=coding&style=1$", tab.url)
    await tab.locator("#style").uncheck()
    await tab.locator("#from").fill("2026-02-02")
    await tab.locator("#to").fill("2026-02-03")
    await expect(tab.locator("#board-facts")).to_contain_text("Votes: 40")
    await expect(tab).to_have_url(re.compile("from=2026-02-02&to=2026-02-03"))
    await tab.locator("#from").fill("2026-03-01")
    told = await tab.locator("#to").evaluate("input => input.validationMessage")
    assert told == "This day is before the first one."
    await tab.locator("#to").fill("2026-03-02")
    await expect(tab.locator(".board-empty")).to_contain_text("no votes of these days")
    await expect(tab.locator("#figures")).to_be_hidden()
    await tab.get_by_role("link", name="All days").click()
    await expect(tab.locator("#from")).to_have_value("")
    assert await tab.evaluate("window.same")
    await tab.go_back()
    await expect(tab.locator("#from")).to_have_value("2026-03-01")


async def test_a_search_hides_the_others_at_once(board, tab):
    await tab.goto(board)
    await tab.locator("#q").press_sequentially("ER")
    assert await rows(tab) == ["tern", "plover", "heron"]
    assert tab.url.endswith("?category=all&q=ER") or tab.url.endswith("?q=ER")
    async with tab.expect_response(lambda r: "q=ER" in r.url and r.status == 304):
        pass
    assert await rows(tab) == ["tern", "plover", "heron"]
    await expect(tab.locator("#q")).to_be_focused()
    await tab.locator("#q").fill("nobody")
    await expect(tab.locator("#nobody")).to_be_visible()


async def test_how_each_number_is_made_is_one_click_away(board, tab):
    await tab.goto(f"{board}?style=1")
    buttons = tab.locator(".how")
    assert await buttons.count() > 20
    for button in await buttons.all():
        await button.click()
        told = tab.locator(f"#{await button.get_attribute('popovertarget')}")
        await expect(told).to_be_visible()
        assert len(await told.inner_text()) > 100
        await tab.keyboard.press("Escape")
        await expect(told).to_be_hidden()
        await expect(button).to_be_focused()
    await tab.locator("[popovertarget=how-aside]").first.click()
    await expect(tab.locator("#how-aside")).to_contain_text("after the names were known")


async def test_what_is_read_stays_open_while_votes_come(board, broker, tab):
    await tab.goto(board)
    await tab.locator("[popovertarget=how-aside]").first.click()
    await cast(broker, 4, a="tern", b="gull", at=FIRST)
    await expect(tab.locator("#board-facts")).to_contain_text("Votes: 164")
    await expect(tab.locator("#how-aside")).to_be_visible()


async def test_the_figures_show_the_numbers_of_the_table(board, tab):
    await tab.goto(board)
    await drawn(tab)
    found = await (await tab.context.request.get(f"{board}.json")).json()
    bars = tab.locator("#figure-intervals .bars li:not(.bars-axis)")
    texts = [text.split()[1] for text in await bars.evaluate_all("all => all.map((li) => [...li.children].map((e) => e.textContent).join(' '))")]  # fmt: skip
    assert texts == [f"{one['score']:,.0f}" for one in found["models"]]
    shares = await tab.locator("#figure-average .bar-value").all_inner_texts()
    told = [100 * one["average_win_rate"] for one in found["models"]]
    assert [float(share.removesuffix(" %")) for share in shares] == pytest.approx(told, abs=0.06)
    cells = tab.locator("#figure-win td[data-i]")
    assert await cells.count() == 20
    assert await cells.first.inner_text() == f"{100 * found['heat']['win'][0][1]:.0f}"
    await cells.first.hover()
    await expect(tab.locator("#figure-win .reading")).to_have_text("tern wins 68.8 % of 16 battles against gull")
    assert set(await tab.locator("#figure-count td[data-i]").all_inner_texts()) == {"16"}
    history = tab.locator("#figure-history")
    await expect(history.locator("path.line")).to_have_count(5)
    await history.locator(".lines").focus()
    await tab.keyboard.press("ArrowLeft")
    last = {name: scores[-1] for name, scores in found["history"]["scores"].items()}
    await expect(history.locator(".reading")).to_contain_text(f"tern {last['tern']:,.0f}, gull {last['gull']:,.0f}")
    await history.get_by_role("button", name="skua").click()
    await expect(history.locator("path.line")).to_have_count(4)
    await expect(history.get_by_role("button", name="skua")).to_be_focused()
    await history.locator("summary").click()
    await expect(history.locator(".numbers tbody tr")).to_have_count(len(found["history"]["dates"]))


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
async def test_a_phone_scrolls_the_page_in_one_direction(board, tab, language):
    await tab.context.add_cookies([{"name": "language", "value": language, "url": board}])
    await tab.set_viewport_size({"width": 390, "height": 844})
    for query in ("", "?style=1", "?category=math", "?from=2026-02-02&to=2026-02-03"):
        await tab.goto(board + query)
        if "math" not in query:
            await drawn(tab)
        assert await tab.evaluate("document.documentElement.scrollWidth") == 390, query
    said = "模型或組織" if language == "zh-Hant" else "Model or organisation"
    await expect(tab.locator("#q")).to_have_attribute("placeholder", said)
    button = tab.locator("th .how").first
    await button.click()
    box = await tab.locator(":popover-open").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


async def test_the_page_needs_no_script(board, tab):
    context = await tab.context.browser.new_context(java_script_enabled=False)
    plain = await context.new_page()
    await plain.goto(board)
    await plain.locator("#category").select_option("coding")
    await plain.locator("#style").check()
    await plain.locator("#apply").click()
    await expect(plain.locator("#board-facts")).to_contain_text("Votes: 40")
    await plain.locator("#sort-name").click()
    await expect(plain.locator("th.c-name[aria-sort]")).to_be_visible()
    assert "style=1" in plain.url
    assert "category=coding" in plain.url
    await context.close()


async def test_a_page_whose_server_is_away_says_so_until_it_is_back(board, tab):
    await tab.goto(board)
    tab.forgiven.append("ERR_INTERNET_DISCONNECTED")
    await tab.context.set_offline(True)
    await expect(tab.locator("#board-away")).to_be_visible()
    await tab.context.set_offline(False)
    await expect(tab.locator("#board-away")).to_be_hidden()
    assert await rows(tab) == list(MODELS)


async def test_the_header_changes_theme_and_language_and_leads_on(board, tab):
    await tab.goto(board)
    await expect(tab.locator(".nav [aria-current=page]")).to_have_text("Leaderboard")
    await tab.locator("#theme").click()
    await expect(tab.locator("html")).to_have_attribute("data-theme", "light")
    await expect(tab.locator("#theme")).to_have_attribute("aria-label", "Theme: light")
    await tab.locator("[data-language=zh-Hant]").click()
    await expect(tab.locator("h1")).to_have_text("排行榜")
    await tab.locator(".nav").get_by_role("link", name="對話").click()
    await expect(tab.locator("#prompt")).to_be_visible()
    await tab.locator(".side-pages").get_by_role("link", name="排行榜").click()
    await expect(tab.locator("h1")).to_have_text("排行榜")
