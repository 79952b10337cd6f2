"""The engine answers as the model does, alone and in company, and lets go of what it took."""

import asyncio
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from broker.errors import EngineFailed, ModelUnusable, PromptTooLong, StepFailed
from broker.messages import Sampling
from tests.tiny_model import VOCAB, build
from tests.workers.engine.conftest import Open, options, request
from workers.engine import Piece
from workers.engine.torch_engine import TorchEngine, open_engine

GREEDY = Sampling(temperature=0, max_tokens=40)
PROMPTS = ["Hello", "What is the capital of France?", "你好 😀", "x" * 90, "Tell me about rain and the north."]


async def ask(
    engine: TorchEngine, text: str, sampling: Sampling = GREEDY, said: Sequence[int] = ()
) -> tuple[list[int], str, str | None]:
    """An answer: token ids, text and why it ended."""
    async with engine.generate(request(text, sampling), said) as answer:
        pieces = [piece async for piece in answer]
    assert [p.finish for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    return [i for p in pieces for i in p.token_ids], "".join(p.text for p in pieces), pieces[-1].finish


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # the engine's thread sets no event for it
            await asyncio.sleep(0.002)


async def settled(engine: TorchEngine) -> None:
    """Waits until the engine holds no request and no cache."""
    await until(lambda: engine._batcher.free_share() == 1 and not engine._answers and not engine._batcher._streams)
    assert not engine._batcher.output_router.result_handlers
    assert engine._batcher.output_router.output_queue.empty()


def reference(folder: Path, text: str, n: int) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.generate(**prompt, max_new_tokens=n, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    return out[: out.index(2)] if 2 in out else out


@pytest.mark.timeout(60)
async def test_greedy_answers_are_those_of_generate(engine: TorchEngine, folder: Path) -> None:
    expected = [reference(folder, text, 40) for text in PROMPTS]
    alone = [(await ask(engine, text))[0] for text in PROMPTS]
    together = [ids for ids, _, _ in await asyncio.gather(*(ask(engine, text) for text in PROMPTS))]
    assert alone == expected
    assert together == expected
    assert len({i for ids in expected for i in ids}) >= 50  # the model's answers are no one token for ever
    await settled(engine)


async def test_text_is_what_the_ids_say(engine: TorchEngine, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for seed in range(5):
        ids, text, finish = await ask(engine, "Hello", Sampling(temperature=1.5, max_tokens=60, seed=seed))
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert finish == ("length" if len(ids) == 60 else "stop")


SEEDED = [Sampling(0.9, (1.0, 0.8)[seed % 2], max_tokens=30, seed=seed, ignore_eos=True) for seed in range(6)]


async def test_seeded_answers_are_the_same_alone_and_together(engine: TorchEngine) -> None:
    alone = [await ask(engine, "Hello", sampling) for sampling in SEEDED]
    together = await asyncio.gather(*(ask(engine, "Hello", s) for s in SEEDED), ask(engine, "a mate " * 30))
    backwards = await asyncio.gather(*(ask(engine, "Hello", s) for s in reversed(SEEDED)))
    assert alone == together[:-1] == backwards[::-1]
    assert len({text for _, text, _ in alone}) == len(SEEDED)


@pytest.mark.timeout(60)
async def test_a_resumed_answer_goes_on_as_if_nothing_had_been(engine: TorchEngine) -> None:
    for sampling in (*SEEDED[:2], GREEDY, Sampling(0.9, max_tokens=30, seed=3, stop=("e", "qu"))):
        async with engine.generate(request("Hello", sampling)) as answer:
            pieces = [piece async for piece in answer]
        whole = "".join(p.text for p in pieces)
        for split in range(len(pieces)):
            said = [i for p in pieces[:split] for i in p.token_ids]
            ids, text, finish = await ask(engine, "Hello", sampling, said)
            assert said + ids == [i for p in pieces for i in p.token_ids]
            assert "".join(p.text for p in pieces[:split]) + text == whole
            assert finish == pieces[-1].finish


async def test_an_answer_that_was_complete_ends_at_once(engine: TorchEngine) -> None:
    ids, _, finish = await ask(engine, "Hello", SEEDED[0])
    assert finish == "length"
    steps = engine.steps
    assert (await ask(engine, "Hello", SEEDED[0], ids))[::2] == ([], "length")
    assert (await ask(engine, "Hello", Sampling(max_tokens=0))) == ([], "", "length")
    assert engine.steps == steps


async def test_a_stop_string_ends_the_answer_and_frees_the_slot(engine: TorchEngine) -> None:
    _, text, _ = await ask(engine, "Hello", SEEDED[0])
    stop = text[8:11]
    cut = text.index(stop)
    sampling = Sampling(0.9, 1.0, max_tokens=500, seed=0, stop=("never this", stop), ignore_eos=True)
    async with engine.generate(request("Hello", sampling)) as answer:
        pieces = [piece async for piece in answer]
        assert "".join(p.text for p in pieces) == text[:cut]
        assert pieces[-1].finish == "stop"
        await until(lambda: engine._batcher.free_share() == 1)  # before the reader has left


async def test_a_prompt_that_is_too_long_is_refused_with_both_counts(engine: TorchEngine) -> None:
    with pytest.raises(PromptTooLong, match=r"\d{3,} tokens and this model takes 512"):
        async with engine.generate(request("long words " * 500, GREEDY)):
            pass
    assert engine._batcher.free_share() == 1


async def test_max_tokens_is_limited_to_the_room(engine: TorchEngine) -> None:
    for max_tokens in (None, 10_000):
        sampling = Sampling(temperature=1.0, seed=4, max_tokens=max_tokens)
        async with engine.generate(request("ab " * 160, sampling)) as answer:
            ids = [i async for piece in answer for i in piece.token_ids]
            assert answer.prompt_tokens + len(ids) <= engine.context


async def test_what_people_write_is_never_a_control_token(engine: TorchEngine) -> None:
    async with engine.generate(request("plain", GREEDY)) as answer:
        plain = answer.prompt_tokens
    async with engine.generate(request("plain<|im_end|>", GREEDY)) as answer:
        assert answer.prompt_tokens > plain + 1


@pytest.mark.timeout(30)
async def test_leaving_early_frees_slot_and_cache(engine: TorchEngine) -> None:
    rng = random.Random(0)

    async def leave(i: int) -> None:
        sampling = Sampling(1.0, ignore_eos=True)
        async with engine.generate(request(f"{i} " * rng.randrange(1, 80), sampling)) as answer:
            for _ in range(rng.randrange(4)):
                await anext(answer)

    for _ in range(5):
        await asyncio.gather(*(leave(i) for i in range(12)))  # more than there are slots
    await settled(engine)
    task = asyncio.create_task(ask(engine, "Hello", Sampling(1.0, seed=1)))
    await until(lambda: bool(engine._answers))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(engine)
    assert await ask(engine, "Hello") == await ask(engine, "Hello")


async def test_a_cancelled_request_is_gone_before_the_next_step_but_one(engine: TorchEngine) -> None:
    async with engine.generate(request("Hello", Sampling(1.0, seed=7))) as answer:
        await anext(answer)
    steps = engine.steps
    await settled(engine)
    assert engine.steps <= steps + 2


@pytest.mark.timeout(60)
async def test_a_cache_that_is_too_small_for_all_serves_all(opened: Open, tmp_path: Path) -> None:
    """Requests that do not fit together are put back and go on later, with the same answer."""
    wide = build(tmp_path / "wide", head_dim=64)  # 2 kB a token: 1 MB is a single context
    sampling = [Sampling(1.0, max_tokens=120, seed=seed) for seed in range(6)]
    large, small = await opened(wide, cache_mb=8), await opened(wide, cache_mb=1)
    expected = await asyncio.gather(*(ask(large, "y" * 40 * i, s) for i, s in enumerate(sampling)))
    assert await asyncio.gather(*(ask(small, "y" * 40 * i, s) for i, s in enumerate(sampling))) == expected
    assert small.steps > large.steps + 20
    await settled(small)


async def test_context_is_what_fits_into_the_cache(opened: Open, tmp_path: Path) -> None:
    engine = await opened(build(tmp_path / "wide", head_dim=128, num_hidden_layers=4))  # 8 kB a token
    assert engine.context == 512
    small = await opened(tmp_path / "wide", cache_mb=1)
    assert small.context == 128
    assert small._batcher.cache_bytes == 2**20
    assert (await ask(small, "Hello", Sampling(1.0, seed=4)))[2] in ("stop", "length")


async def test_a_failed_step_ends_only_its_requests(engine: TorchEngine) -> None:
    expected = await ask(engine, "Hello")
    failures = 1

    def fail(*_: object) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("a cosmic ray")

    async with engine.generate(request("Hello", GREEDY)) as hit:
        await anext(hit)
        handle = engine._batcher.model.register_forward_pre_hook(fail)
        with pytest.raises(EngineFailed):
            async for _ in hit:
                pass
    assert await ask(engine, "Hello") == expected
    assert engine.alive
    handle.remove()
    await settled(engine)


async def test_an_engine_whose_steps_all_fail_says_that_it_is_dead(engine: TorchEngine) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    engine._batcher.model.register_forward_pre_hook(fail)
    for _ in range(40):
        with pytest.raises(EngineFailed):
            await ask(engine, "Hello")
        if not engine.alive:
            break
    assert not engine.alive
    with pytest.raises(EngineFailed):
        await ask(engine, "Hello")


async def test_logits_that_are_not_finite_end_the_request(engine: TorchEngine) -> None:
    def spoil(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan

    handle = engine._batcher.model.lm_head.register_forward_hook(spoil)
    with pytest.raises(EngineFailed) as failed:
        await ask(engine, "Hello")
    assert failed.type is not StepFailed, "it is this request's own, so nothing is tried again"
    handle.remove()
    assert (await ask(engine, "Hello"))[2] is not None
    await settled(engine)


async def test_closing_ends_what_is_under_way(opened: Open) -> None:
    engine = await opened()
    async with engine.generate(request("Hello", Sampling(1.0, seed=7))) as answer:
        await anext(answer)
        begin = time.perf_counter()
        await engine.close()
        assert time.perf_counter() - begin < 2
        with pytest.raises(EngineFailed):
            async for _ in answer:
                pass
    assert not engine.alive


async def test_a_slow_reader_gets_fewer_pieces_and_the_same_answer(engine: TorchEngine) -> None:
    expected = await ask(engine, "Hello", SEEDED[2])
    async with engine.generate(request("Hello", SEEDED[2])) as answer:
        await ask(engine, "somebody else", Sampling(1.0, max_tokens=60, seed=1))
        pieces: list[Piece] = [piece async for piece in answer]
    assert len(pieces) < 5
    assert "".join(p.text for p in pieces) == expected[1]


async def test_an_idle_engine_costs_nothing(engine: TorchEngine) -> None:
    await ask(engine, "Hello")
    before = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - before < 0.01


async def test_loading_reports_progress_and_leaves_the_loop_free(folder: Path) -> None:
    percents: list[int] = []
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticker = asyncio.create_task(tick())
    engine = await open_engine(options(folder, device="cpu", cache_mb=1), percents.append)
    ticker.cancel()
    await engine.close()
    assert (percents[0], percents[-1]) == (0, 100)
    assert ticks > 5


async def test_loading_can_be_given_up(folder: Path) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()
    percents: list[int] = []

    def slow(percent: int) -> None:
        percents.append(percent)
        loop.call_soon_threadsafe(reached.set)
        time.sleep(0.05)

    task = asyncio.create_task(open_engine(options(folder, device="cpu", cache_mb=1), slow))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(next(t for t in threading.enumerate() if t.name == "engine-work").join, 5)
    assert percents[-1] < 100


def other(folder: Path, target: Path, kind: str, **config: Any) -> Path:
    """The tiny model's tokenizer with random weights of another kind."""
    shutil.copytree(folder, target)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB, "max_position_embeddings": 512}
    ends = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **sizes | ends | config), dtype=torch.float32
        )
    made.save_pretrained(target)
    return target


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gemma2", {"sliding_window": 16, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}),
        ("qwen3", {}),
    ],
)
@pytest.mark.timeout(60)
async def test_other_kinds_of_attention_answer_as_generate_does(
    opened: Open, folder: Path, tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    made = other(folder, tmp_path / kind, kind, initializer_range=0.15, **config)
    engine = await opened(made)
    expected = [reference(made, text, 40) for text in PROMPTS]
    assert [ids for ids, _, _ in await asyncio.gather(*(ask(engine, text) for text in PROMPTS))] == expected


async def test_a_model_without_attention_is_refused(opened: Open, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="cannot be run"):
        await opened(other(folder, tmp_path / "mamba", "mamba"))


async def test_what_does_not_fit_is_said(opened: Open) -> None:
    with pytest.raises(ModelUnusable, match="cannot be run"):
        await opened(cache_mb=10**9)
