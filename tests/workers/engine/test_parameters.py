"""What a request may ask of the torch engine: every parameter, through the running batch."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.errors import BadRequest, NoSuchModel, PromptTooLong
from broker.messages import ChatRequest, Message, Sampling, Structure
from broker.sources import ModelSource
from tests.tiny_model import END, build_adapter
from tests.workers.engine.conftest import Open, request
from workers.engine import EngineOptions, Piece, TokenLogprob
from workers.engine.torch_engine import TorchEngine, open_engine

LONG = Sampling(temperature=0, max_tokens=40, ignore_eos=True)


async def pieces_of(engine: TorchEngine, asked: ChatRequest, said: tuple[int, ...] = ()) -> list[Piece]:
    async with engine.generate(asked, said) as answer:
        return [piece async for piece in answer]


async def ids_of(engine: TorchEngine, asked: ChatRequest, said: tuple[int, ...] = ()) -> list[int]:
    return [i for piece in await pieces_of(engine, asked, said) for i in piece.token_ids]


def prompt_ids(folder: Path, text: str) -> list[int]:
    turns = [{"role": "user", "content": text}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


@pytest.fixture(scope="module")
def forward(folder: Path) -> Callable[[list[int]], torch.Tensor]:
    """A plain forward pass: log-probabilities of the next token at every place, (tokens, vocab)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lambda ids: model(torch.tensor([ids])).logits[0].log_softmax(-1).detach()


def assert_likely(found: TokenLogprob, expected: torch.Tensor, alternatives: int) -> None:
    """Whether one token's log-probabilities are those of a row of `forward`."""
    assert found.logprob == pytest.approx(expected[found.token_id].item(), abs=1e-3)
    values, _ = expected.topk(max(1, alternatives))
    assert len(found.top) == alternatives
    for other, value in zip(found.top, values.tolist(), strict=False):
        assert other.logprob == pytest.approx(value, abs=1e-3)
        assert expected[other.token_id].item() == pytest.approx(value, abs=1e-3)


@pytest.mark.timeout(30)
async def test_log_probabilities_are_those_of_a_plain_forward_pass(
    engine: TorchEngine, folder: Path, forward: Callable[[list[int]], torch.Tensor]
) -> None:
    kinds = [
        replace(LONG, logprobs=20),
        replace(LONG, temperature=1.3, top_p=0.7, seed=3, logprobs=2),
        replace(LONG, temperature=0.8, top_k=5, frequency_penalty=1.5, seed=4, logprobs=0),
    ]
    answers = await asyncio.gather(*(pieces_of(engine, request("Hello there", kind)) for kind in kinds))
    prompt = prompt_ids(folder, "Hello there")
    for kind, pieces in zip(kinds, answers, strict=True):
        ids = [i for piece in pieces for i in piece.token_ids]
        found = [one for piece in pieces for one in piece.logprobs or ()]
        assert [one.token_id for one in found] == ids
        rows = forward(prompt + ids)[len(prompt) - 1 :]
        for one, row in zip(found, rows, strict=False):
            assert_likely(one, row, kind.logprobs or 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert b"".join(one.token for one in found).decode(errors="replace") == tokenizer.decode(ids)
    assert all(piece.logprobs is None for piece in await pieces_of(engine, request("Hello there", LONG)))


@pytest.mark.timeout(30)
async def test_prompts_are_scored_whole_also_when_they_are_known_and_read_in_parts(
    engine: TorchEngine, folder: Path, forward: Callable[[list[int]], torch.Tensor]
) -> None:
    text = "the quick brown fox " * 30
    prompt = prompt_ids(folder, text)
    expected = forward(prompt)
    await pieces_of(engine, request(text, LONG))  # its pages are known now
    for most in (512, 50):
        engine._batcher._pace.room = lambda running, most=most: running + most  # type: ignore[method-assign]
        asked = request(text, replace(LONG, prompt_logprobs=3))
        first, *rest = (await asyncio.gather(pieces_of(engine, asked), pieces_of(engine, request("mate", LONG))))[0]
        scores = first.data["prompt_logprobs"]
        assert scores[0] is None
        assert [one["token_id"] for one in scores[1:]] == prompt[1:]
        for one, row in zip(scores[1:], expected, strict=False):
            assert_likely(TokenLogprob(**one | {"top": [TokenLogprob(**other) for other in one["top"]]}), row, 3)
        assert all(piece.data is None for piece in rest)


async def test_a_prompt_is_scored_for_its_own_sake(engine: TorchEngine, folder: Path) -> None:
    (piece,) = await pieces_of(engine, request("Hello there", replace(LONG, max_tokens=0, prompt_logprobs=0)))
    assert (piece.text, piece.token_ids, piece.finish) == ("", (), "length")
    assert len(piece.data["prompt_logprobs"]) == len(prompt_ids(folder, "Hello there"))


@pytest.mark.timeout(30)
async def test_a_cache_that_is_full_of_young_answers_makes_others_wait(opened: Open) -> None:
    engine = await opened(slots=32, cache_mb=1)
    asked = [request(f"{i} " + "word " * 40, replace(LONG, max_tokens=10)) for i in range(32)]
    assert [len(ids) for ids in await asyncio.gather(*(ids_of(engine, one) for one in asked))] == [10] * 32
    assert engine._batcher.free_share() == 1


async def test_nothing_ends_an_answer_before_min_tokens(engine: TorchEngine) -> None:
    ids = await ids_of(engine, request("Hello", replace(LONG, max_tokens=12)))
    stop = replace(LONG, stop_token_ids=(ids[3],))
    assert await ids_of(engine, request("Hello", stop)) == ids[: ids.index(ids[3])]
    later = await ids_of(engine, request("Hello", replace(stop, min_tokens=8)))
    assert len(later) >= 8
    assert ids[3] not in later
    pieces = await pieces_of(engine, request("Hello", replace(LONG, stop=("e", "a", " "), min_tokens=20)))
    assert sum(len(piece.token_ids) for piece in pieces) >= 20
    for seed in range(20):
        sampling = Sampling(temperature=1.8, seed=seed, max_tokens=60, min_tokens=30)
        assert len(await ids_of(engine, request("Hello", sampling))) >= 30


async def test_an_end_token_is_text_like_any_other_when_it_is_to_be_ignored(engine: TorchEngine) -> None:
    always = ((END, 100.0),)
    ended = await pieces_of(engine, request("Hello", replace(LONG, ignore_eos=False, logit_bias=always)))
    assert [(piece.token_ids, piece.finish) for piece in ended] == [((), "stop")]
    assert await ids_of(engine, request("Hello", replace(LONG, logit_bias=always))) == [END] * 40


async def test_a_form_ends_the_answer_also_when_end_tokens_are_to_be_ignored(engine: TorchEngine) -> None:
    pieces = await pieces_of(engine, request("Hello", replace(LONG, structure=Structure("regex", "abc"))))
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish) == ("abc", "stop")


async def test_a_bias_outside_the_vocabulary_is_refused_by_name(engine: TorchEngine) -> None:
    with pytest.raises(BadRequest, match="logit_bias"):
        await ids_of(engine, request("Hello", replace(LONG, logit_bias=((10**6, 1.0),))))


PENALTIES = [
    replace(LONG, repetition_penalty=1.4),
    replace(LONG, presence_penalty=1.5, frequency_penalty=0.7),
    Sampling(0.9, top_k=12, min_p=0.05, top_p=0.9, frequency_penalty=1.0, max_tokens=30, seed=5, ignore_eos=True),
    Sampling(1.1, logit_bias=((70, 4.0), (71, -100.0)), max_tokens=30, seed=6, ignore_eos=True),
]


@pytest.mark.timeout(30)
async def test_a_resume_changes_nothing_whatever_the_parameters(engine: TorchEngine) -> None:
    regex = replace(LONG, structure=Structure("regex", "([a-z]{3} )+"))
    for sampling in (*PENALTIES, regex):
        asked = request("Hello", sampling)
        whole = tuple(await ids_of(engine, asked))
        for split in (1, 7, len(whole) - 1):
            assert whole[:split] + tuple(await ids_of(engine, asked, whole[:split])) == whole


async def test_penalties_forbid_what_has_been_said(engine: TorchEngine) -> None:
    said = await ids_of(engine, request("Hello", replace(LONG, presence_penalty=2.0, frequency_penalty=2.0)))
    plain = await ids_of(engine, request("Hello", LONG))
    assert len(set(said)) > len(set(plain))


@pytest.mark.timeout(30)
async def test_structures_hold_in_a_mixed_batch_and_change_no_mate(engine: TorchEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["name", "n"],
        "additionalProperties": False,
    }
    forms: list[Structure | None] = [
        Structure("json_schema", json.dumps(schema)),
        Structure("choice", json.dumps(["yes", "no", "也許"])),
        Structure("regex", r"[0-9]{3}-[0-9]{2}"),
        None,
    ]
    alone = await ids_of(engine, request("Hello", replace(LONG, seed=3)))
    for seed in range(5):
        asked = [
            request("Hello", Sampling(1.0, seed=seed, max_tokens=100, structure=form) if form else LONG)
            for form in forms
        ]
        texts = [
            "".join(p.text for p in pieces) for pieces in await asyncio.gather(*(pieces_of(engine, r) for r in asked))
        ]
        value = json.loads(texts[0])
        assert set(value) == {"name", "n"}
        assert len(value["name"]) <= 5
        assert 0 <= value["n"] <= 9
        assert texts[1] in ("yes", "no", "也許")
        assert len(texts[2]) == 6
        assert texts[2][3] == "-"
        assert await ids_of(engine, asked[3]) == alone


async def test_a_structure_that_cannot_be_is_refused_before_it_costs_anything(engine: TorchEngine) -> None:
    with pytest.raises(BadRequest):
        await ids_of(engine, request("Hello", replace(LONG, structure=Structure("regex", "("))))
    assert not engine._answers


async def test_a_last_message_of_the_assistant_is_continued(engine: TorchEngine, folder: Path) -> None:
    messages = (Message("user", "Hello"), Message("assistant", "The quick"))
    asked = request("", LONG, messages=messages, continue_final_message=True)
    async with engine.generate(asked) as answer:
        assert answer.prompt_tokens == len(prompt_ids(folder, "Hello")) + len(
            AutoTokenizer.from_pretrained(folder).encode("The quick", add_special_tokens=False)
        )
    with pytest.raises(BadRequest):
        await ids_of(engine, request("Hello", LONG, continue_final_message=True))


async def test_a_model_that_is_not_here_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(NoSuchModel):
        await ids_of(engine, request("Hello", LONG, model="another"))


@pytest.mark.timeout(60)
async def test_a_base_and_two_adapters_share_a_batch_and_each_answers_as_alone(tmp_path: Path, folder: Path) -> None:
    adapters = [build_adapter(folder, tmp_path / name, seed) for seed, name in enumerate(("one", "two"), 1)]
    sources = tuple(
        ModelSource(name, str(path)) for name, path in zip(("base", "one", "two"), (folder, *adapters), strict=True)
    )
    text = "the north and the south " * 9  # several pages, which must not be shared between adapters

    async def answers(served: tuple[ModelSource, ...], names: list[str]) -> list[list[int]]:
        engine = await open_engine(EngineOptions(served, slots=8, device="cpu", cache_mb=4), lambda percent: None)
        try:
            assert {card.name: card.parent for card in engine.cards} == {
                s.name: "base" if s.is_adapter and served[0].name == "base" else engine.cards[0].parent for s in served
            }
            return [
                ids
                for _ in range(2)  # the second time everything is in the cache
                for ids in await asyncio.gather(*(ids_of(engine, request(text, LONG, model=name)) for name in names))
            ]
        finally:
            await engine.close()

    alone: dict[str, list[int]] = {}
    for source in sources:
        alone[source.name] = (await answers((source,), [source.name]))[0]
    assert len({tuple(ids) for ids in alone.values()}) == 3
    order = ["one", "base", "two", "one", "two", "base"]
    mixed = await answers(sources, order)
    assert mixed == [alone[name] for name in order * 2]


async def test_waiting_requests_take_no_cache(opened: Open) -> None:
    engine = await opened(slots=2, cache_mb=4)
    held: list[float] = []
    before = engine._batcher._advance

    def advance(*args: Any) -> bool:
        held.append(engine._batcher.free_share())
        return before(*args)

    engine._batcher._advance = advance  # type: ignore[method-assign]
    await asyncio.gather(*(ids_of(engine, request(f"{i} hello", replace(LONG, max_tokens=5))) for i in range(200)))
    page = engine._batcher._processor.cache.cache_allocators["full_attention"].bytes_per_block
    assert 1 - min(held) <= 2 * 3 * page / engine._batcher.cache_bytes  # two answers of less than three pages


async def test_a_prompt_that_does_not_fit_is_refused_with_the_counts(engine: TorchEngine) -> None:
    with pytest.raises(PromptTooLong, match=r"\d{3,} tokens and this model takes 512"):
        await ids_of(engine, request("long " * 2000, LONG))
