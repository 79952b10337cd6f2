"""The leaderboard over HTTP, as the jobs worker has computed it from votes."""

import asyncio
import csv
import io
import re
import time

import pytest

from broker import leaderboard
from broker.leaderboard import BoardRequest
from helpers import cast, eventually
from webapp import leaderboard_boards

pytestmark = pytest.mark.timeout(30)

DAY_MS = 86_400_000
FIRST = 1_770_000_000_000  # 2026-02-02


async def counted(broker, votes, category="all", style=False):
    """Wait until the jobs worker has counted so many."""

    async def done():
        board = await leaderboard.load(broker, BoardRequest(category=category, style=style))
        return board is not None and board["votes"] == votes

    await eventually(done, 15)


async def get(browser, path, **headers):
    async with browser.get(path, headers=headers) as answer:
        return answer, await answer.text()


async def names(browser, query=""):
    async with browser.get(f"/leaderboard.json{query}") as answer:
        assert answer.status == 200, await answer.text()
        return [(one["rank"], one["name"]) for one in (await answer.json())["models"]]


async def test_a_vote_is_on_the_board_within_two_seconds(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 40)
        await counted(broker, 40)
        begun = time.monotonic()
        await cast(broker)

        async def seen():
            async with browser.get("/leaderboard.json") as answer:
                return (await answer.json())["votes"] == 41

        await eventually(seen, 2)
        assert time.monotonic() - begun < 2


async def test_page_json_and_csv_say_the_same(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 40)
        await cast(broker, 20, winner="tie", a="weak", b="middling")
        await counted(broker, 60)
        answer, page = await get(browser, "/leaderboard")
        assert answer.status == 200
        assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
        assert "style=" not in page
        shown = re.findall(r'<tr data-name="([^"]*)"', page)
        async with browser.get("/leaderboard.json") as answer:
            board = await answer.json()
        assert [one["name"] for one in board["models"]] == shown == ["strong", "middling", "weak"]
        answer, text = await get(browser, "/leaderboard.csv")
        assert answer.headers["Content-Disposition"] == 'attachment; filename="leaderboard-all.csv"'
        lines = list(csv.DictReader(io.StringIO(text)))
        assert [line["Model"] for line in lines] == shown
        assert [int(line["Votes"]) for line in lines] == [one["votes"] for one in board["models"]] == [40, 20, 60]
        assert float(lines[0]["Arena Elo rating"]) == pytest.approx(board["models"][0]["score"], abs=0.01)
        assert lines[0]["MT-bench (score)"] == "-"
        assert f"{board['models'][0]['score']:,.0f}" in page


async def test_an_open_page_asks_again_at_no_cost(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 3)
        await counted(broker, 3)
        for path in ("/leaderboard", "/leaderboard.json", "/leaderboard.csv"):
            first, _ = await get(browser, path)
            tag = first.headers["ETag"]
            second, body = await get(browser, path, **{"If-None-Match": tag})
            assert (second.status, body, second.headers["ETag"]) == (304, "", tag)
        other, _ = await get(browser, "/leaderboard", **{"If-None-Match": tag, "Accept-Language": "zh-TW"})
        assert other.status == 200
        await cast(broker)
        await counted(broker, 4)
        third, _ = await get(browser, "/leaderboard.csv", **{"If-None-Match": tag})
        assert third.status == 200


async def test_a_board_is_decoded_once_for_all_its_readers(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 3)
        await counted(broker, 3)
        await get(browser, "/leaderboard")
    before = (await broker.redis.info("commandstats"))["cmdstat_hget"]["calls"]
    await asyncio.gather(*(get(browser, "/leaderboard") for _ in range(20)))
    after = (await broker.redis.info("commandstats"))["cmdstat_hget"]["calls"]
    assert after - before == 20  # the version, once for each


async def test_filters_choose_the_votes(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 30, at=FIRST)
        await cast(broker, 30, at=FIRST + 3 * DAY_MS, winner="b", categories=("coding",))
        await cast(broker, 90, kind="named", winner="b", at=FIRST + DAY_MS)
        await counted(broker, 60)
        await counted(broker, 30, "coding")
        assert await names(browser) == [(1, "strong"), (1, "weak")]
        assert [name for _, name in await names(browser, "?category=coding")] == ["weak", "strong"]
        assert await names(browser, "?named=1") == [(1, "weak"), (2, "strong")]
        assert [name for _, name in await names(browser, "?to=2026-02-03")] == ["strong", "weak"]
        assert [name for _, name in await names(browser, "?from=2026-02-04")] == ["weak", "strong"]
        assert await names(browser, "?from=2027-01-01") == []
        assert [name for _, name in await names(browser, "?q=STRO")] == ["strong"]
        assert [name for _, name in await names(browser, "?sort=name&order=desc")] == ["weak", "strong"]
        _, page = await get(browser, "/leaderboard?category=coding")
        assert '<option value="coding" selected>Coding (30)</option>' in page
        assert '<option value="all">All battles (60)</option>' in page


async def test_a_span_of_days_is_computed_once_in_a_while(browser, broker, worker_in, monkeypatch):
    asked = []
    load = leaderboard.load

    async def counting(broker, request):
        asked.extend([request] if request.since else [])
        return await load(broker, request)

    monkeypatch.setattr(leaderboard_boards.leaderboard, "load", counting)
    async with worker_in(role="jobs"):
        await cast(broker, 30, at=FIRST)
        await counted(broker, 30)
        await asyncio.gather(*(names(browser, "?from=2026-02-02") for _ in range(5)))
        assert len(asked) == 1
        await cast(broker, 1, at=FIRST)
        await counted(broker, 31)
        async with browser.get("/leaderboard.json?from=2026-02-02") as answer:
            assert (await answer.json())["votes"] == 30
        assert len(asked) == 1
        monkeypatch.setattr(leaderboard_boards, "OLD_SECONDS", 0)
        async with browser.get("/leaderboard.json?from=2026-02-02") as answer:
            assert (await answer.json())["votes"] == 31


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("category=a%20b", "category"),
        ("category=cooking", "category"),
        ("category=pairs", "category"),
        ("category=version", "category"),
        ("from=yesterday", "from"),
        ("to=2026-2-1", "to"),
        ("from=2026-02-02&to=2026-02-01", "from"),
        ("order=up", "order"),
        ("style=yes", "style"),
        ("q=" + "x" * 101, "q"),
    ],
)
async def test_a_value_that_cannot_be_is_refused_by_name(browser, query, param):
    for path in ("/leaderboard", "/leaderboard.json", "/leaderboard.csv"):
        async with browser.get(f"{path}?{query}") as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == param


async def test_a_category_without_votes_is_an_empty_board_and_is_not_remembered(site, browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 3)
        await counted(broker, 3)
        assert await names(browser, "?category=math") == []
        assert set(site.app[leaderboard_boards.BOARDS]._kept) <= {"all"}


async def test_models_that_are_deprecated_are_shown_when_asked_for(browser, broker, worker_in, tmp_path):
    arena = tmp_path / "arena.toml"
    arena.write_text('[ratings]\ndeprecated = ["str*"]\n')
    async with worker_in(role="jobs", arena_file=arena):
        await cast(broker, 300)
        await cast(broker, 300, a="weak", b="weaker")
        await counted(broker, 600)
        assert await names(browser) == [(1, "weak"), (2, "weaker")]
        assert await names(browser, "?deprecated=1") == [(1, "strong"), (2, "weak"), (3, "weaker")]
        async with browser.get("/leaderboard.json") as answer:
            board = await answer.json()
        assert board["heat"]["names"] == ["weak", "weaker"]
        assert board["heat"]["count"] == [[0, 300], [300, 0]]
        assert set(board["history"]["scores"]) == {"weak", "weaker"}


async def test_style_control_says_how_ranks_change(browser, broker, worker_in):
    long, short = (900, 0, 30, 20), (100, 0, 0, 0)
    async with worker_in(role="jobs"):
        for a, b, wins, losses in (("x", "y", 120, 40), ("x", "z", 150, 40), ("y", "z", 110, 80)):
            await cast(broker, wins, a=a, b=b, style_a=long if a == "x" else short, style_b=short)
            await cast(broker, losses, a=a, b=b, winner="b", style_a=long if a == "x" else short, style_b=short)
            await cast(broker, 60, a=a, b=b, style_a=short, style_b=short, winner="tie")
        await counted(broker, 720)
        await counted(broker, 720, style=True)
        _, page = await get(browser, "/leaderboard?style=1")
        async with browser.get("/leaderboard.json?style=1") as answer:
            board = await answer.json()
        assert board["style"]
        assert board["style_coefficients"]["length"] != 0
        plain = {name: rank for rank, name in await names(browser)}
        assert {one["name"]: one["rank_plain"] for one in board["models"]} == plain
        assert 'class="c-change"' in page
        assert 'class="c-bootstrap"' not in page
        assert 'class="c-change"' not in (await get(browser, "/leaderboard"))[1]


async def test_what_is_set_aside_is_listed(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 10)
        await cast(broker, 2, kind="late")
        await cast(broker, 3, leak=True)
        await counted(broker, 10)
        _, page = await get(browser, "/leaderboard")
        assert "Set aside: 5" in page
        rows = re.findall(r"<div><dt>([^<]*)</dt><dd>([\d,]+)</dd></div>", page)
        assert [count for _, count in rows][:4] == ["2", "3", "0", "0"]


async def test_an_empty_board_leads_to_the_arena(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        answer, page = await get(browser, "/leaderboard")
        assert answer.status == 200
        assert 'href="/arena"' in page
        assert "<table" not in page.split('id="board-methods"')[0]
        assert (await get(browser, "/leaderboard.csv"))[1].count("\n") == 1
        assert await names(browser) == []
        _, page = await get(browser, "/leaderboard?category=hard&from=2026-01-01")
        assert "There are no votes of these days." in page


async def test_without_a_jobs_worker_the_page_says_who_is_missing(browser, broker, worker_in):
    _, page = await get(browser, "/leaderboard")
    assert "FLEETCHAT_ROLE=jobs" in page
    _, page = await get(browser, "/leaderboard?from=2026-01-01")
    assert "FLEETCHAT_ROLE=jobs" in page
    async with browser.get("/leaderboard.json?from=2026-01-01") as answer:
        assert answer.status == 404
    async with worker_in(role="jobs"):
        assert "FLEETCHAT_ROLE=jobs" not in (await get(browser, "/leaderboard"))[1]


async def test_names_are_text(browser, broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 2, a="<b>strong</b>", b='"quoted"')
        await counted(broker, 2)
        _, page = await get(browser, "/leaderboard?q=%3Cscript%3E")
        assert "<b>strong" not in page
        assert "<script>" not in page


async def test_fastchats_link_leads_to_the_board(browser):
    async with browser.get("/?leaderboard", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/leaderboard")
