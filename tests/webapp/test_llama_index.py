"""LlamaIndex's classes for servers with OpenAI's protocol, unchanged, against a running app."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from aiohttp.test_utils import TestServer
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from broker import accounts
from helpers import ENCODER, eventually
from tests.tiny_model import CALLING_TEMPLATE, build

USER = [ChatMessage("one two three")]
SLOW = [ChatMessage("/echo 5000 10ms")]

pytestmark = pytest.mark.timeout(60)


class Weather(BaseModel):
    """What the weather is like."""

    ok: bool


def weather(ok: bool) -> str:
    """Says whether the weather is fine."""
    return f"fine: {ok}"


@pytest.fixture
def reach(site: TestServer, connections) -> dict[str, Any]:
    """What all its classes have to know."""
    blocking, client = connections
    url = str(site.make_url("/v1"))
    return {"api_base": url, "api_key": "none", "http_client": blocking, "async_http_client": client}


@pytest.fixture
def chat(reach) -> Callable[..., OpenAILike]:
    """A chat model of the fleet."""
    return lambda **more: OpenAILike(**reach | {"is_chat_model": True, "is_function_calling_model": True} | more)


async def test_answers_plain_and_streamed(chat, worker_in):
    model = chat(model="echo", additional_kwargs={"seed": 1, "stop": ["never"]})
    async with worker_in():
        answer = await model.achat(USER)
        assert answer.message.content == "one two three"
        assert answer.raw.usage.completion_tokens == 3
        chunks = [chunk async for chunk in await model.astream_chat(USER)]
        assert "".join(chunk.delta or "" for chunk in chunks) == chunks[-1].message.content == "one two three"
        assert (await asyncio.to_thread(model.chat, USER)).message.content == "one two three"
        blocking = await asyncio.to_thread(lambda: list(model.stream_chat(USER)))
        assert blocking[-1].message.content == "one two three"

        completing = chat(model="echo", is_chat_model=False, logprobs=True, top_logprobs=1)
        answer = await completing.acomplete("a b")
        assert (answer.text, len(answer.logprobs)) == ("a b", 2)
        assert [chunk.text async for chunk in await completing.astream_complete("a b")][-1] == "a b"


async def test_tools_schemas_and_logprobs(chat, worker_in, tmp_path):
    folder = build(tmp_path / "tiny", CALLING_TEMPLATE)
    model = chat(model="tiny", additional_kwargs={"seed": 1})
    tools = [FunctionTool.from_defaults(weather)]
    async with worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu"):
        answer = await model.achat_with_tools(tools, chat_history=USER, tool_required=True)
        (call,) = model.get_tool_calls_from_response(answer)
        assert (call.tool_name, set(call.tool_kwargs)) == ("weather", {"ok"})
        result = ChatMessage(
            str(tools[0](**call.tool_kwargs)), role=MessageRole.TOOL, additional_kwargs={"tool_call_id": call.tool_id}
        )
        later = await model.achat_with_tools(tools, chat_history=[*USER, answer.message, result], max_tokens=4)
        assert later.raw.usage.prompt_tokens > answer.raw.usage.prompt_tokens
        named = await model.astream_chat_with_tools(tools, chat_history=USER, tool_choice="weather")
        whole = [chunk async for chunk in named][-1]
        (call,) = model.get_tool_calls_from_response(whole)
        assert (call.tool_name, set(call.tool_kwargs)) == ("weather", {"ok"})

        for schemas in (True, False):
            structured = chat(model="tiny", should_use_structured_outputs=schemas, additional_kwargs={"seed": 1})
            found = await structured.astructured_predict(Weather, PromptTemplate("How is it?"))
            assert isinstance(found, Weather)

        more = {"extra_body": {"ignore_eos": True}}
        scored = chat(model="tiny", logprobs=True, top_logprobs=2, max_tokens=3, additional_kwargs=more)
        tokens = (await scored.achat(USER)).logprobs
        assert [len(token) for token in tokens] == [2, 2, 2]


async def test_errors_and_a_refusal_that_is_tried_again(chat, broker, worker_in):
    async with worker_in():
        with pytest.raises(openai.NotFoundError, match="nope"):
            await chat(model="nope").achat(USER)
        with pytest.raises(openai.BadRequestError, match="nonsense"):
            await chat(model="echo", additional_kwargs={"extra_body": {"nonsense": 1}}).achat(USER)
        key, _ = await accounts.create(broker, "me", rpm=60)
        account, _ = await accounts.find(broker, key)
        with pytest.raises(openai.AuthenticationError):
            await chat(model="echo").achat(USER)
        await accounts.spend(broker, account, requests=60, force=True)
        with pytest.raises(openai.RateLimitError):
            await chat(model="echo", max_retries=0, api_key=key).achat(USER)
        begun = time.monotonic()
        assert (await chat(model="echo", api_key=key).achat(USER)).message.content == "one two three"
        assert 0.5 < time.monotonic() - begun < 4, "as Retry-After says"


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_ends_the_answer(chat, worker_in, stream):
    async def read() -> None:
        async for _ in await model.astream_chat(SLOW):
            begun.set()

    model, begun = chat(model="echo"), asyncio.Event()
    async with worker_in() as worker:
        asking = asyncio.create_task(read() if stream else model.achat(SLOW))
        await eventually(lambda: begun.is_set() if stream else worker.claims)
        asking.cancel()
        await eventually(lambda: not worker.claims, 2)


async def test_embeddings(reach, worker_in):
    texts = ["a cat sat on the mat", "你好,世界", "x"]
    client = openai.AsyncOpenAI(base_url=reach["api_base"], api_key="none", http_client=reach["async_http_client"])
    async with worker_in(model=f"mini={ENCODER}", device="cpu"):
        plain = await client.embeddings.create(model="mini", input=texts)
        embedder = OpenAILikeEmbedding("mini", embed_batch_size=2, **reach)
        found = await embedder.aget_text_embedding_batch(texts)
        assert np.abs(np.array(found) - [one.embedding for one in plain.data]).max() < 1e-5
        assert (await asyncio.to_thread(embedder.get_query_embedding, "x"))[:3] == pytest.approx(found[2][:3], abs=1e-5)
        assert len(await OpenAILikeEmbedding("mini", dimensions=64, **reach).aget_text_embedding("x")) == 64
