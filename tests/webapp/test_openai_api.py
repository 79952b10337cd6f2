"""/v1 as bytes on the wire: what comes in, what goes out, what is refused and how, and what is let go of."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from broker import accounts, embedded, keys, queues, registry
from broker.config import Config
from broker.connection import Broker
from broker.messages import ChatRequest, ModelCard
from fleet_process import wait_for_port, web
from helpers import claim, eventually
from tests.tiny_model import END, build
from webapp import openai_answers, sse
from webapp.state import BROKER

Ask = Callable[..., Any]
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
PROMPT = {"model": "echo", "prompt": "one two three"}
CALLABLE = {"type": "function", "function": {"name": "g"}}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
async def api(site: TestServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A program: no cookies, no key."""
    async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


@pytest.fixture
def post(api: aiohttp.ClientSession) -> Ask:
    """`await post(path, body, status=200)`: the answer's JSON, once its status is that."""

    async def send(path: str, body: Any, status: int = 200, **more: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with api.post(path, data=data, **more) as response:
            text = await response.text()
            assert response.status == status, text
            return json.loads(text)

    return send


@asynccontextmanager
async def streamed(api: aiohttp.ClientSession, path: str, body: Any) -> AsyncIterator[AsyncIterator[Any]]:
    """The events of a stream, without the last one, which has to be [DONE]."""

    async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
        async for line in response.content:
            if line.startswith(b"data: "):
                if line == b"data: [DONE]\n":
                    assert await response.content.read() == b"\n"
                    return
                yield json.loads(line[6:])
        raise AssertionError("no [DONE]")

    async with api.post(path, json=body | {"stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
        yield events(response)


async def collect(api: aiohttp.ClientSession, path: str, body: Any) -> list[Any]:
    async with streamed(api, path, body) as events:
        return [event async for event in events]


async def test_a_chat_is_answered(post, worker_in):
    async with worker_in():
        before = int(time.time())
        answer = await post(CHAT, HELLO)
    assert answer.pop("id").startswith("chatcmpl-")
    assert before <= answer.pop("created") <= time.time()
    assert answer == {
        "object": "chat.completion",
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two three", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        "system_fingerprint": None,
    }


async def test_a_stream_has_role_and_text_in_its_first_chunk_and_usage_only_when_asked_for(api, worker_in):
    async with worker_in(coalesce_ms=0):
        plain = await collect(api, CHAT, HELLO)
        counted = await collect(api, CHAT, HELLO | {"stream_options": {"include_usage": True}})
        always = await collect(api, CHAT, HELLO | {"stream_options": {"continuous_usage_stats": True}})
    assert plain[0]["choices"][0]["delta"] == {"role": "assistant", "content": "one "}
    assert all("usage" not in event for event in plain)
    assert plain[-1]["choices"][0]["finish_reason"] == "stop"
    assert [event["choices"][0]["finish_reason"] for event in plain[:-1]] == [None] * (len(plain) - 1)
    assert len({event["id"] for event in plain}) == 1
    assert {event["object"] for event in plain} == {"chat.completion.chunk"}
    assert counted[-1]["choices"] == []
    assert counted[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert all(event["usage"] is None for event in counted[:-1])
    assert [event["usage"]["completion_tokens"] for event in always][:3] == [1, 2, 3]
    assert always[0]["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_n_answers_come_by_index(api, post, worker_in, stream):
    async with worker_in():
        if stream:
            events = await collect(api, CHAT, HELLO | {"n": 3, "stream_options": {"include_usage": True}})
            texts = ["", "", ""]
            for event in events[:-1]:
                (choice,) = event["choices"]
                texts[choice["index"]] += choice["delta"].get("content", "")
            usage = events[-1]["usage"]
        else:
            answer = await post(CHAT, HELLO | {"n": 3})
            assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
            texts = [choice["message"]["content"] for choice in answer["choices"]]
            usage = answer["usage"]
    assert texts == ["one two three"] * 3
    assert usage == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}


async def test_every_parameter_reaches_the_request(post, broker, card):
    """A worker played by the test reads what was asked."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "developer", "content": "d", "name": "n"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "", "tool_call_id": "c"},
        ],
        "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 1,
        "frequency_penalty": -1, "logit_bias": {"5": -100}, "max_completion_tokens": 7, "max_tokens": None,
        "min_tokens": 2, "ignore_eos": True, "seed": 11, "stop": "END", "stop_token_ids": [9], "logprobs": True,
        "top_logprobs": 2, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}, "user": "u",
        "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": None,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    }  # fmt: skip
    asking = asyncio.create_task(post(CHAT, body, 499))
    (taken,) = await eventually(lambda: claim(broker))
    request = ChatRequest.decode(await broker.redis.get(keys.prompt(taken.request_id)))
    asking.cancel()
    sampling = request.sampling
    assert [m.content for m in request.messages] == ["a\nb", "d", "hi", "", ""]
    assert request.messages[3].tool_calls == (call,)
    assert (request.messages[1].name, request.messages[4].tool_call_id) == ("n", "c")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 0, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 1, -1)
    assert (sampling.logit_bias, sampling.max_tokens, sampling.min_tokens) == (((5, -100.0),), 7, 2)
    assert (sampling.ignore_eos, sampling.seed, sampling.stop, sampling.stop_token_ids) == (True, 11, ("END",), (9,))
    assert (sampling.logprobs, sampling.structure.kind) == (2, "json_schema")
    assert json.loads(sampling.structure.value) == {"type": "object"}
    assert request.tools == (tool,)
    assert request.template_kwargs == {"enable_thinking": False}
    assert not request.keep


@pytest.mark.parametrize(
    ("more", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"'),
        ({"guided_json": {"type": "null"}}, "json_schema", '{"type": "null"}'),
        ({"guided_json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"regex": "b"}, "regex": "b"}, "regex", "b"),
        ({"structured_outputs": {"json": {}}}, "json_schema", "{}"),
        ({"structured_outputs": {"choice": ["a"]}, "ebnf": "x"}, "choice", '["a"]'),
    ],
)
async def test_every_spelling_of_a_form_reaches_the_request(post, broker, card, more, kind, value):
    asking = asyncio.create_task(post(CHAT, HELLO | {"model": "m"} | more, 499))
    (taken,) = await eventually(lambda: claim(broker))
    request = ChatRequest.decode(await broker.redis.get(keys.prompt(taken.request_id)))
    asking.cancel()
    assert request.sampling.structure
    assert (request.sampling.structure.kind, request.sampling.structure.value) == (kind, value)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"functions": []}, "functions"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * 100_00}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x" * 2000]}, "stop[0]"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"1": 1e9}}, None),
        ({"seed": 2**64 - 0.0}, "seed"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "guided_regex": "a", "tools": [CALLABLE]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}, "tools": [CALLABLE]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "god", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": "hi"}, "messages"),
        ({"model": None}, "model"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0].function.name"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_a_400_with_its_name(post, broker, card, more, param):
    error = (await post(CHAT, HELLO | {"model": "m"} | more, 400))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param, error
    assert await broker.redis.zcard(keys.queue("m")) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"model": NaN}', b'{"temperature": 1e999}',
        b'{"model": "\\ud800"}', b'{"model": "a", "model": "b"}', b"[" * 60_000, b'{"a":' * 9_000, b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"seed": ' + b"9" * 5000 + b"}", b'{"seed": -99999999999999999999}', b"{} {}", b'{"model": "\x00"}', "{}".encode("utf-16"),
    ],
)  # fmt: skip
async def test_what_is_no_plain_json_object_is_a_400(post, body):
    assert (await post(CHAT, body, 400))["error"]["type"] == "invalid_request_error"


async def test_deep_numbers_and_lone_surrogates_do_not_hide_in_what_is_passed_on(post, card):
    for value in ("1e999", "12345678901234567890123", '"\\udfff"', "[" * 70 + "]" * 70):
        raw = json.dumps(HELLO | {"model": "m"})[:-1] + ', "chat_template_kwargs": {"a": ' + value + "}}"
        await post(CHAT, raw.encode(), 400)


async def test_a_body_that_is_too_large_or_packed_wrongly_is_refused(post, api):
    error = (await post(CHAT, b"x" * 100_000, 413))["error"]
    assert error["code"] == "prompt_too_large"

    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    async with api.post(CHAT, data=dripping()) as response:
        assert response.status == 413
    await post(CHAT, b"not gzip at all", 400, headers={"Content-Encoding": "gzip"})


async def test_errors_have_openais_shape_below_v1_and_only_there(api, post, broker, card):
    for method, path, status, code in (
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
        ("GET", CHAT, 405, None),
        ("POST", "/v1/models", 405, None),
    ):
        async with api.request(method, path, headers={"Accept": "text/html"}) as response:
            error = (await response.json())["error"]
            assert response.status == status
            assert set(error) == {"message", "type", "param", "code"}
            assert code is None or error["code"] == code
            assert (status == 405) == ("Allow" in response.headers)
    error = (await post(CHAT, HELLO | {"model": "nope"}, 404))["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    error = (await post(CHAT, {**HELLO, "model": "m", "messages": [{"role": "user", "content": "x" * 3000}]}, 413))[
        "error"
    ]
    assert error["code"] == "prompt_too_large"
    await registry.leave(broker, "w", ["m"])
    async with api.post(CHAT, json=HELLO | {"model": "m"}) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["type"] == "server_error"


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(api, post, site, broker, card, config):
    site.app[BROKER].config = replace(config, queue_limit=1)
    await queues.enqueue(broker, ChatRequest("m", (), prompt="first"))
    async with api.post(CHAT, json=HELLO | {"model": "m"}) as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "queue_full"


async def test_models_are_listed_with_what_programs_want_to_know(api, broker):
    cards = [
        ModelCard("base", state="ready", context=4096, abilities=("tools",)),
        ModelCard("org/law", state="ready", parent="base"),
    ]
    await registry.beat(broker, "w", "ready", {"models": "base org/law", "slots": 4}, cards)
    await registry.beat(broker, "v", "failed", {"models": "bad"}, [ModelCard("bad", state="failed", why="x")])
    async with api.get("/v1/models") as response:
        found = await response.json()
    assert found["object"] == "list"
    assert [(m["id"], m["parent"], m["max_model_len"]) for m in found["data"]] == [
        ("base", None, 4096),
        ("org/law", "base", None),
    ]
    async with api.get("/v1/models/org/law") as response:
        law = await response.json()
    assert (law["id"], law["object"], law["root"], law["state"], law["owned_by"]) == (
        "org/law",
        "model",
        "base",
        "ready",
        "fleetchat",
    )
    async with api.get("/v1/models/bad") as response:
        assert (await response.json())["state"] == "failed"


async def test_a_model_says_since_when_it_is_there(api, broker):
    async def created() -> int:
        async with api.get("/v1/models") as response:
            (found,) = (await response.json())["data"]
        async with api.get("/v1/models/m") as response:
            assert (await response.json())["created"] == found["created"]
        return found["created"]

    before = int(time.time())
    await registry.beat(broker, "w", "loading", {"models": "m"}, [ModelCard("m")])
    first = await created()
    assert before <= first <= time.time()
    await broker.redis.hincrby(keys.SINCE, "m", -86_400_000)  # a day goes by
    await registry.leave(broker, "w", ["m"])
    await registry.beat(broker, "v", "ready", {"models": "m"}, [ModelCard("m", state="ready", context=5)])
    assert await created() == first - 86_400
    await broker.redis.delete(keys.SINCE)
    assert await created() == int(openai_answers.STARTED)


async def test_the_name_of_a_request_comes_back(api, worker_in):
    async with worker_in():
        for given in ("mine-1", "", "x" * 200, "a b"):
            async with api.post(CHAT, json=HELLO | {"stream": True}, headers={"X-Request-Id": given}) as response:
                name = response.headers["X-Request-Id"]
                assert (name == given) if given == "mine-1" else len(name) == 26
                await response.read()


async def test_a_request_that_is_left_frees_its_slot_at_once(api, worker_in, broker):
    async with worker_in() as worker:
        for stream in (False, True):
            body = {
                "model": "echo",
                "messages": [{"role": "user", "content": "/echo 5000 10ms"}],
                "stream": stream,
                "n": 2,
            }
            asking = asyncio.create_task(api.post(CHAT, json=body))
            await eventually(lambda: len(worker.claims) == 2)
            if stream:
                response = await asking
                await response.content.readline()
                response.close()
            else:
                asking.cancel()
            left = time.monotonic()
            await eventually(lambda: not worker.claims)
            assert time.monotonic() - left < 0.25, "room for a busy machine; alone it is 3 ms"


@pytest.mark.timeout(30)
async def test_the_app_as_it_is_started_lets_go_of_a_plain_request_that_is_left(broker, valkey, tmp_path, worker_in):
    port = embedded.free_port()
    with web(valkey, tmp_path, port):
        await asyncio.to_thread(wait_for_port, port)
        async with worker_in() as worker, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            body = {"model": "echo", "messages": [{"role": "user", "content": "/echo 5000 10ms"}]}
            asking = asyncio.create_task(session.post(CHAT, json=body))
            await eventually(lambda: worker.claims)
            asking.cancel()
            await eventually(lambda: not worker.claims, 0.5)


async def test_a_prompt_that_is_too_long_is_a_plain_400_also_for_a_stream(post, site, worker_in):
    site.app[BROKER].config = replace(site.app[BROKER].config, prompt_bytes=10**6)
    async with worker_in():
        long = {"model": "echo", "messages": [{"role": "user", "content": "x " * 140_000}], "stream": True}
        assert (await post(CHAT, long, 400))["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("n", [1, 2])
async def test_an_error_behind_the_first_byte_is_an_event_and_a_clean_end(api, site, config, worker_in, n):
    site.app[BROKER].config = replace(config, run_seconds=0.5)
    async with worker_in():
        body = {"model": "echo", "messages": [{"role": "user", "content": "/echo 1000 20ms"}], "n": n}
        events = await collect(api, CHAT, body)
    assert events[-1]["error"]["code"] == "ran_too_long"
    assert events[0]["choices"][0]["delta"]["content"]


@pytest.mark.timeout(40)
async def test_a_hundred_streams_at_once_say_all_that_there_is(api, worker_in):
    body = {"model": "echo", "messages": [{"role": "user", "content": "/echo 20 10ms"}]}
    async with worker_in(slots=128):
        answers = await asyncio.gather(*(collect(api, CHAT, body) for _ in range(100)))
    for events in answers:
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert text.split() == [str(i + 1) for i in range(20)]
        assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_quiet_stream_is_kept_alive_by_comments(api, worker_in, monkeypatch):
    monkeypatch.setattr(sse, "QUIET_SECONDS", 0.1)
    async with worker_in():
        body = {"model": "echo", "messages": [{"role": "user", "content": "/echo 2 1s"}], "stream": True}
        async with api.post(CHAT, json=body) as response:
            text = await response.text()
    assert text.startswith("data: ")
    assert text.count("\n: still here\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("prompt", "texts", "prompt_tokens"),
    [
        ("one two", ["one two"], 2),
        (["one two", "three"], ["one two", "three"], 3),
        ([5, 6], ["5 6 "], 2),
        ([[5, 6], [7]], ["5 6 ", "7 "], 3),
    ],
)  # fmt: skip
async def test_prompts_of_all_forms_are_completed(api, post, worker_in, prompt, texts, prompt_tokens):
    async with worker_in():
        answer = await post(COMPLETIONS, {"model": "echo", "prompt": prompt})
        echoed = await post(COMPLETIONS, {"model": "echo", "prompt": prompt, "echo": True})
        events = await collect(api, COMPLETIONS, {"model": "echo", "prompt": prompt})
    assert answer["object"] == "text_completion"
    assert [(c["index"], c["text"]) for c in answer["choices"]] == list(enumerate(texts))
    assert answer["usage"]["prompt_tokens"] == prompt_tokens
    assert [c["text"] for c in echoed["choices"]] == [text + text for text in texts]
    for i, text in enumerate(texts):
        assert "".join(c["text"] for e in events for c in e["choices"] if c["index"] == i) == text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)  # fmt: skip
async def test_a_wrong_completion_is_a_400_with_its_name(post, card, more, param):
    assert (await post(COMPLETIONS, PROMPT | {"model": "m"} | more, 400))["error"]["param"] == param


async def test_completions_have_sixteen_tokens_unless_told_and_the_best_of_some(post, worker_in):
    async with worker_in():
        answer = await post(COMPLETIONS, {"model": "echo", "prompt": "/echo 100"})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 16
        answer = await post(COMPLETIONS, {"model": "echo", "prompt": ["a b", "c"], "best_of": 3, "n": 2})
        assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a b"), (1, "a b"), (2, "c"), (3, "c")]
        assert answer["choices"][0]["logprobs"] is None
        assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        many = await post(COMPLETIONS, {"model": "echo", "prompt": [str(i) for i in range(300)]})
        assert [c["text"] for c in many["choices"]] == [str(i) for i in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.mark.timeout(60)
async def test_logprobs_of_a_real_model_in_both_shapes(api, post, worker_in, folder):
    async with worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu"):
        # What lm-eval's local-completions sends for a multiple choice.
        scored = {"model": "tiny", "prompt": [[40, 50, 60, 70], [41, 51]], "temperature": 0, "max_tokens": 1,
                  "logprobs": 1, "seed": 1234, "echo": True}  # fmt: skip
        answer = await post(COMPLETIONS, scored)
        for choice, ids in zip(sorted(answer["choices"], key=lambda c: c["index"]), scored["prompt"], strict=True):
            found = choice["logprobs"]
            assert {len(found[k]) for k in found} == {len(ids) + 1}, "the prompt's and exactly one token"
            assert found["token_logprobs"][0] is None
            assert found["top_logprobs"][0] is None
            for own, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
                assert own <= max(top.values()) <= 0
            assert max(found["top_logprobs"][-1].values()) == found["token_logprobs"][-1], "greedy"
            assert found["text_offset"][:2] == [0, len(found["tokens"][0])]
            assert choice["text"].startswith("".join(found["tokens"][:1]))
        alone = await post(COMPLETIONS, scored | {"prompt": scored["prompt"][0]})
        assert alone["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(
            answer["choices"][0]["logprobs"]["token_logprobs"][1:], abs=1e-4
        )
        # An end token is no text, and has its place among the log-probabilities.
        (ended,) = (await post(COMPLETIONS, scored | {"prompt": "The", "max_tokens": 9, "logit_bias": {"2": 100}}))[
            "choices"
        ]
        assert (ended["text"], ended["finish_reason"], ended["logprobs"]["tokens"][-1]) == ("The", "stop", "<|im_end|>")
        # A text and its ids are the same.
        text = await post(COMPLETIONS, scored | {"prompt": "The quick"})
        assert text["choices"][0]["text"].startswith("The quick")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0,
                "logprobs": True, "top_logprobs": 2, "ignore_eos": True}  # fmt: skip
        answer = await post(CHAT, body)
        tokens = answer["choices"][0]["logprobs"]["content"]
        assert len(tokens) == 5 == answer["usage"]["completion_tokens"]
        for token in tokens:
            assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
            assert token["top_logprobs"][0]["logprob"] == token["logprob"]
            assert len(token["top_logprobs"]) == 2
        events = await collect(api, CHAT, body)
        live = [t for e in events for t in (e["choices"][0]["logprobs"] or {}).get("content", ())]
        assert [t["token"] for t in live] == [t["token"] for t in tokens]
        # The same seed says the same, n choices differ.
        warm = body | {"temperature": 2.0, "seed": 5, "n": 2, "logprobs": False, "top_logprobs": None, "max_tokens": 20}
        first, again = await post(CHAT, warm), await post(CHAT, warm)
        assert first["choices"] == again["choices"]
        assert first["choices"][0]["message"] != first["choices"][1]["message"]
        # An assistant's message that is begun.
        begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The"}]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        answer = await post(CHAT, {"model": "tiny", "messages": begun, "max_tokens": 2} | more)
        assert answer["usage"]["completion_tokens"] <= 2
        await post(COMPLETIONS, {"model": "tiny", "prompt": [999_999]}, 400)
        answer = await post(
            CHAT, body | {"guided_choice": ["yes", "no"], "logprobs": None, "top_logprobs": None, "max_tokens": 20}
        )
        assert answer["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.timeout(60)
async def test_logprobs_and_usage_count_the_same_tokens_however_an_answer_ends(api, post, worker_in, folder):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "seed": 3,
             "logprobs": True, "stream_options": {"include_usage": True}}  # fmt: skip
    ends = {}
    async with worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu"):
        said = await post(CHAT, asked | {"ignore_eos": True, "stream_options": None})
        text = said["choices"][0]["message"]["content"]
        for name, more, finish in (
            ("limit", {"ignore_eos": True}, "length"),
            ("end token", {"logit_bias": {str(END): 12}}, "stop"),
            ("stop string", {"ignore_eos": True, "stop": text[2:4]}, "stop"),
            ("form", {"guided_choice": ["a longer choice"], "max_tokens": 50}, "stop"),
            ("one", {"max_tokens": 1, "ignore_eos": True}, "length"),
            ("two answers", {"n": 2, "ignore_eos": True}, "length"),
        ):
            answer = await post(CHAT, asked | more | {"stream_options": None})
            events = await collect(api, CHAT, asked | more)
            plain = [token["token"] for choice in answer["choices"] for token in choice["logprobs"]["content"]]
            live = [t["token"] for e in events for c in e["choices"] for t in (c["logprobs"] or {}).get("content", ())]
            assert len(plain) == len(live) == answer["usage"]["completion_tokens"], name
            assert events[-1]["usage"] == answer["usage"], name
            assert {choice["finish_reason"] for choice in answer["choices"]} == {finish}, name
            ends[name] = len(plain)
    assert (ends["limit"], ends["one"], ends["two answers"]) == (12, 1, 24)
    assert 0 < ends["stop string"] < 12
    assert ends["end token"] < 12


async def test_a_key_opens_closes_and_limits(api, broker: Broker, worker_in, config: Config):
    async with worker_in():
        async with api.post(CHAT, json=HELLO) as response:
            assert response.status == 200, "no key in the fleet, and it listens on loopback"
        key, _ = await accounts.create(broker, "me", models=("echo",), rpm=3)
        for headers in (
            {},
            {"Authorization": "Bearer nope"},
            {"Authorization": f"Basic {key}"},
            {"x-api-key": key[:-1]},
            {"Authorization": "Bearer " + "ü" * 300},
        ):
            for path in ("/v1/models", "/v1/nowhere", "/v1/models/echo"):
                async with api.get(path, headers=headers) as response:
                    assert response.status == 401
                    assert (await response.json())["error"]["code"] == "invalid_api_key"
        for i, headers in enumerate(
            ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"X-Api-Key": key})
        ):
            async with api.post(CHAT, json=HELLO, headers=headers) as response:
                assert response.status == 200
                assert response.headers["x-ratelimit-limit-requests"] == "3"
                assert response.headers["x-ratelimit-remaining-requests"] == str(2 - i)
        async with api.post(CHAT, json=HELLO, headers=headers) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 20
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
        async with api.get("/v1/models", headers=headers) as response:
            assert response.status == 200, "looking is free"
        await accounts.revoke(broker, "me")
        await accounts.create(broker, "you")
        async with api.post(CHAT, json=HELLO, headers=headers) as response:
            assert response.status == 401


async def test_no_spelling_of_a_path_gets_round_the_key(api, site, broker):
    await accounts.create(broker, "me")
    for path in (
        "/%76%31/models",
        "/v1/%6dodels",
        "/v1/./models",
        "/x/../v1/models",
        "//v1/models",
        "/v1//models",
        "/V1/models",
    ):
        async with api.get(aiohttp.client.URL(str(site.make_url("/")).rstrip("/") + path, encoded=True)) as response:
            assert response.status in (401, 404), path
            assert "data" not in await response.json()


async def test_a_key_sees_and_asks_only_its_models_and_owns_what_it_asks(api, post, broker):
    cards = [ModelCard("m", state="ready"), ModelCard("n", state="ready")]
    await registry.beat(broker, "w", "ready", {"models": "m n", "slots": 4}, cards)
    key, account = await accounts.create(broker, "me", models=("m",))
    headers = {"Authorization": f"Bearer {key}"}
    async with api.get("/v1/models", headers=headers) as response:
        assert [m["id"] for m in (await response.json())["data"]] == ["m"]
    async with api.get("/v1/models/n", headers=headers) as response:
        assert response.status == 404
    error = (await post(CHAT, HELLO | {"model": "n"}, 404, headers=headers))["error"]
    assert error["code"] == "model_not_found"
    asking = asyncio.create_task(post(CHAT, HELLO | {"model": "m"}, 499, headers=headers))
    (taken,) = await eventually(lambda: claim(broker))
    assert await broker.redis.hget(keys.request(taken.request_id), "owner") == account.id.encode()
    asking.cancel()


async def test_a_key_may_have_as_many_at_once_as_it_says(post, broker, worker_in):
    free, _ = await accounts.create(broker, "free")
    bound, _ = await accounts.create(broker, "bound", at_once=2)
    slow = {"model": "echo", "messages": [{"role": "user", "content": "/echo 5000 10ms"}], "n": 2}
    async with worker_in() as worker:
        await asyncio.gather(*(post(CHAT, HELLO, headers={"x-api-key": free}) for _ in range(32)))
        answer = await post(CHAT, HELLO | {"n": 5}, headers={"x-api-key": bound})
        assert len(answer["choices"]) == 5, "two after two"
        asking = asyncio.create_task(post(CHAT, slow, 499, headers={"x-api-key": bound}))
        await eventually(lambda: len(worker.claims) == 2)
        error = (await post(CHAT, HELLO, 429, headers={"x-api-key": bound}))["error"]
        assert error["code"] == "share_used"
        await post(CHAT, HELLO, headers={"x-api-key": free})
        asking.cancel()


async def test_tokens_of_an_answer_are_charged_also_when_it_is_left(api, broker, worker_in):
    key, _ = await accounts.create(broker, "me", tpm=100)
    async with worker_in(), aiohttp.ClientSession(api._base_url, headers={"x-api-key": key}) as session:
        async with session.post(CHAT, json=HELLO) as response:
            assert response.headers["x-ratelimit-limit-tokens"] == "100"
            assert "x-ratelimit-limit-requests" not in response.headers
        body = {"model": "echo", "messages": [{"role": "user", "content": "/echo 5000 1ms"}], "stream": True}
        async with session.post(CHAT, json=body) as response:
            for _ in range(40):
                await response.content.readline()

        async def refused() -> bool:
            async with session.post(CHAT, json=HELLO) as response:
                return response.status == 429

        await eventually(refused)


async def test_without_a_key_the_api_is_open_on_loopback_only(api, site, config):
    site.app[BROKER].config = replace(config, host="0.0.0.0")
    async with api.get("/v1/models") as response:
        assert response.status == 401
        assert "fleetchat keys create" in (await response.json())["error"]["message"]
    async with api.get("/models") as response:
        assert response.status == 200


async def test_pages_of_listed_origins_may_call_and_no_others(api, site, config, worker_in):
    site.app[BROKER].config = replace(config, origins=("https://chat.example",))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    async with api.options(CHAT, headers={"Origin": "https://chat.example"} | ask) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        assert "x-stainless-os" in response.headers["Access-Control-Allow-Headers"]
    async with api.options(CHAT, headers={"Origin": "https://evil.example"} | ask) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers
    async with worker_in():
        async with api.post(CHAT, json=HELLO, headers={"Origin": "https://chat.example"}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        async with api.post(CHAT, json=HELLO, headers={"Origin": "https://evil.example"}) as response:
            assert response.status == 403
