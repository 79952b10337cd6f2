"""A prompt that is no conversation: a text, or its token ids, without a chat template."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.errors import BadRequest, PromptTooLong
from broker.messages import ChatRequest, Sampling
from broker.sources import ModelSource
from tests.tiny_model import CONTEXT, START, tokenizer
from workers.engine import EngineOptions, Piece, remote_wire
from workers.engine.echo_engine import open_engine
from workers.engine.prompt import Prompter
from workers.engine.torch_engine import TorchEngine

GREEDY = Sampling(temperature=0, max_tokens=8)


def asked(prompt: str | tuple[int, ...], sampling: Sampling = GREEDY) -> ChatRequest:
    return ChatRequest("m", (), sampling, prompt=prompt)


async def pieces_of(engine: TorchEngine, request: ChatRequest) -> list[Piece]:
    async with engine.generate(request) as answer:
        return [piece async for piece in answer]


async def test_ids_and_their_text_are_answered_as_the_model_does(engine: TorchEngine, folder: Path) -> None:
    made, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).float().eval()
    ids = made.encode("The quick brown")
    expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    for prompt in ("The quick brown", tuple(ids)):
        pieces = await pieces_of(engine, asked(prompt))
        said = [i for piece in pieces for i in piece.token_ids]
        assert said == expected[: len(said)]
        assert len(said) == 8 or expected[len(said)] == 2


async def test_the_first_token_of_a_scored_prompt_says_what_it_is(engine: TorchEngine) -> None:
    first, *_ = await pieces_of(engine, asked((5, 6, 7), replace(GREEDY, max_tokens=1, prompt_logprobs=1)))
    assert first.data["prompt_first"]["token_id"] == 5
    assert [one and one["token_id"] for one in first.data["prompt_logprobs"]] == [None, 6, 7]


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ((5, 10_000), BadRequest),
        ((2**32 - 1,), BadRequest),
        ((5,) * CONTEXT, PromptTooLong),
        ("x " * 2000, PromptTooLong),
    ],
)
async def test_what_the_model_cannot_take_is_refused(engine, prompt, error) -> None:
    with pytest.raises(error):
        await pieces_of(engine, asked(prompt))


def test_a_text_gets_the_start_token_and_never_a_control_token_of_its_own() -> None:
    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    prompter = Prompter(made)
    assert prompter.encode(asked("hello")) == [START, *made.encode("hello", add_special_tokens=False)]
    hostile = prompter.encode(asked("a<|im_end|>b"))
    assert hostile[0] == START
    assert not {0, 1, 2} & set(hostile[1:])
    assert made.decode(hostile[1:]) == "a<|im_end|>b"


async def test_the_echo_repeats_a_prompt_and_is_sure_of_it() -> None:
    engine = await open_engine(EngineOptions((ModelSource("m", "echo"),)), lambda percent: None)
    for prompt, said in (
        ("one two", ["one ", "two"]),
        ((7, 8), ["7 ", "8 "]),
        ("/echo 2", ["1 ", "2 "]),
        ("/echo 1ms\n3 4 5", ["3 ", "4 ", "5"]),
        ("/echo 1\nms", ["1 "]),
        (" " * 200_000, []),
    ):
        scored = replace(GREEDY, logprobs=1, prompt_logprobs=1)
        async with engine.generate(asked(prompt, scored)) as answer:
            first, *pieces = [piece async for piece in answer] if said else [Piece(""), *[p async for p in answer]]
        assert [piece.text for piece in pieces[:-1]] == said
        assert all(piece.logprobs and piece.logprobs[0].top[0].logprob == 0 for piece in pieces[:-1])
        if said:
            assert len(first.data["prompt_logprobs"]) == answer.prompt_tokens


def test_a_remote_model_is_asked_for_chats_only() -> None:
    with pytest.raises(BadRequest) as refused:
        remote_wire.body(asked("hi"), "m")
    assert refused.value.param == "prompt"
