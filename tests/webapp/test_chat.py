"""What a page may ask for over its websocket, and what becomes of it."""

import asyncio

import aiohttp
import pytest

from broker import keys, queues
from broker.messages import ChatRequest, ModelCard, new_id
from broker.registry import beat
from helpers import eventually
from webclient import Page


async def thread(browser, conversation, **which):
    async with browser.get(f"/conversations/{conversation}", params=which) as response:
        assert response.status == 200
        return await response.json()


@pytest.fixture
async def prompts(broker):
    """`await prompts(accepted)`: what the model `m` is asked; nobody serves it, so it waits."""
    await beat(broker, "w", "ready", {"models": "m"}, [ModelCard("m", state="ready", abilities=("continue",))])

    async def read(accepted) -> ChatRequest:
        return ChatRequest.decode(await broker.redis.get(keys.prompt(accepted["request_id"])))

    return read


async def test_every_setting_reaches_the_model_and_is_kept_for_other_devices(prompts, page, browser):
    settings = {
        "temperature": 0.1,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "max_tokens": 7,
        "min_tokens": 2,
        "seed": 11,
        "stop": ["END"],
        "ignore_eos": True,
        "structure": {"kind": "regex", "value": "a+"},
        "thinking": False,
        "system": "Be short.",
    }
    await page.send(type="ask", model="m", text="Hello", settings=settings)
    accepted = await page.next()
    request = await prompts(accepted)
    assert [(m.role, m.content) for m in request.messages] == [("system", "Be short."), ("user", "Hello")]
    assert request.template_kwargs == {"enable_thinking": False}
    for name in settings.keys() - {"system", "thinking", "structure", "stop"}:
        assert getattr(request.sampling, name) == settings[name]
    assert (request.sampling.stop, request.sampling.structure.value) == (("END",), "a+")
    assert (await thread(browser, accepted["conversation"]))["conversation"]["settings"] == settings
    async with browser.get("/conversations") as response:
        assert "settings" not in (await response.json())["conversations"][0]


async def test_files_are_parts_of_the_message_and_fences_for_the_model(prompts, page, browser):
    await page.send(type="ask", model="m", text="", files=[{"name": "a.py", "text": "x = 1"}])
    accepted = await page.next()
    assert accepted["title"] == "a.py"
    assert (await prompts(accepted)).messages[0].content == "a.py\n```py\nx = 1\n```\n\n"
    shown = await thread(browser, accepted["conversation"])
    assert shown["messages"][0]["parts"] == [{"kind": "file", "name": "a.py", "text": "x = 1"}]


async def test_an_answer_goes_on_where_it_ended(worker_in, page, browser):
    async with worker_in():
        await page.send(type="ask", model="echo", text="/echo 8", settings={"max_tokens": 3})
        begun = await page.next()
        assert (await page.answer())[1]["reason"] == "length"
        await page.send(type="continue", model="echo", conversation=begun["conversation"], message=begun["request_id"])
        more = await page.next()
        assert more["message"] == begun["message"]
        assert (await page.answer())[0] == "4 5 6 7 8 "
        shown = await thread(browser, begun["conversation"])
    assert shown["messages"][1]["parts"] == [{"kind": "text", "text": "1 2 3 4 5 6 7 8 "}]
    assert shown["messages"][1]["versions"] == [begun["request_id"], more["request_id"]]


@pytest.mark.timeout(60)
async def test_a_real_model_goes_on_as_if_it_had_never_stopped(worker_in, page, browser):
    greedy = {"temperature": 0.0}
    async with worker_in(model="pocket"):
        await page.send(type="ask", model="pocket", text="Tell me a short story", settings=greedy)
        whole = await page.next("accepted")
        text, _ = await page.answer()
        message = {"conversation": whole["conversation"], "message": whole["message"]}
        await page.send(type="regenerate", model="pocket", settings=greedy | {"max_tokens": 12}, **message)
        begun = await page.next("accepted")
        first, end = await page.answer()
        assert end["reason"] == "length"
        message["message"] = begun["request_id"]
        await page.send(type="continue", model="pocket", settings=greedy, **message)
        await page.next("accepted")
        rest, _ = await page.answer()
    assert first
    assert first + rest == text


async def test_only_an_answer_that_has_begun_can_go_on_and_only_where_the_model_can(broker, prompts, page):
    await page.send(type="ask", model="m", text="Hello")
    begun = await page.next()
    await queues.cancel(broker, begun["request_id"], (await broker.redis.hget(*_owner(begun))).decode())
    await page.answer()
    for message in (begun["message"], begun["request_id"]):
        await page.send(type="continue", model="m", conversation=begun["conversation"], message=message)
        assert (await page.next("error"))["code"] == "bad_request"
    await beat(broker, "w", "ready", {"models": "m"}, [ModelCard("m", state="ready")])
    await page.send(type="ask", model="m", temporary=True, text="Hello", begun="Well")
    assert "cannot go on" in (await page.next("error"))["message"]


def _owner(accepted):
    return keys.conversation(accepted["conversation"]), "owner"


async def test_a_temporary_chat_is_stored_nowhere_and_ends_with_its_page(prompts, broker, page, browser):
    history = [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hello!"}]
    await page.send(
        type="ask", model="m", temporary=True, text="More", history=history, settings={"system": "Be short."}
    )
    accepted = await page.next()
    assert (accepted["conversation"], accepted["message"]) == ("", "")
    request = await prompts(accepted)
    assert [m.content for m in request.messages] == ["Be short.", "Hi", "Hello!", "More"]
    assert not request.keep
    await page.ws.close()
    state = keys.request(accepted["request_id"])
    await eventually(lambda: _ended(broker, state))
    assert await broker.redis.keys("conversation*") == []
    assert await broker.redis.keys("messages*") == []


async def _ended(broker, state):
    return await broker.redis.hget(state, "state") == b"ended"


async def test_a_temporary_answer_goes_on(worker_in, page, broker):
    async with worker_in():
        await page.send(type="ask", model="echo", temporary=True, text="/echo 5", begun="1 2 ")
        await page.next("accepted")
        assert (await page.answer())[0] == "3 4 5 "
    assert await broker.redis.keys("messages*") == []


async def test_the_same_message_sent_again_is_the_same_request(worker_in, page, browser, site):
    ref = new_id()
    async with worker_in(), browser.ws_connect("/ws") as ws:
        await page.send(type="ask", ref=ref, model="echo", text="/echo 20 20ms")
        first = await page.next("accepted")
        again = Page(ws)
        await again.send(type="ask", ref=ref, model="echo", text="/echo 20 20ms")
        assert await again.next("accepted") == first
        answers = await asyncio.gather(page.answer(), again.answer())
        assert answers[0] == answers[1]
        async with aiohttp.ClientSession(site.make_url("/")) as stranger, stranger.ws_connect("/ws") as other:
            spy = Page(other)
            await spy.send(type="ask", ref=ref, model="echo", text="mine")
            assert (await spy.next("accepted"))["request_id"] != first["request_id"]
    shown = await thread(browser, first["conversation"])
    assert len(shown["messages"]) == 2


async def test_four_answers_at_once_and_no_fifth(prompts, page, browser):
    await page.send(type="ask", model="m", text="Hello")
    begun = await page.next()
    again = {"type": "regenerate", "model": "m", "conversation": begun["conversation"], "message": begun["message"]}
    for _ in range(3):
        await page.send(**again)
        await page.next("accepted")
    await page.send(**again)
    assert (await page.next("error"))["code"] == "conflict"
    shown = await thread(browser, begun["conversation"])
    assert len(shown["running"]) == len(shown["conversation"]["requests"]) == 4


async def test_the_place_in_the_queue_comes_with_an_estimate_once_the_pace_is_known(prompts, broker, page):
    for seconds in (None, 20):
        if seconds:
            await broker.redis.hset(keys.pace("m"), "seconds", "9.6")
            await beat(broker, "w", "ready", {"models": "m", "slots": 2}, [ModelCard("m", state="ready")])
        await page.send(type="ask", model="m", text="Hello")
        place = await page.next("place")
        assert place.get("seconds") == (None if seconds is None else 10)  # two before it end in 9.6 s
