"""The official `openai` package, unchanged, against a running app: what its users do all day."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import openai
import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI, OpenAI

from broker import accounts, keys
from broker.messages import ChatRequest
from helpers import claim, eventually
from tests.tiny_model import CALLING_TEMPLATE, build
from webapp.state import BROKER

USER = [{"role": "user", "content": "one two three"}]
SLOW = [{"role": "user", "content": "/echo 5000 10ms"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture
async def client(site: TestServer) -> AsyncIterator[AsyncOpenAI]:
    """With the number of retries that it has by itself."""
    async with AsyncOpenAI(base_url=str(site.make_url("/v1")), api_key="none") as made:
        yield made


async def test_chat_stream_and_models(client, worker_in):
    async with worker_in():
        answer = await client.chat.completions.create(model="echo", messages=USER, user="me", seed=1)
        assert answer.choices[0].message.content == "one two three"
        assert answer.usage.total_tokens == 6
        stream = await client.chat.completions.create(
            model="echo", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
        assert chunks[-1].usage.completion_tokens == 3
        async with client.chat.completions.stream(model="echo", messages=USER) as events:
            assert (await events.get_final_completion()).choices[0].message.content == "one two three"
        assert [model.id async for model in client.models.list()] == ["echo"]
        assert (await client.models.retrieve("echo")).owned_by == "fleetchat"


@pytest.mark.timeout(60)
async def test_the_blocking_client(site, broker, worker_in, tmp_path):
    """What the other tests do with the asynchronous one."""
    key, _ = await accounts.create(broker, "me")
    limited, _ = await accounts.create(broker, "you", rpm=60)
    account, _ = await accounts.find(broker, limited)
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    asked = {"model": "tiny", "messages": USER, "seed": 1}

    def talk(client: OpenAI) -> None:
        answer = client.chat.completions.create(model="echo", messages=USER)
        assert answer.choices[0].message.content == "one two three"
        chunks = list(client.chat.completions.create(model="echo", messages=USER, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
        assert client.completions.create(model="echo", prompt=[[1, 2]], echo=True).choices[0].text == "1 2 1 2 "
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nope", messages=USER)
        with client.chat.completions.create(model="echo", messages=SLOW, stream=True) as stream:
            next(iter(stream))

    def wait(client: OpenAI) -> None:
        with pytest.raises(openai.RateLimitError):
            client.with_options(max_retries=0).chat.completions.create(model="echo", messages=USER)
        begun = time.monotonic()
        assert client.chat.completions.create(model="echo", messages=USER).choices
        assert 0.5 < time.monotonic() - begun < 4

    def form(client: OpenAI) -> None:
        chat = partial(client.chat.completions.create, **asked)
        (call,) = chat(tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls
        result = {"role": "tool", "content": "seven", "tool_call_id": call.id}
        turns = [*USER, {"role": "assistant", "tool_calls": [call.model_dump()]}, result]
        assert chat(messages=turns, tools=[tool], max_tokens=3).usage.completion_tokens <= 3
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
        assert set(json.loads(chat(response_format=schema).choices[0].message.content)) == {"ok"}
        more = {"logprobs": True, "top_logprobs": 2, "max_tokens": 2, "extra_body": {"ignore_eos": True}}
        assert len(chat(**more).choices[0].logprobs.content) == 2

    with OpenAI(base_url=str(site.make_url("/v1")), api_key=key) as client:
        async with worker_in() as worker:
            await asyncio.to_thread(talk, client)
            await eventually(lambda: not worker.claims, 2)
            await accounts.spend(broker, account, requests=60, force=True)
            await asyncio.to_thread(wait, client.with_options(api_key=limited))
        async with worker_in(model=f"tiny={build(tmp_path, CALLING_TEMPLATE)}", cache_mb=4, device="cpu"):
            await asyncio.to_thread(form, client)


async def test_completions(client, worker_in):
    async with worker_in():
        answer = await client.completions.create(model="echo", prompt=["a b", "c"], logprobs=1, echo=True, n=2)
        assert [choice.text for choice in answer.choices] == ["a ba b", "a ba b", "cc", "cc"]
        assert answer.choices[0].logprobs.tokens == ["a ", "b", "a ", "b"]
        assert answer.choices[0].logprobs.token_logprobs == [None, 0, 0, 0]
        stream = await client.completions.create(model="echo", prompt="x y", stream=True, echo=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "x yx y"


@pytest.mark.timeout(60)
async def test_a_schema_and_logprobs_on_a_real_model(client, worker_in, tmp_path: Path):
    async with worker_in(model=f"tiny={build(tmp_path)}", cache_mb=4, device="cpu"):
        answer = await client.chat.completions.create(
            model="tiny",
            messages=USER,
            max_completion_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        )
        assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
        answer = await client.chat.completions.create(
            model="tiny", messages=USER, max_tokens=3, logprobs=True, top_logprobs=2, extra_body={"ignore_eos": True}
        )
        tokens = answer.choices[0].logprobs.content
        assert len(tokens) == 3
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
        answer = await client.chat.completions.create(
            model="tiny", messages=USER, extra_body={"guided_choice": ["red", "blue"], "top_k": 5, "min_p": 0.01}
        )
        assert answer.choices[0].message.content in ("red", "blue")


async def test_errors_are_the_packages_own(client, site, worker_in, broker):
    async with worker_in():
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=USER)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model="echo", messages=USER, temperature=-1)
        assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
        with pytest.raises(openai.BadRequestError, match="nonsense"):
            await client.chat.completions.create(model="echo", messages=USER, extra_body={"nonsense": 1})
        site.app[BROKER].config = replace(site.app[BROKER].config, run_seconds=0.3)
        stream = await client.chat.completions.create(model="echo", messages=SLOW, stream=True)
        with pytest.raises(openai.APIError, match="time limit"):
            async for _ in stream:
                pass
        await accounts.create(broker, "somebody")
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_refusal_is_tried_again_when_it_says_so(client, site, broker, worker_in):
    key, _ = await accounts.create(broker, "me", rpm=60)
    account, _ = await accounts.find(broker, key)
    async with worker_in():
        await accounts.spend(broker, account, requests=60, force=True)
        begun = time.monotonic()
        answer = await client.with_options(api_key=key).chat.completions.create(model="echo", messages=USER)
        assert answer.choices[0].message.content == "one two three"
        assert 0.5 < time.monotonic() - begun < 4
        raw = await client.with_options(api_key=key, max_retries=0).models.with_raw_response.list()
        assert raw.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_ends_the_answer(client, worker_in, stream):
    async with worker_in() as worker:
        asking = asyncio.create_task(client.chat.completions.create(model="echo", messages=SLOW, stream=stream))
        await eventually(lambda: worker.claims)
        if stream:
            await (await asking).close()
        else:
            asking.cancel()
        await eventually(lambda: not worker.claims, 1)


@pytest.mark.timeout(30)
async def test_tools_are_called_and_thoughts_are_told_apart(client, worker_in, tmp_path):
    build(tmp_path, CALLING_TEMPLATE)
    tools = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}} for name in ("f", "g")
    ]
    asked = {"model": "tiny", "messages": USER, "tools": tools, "seed": 1, "parallel_tool_calls": False}
    async with worker_in(model=f"tiny={tmp_path}", cache_mb=4, device="cpu"):
        answer = await client.chat.completions.create(**asked, tool_choice="required")
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name in ("f", "g")) == ("function", True)
        assert set(json.loads(call.function.arguments)) == {"ok"}
        named = {"type": "function", "function": {"name": "g"}}
        stream = await client.chat.completions.create(
            **asked, tool_choice=named, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        deltas = [delta for chunk in chunks if chunk.choices for delta in chunk.choices[0].delta.tool_calls or ()]
        assert (deltas[0].index, deltas[0].type, deltas[0].function.name) == (0, "function", "g")
        assert deltas[0].id
        assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
        assert set(json.loads("".join(delta.function.arguments for delta in deltas))) == {"ok"}
        assert chunks[-2].choices[0].finish_reason == "tool_calls"
        assert chunks[-1].usage.completion_tokens > 10
        async with client.chat.completions.stream(**asked, tool_choice=named) as events:
            parsed = await events.get_final_completion()
        assert parsed.choices[0].message.tool_calls[0].function.name == "g"
        result = {"role": "tool", "content": "seven", "tool_call_id": call.id}
        turns = [*USER, choice.message, result]
        extra = {"chat_template_kwargs": {"thinking": True}, "ignore_eos": True}
        answer = await client.chat.completions.create(
            model="tiny", messages=turns, tools=tools, max_tokens=12, seed=3, extra_body=extra
        )
        message = answer.choices[0].message
        assert (message.content, answer.choices[0].finish_reason) == ("", "length")
        assert len(message.reasoning_content) > 3


async def test_a_tools_round_trip_reaches_the_model(client, broker, card):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]
    asking = asyncio.create_task(client.chat.completions.create(model="m", messages=messages, tools=[tool]))
    (taken,) = await eventually(lambda: claim(broker))
    request = ChatRequest.decode(await broker.redis.get(keys.prompt(taken.request_id)))
    asking.cancel()
    assert request.tools == (tool,)
    assert request.messages[1].tool_calls == (call,)
    assert request.messages[2].tool_call_id == "c"
