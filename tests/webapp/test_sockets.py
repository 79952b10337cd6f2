import asyncio
import json

import aiohttp
import pytest

from broker import keys, queues, registry
from broker.errors import NoSuchConversation
from broker.messages import ModelCard, new_id, pack
from helpers import eventually, request
from webclient import Page


async def test_an_answer_over_the_socket_is_kept_in_a_conversation(worker_in, page, browser):
    async with worker_in():
        ref = new_id()
        await page.send(type="ask", ref=ref, model="echo", text="one two three", settings={"max_tokens": None})
        accepted = await page.next()
        assert accepted["type"] == "accepted"
        assert accepted["ref"] == ref
        assert (await page.answer())[0] == "one two three"
        async with browser.get(f"/conversations/{accepted['conversation']}") as response:
            shown = await response.json()
    assert [m["parts"][0]["text"] for m in shown["messages"]] == ["one two three"] * 2
    assert shown["messages"][1]["message_id"] == accepted["request_id"] == shown["conversation"]["leaf"]
    assert "owner" not in shown["conversation"]


async def test_a_follow_up_and_another_answer(worker_in, page, browser):
    async with worker_in():
        await page.send(type="ask", model="echo", text="first")
        begun = await page.next()
        await page.answer()
        await page.send(
            type="ask", model="echo", text="second", conversation=begun["conversation"], parent=begun["request_id"]
        )
        second = await page.next()
        assert (await page.answer())[0] == "second"
        await page.send(type="regenerate", model="echo", conversation=begun["conversation"], message=second["message"])
        again = await page.next()
        assert (await page.answer())[0] == "second"
        async with browser.get(f"/conversations/{begun['conversation']}") as response:
            shown = (await response.json())["messages"]
    assert [(m["message_id"], m["versions"]) for m in shown] == [
        (begun["message"], [begun["message"]]),
        (begun["request_id"], [begun["request_id"]]),
        (second["message"], [second["message"]]),
        (again["request_id"], [second["request_id"], again["request_id"]]),
    ]


async def test_stop_ends_an_answer_and_keeps_what_was_said(worker_in, page):
    async with worker_in() as worker:
        await page.send(type="ask", model="echo", text="/echo 1000 10ms")
        accepted = await page.next()
        await page.next("frame")
        await page.send(type="stop", request_id=accepted["request_id"])
        _, end = await page.answer()
        assert end["reason"] == "cancelled"
        await eventually(lambda: not worker.claims)


async def test_a_reload_continues_where_it_stood(worker_in, page, browser):
    async with worker_in():
        await page.send(type="ask", model="echo", text="/echo 40 10ms")
        accepted = await page.next()
        first = await page.next("frame")
        await page.ws.close()
        async with browser.get(f"/conversations/{accepted['conversation']}") as response:
            shown = await response.json()
            assert shown["conversation"]["requests"] == [accepted["request_id"]]
            (running,) = shown["running"]
            assert (running["request_id"], running["message"], running["model"]) == (
                accepted["request_id"],
                accepted["message"],
                "echo",
            )
        async with browser.ws_connect("/ws") as ws:
            again = Page(ws)
            await again.send(type="resume", request_id=accepted["request_id"], **{"from": first["seq"] + 1})
            text, end = await again.answer()
    assert (first["text"] + text).split() == [str(i) for i in range(1, 41)]
    assert end["reason"] == "stop"


async def test_two_tabs_see_the_same_answer(worker_in, page, browser):
    async with worker_in(), browser.ws_connect("/ws") as ws:
        other = Page(ws)
        await other.next("models")
        await page.send(type="ask", model="echo", text="/echo 20 10ms")
        event = await other.next("event")
        assert event["event"] == "began"
        await other.send(type="resume", request_id=event["request_id"])
        mine, theirs = await asyncio.gather(page.answer(), other.answer())
    assert mine == theirs


async def test_another_browser_can_neither_read_nor_stop(worker_in, page, site):
    async with worker_in():
        await page.send(type="ask", model="echo", text="/echo 30 10ms")
        accepted = await page.next()
        async with aiohttp.ClientSession(site.make_url("/")) as stranger, stranger.ws_connect("/ws") as ws:
            spy = Page(ws)
            await spy.send(type="resume", request_id=accepted["request_id"])
            assert (await spy.next())["code"] == "not_found"
            await spy.send(type="stop", request_id=accepted["request_id"])
            await spy.send(
                type="regenerate", model="echo", conversation=accepted["conversation"], message=accepted["message"]
            )
            assert (await spy.next())["code"] == "conversation_not_found"
            async with stranger.get(f"/conversations/{accepted['conversation']}") as response:
                assert response.status == 404
        assert (await page.answer())[1]["reason"] == "stop"


BAD = [
    ([1], "bad_request"),
    (7, "bad_request"),
    ({}, "bad_request"),
    ({"type": "dance"}, "bad_request"),
    ({"type": ["ask"]}, "bad_request"),
    ({"type": "ask", "model": "echo"}, "prompt_empty"),
    ({"type": "ask", "model": "echo", "text": "x", "ref": "short"}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"top_k": 1.5}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"min_p": 2.0}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"presence_penalty": -9.0}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"stop": "x"}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"stop": ["x"] * 65}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"structure": {"kind": "poem"}}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"thinking": "yes"}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"logprobs": 3}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"system": "語" * 700}}, "prompt_too_large"),
    ({"type": "ask", "model": "echo", "text": "x", "files": [{"name": "", "text": "x"}]}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "files": [{"name": "a\nb", "text": "x"}]}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "files": [{"name": "a", "text": b"x"}]}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "files": [{"name": "a", "text": "x"}] * 51}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "files": [{"name": "a", "text": "x" * 2000}]}, "prompt_too_large"),
    ({"type": "ask", "model": "echo", "text": "x", "history": [{"role": "user", "text": "y"}]}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "begun": "y"}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "temporary": True, "conversation": "0" * 26}, "bad_request"),
    (
        {"type": "ask", "model": "echo", "text": "x", "temporary": True, "history": [{"role": "system", "text": "y"}]},
        "bad_request",
    ),
    ({"type": "ask", "model": "echo", "text": "x", "temporary": True, "begun": "y"}, "bad_request"),
    ({"type": "continue", "model": "echo", "conversation": "0" * 26, "message": "0" * 26}, "conversation_not_found"),
    ({"type": "ask", "model": "echo", "text": 5}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": b"\xff"}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "temperature": 1}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"temperature": float("nan")}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"temperature": -1}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"temperature": True}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"top_p": 0}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"max_tokens": 0}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"max_tokens": 2**63}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "settings": {"max_tokens": 1.5}}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "parent": "0" * 26}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "conversation": "../../etc"}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": "x", "conversation": "0" * 26}, "conversation_not_found"),
    ({"type": "ask", "model": "nope", "text": "x"}, "model_not_found"),
    ({"type": "ask", "model": "x" * 5000, "text": "x"}, "bad_request"),
    ({"type": "ask", "model": "echo", "text": " \t\n"}, "prompt_empty"),
    ({"type": "ask", "model": "echo", "text": "語" * 700}, "prompt_too_large"),
    ({"type": "resume", "request_id": "0" * 26}, "not_found"),
    ({"type": "resume", "request_id": "0" * 26, "from": -1}, "bad_request"),
    ({"type": "resume", "request_id": "0" * 26, "from": 2**63}, "bad_request"),
    ({"type": "stop"}, "bad_request"),
]


async def test_a_message_of_a_wrong_shape_is_an_error_and_the_socket_stays_open(broker, page):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    for message, code in BAD:
        await page.ws.send_bytes(pack(message))
        error = await page.next()
        assert (error["type"], error["code"]) == ("error", code), message
        assert error["message"]
    assert await broker.redis.zcard(keys.queue("echo")) == 0


async def test_the_limit_of_a_prompt_is_named(broker, page):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    ref = new_id()
    await page.send(type="ask", ref=ref, model="echo", text="x" * 2001)
    error = await page.next()
    assert error["ref"] == ref
    assert "2001" in error["message"]
    assert "2000" in error["message"]


@pytest.mark.parametrize(
    "data", [b"\xc1", b"", b"hello", b"\x81", pack({"type": "stop"}) + b"x", b"\x91" * 5000 + b"\xc0"]
)
async def test_what_is_not_msgpack_closes_with_1007(page, data):
    await page.ws.send_bytes(data)
    assert await page.closed() == 1007


async def test_text_that_is_no_msgpack_closes_with_1007(page):
    await page.ws.send_str(json.dumps({"type": "stop"}))
    assert await page.closed() == 1007


async def test_too_large_a_message_closes_with_1009(page):
    await page.ws.send_bytes(b"x" * 200_000)
    assert await page.closed() == 1009


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example", "http://127.0.0.1:1"]
)
async def test_a_foreign_page_is_refused(browser, origin):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await browser.ws_connect("/ws", headers={"Origin": origin})
    assert refused.value.status == 403
    async with browser.delete(f"/conversations/{new_id()}", headers={"Origin": origin}) as response:
        assert response.status == 403


async def test_a_foreign_name_for_this_machine_is_refused(browser):
    """DNS rebinding: the page's origin and the Host agree, and neither is ours."""
    headers = {"Host": "evil.example:80", "Origin": "http://evil.example:80"}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await browser.ws_connect("/ws", headers=headers)
    assert refused.value.status == 403
    async with browser.get("/models", headers=headers) as response:
        assert response.status == 403


async def test_following_too_much_is_refused_and_stop_still_works(worker_in, page):
    async with worker_in():
        await page.send(type="ask", model="echo", text="/echo 3000 10ms")
        accepted = await page.next("accepted")
        for _ in range(70):
            await page.send(type="resume", request_id=accepted["request_id"])
        assert (await page.next("error"))["code"] == "overloaded"
        await page.send(type="stop", request_id=accepted["request_id"])
        while "end" not in await page.next("frame"):
            pass


async def test_asking_in_a_conversation_that_was_deleted_is_an_error(worker_in, page, browser, broker):
    async with worker_in():
        await page.send(type="ask", model="echo", text="hello")
        begun = await page.next()
        await page.answer()
        turn = queues.Turn(begun["conversation"], new_id(), "", b"x")
        async with browser.delete(f"/conversations/{begun['conversation']}"):
            pass
        with pytest.raises(NoSuchConversation):
            await queues.enqueue(broker, request(model="echo", owner="anybody"), turn)
        assert not await broker.redis.exists(keys.conversation(begun["conversation"]))


async def test_the_pages_own_origin_is_let_in(browser, site):
    async with browser.ws_connect("/ws", headers={"Origin": str(site.make_url("/")).rstrip("/")}) as ws:
        assert (await Page(ws).next("models"))["models"] == []


async def test_open_pages_see_models_come_and_go(page, worker_in):
    assert (await page.next("models"))["models"] == []
    async with worker_in():
        await _until(page, "ready")
    await _until(page, "gone")


async def _until(page: Page, state: str) -> None:
    async with asyncio.timeout(3):
        while [m["state"] for m in (await page.next("models"))["models"]] != [state]:
            pass


async def test_the_place_in_the_queue_is_told_while_it_waits(broker, page, worker_in):
    async with worker_in(slots=1):
        for _ in range(3):
            await page.send(type="ask", model="echo", text="/echo 100 30ms")
        ids = [(await page.next("accepted"))["request_id"] for _ in range(3)]
        assert (await page.next("place"))["place"] in (0, 1)
        for request_id in ids:
            await page.send(type="stop", request_id=request_id)


async def test_a_slow_reader_costs_nobody_else_anything(broker, page, browser, worker_in, monkeypatch):
    async with worker_in(coalesce_ms=0), browser.ws_connect("/ws", max_msg_size=0) as ws:
        slow = Page(ws)
        await slow.send(type="ask", model="echo", text="/echo 20000 0")
        await page.send(type="ask", model="echo", text="/echo 50 1ms")
        assert (await page.answer())[0].split()[-1] == "50"
        text, _ = await slow.answer()
    assert text.split() == [str(i) for i in range(1, 20001)]
