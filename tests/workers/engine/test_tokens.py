"""What an engine's tokenizer says: of whom which control strings are control tokens, under load, and of odd tokenizers."""

import asyncio

import pytest

from broker.errors import BadRequest
from broker.messages import ChatRequest, Message, Sampling, TokenRequest
from tests.tiny_model import END, START, build, tokenizer
from tests.workers.engine.conftest import request
from workers.engine.tokens import LARGE_PROMPT, Tokens

pytestmark = pytest.mark.timeout(60)
CONTROL = "<|im_end|>"


def of(text: str, op: str = "tokenize", **more: bool) -> TokenRequest:
    return TokenRequest(op, ChatRequest("m", (), prompt=text), **more)


async def test_a_control_string_is_a_control_token_in_a_text_and_in_nothing_else(engine):
    assert (await engine.tokens(of(CONTROL)))["tokens"] == [END]
    said = TokenRequest("tokenize", ChatRequest("m", (Message("user", CONTROL),)), add_generation_prompt=False)
    assert (await engine.tokens(said))["tokens"].count(END) == 1, "that of the template, behind the message"
    plain = (await engine.tokens(of(CONTROL, "count")))["count"]
    async with engine.generate(ChatRequest("m", (), Sampling(max_tokens=1), prompt=CONTROL)) as pieces:
        assert pieces.prompt_tokens == plain > 1, "as a completion has it"


async def test_many_at_once_while_an_answer_is_written_are_all_right(engine):
    own = tokenizer()
    texts = [f"{i} brown foxes, 你好 👍🏽 " * (1 if i % 3 else LARGE_PROMPT // 10) for i in range(24)]
    async with engine.generate(request("hi", Sampling(max_tokens=60, ignore_eos=True))) as pieces:
        answer = asyncio.ensure_future(anext(aiter(pieces)))
        found = await asyncio.gather(*(engine.tokens(of(text)) for text in texts))
        again = [TokenRequest("detokenize", ChatRequest("m", (), prompt=tuple(one["tokens"]))) for one in found]
        spelt = await asyncio.gather(*(engine.tokens(one) for one in again))
        assert (await answer).token_ids
    assert [one["tokens"] for one in found] == [own.encode(text) for text in texts]
    assert [one["prompt"] for one in spelt] == texts


async def test_ids_that_the_model_has_beyond_its_tokenizer_have_no_text(opened, tmp_path):
    engine = await opened(build(tmp_path / "padded", vocab_size=1024))
    found = await engine.tokens(TokenRequest("detokenize", ChatRequest("m", (), prompt=(START, 1000))))
    assert found == {"prompt": "<|im_start|>"}
    with pytest.raises(BadRequest, match="1024, and this model's go from 0 to 1023"):
        await engine.tokens(TokenRequest("detokenize", ChatRequest("m", (), prompt=(START, 1024))))


async def test_a_tokenizer_with_several_templates_shows_the_one_that_is_used():
    made = tokenizer()
    made.chat_template = {"default": "a", "tool_use": "b"}
    tokens = Tokens(made, lambda request, begin: [], 9, len(made), lower=True)
    assert (await tokens.tell(of("", "info")))["chat_template"] == "a"
    assert (await tokens.tell(of("THE", strings=True)))["token_strs"] == made.tokenize("the")
