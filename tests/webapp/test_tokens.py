"""Tokenizers over HTTP: a real tiny model, an encoder, echo and a remote one; what lm-eval does, and what is refused."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support
from transformers import AutoTokenizer

from broker import accounts, keys, registry
from broker.messages import ModelCard
from helpers import ENCODER, eventually
from tests.tiny_model import CONTEXT, build
from webapp.state import BROKER

TEXTS = ["", "The quick brown fox", "你好，世界。", "👍🏽 e\u0301 naïve\n\n  two", "<|im_start|>user\nhi<|im_end|>\n"]
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好 👍🏽"}]
TOKENIZE, DETOKENIZE, INFO, CHECK = "/tokenize", "/detokenize", "/tokenizer_info", "/api/v1/token_check"
pytestmark = pytest.mark.timeout(60)

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    """The model's tokenizer, read by transformers itself."""
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def tiny(worker_in, folder: Path) -> Call:
    return lambda **more: worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu", **more)


@pytest.fixture
def call(site: TestServer) -> Call:
    """`await call(path, body, status=200)`: the answer's JSON, once its status is that; GET without a body."""

    async def send(path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=aiohttp.DummyCookieJar()) as session:
            method = "GET" if body is None else "POST"
            async with session.request(method, path, json=body, headers=headers) as response:
                text = await response.text()
                assert response.status == status, text
                assert response.headers["X-Request-Id"]
                return json.loads(text)

    return send


async def test_ids_of_a_text_are_the_tokenizers_own_and_come_back_as_it(call, tiny, own):
    async with tiny():
        for text in TEXTS:
            for special in (True, False):
                found = await call(TOKENIZE, {"model": "tiny", "prompt": text, "add_special_tokens": special})
                ids = own.encode(text, add_special_tokens=special)
                assert found == {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids, "token_strs": None}
            assert await call(DETOKENIZE, {"model": "tiny", "tokens": found["tokens"]}) == {"prompt": text}
        found = await call("/v1/tokenize", {"model": "tiny", "prompt": TEXTS[2], "return_token_strs": True})
        assert found["token_strs"] == own.tokenize(TEXTS[2])
        assert (await call("/v1/detokenize", {"tokens": found["tokens"]}))["prompt"] == TEXTS[2]


async def test_ids_of_messages_are_what_an_answer_to_them_starts_from(call, tiny, own):
    async with tiny():
        for begin in (True, False):
            ids = own.apply_chat_template(MESSAGES, add_generation_prompt=begin, return_dict=False)
            body = {"model": "tiny", "messages": MESSAGES, "add_generation_prompt": begin}
            assert (await call(TOKENIZE, body))["tokens"] == ids
        answer = await call("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "max_tokens": 1})
        counted = await call(TOKENIZE, {"messages": MESSAGES})
        assert counted["count"] == answer["usage"]["prompt_tokens"]
        begun = [*MESSAGES, {"role": "assistant", "content": "Hel"}]
        continued = await call(TOKENIZE, {"messages": begun, "continue_final_message": True})
        assert own.decode(continued["tokens"]) == own.decode(counted["tokens"]) + "Hel"


@pytest.mark.parametrize("large", [False, True])
async def test_what_is_large_is_the_same(call, site, config, tiny, own, large):
    site.app[BROKER].config = replace(config, prompt_bytes=100_000)
    text = TEXTS[3] * (2000 if large else 20)
    async with tiny():
        found = await call(TOKENIZE, {"prompt": text, "return_token_strs": True})
        assert found["tokens"] == own.encode(text)
        assert len(found["token_strs"]) == found["count"]
        assert (await call(DETOKENIZE, {"tokens": found["tokens"][:20_000]}))["prompt"] in text


async def test_the_tokenizers_configuration_has_what_lm_eval_needs_and_no_paths(call, tiny, own, folder):
    async with tiny():
        found = await call(INFO)
        assert found == await call(INFO + "?model=tiny")
        assert {name: found[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")} == {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "unk_token": None,
        }
        assert (found["model"], found["vocab_size"], found["model_max_length"]) == ("tiny", len(own), CONTEXT)
        assert found["eos_token_id"] == own.eos_token_id
        assert found["chat_template"] == own.chat_template
        assert str(folder.parent) not in json.dumps(found)


async def test_lm_evals_own_tokenizer_finds_and_uses_them(site, tiny, own):
    url = str(site.make_url("/v1/completions"))

    def evaluate() -> None:
        assert check_remote_tokenizer_support(url, auth_token="none")
        remote = RemoteTokenizer(url)
        assert (remote.eos_token, remote.eos_token_id, remote.bos_token_id) == ("<|im_end|>", 2, 1)
        for text in TEXTS:
            assert remote.encode(text) == own.encode(text, add_special_tokens=False)
            assert remote.decode(remote.encode(text)) == text
        rendered = own.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
        assert remote.apply_chat_template(MESSAGES) == rendered

    async with tiny():
        await asyncio.to_thread(evaluate)


async def test_fastchats_token_check(call, tiny):
    async with tiny():
        text = "The quick brown fox <|im_end|>"
        answer = await call("/v1/completions", {"model": "tiny", "prompt": text, "max_tokens": 1})
        count = answer["usage"]["prompt_tokens"]
        room = CONTEXT - count
        prompts = [{"model": "tiny", "prompt": text, "max_tokens": most} for most in (room, room + 1)]
        assert (await call(CHECK, {"prompts": prompts}))["prompts"] == [
            {"fits": True, "tokenCount": count, "contextLength": CONTEXT},
            {"fits": False, "tokenCount": count, "contextLength": CONTEXT},
        ]
        assert await call(CHECK, {"prompts": []}) == {"prompts": []}
        prompts[1]["model"] = "nope"
        assert (await call(CHECK, {"prompts": prompts}, 404))["error"]["code"] == "model_not_found"


async def test_an_encoder_and_an_echo_have_tokens_too_and_a_remote_model_says_where_to_ask(call, worker_in, tmp_path):
    own = AutoTokenizer.from_pretrained(ENCODER)
    async with worker_in(model=f"mini={ENCODER}", device="cpu"):
        found = await call(TOKENIZE, {"model": "mini", "prompt": "Hello 世界"})
        assert (found["tokens"], found["max_model_len"]) == (own.encode("Hello 世界"), 256)
        long = {"model": "mini", "prompt": "word " * 300, "max_tokens": 0}
        (checked,) = (await call(CHECK, {"prompts": [long]}))["prompts"]
        assert checked == {"fits": False, "tokenCount": 302, "contextLength": 256}
        assert (await call(DETOKENIZE, {"model": "mini", "tokens": [101, 7592, 102]}))["prompt"] == "[CLS] hello [SEP]"
        assert (await call(INFO + "?model=mini"))["sep_token"] == "[SEP]"
        error = (await call(TOKENIZE, {"model": "mini", "messages": MESSAGES}, 400))["error"]
        assert (error["param"], "no chat template" in error["message"]) == ("messages", True)
        assert (await call(INFO, None, 503))["error"]["code"] == "no_worker", "an encoder is never meant"
    async with worker_in():
        found = await call(TOKENIZE, {"model": "echo", "prompt": "one  two\nthree", "return_token_strs": True})
        assert (found["tokens"], found["token_strs"]) == ([0, 1, 2], ["one  ", "two\n", "three"])
        assert await call(DETOKENIZE, {"model": "echo", "tokens": [7, 8]}) == {"prompt": "7 8 "}
        info = await call(INFO)
        assert (info["model"], info["eos_token"]) == ("echo", None)
    async with worker_in(model="far=http://127.0.0.1:9/v1"):
        error = (await call(TOKENIZE, {"model": "far", "prompt": "x"}, 400))["error"]
        assert "far runs on another server" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TOKENIZE, {}, "prompt"),
        (TOKENIZE, {"prompt": ["a"]}, "prompt"),
        (TOKENIZE, {"prompt": "x", "messages": MESSAGES}, "prompt"),
        (TOKENIZE, {"prompt": "x", "tools": []}, "tools"),
        (TOKENIZE, {"prompt": "x", "chat_template": "{{ 1 }}"}, "chat_template"),
        (TOKENIZE, {"prompt": "x", "add_special_tokens": "yes"}, "add_special_tokens"),
        (TOKENIZE, {"messages": []}, "messages"),
        (TOKENIZE, {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        (TOKENIZE, {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}}, None),
        (TOKENIZE, {"messages": MESSAGES, "continue_final_message": True}, None),
        (DETOKENIZE, {}, "tokens"),
        (DETOKENIZE, {"tokens": "x"}, "tokens"),
        (DETOKENIZE, {"tokens": [-1]}, "tokens[0]"),
        (DETOKENIZE, {"tokens": [1.5]}, "tokens[0]"),
        (DETOKENIZE, {"tokens": [2**32]}, "tokens[0]"),
        (DETOKENIZE, {"tokens": [5, 10**9]}, "tokens"),
        (DETOKENIZE, {"tokens": [5, 512]}, "tokens"),
        (CHECK, {"prompts": [{"model": "tiny", "prompt": "x"}]}, "prompts[0].max_tokens"),
        (CHECK, {"prompts": [{"model": "tiny", "prompt": "x", "max_tokens": -1}]}, "prompts[0].max_tokens"),
        (CHECK, {"prompts": [{"prompt": "x", "max_tokens": 1}]}, "prompts[0].model"),
    ],
)
async def test_what_is_wrong_is_a_400_with_its_name(call, tiny, path, body, param):
    async with tiny():
        error = (await call(path, body, 400))["error"]
        assert error["type"] == "invalid_request_error"
        assert error.get("param") == param, error
        nulls = {"prompt": "x", "model": None, "return_token_strs": None, "messages": None}
        assert (await call(TOKENIZE, nulls))["count"] == 1


async def test_what_is_too_large_or_for_no_model_is_refused_as_elsewhere(call, broker, tiny):
    assert (await call(TOKENIZE, {"prompt": "x"}, 503))["error"]["code"] == "no_worker"
    async with tiny():
        for path, body in ((TOKENIZE, {"prompt": "x" * 2001}), (DETOKENIZE, {"tokens": [5] * 501})):
            error = (await call(path, {"model": "tiny"} | body, 413))["error"]
            assert error["code"] == "prompt_too_large"
            assert "Send less" in error["message"]
        await call(TOKENIZE, {"prompt": "x" * 100_000}, 413)
        for path, body in ((TOKENIZE, {"prompt": "x"}), (DETOKENIZE, {"tokens": [5]})):
            assert (await call(path, {"model": "nope"} | body, 404))["error"]["param"] == "model"
        assert (await call(INFO + "?model=nope", None, 404))["error"]["code"] == "model_not_found"
        await registry.beat(broker, "w", "ready", {"models": "other"}, [ModelCard("other", state="ready")])
        for path, body in ((TOKENIZE, {"prompt": "x"}), (DETOKENIZE, {"tokens": [5]}), (INFO, None)):
            error = (await call(path, body, 400))["error"]
            assert (error["param"], "Several models" in error["message"]) == ("model", True)


async def test_keys_and_limits_are_those_of_the_api(call, broker, site, config, tiny):
    ways = ((TOKENIZE, {"prompt": "x"}), (DETOKENIZE, {"tokens": [5]}), (INFO, None), (CHECK, {"prompts": []}))
    async with tiny():
        await registry.beat(broker, "w", "ready", {"models": "other"}, [ModelCard("other", state="ready")])
        key, _ = await accounts.create(broker, "me", models=("tiny",), rpm=4)
        for path, body in ways:
            await call(path, body, 401)
            await call(path, body, 401, Authorization="Bearer nope")
        other = (await call(TOKENIZE, {"model": "other", "prompt": "x"}, 404, Authorization=f"Bearer {key}"))["error"]
        assert other["code"] == "model_not_found"
        for path, body in ways[:3]:
            await call(path, body, Authorization=f"Bearer {key}")  # the only model that it may use is meant
        for path, body in ways:
            error = (await call(path, body, 429, Authorization=f"Bearer {key}"))["error"]
            assert error["code"] == "rate_limit_exceeded"
        await accounts.revoke(broker, "me")
        site.app[BROKER].config = replace(config, host="0.0.0.0")
        for path, body in ways:
            await call(path, body, 401)


@pytest.mark.parametrize("engine", ["echo", "tiny"])
async def test_tokens_do_not_wait_while_all_slots_write_and_others_wait(call, broker, worker_in, tiny, engine):
    slow = {"model": engine, "prompt": "/echo 100000 20ms", "max_tokens": 480, "ignore_eos": True, "n": 6}
    async with worker_in(slots=2) if engine == "echo" else tiny(slots=2) as worker:
        answering = asyncio.create_task(call("/v1/completions", slow))
        await eventually(lambda: _count(broker, keys.queue(engine), 4))
        before = await registry.counts(broker)
        for body in ({"prompt": TEXTS[1] * 20}, {"messages": MESSAGES}):
            begun = time.monotonic()
            found = await call(TOKENIZE, {"model": engine} | body)
            assert found["count"] > 1
            assert time.monotonic() - begun < 1
            assert worker.busy == 2
        assert await _count(broker, keys.queue(engine), 4), "the slots are still taken"
        assert [m.card.name for m in await registry.models(broker)] == [engine]
        (model,) = await registry.models(broker)
        assert (model.waiting, model.running) == (4, 2)
        assert await registry.counts(broker) == before, "answers are counted, and these are none"
        answering.cancel()
        await asyncio.wait({answering})
        await eventually(lambda: not worker.claims)


async def _count(broker: Any, key: str, count: int) -> bool:
    return await broker.redis.zcard(key) == count


async def test_answers_of_a_user_do_not_use_up_the_share_of_tokens(call, broker, worker_in):
    key, account = await accounts.create(broker, "me", at_once=8)
    async with worker_in(slots=8):
        slow = {"model": "echo", "prompt": "/echo 1000 20ms", "max_tokens": 500, "n": 8}
        answering = asyncio.create_task(call("/v1/completions", slow, Authorization=f"Bearer {key}"))
        await eventually(lambda: _count(broker, keys.running("echo"), 8))
        asked = {"model": "echo", "prompt": "x"}
        error = (await call("/v1/completions", asked, 429, Authorization=f"Bearer {key}"))["error"]
        assert error["code"] == "share_used"
        assert (await call(TOKENIZE, asked, Authorization=f"Bearer {key}"))["count"] == 1
        assert await broker.redis.keys(f"live:{account.id}*") == [f"live:{account.id}".encode()]
        answering.cancel()
        await asyncio.wait({answering})


async def test_a_page_of_a_listed_origin_may_ask(site, config, worker_in):
    site.app[BROKER].config = replace(config, origins=("https://chat.example",))
    headers = {"Origin": "https://chat.example"}
    async with worker_in(), aiohttp.ClientSession(site.make_url("/")) as session:
        async with session.options(TOKENIZE, headers=headers | {"Access-Control-Request-Method": "POST"}) as response:
            assert response.status == 204
        async with session.get(INFO, headers=headers) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "https://chat.example"
