import json

import aiohttp
import pytest

from broker import keys
from broker.messages import ModelCard, new_id
from talk import imported, talk
from webapp import transcripts

pytestmark = pytest.mark.usefixtures("card")


@pytest.fixture
async def owner(browser, site):
    """Who the browser is."""
    async with browser.get("/") as response:
        (cookie,) = response.cookies.values()
    return cookie.value.partition(".")[0]


@pytest.fixture
async def stranger(site):
    async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get("/"):
            yield session


async def get(browser, path):
    async with browser.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def change(browser, one, body, status=204):
    async with browser.patch(f"/conversations/{one}", json=body) as response:
        assert response.status == status, await response.text()
        return None if status == 204 else await response.json()


async def titles(browser, query=""):
    return [c["title"] for c in (await get(browser, f"/conversations{query}"))["conversations"]]


async def test_the_list_has_pages_pins_tags_and_an_archive(browser, broker, owner):
    made = await imported(broker, *range(1, 65), owner=owner)
    await change(browser, made[-1], {"pinned": True, "tags": ["old", "字"]})
    await change(browser, made[0], {"archived": True})
    await change(browser, made[1], {"title": "New name", "tags": ["old"]})
    page = await get(browser, "/conversations")
    assert [c["title"] for c in page["conversations"][:3]] == ["talk 1", "New name", "talk 62"]
    assert page["tags"] == ["old", "字"]
    assert "owner" not in page["conversations"][0]
    rest = await get(browser, f"/conversations?before={page['after']}")
    assert [c["title"] for c in rest["conversations"]] == ["talk 3", "talk 2"]
    assert (rest["after"], "tags" in rest) == ("", False)
    assert await titles(browser, "?archived=1") == ["talk 64"]
    assert await titles(browser, "?tag=old") == ["New name", "talk 1"]
    assert await titles(browser, "?count=2") == ["talk 1", "New name", "talk 62"]
    for count in ("0", "501", "x", "-1", "9" * 20):
        async with browser.get(f"/conversations?count={count}") as response:
            assert response.status == 400


@pytest.mark.parametrize(
    "body",
    [{}, {"title": 5}, {"pinned": "yes"}, {"pinned": None}, {"archived": 1}, {"tags": "a"}, {"tags": [1]}, {"owner": "me"},
     {"title": "x", "leaf": "y"}, {"title": "\t"}, {"tags": ["x" * 41]}],
)  # fmt: skip
async def test_what_cannot_be_changed_so_is_a_400_and_nothing_is(browser, broker, owner, body):
    one = await talk(broker, owner=owner)
    before = await broker.redis.hgetall(keys.conversation(one))
    assert (await change(browser, one, body, 400))["error"]["code"] == "bad_request"
    assert await broker.redis.hgetall(keys.conversation(one)) == before


async def test_deleting_and_undoing(browser, broker, owner, stranger):
    one = await talk(broker, owner=owner)
    address = f"/conversations/{one}"
    async with stranger.delete(address) as response:
        assert response.status == 404
    async with browser.delete(address) as response:
        assert response.status == 204
    assert await titles(browser) == []
    async with browser.get(address) as response:
        assert response.status == 404
    async with stranger.post(f"{address}/restore") as response:
        assert response.status == 404
    async with browser.post(f"{address}/restore") as response:
        assert response.status == 204
    assert await titles(browser) == ["hello there"]
    async with browser.post(f"/conversations/{new_id()}/restore") as response:
        assert response.status == 404
        assert "more than a minute ago" in (await response.json())["error"]["message"]


async def test_searching(browser, broker, owner, stranger):
    await talk(broker, "Where is 羅馬?", "In <b>Italy</b> 🙂", owner=owner)
    found = await get(browser, "/conversations/search?q=italy")
    (result,) = found["results"]
    assert (result["snippet"], found["after"]) == (["In <b>", "Italy", "</b> 🙂"], "")
    assert result["title_parts"] == ["Where is 羅馬?"]
    assert len((await get(browser, "/conversations/search?q=%E7%BE%85%E9%A6%AC"))["results"]) == 1
    assert (await get(stranger, "/conversations/search?q=italy"))["results"] == []
    for bad in ("", "?q=", "?q=" + "x" * 201, "?q=x&before=never"):
        async with browser.get(f"/conversations/search{bad}") as response:
            assert response.status == 400


async def test_a_strangers_conversation_is_none(browser, broker, stranger, owner):
    one = await talk(broker, owner=owner)
    for body in ({"title": "x"}, {"pinned": True}, {"archived": True}, {"tags": ["x"]}):
        assert (await change(stranger, one, body, 404))["error"]["code"] == "conversation_not_found"
    for path in (f"/conversations/{one}/export", f"/c/{one}/print", f"/conversations/{one}/export?format=md"):
        async with stranger.get(path) as response:
            assert response.status == 404
    async with stranger.post(f"/conversations/{one}/shares") as response:
        assert response.status == 404
    assert await titles(stranger) == []


async def test_a_link_is_read_by_anybody_and_revoked_by_its_owner(browser, broker, owner, stranger, site):
    one = await talk(broker, "<script>hi</script> 🙂", "**Bold**", owner=owner)
    async with browser.post(f"/conversations/{one}/shares") as response:
        assert response.status == 201
        share = await response.json()
    async with aiohttp.ClientSession(site.make_url("/")) as nobody, nobody.get(f"/s/{share['share_id']}") as response:
        text = await response.text()
        assert (response.status, response.content_type) == (200, "text/html")
        assert "noindex" in response.headers["X-Robots-Tag"]
        assert "Set-Cookie" not in response.headers
    assert "&lt;script&gt;hi&lt;/script&gt; 🙂" in text
    assert "**Bold**" in text
    assert '<meta name="robots" content="noindex' in text
    assert owner not in text
    assert one not in text
    async with stranger.delete(f"/shares/{share['share_id']}") as response:
        assert response.status == 404
    assert (await get(stranger, "/shares"))["shares"] == []
    assert (await get(browser, "/shares"))["shares"] == [share]
    async with browser.delete(f"/shares/{share['share_id']}") as response:
        assert response.status == 204
    async with stranger.get(f"/s/{share['share_id']}", headers={"Accept": "text/html"}) as response:
        assert response.status == 404
        assert "revoked" in await response.text()


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"leaf": 5}', b'{"leaf": "nowhere"}', b'{"title": "x"}', b"x" * 2000])
async def test_a_bad_request_for_a_link(browser, broker, owner, body):
    one = await talk(broker, owner=owner)
    async with browser.post(f"/conversations/{one}/shares", data=body) as response:
        assert response.status in (400, 413)


async def test_one_conversation_as_a_file(browser, broker, owner):
    one = await talk(broker, 'Ça "va"? 你好/..\\🙂', "Yes.", owner=owner)
    async with browser.get(f"/conversations/{one}/export?format=md") as response:
        assert response.content_type == "text/markdown"
        assert response.headers["Content-Disposition"].startswith('attachment; filename="')
        assert response.content_disposition.filename == "Ça va 你好 .. 🙂.md"
        assert "## You" in await response.text()
    async with browser.get(f"/conversations/{one}/export?format=json") as response:
        assert [m["role"] for m in json.loads(await response.text())["messages"]] == ["user", "assistant"]
    async with browser.get(f"/conversations/{one}/export?format=html", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, f"/c/{one}/print")
    async with browser.get(f"/c/{one}/print") as response:
        assert response.status == 200
        assert "Yes." in await response.text()
    async with browser.get(f"/conversations/{one}/export?format=doc") as response:
        assert response.status == 400


async def test_everything_goes_out_and_comes_in_again(browser, broker, owner, stranger):
    await imported(broker, 1, 2, 3, owner=owner, text="half 🙂", tags=("t",))
    await imported(broker, 4, owner=owner, archived=True)
    async with browser.get("/export") as response:
        raw = await response.read()
        assert response.content_disposition.filename.startswith("FleetChat 20")
    assert owner not in raw.decode()
    async with stranger.post("/import", data=raw) as response:
        assert len((await response.json())["conversations"]) == 4
    assert await titles(stranger) == ["talk 3", "talk 2", "talk 1"]
    assert await titles(stranger, "?archived=1") == ["talk 4"]
    assert await titles(stranger, "?tag=t") == ["talk 3", "talk 2", "talk 1"]
    assert len(await titles(browser)) == 3


async def test_a_file_that_is_wrong_leaves_nothing(browser, broker, owner):
    good = {"messages": [{"role": "user", "content": "x"}]}
    async with browser.post("/import", data=json.dumps([good, {"messages": 5}])) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"] == "[1].messages: a list is expected."
    assert await titles(browser) == []


async def test_a_file_that_is_too_large_is_refused(browser, monkeypatch):
    from broker import imports

    monkeypatch.setattr(imports, "BYTES", 100)
    async with browser.post("/import", data=b"x" * 101) as response:
        assert response.status == 413


async def test_only_so_many_files_are_taken_at_once(browser, site):
    places = site.app[transcripts.PLACES]
    for _ in range(transcripts.AT_ONCE):
        await places.acquire()
    async with browser.post("/import", data=b"{}") as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "5")
    places.release()
    async with browser.post("/import", data=b'{"messages": [{"role": "user", "content": "x"}]}') as response:
        assert response.status == 200


async def test_a_first_visit_can_be_an_import(site, broker):
    async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.post("/import", data=b'{"messages": [{"role": "user", "content": "x"}]}') as response:
            assert response.status == 200
        assert await titles(session) == ["x"]


async def test_a_title_comes_after_the_first_answer_although_the_tab_is_closed(browser, broker, owner, site):
    from broker import registry
    from helpers import eventually
    from talk import say
    from webclient import Page

    await registry.beat(broker, "w", "ready", {"models": "m", "slots": 4}, [ModelCard("m", state="ready", context=100)])
    async with browser.ws_connect("/ws") as ws:
        page = Page(ws)
        await page.send(type="ask", model="m", text="Where is Rome?")
        accepted = await page.next("accepted")
    await say(broker, accepted["request_id"], "In Italy.")
    (request_id,) = await eventually(lambda: broker.redis.zrange(keys.queue("m"), 0, -1))
    await say(broker, request_id.decode(), "Rome")
    await eventually(lambda: _titled(browser))


async def _titled(browser):
    return await titles(browser) == ["Rome"]
