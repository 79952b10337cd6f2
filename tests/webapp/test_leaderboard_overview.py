"""The overview of all categories, as the jobs worker has computed their boards from votes; and in a real Chromium."""

import re

import pytest
from playwright.async_api import expect

from broker import leaderboard
from broker.leaderboard import BoardRequest
from helpers import cast, eventually

pytestmark = pytest.mark.timeout(60)

PATH = "/leaderboard/categories"


async def counted(broker, votes, **fields):
    """Wait until the jobs worker has counted so many for a board."""

    async def done():
        board = await leaderboard.load(broker, BoardRequest(**fields))
        return board is not None and board["votes"] == votes

    await eventually(done, 15)


async def seen(broker):
    """`strong` is the best of all, but in coding `weak` is; nobody has seen `middling` code."""
    await cast(broker, 150, categories=("en",))
    await cast(broker, 150, a="middling", categories=("en",))
    await cast(broker, 100, winner="b", categories=("coding",))
    await counted(broker, 400)
    await counted(broker, 300, category="en")
    await counted(broker, 100, category="coding")


async def get(browser, query="", **headers):
    async with browser.get(PATH + query, headers=headers) as answer:
        return answer, await answer.text()


def table(page):
    """What its rows say, by model and in order, and the names of its columns."""
    heads = [re.sub(r"\s*[▲▼]", "", text(one)) for one in re.findall(r'<a class="by"[^>]*>(.*?)</a>', page)]
    found = {}
    for row in re.findall(r"<tr>\s*<th scope=\"row\".*?</tr>", page, re.S):
        found[text(re.search(r"<th[^>]*>(.*?)</th>", row)[1])] = [
            text(one) for one in re.findall(r"<td[^>]*>(.*?)</td>", row)
        ]
    return heads, found


def text(html):
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


async def test_each_cell_is_a_rank_in_its_categorys_board(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await seen(broker)
        answer, page = await get(browser)
        assert answer.status == 200
        assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
        assert "style=" not in page.replace("?style=", "")
        heads, found = table(page)
        assert heads == ["All battles", "English", "Coding"]
        assert list(found) == ["middling", "strong", "weak"]
        for i, category in enumerate(("all", "en", "coding")):
            async with browser.get(f"/leaderboard.json?category={category}") as one:
                ranks = {model["name"]: str(model["rank"]) for model in (await one.json())["models"]}
            assert {name: cells[i] for name, cells in found.items()} == dict.fromkeys(found, "–") | ranks
        assert found["weak"] == ["2", "3", "1"]
        assert '<td title="Score ' in page
        assert page.count('<b class="medal m1">1</b>') == 4
        assert 'href="/leaderboard?category=coding"' in page
        assert '<a href="/leaderboard" aria-current="page">' in page


async def test_a_model_of_few_votes_has_no_medal(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 5)
        await counted(broker, 5)
        _, page = await get(browser)
        assert sorted(cells[0] for cells in table(page)[1].values()) == ["1", "2"]
        assert 'class="medal' not in page
        assert page.count("· preliminary") == 2 * len(table(page)[0])


async def test_a_category_puts_its_best_first_and_those_without_votes_in_it_last(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await seen(broker)
        _, page = await get(browser, "?sort=coding")
        assert list(table(page)[1]) == ["weak", "strong", "middling"]
        assert re.findall(r'id="of-(\w+)"[^>]* aria-sort="(\w+)"', page) == [("coding", "ascending")]
        _, page = await get(browser, "?sort=coding&show=score")
        assert re.findall(r'id="of-(\w+)"[^>]* aria-sort="(\w+)"', page) == [("coding", "descending")]
        heads, found = table(page)
        async with browser.get("/leaderboard.json?category=coding") as one:
            scores = [f"{model['score']:,.0f}" for model in (await one.json())["models"]]
        assert [cells[heads.index("Coding")] for cells in found.values()] == [
            f"Rank 1 {scores[0]}", f"Rank 2 {scores[1]}", "–"
        ]  # fmt: skip
        assert list(table((await get(browser, "?sort=math"))[1])[1]) == ["middling", "strong", "weak"]


async def test_it_is_of_the_votes_that_are_asked_for(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 30, categories=("en",))
        await cast(broker, 200, kind="named", winner="b", categories=("zh",))
        await counted(broker, 230, named=True)
        for style in (False, True):
            await counted(broker, 30, category="en", style=style)
            await counted(broker, 200, category="zh", named=True, style=style)
        for query in ("", "?style=1"):
            heads, found = table((await get(browser, query))[1])
            assert (heads, list(found)) == (["All battles", "English"], ["strong", "weak"])
        for query in ("?named=1", "?named=1&style=1"):
            heads, found = table((await get(browser, query))[1])
            assert (heads, list(found)) == (["All battles", "Chinese", "English"], ["weak", "strong"])
        _, page = await get(browser, "?named=1&style=1")
        assert 'href="/leaderboard?category=zh&amp;style=1&amp;named=1"' in page
        assert len(re.findall(r'type="checkbox" id="(?:named|style)"[^>]* checked', page)) == 2
        _, page = await get(browser, "?show=score")
        assert len(re.findall(r'type="checkbox"[^>]* checked', page)) == 1


async def test_ranks_are_among_the_models_that_are_shown(browser, broker, worker_in, tmp_path):
    arena = tmp_path / "arena.toml"
    arena.write_text('[ratings]\ndeprecated = ["str*"]\n')
    async with worker_in(role="jobs", arena_file=arena):
        await cast(broker, 300)
        await counted(broker, 300)
        await cast(broker, 300, a="weak", b="weaker")
        await counted(broker, 600)
        assert table((await get(browser))[1])[1] == {"weak": ["1"], "weaker": ["2"]}
        _, page = await get(browser, "?deprecated=1")
        assert table(page)[1] == {"strong deprecated": ["1"], "weak": ["2"], "weaker": ["3"]}


async def test_nothing_yet_leads_to_the_arena_and_says_who_is_missing(browser, broker, worker_in):
    answer, page = await get(browser)
    assert answer.status == 200
    assert "FLEETCHAT_ROLE=jobs" in page
    async with worker_in(role="jobs"):
        _, page = await get(browser, "?style=1&sort=hard")
        assert "FLEETCHAT_ROLE=jobs" not in page
        assert 'class="button primary" href="/arena"' in page
        assert "<table" not in page
        await counted(broker, 0)  # a fleet that has just started has the boards of no vote
        _, page = await get(browser)
        assert 'class="button primary" href="/arena"' in page


async def test_it_is_made_anew_only_when_a_board_is(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await seen(broker)
        first, _ = await get(browser)
        tag = first.headers["ETag"]
    first, _ = await get(browser)  # of a fleet without a jobs worker
    assert first.headers["ETag"] != tag
    tag = first.headers["ETag"]
    before = await broker.redis.info("commandstats")
    second, body = await get(browser, **{"If-None-Match": tag})
    assert (second.status, body, second.headers["ETag"]) == (304, "", tag)
    after = await broker.redis.info("commandstats")
    assert after["cmdstat_hget"]["calls"] - before["cmdstat_hget"]["calls"] == 1  # the version
    assert after["cmdstat_hmget"] == before["cmdstat_hmget"]
    for other in ({"query": "?sort=coding"}, {"Accept-Language": "zh-TW"}):
        assert (await get(browser, **{"If-None-Match": tag}, **other))[0].status == 200
    board = await leaderboard.load(broker, BoardRequest(category="coding"))
    await leaderboard.save(broker, {"coding": board | {"updated": 1}})
    third, _ = await get(browser, **{"If-None-Match": tag})
    assert third.status == 200


async def test_a_category_that_is_named_like_another_board_is_no_column(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await seen(broker)
    board = await leaderboard.load(broker, BoardRequest())
    odd = [{"name": name, "votes": 1} for name in ("coding:style", "pairs", "version", "not yet")]
    await leaderboard.save(broker, {"all": board | {"categories": [*board["categories"], *odd]}})
    assert table((await get(browser))[1])[0] == ["All battles", "English", "Coding"]


@pytest.mark.parametrize("query", ["sort=cooking", "sort=version", "show=wins", "style=yes", "named=2", "deprecated=x"])
async def test_a_value_that_cannot_be_is_refused_by_name(browser, query):
    async with browser.get(f"{PATH}?{query}") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == query.partition("=")[0]


async def test_it_opens_from_the_leaderboard_sorts_by_click_and_speaks_chinese(site, broker, worker_in, tab):
    async with worker_in(role="jobs"):
        await seen(broker)
        await tab.goto(str(site.make_url("/leaderboard")))
        await tab.get_by_role("link", name="All categories").click()
        await expect(tab).to_have_url(re.compile(f"{PATH}$"))
        await expect(tab.locator("tbody th")).to_have_text(["middling", "strong", "weak"])
        await tab.get_by_role("link", name="Coding", exact=True).click()
        await expect(tab.locator("[aria-sort=ascending]")).to_contain_text("Coding")
        await expect(tab.locator("tbody th")).to_have_text(["weak", "strong", "middling"])
        await tab.get_by_label("Scores instead of ranks").check()
        await tab.get_by_role("button", name="Show").click()
        await expect(tab.locator("[aria-sort=descending]")).to_contain_text("Coding")
        await tab.locator("[data-language=zh-Hant]").click()
        await expect(tab.locator("h1")).to_have_text("所有類別")
        await expect(tab.locator("[aria-sort] .by")).to_contain_text("程式")
        await tab.set_viewport_size({"width": 390, "height": 844})
        assert await tab.evaluate("document.documentElement.scrollWidth") == 390
        await tab.get_by_role("link", name="排行榜: 程式").click()
        await expect(tab).to_have_url(re.compile(r"/leaderboard\?category=coding$"))
