"""LangChain's OpenAI classes, unchanged, against a running app: what its users do with a model and with an encoder."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import openai
import pytest
import tiktoken
from aiohttp.test_utils import TestServer
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from broker import accounts
from helpers import ENCODER, eventually
from tests.tiny_model import CALLING_TEMPLATE, build

SLOW = "/echo 5000 10ms"

pytestmark = pytest.mark.timeout(60)


class Weather(BaseModel):
    """What the weather is like."""

    ok: bool


@tool
def weather(ok: bool) -> str:
    """Says whether the weather is fine."""
    return f"fine: {ok}"


@pytest.fixture
def reach(site: TestServer, connections) -> dict[str, Any]:
    """What all its classes have to know."""
    blocking, client = connections
    url = str(site.make_url("/v1"))
    return {"base_url": url, "api_key": "none", "http_client": blocking, "http_async_client": client}


@pytest.fixture
def chat(reach) -> Callable[..., ChatOpenAI]:
    """A chat model of the fleet."""
    return partial(ChatOpenAI, **reach)


@pytest.fixture
def tiny(worker_in, tmp_path):
    """A worker with a real model that may call tools."""
    return worker_in(model=f"tiny={build(tmp_path / 'tiny', CALLING_TEMPLATE)}", cache_mb=4, device="cpu")


async def test_answers_plain_and_streamed(chat, reach, worker_in):
    model = chat(model="echo", stream_usage=True, temperature=0.5, seed=1, stop=["never"])
    async with worker_in():
        answer = await model.ainvoke([SystemMessage("be brief"), HumanMessage("one two three")])
        assert answer.content == "one two three"
        assert answer.response_metadata["finish_reason"] == "stop"
        assert answer.usage_metadata["output_tokens"] == 3
        chunks = [chunk async for chunk in model.astream("one two three")]
        assert "".join(chunk.content for chunk in chunks) == "one two three"
        assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 3
        assert (await asyncio.to_thread(model.invoke, "a b")).content == "a b"
        assert "".join(chunk.content for chunk in await asyncio.to_thread(list, model.stream("a b"))) == "a b"
        assert [one.content for one in await model.abatch(["a", "b"])] == ["a", "b"]
        assert await OpenAI(model="echo", **reach).ainvoke("a b") == "a b"


async def test_tools_schemas_and_logprobs(chat, tiny):
    model = chat(model="tiny", seed=1)
    async with tiny:
        calling = model.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
        asked = [HumanMessage("How is it?")]
        answer = await calling.ainvoke(asked)
        (call,) = answer.tool_calls
        assert (call["name"], set(call["args"])) == ("weather", {"ok"})
        assert not answer.invalid_tool_calls
        result = weather.invoke(call)
        assert isinstance(result, ToolMessage)
        later = await model.bind_tools([weather], max_tokens=4).ainvoke([*asked, answer, result])
        assert later.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]
        whole = None
        async for chunk in model.bind_tools([weather], tool_choice="any").astream(asked):
            whole = chunk if whole is None else whole + chunk
        assert {one["name"] for one in whole.tool_calls} == {"weather"}

        for method in ("json_schema", "function_calling"):
            found = await model.with_structured_output(Weather, method=method).ainvoke("How is it?")
            assert isinstance(found, Weather)

        scored = chat(model="tiny", logprobs=True, top_logprobs=2, max_tokens=3, extra_body={"ignore_eos": True})
        tokens = (await scored.ainvoke("How is it?")).response_metadata["logprobs"]["content"]
        assert [len(token["top_logprobs"]) for token in tokens] == [2, 2, 2]
        with pytest.raises(ContextOverflowError):
            await model.ainvoke("word " * 300)


async def test_errors_and_a_refusal_that_is_tried_again(chat, broker, worker_in):
    async with worker_in():
        with pytest.raises(openai.NotFoundError, match="nope"):
            await chat(model="nope").ainvoke("hi")
        with pytest.raises(openai.BadRequestError) as wrong:
            await chat(model="echo", extra_body={"nonsense": 1}).ainvoke("hi")
        assert wrong.value.param == "nonsense"
        key, _ = await accounts.create(broker, "me", rpm=60)
        account, _ = await accounts.find(broker, key)
        with pytest.raises(openai.AuthenticationError):
            await chat(model="echo").ainvoke("hi")
        await accounts.spend(broker, account, requests=60, force=True)
        with pytest.raises(openai.RateLimitError):
            await chat(model="echo", api_key=key, max_retries=0).ainvoke("hi")
        begun = time.monotonic()
        assert (await chat(model="echo", api_key=key).ainvoke("hi")).content == "hi"
        assert 0.5 < time.monotonic() - begun < 4, "as Retry-After says"


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_ends_the_answer(chat, worker_in, stream):
    async with worker_in() as worker:
        model = chat(model="echo")
        if stream:
            chunks = model.astream(SLOW)
            await anext(chunks)
            await chunks.aclose()
        else:
            asking = asyncio.create_task(model.ainvoke(SLOW))
            await eventually(lambda: worker.claims)
            asking.cancel()
        await eventually(lambda: not worker.claims, 2)


async def test_embeddings_of_texts_and_of_token_ids(reach, worker_in, monkeypatch):
    texts = ["a cat sat on the mat", "你好,世界"]
    client = openai.AsyncOpenAI(base_url=reach["base_url"], api_key="none", http_client=reach["http_async_client"])
    async with worker_in(model=f"mini={ENCODER}", device="cpu"):
        embedder = partial(OpenAIEmbeddings, model="mini", **reach)
        plain = await client.embeddings.create(model="mini", input=texts)
        found = await embedder(check_embedding_ctx_length=False).aembed_documents(texts)
        assert np.abs(np.array(found) - [one.embedding for one in plain.data]).max() < 1e-5
        assert len(await embedder(check_embedding_ctx_length=False, dimensions=64).aembed_query("x")) == 64

        # By itself it sends ids, of the vocabulary that tiktoken has for the model: here one whose ids are the bytes.
        bytewise = tiktoken.Encoding(
            "bytes", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
        )
        monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: bytewise)
        found = await embedder().aembed_documents(texts)
        by_ids = await client.embeddings.create(model="mini", input=[list(text.encode()) for text in texts])
        assert np.abs(np.array(found) - [one.embedding for one in by_ids.data]).max() < 1e-5
