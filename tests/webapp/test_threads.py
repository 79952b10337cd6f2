import aiohttp
import pytest

from broker import keys


@pytest.fixture
async def begun(worker_in, page):
    """A question and its answer."""
    async with worker_in():
        await page.send(type="ask", model="echo", text="hello")
        accepted = await page.next()
        await page.answer()
        yield accepted


async def test_a_message_is_rated_and_deleted(begun, browser, broker):
    address = f"/conversations/{begun['conversation']}"
    answer = f"{address}/messages/{begun['request_id']}"
    async with browser.put(f"{answer}/rating", json={"rating": "flag", "note": "wrong"}) as response:
        assert response.status == 204
    async with browser.get(address) as response:
        shown = (await response.json())["messages"][1]
        assert (shown["rating"], shown["note"]) == ("flag", "wrong")
    async with browser.put(f"{answer}/rating", json={"rating": None}) as response:
        assert response.status == 204
    async with browser.delete(answer) as response:
        assert await response.json() == {"leaf": begun["message"]}
    async with browser.get(address) as response:
        shown = await response.json()
    assert ([m["message_id"] for m in shown["messages"]], shown["leaf"]) == ([begun["message"]], begun["message"])
    assert await broker.redis.xlen(keys.RATINGS) == 2


async def test_a_branch_is_chosen(begun, browser):
    address = f"/conversations/{begun['conversation']}"
    async with browser.put(f"{address}/leaf", json={"leaf": begun["message"]}) as response:
        assert response.status == 204
    async with browser.get(address) as response:
        assert (await response.json())["conversation"]["leaf"] == begun["message"]


async def test_what_is_wrong_is_a_400_or_a_404(begun, browser):
    address = f"/conversations/{begun['conversation']}"
    answer = f"{address}/messages/{begun['request_id']}"
    for method, path, body, status in [
        ("GET", f"{address}?leaf=nope", None, 400),
        ("GET", f"{address}?before=nope", None, 400),
        ("GET", f"{address}?count=0", None, 400),
        ("GET", f"{address}?count=many", None, 400),
        ("PUT", f"{address}/leaf", [], 400),
        ("PUT", f"{address}/leaf", {"leaf": 5}, 400),
        ("PUT", f"{address}/leaf", {"leaf": "nope"}, 400),
        ("PUT", f"{answer}/rating", {"rating": "fine"}, 400),
        ("PUT", f"{answer}/rating", {"rating": "up", "note": 5}, 400),
        ("PUT", f"{address}/messages/nope/rating", {"rating": "up"}, 404),
        ("DELETE", f"{address}/messages/nope", None, 404),
    ]:
        async with browser.request(method, path, json=body) as response:
            assert response.status == status, (method, path, body)
            assert (await response.json())["error"]["message"]


async def test_a_stranger_sees_and_changes_nothing(begun, browser, site):
    address = f"/conversations/{begun['conversation']}"
    answer = f"{address}/messages/{begun['request_id']}"
    async with aiohttp.ClientSession(site.make_url("/")) as stranger:
        for method, path, body in [
            ("GET", address, None),
            ("PUT", f"{address}/leaf", {"leaf": begun["message"]}),
            ("PUT", f"{answer}/rating", {"rating": "up"}),
            ("DELETE", answer, None),
        ]:
            async with stranger.request(method, path, json=body) as response:
                assert response.status == 404, (method, path)
    async with browser.get(address) as response:
        assert len((await response.json())["messages"]) == 2
