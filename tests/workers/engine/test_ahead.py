"""Steps launched ahead change no answer. There is no GPU here: the device's part runs at once, and is read late."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from broker.errors import EngineFailed, StepFailed
from broker.messages import Sampling, Structure
from broker.sources import ModelSource
from tests.tiny_model import build, build_adapter
from tests.workers.engine.conftest import Open, request
from tests.workers.engine.test_graphs import Again, Few
from tests.workers.engine.test_graphs import family as family
from tests.workers.engine.test_torch_engine import ask, settled
from workers.engine import EngineOptions, batching, draws
from workers.engine.torch_engine import TorchEngine, open_engine
from workers.engine.transfer import fetch_on

GREEDY = Sampling(temperature=0, max_tokens=90, ignore_eos=True)
KINDS = [
    Sampling(temperature=0.0, max_tokens=70),
    Sampling(temperature=0.9, max_tokens=80),
    Sampling(temperature=0.9, top_p=0.8, max_tokens=66),
    Sampling(temperature=1.0, top_k=10, top_p=0.9, max_tokens=50),
    Sampling(temperature=1.3, top_k=40, min_p=0.01, max_tokens=33),
    Sampling(temperature=1.0, max_tokens=1),
    Sampling(temperature=1.0, max_tokens=2),
    Sampling(temperature=1.2, max_tokens=100, stop=("e", "th")),
]
MANY = [replace(kind, seed=seed) for seed, kind in enumerate(KINDS * 3)]

Asked = tuple[list[int], str, str | None]
Pair = Callable[..., Awaitable[tuple[TorchEngine, TorchEngine]]]


class Late:
    """In the place of a GPU: numbers are read when they are waited for, so that what was overwritten would show."""

    def __init__(self) -> None:
        self.look: Callable[[list[int]], list[int]] = lambda numbers: numbers

    def __call__(self, tensor: Tensor) -> Callable[[], list[int]]:
        return lambda: self.look(tensor.tolist())


@pytest.fixture
def late() -> Late:
    """Where the engines of `pair` read numbers."""
    return Late()


@pytest.fixture(params=["kernels", "graphs"])
def pair(request: pytest.FixtureRequest, opened: Open, late: Late, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Opens two engines: one as it is on a CPU, and one that launches steps ahead."""

    async def open_(*folder: Path, **more: Any) -> tuple[TorchEngine, TorchEngine]:
        plain = await opened(*folder, **more)
        with monkeypatch.context() as patch:
            patch.setattr(batching, "fetch_on", lambda device: late)
            if request.param == "graphs":
                patch.setattr(batching, "capture_on", lambda device: Again())
            return plain, await opened(*folder, **more)

    return open_


def ahead(engine: TorchEngine) -> int:
    """Steps that were launched ahead so far."""
    made = engine._batcher._ahead
    assert made is not None
    return made.steps


async def all_of(engine: TorchEngine, asked: Sequence[tuple[str, Sampling]]) -> list[list[int]]:
    """The tokens of answers that are asked for together."""
    found = await asyncio.gather(*(ask(engine, text, sampling) for text, sampling in asked))
    return [ids for ids, _, _ in found]


async def crowd(engine: TorchEngine) -> list[Asked]:
    """Many answers, each of which joins when an earlier one has some tokens or is over, and leaves when it ends."""
    begun = [asyncio.Event() for _ in MANY]

    async def one(i: int) -> Asked:
        if i >= 3:
            await begun[i - 3].wait()
        ids, text, finish = list[int](), "", None
        async with engine.generate(request(f"{i} and " * (1 + i * 5 % 37), MANY[i])) as answer:
            async for piece in answer:
                ids += piece.token_ids
                text, finish = text + piece.text, piece.finish
                if len(ids) > i % 5:
                    begun[i].set()
        begun[i].set()
        return ids, text, finish

    return await asyncio.gather(*(one(i) for i in range(len(MANY))))


@pytest.mark.timeout(60)
async def test_answers_are_those_of_generate_in_every_family(family: Few, pair: Pair) -> None:
    _, engine = await pair(family.folder, slots=7, cache_mb=64)
    for n in (len(family.prompts), 3):
        before = ahead(engine)
        found = await all_of(engine, [(prompt, GREEDY) for prompt in family.prompts[-n:]])
        assert found == [answer.ids for answer in family.expected[-n:]]
    assert ahead(engine) - before > 70  # of 90


@pytest.mark.timeout(60)
async def test_answers_that_join_and_leave_are_as_without(pair: Pair) -> None:
    plain, engine = await pair()
    expected = await crowd(plain)
    assert {finish for _, _, finish in expected} == {"length", "stop"}
    assert await crowd(engine) == expected
    assert ahead(engine) > 30
    await settled(engine)


@pytest.mark.timeout(60)
async def test_what_the_device_could_not_decide_is_run_again(
    family: Few, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows too, where a key takes the place of an older one."""
    monkeypatch.setattr(draws, "ATTEMPTS", 1)
    plain, engine = await pair(family.folder, cache_mb=64)
    many = [
        (prompt, Sampling(1.0, 0.7, max_tokens=90, seed=i, ignore_eos=True))
        for i, prompt in enumerate(family.prompts[:6])
    ]
    before, steps = ahead(engine), engine.steps
    assert await all_of(engine, many) == await all_of(plain, many)
    assert 20 < ahead(engine) - before < 0.9 * (engine.steps - steps)
    assert engine.steps - steps < 160  # who is run again does not wait until others are
    await settled(engine)


@pytest.mark.timeout(60)
async def test_an_end_at_any_place_of_a_page_leaves_nothing_behind(pair: Pair) -> None:
    """An answer that was ended by its token goes on in the pages that it left; the step too many wrote behind them."""
    plain, engine = await pair()
    sampling = Sampling(2.0, seed=1, max_tokens=110, ignore_eos=True)
    (whole,) = await all_of(plain, [("Hello", sampling)])
    assert await all_of(engine, [("Hello", sampling)]) == [whole]
    places = [i for i in range(1, 90) if whole[i] not in whole[:i]]
    assert {i % 32 for i in places} == set(range(32))
    before = ahead(engine)
    asked = [("Hello", replace(sampling, stop_token_ids=(whole[i],))) for i in places]
    cut = await all_of(engine, asked)
    assert cut == [whole[:i] for i in places] == await all_of(plain, asked)
    assert ahead(engine) > before + 40
    hashes = [
        {name: set(a.ledger.hash_to_block) for name, a in one._batcher._processor.cache.cache_allocators.items()}
        for one in (engine, plain)
    ]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]["full_attention"]) >= 3
    rest = await asyncio.gather(*(ask(engine, "Hello", sampling, whole[: i + 1]) for i in places))
    assert [ids for ids, _, _ in rest] == [whole[i + 1 :] for i in places]


@pytest.mark.timeout(60)
async def test_who_leaves_at_any_time_frees_all_and_disturbs_nobody(pair: Pair) -> None:
    plain, engine = await pair()
    mates = [("a mate", replace(MANY[i], max_tokens=120, ignore_eos=True)) for i in (0, 1, 2)]
    expected = await all_of(plain, mates)
    staying = asyncio.ensure_future(all_of(engine, mates))
    for n in range(24):
        async with engine.generate(request("Hello", Sampling(1.0, seed=n, ignore_eos=True))) as answer:
            seen = 0
            while seen < n % 6:
                seen += len((await anext(answer)).token_ids)
    assert await staying == expected
    await settled(engine)
    async with engine.generate(request("Hello", Sampling(1.0, seed=7, ignore_eos=True))) as answer:
        for _ in range(3):
            await anext(answer)
    steps = engine.steps
    await settled(engine)
    assert engine.steps <= steps + 2


async def test_who_joins_waits_for_the_steps_under_way_and_no_more(pair: Pair) -> None:
    _, engine = await pair()
    async with engine.generate(request("a mate", replace(GREEDY, max_tokens=400))) as answer:
        while ahead(engine) < 5:
            await anext(answer)
        taken = []
        for _ in range(5):  # the engine goes on while this thread waits for its turn: the least counts
            steps = engine.steps
            assert len((await ask(engine, "Hello", replace(GREEDY, max_tokens=5)))[0]) == 5
            taken.append(engine.steps - steps)
        assert min(taken) <= 10


async def test_who_ends_does_not_make_the_others_wait(pair: Pair) -> None:
    plain, engine = await pair()
    sampling = Sampling(2.0, seed=1, max_tokens=80, ignore_eos=True)
    (whole,) = await all_of(plain, [("Hello", sampling)])
    ends = [token for i, token in enumerate(whole) if i >= 15 and token not in whole[:i]][::6]
    async with AsyncExitStack() as stack:
        asked = [request("Hello", replace(sampling, stop_token_ids=(end,))) for end in ends]
        answers = [await stack.enter_async_context(engine.generate(one)) for one in asked]
        for answer in answers:
            await anext(answer)
        steps, before = engine.steps, ahead(engine)
        for answer in answers:
            async for _ in answer:
                pass
        assert engine.steps - steps > 20
        assert engine.steps - steps - (ahead(engine) - before) <= 5  # three sizes of graphs are new


async def test_an_answer_to_its_limit_or_the_end_of_the_context_has_no_step_behind_it(pair: Pair) -> None:
    plain, engine = await pair()
    asked = [("ab " * 228, replace(GREEDY, max_tokens=None)), ("a mate", GREEDY)]
    expected = await all_of(plain, asked)
    assert 10 < len(expected[0]) < 70
    assert await all_of(engine, asked) == expected
    steps = engine.steps
    for _ in range(2):
        await all_of(engine, [("Hello", replace(GREEDY, max_tokens=30))])
    assert engine.steps == steps + 60


async def test_closing_ends_what_is_under_way(pair: Pair) -> None:
    _, engine = await pair()
    async with engine.generate(request("Hello", replace(GREEDY, max_tokens=400))) as answer:
        await anext(answer)
        await engine.close()
        with pytest.raises(EngineFailed):
            async for _ in answer:
                pass
    assert not engine.alive
    assert engine._batcher._flight is None


@pytest.mark.timeout(60)
async def test_a_step_ahead_that_fails_ends_who_is_in_it_with_what_they_have(pair: Pair) -> None:
    plain, engine = await pair()
    short, long = (replace(GREEDY, max_tokens=n) for n in (6, 60))
    (whole,) = await all_of(plain, [("Hello", long)])
    failed = 0

    def fail(_module: object, _args: object, kwargs: dict[str, Tensor]) -> None:
        nonlocal failed
        if not failed and int(kwargs["position_ids"].max()) == prompt + 5:  # the short one needs it no more
            failed += 1
            raise RuntimeError("a cosmic ray")

    async with engine.generate(request("Hello", short)) as one, engine.generate(request("Hello", long)) as other:
        prompt = one.prompt_tokens
        handle = engine._batcher.model.register_forward_pre_hook(fail, with_kwargs=True)
        first = [piece async for piece in one]
        found = list[int]()

        async def read() -> None:
            async for piece in other:
                found.extend(piece.token_ids)

        with pytest.raises(StepFailed):
            await read()
    handle.remove()
    assert failed == 1
    assert [i for piece in first for i in piece.token_ids] == whole[:6]
    assert first[-1].finish == "length"
    assert found == whole[:6]
    await settled(engine)
    assert await all_of(engine, [("Hello", long)]) == [whole]
    assert engine.alive


async def test_a_device_that_fails_later_ends_the_steps_under_way(pair: Pair, late: Late) -> None:
    plain, engine = await pair()
    expected = await all_of(plain, [("Hello", GREEDY)])
    left = 9

    def look(numbers: list[int]) -> list[int]:
        nonlocal left
        left -= 1
        if not left:
            raise RuntimeError("an illegal memory access")
        return numbers

    late.look = look
    limits = (3, 40, 10)  # the last one is at its limit then, and not in the step that was launched ahead
    found = await asyncio.gather(
        *(ask(engine, "Hello", replace(GREEDY, max_tokens=n)) for n in limits), return_exceptions=True
    )
    assert [type(one) for one in found] == [tuple, StepFailed, StepFailed]
    await settled(engine)
    assert await all_of(engine, [("Hello", GREEDY)]) == expected


async def test_logits_that_are_not_finite_end_their_request(pair: Pair) -> None:
    plain, engine = await pair()
    expected = await all_of(plain, [("Hello", GREEDY)])
    spoilt = False

    def spoil(_module: object, _args: object, output: Tensor) -> Tensor:
        nonlocal spoilt
        if output.shape[1] > 1:  # the second request has joined
            output[:, -1] = torch.nan
            spoilt = True
        return output

    async with engine.generate(request("Hello", GREEDY)) as one:
        pieces = [await anext(one)]
        async with engine.generate(request("Hello again", GREEDY)) as other:
            await anext(other)
            handle = engine._batcher.model.lm_head.register_forward_hook(spoil)
            with pytest.raises(EngineFailed) as failed:
                async for _ in other:
                    pass
            handle.remove()
        pieces += [piece async for piece in one]
    assert failed.type is not StepFailed
    assert spoilt
    assert [[i for piece in pieces for i in piece.token_ids]] == expected
    await settled(engine)


@pytest.mark.timeout(60)
async def test_a_cache_that_is_too_small_for_all_serves_all(pair: Pair, tmp_path: Path) -> None:
    wide = build(tmp_path / "wide", head_dim=64)  # 2 kB a token: 1 MB is a single context
    asked = [("y" * 40 * i, Sampling(1.0, max_tokens=120, seed=i, ignore_eos=True)) for i in range(6)]
    plain, engine = await pair(wide, cache_mb=1)
    assert await all_of(engine, asked) == await all_of(plain, asked)
    assert ahead(engine) > 10  # of some 280: who comes first decides how long the cache is full, and then there is none
    await settled(engine)


NEEDS_THE_HOST = [
    Sampling(1.0, repetition_penalty=1.2),
    Sampling(1.0, frequency_penalty=0.5),
    Sampling(1.0, logit_bias=((5, 1.0),)),
    Sampling(1.0, logprobs=0),
    Sampling(1.0, structure=Structure("regex", "[a-z ]{99}")),
    Sampling(1.0, min_tokens=30),
]


@pytest.mark.parametrize("sampling", NEEDS_THE_HOST)
async def test_a_batch_in_which_the_host_needs_the_last_token_has_no_steps_ahead(
    pair: Pair, sampling: Sampling
) -> None:
    plain, engine = await pair()
    sampling = replace(sampling, seed=3, max_tokens=30)
    mate = replace(GREEDY, max_tokens=60)
    before = ahead(engine)
    assert await all_of(engine, [("Hello", sampling)]) == await all_of(plain, [("Hello", sampling)])
    assert ahead(engine) == before
    both = [("Hello", sampling), ("you too", mate)]
    assert await all_of(engine, both) == await all_of(plain, both)
    assert 20 < ahead(engine) - before < 35  # once the mate is alone


async def test_end_tokens_that_are_allowed_again_are_no_hindrance(pair: Pair) -> None:
    plain, engine = await pair()
    asked = [("Hello", Sampling(1.0, seed=5, min_tokens=10, max_tokens=60))]
    expected = await all_of(plain, asked)
    before = ahead(engine)
    assert await all_of(engine, asked) == expected
    assert len(expected[0]) - 14 < ahead(engine) - before < len(expected[0]) - 8


@pytest.mark.timeout(60)
async def test_adapters_mix(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = build_adapter(folder, tmp_path, seed=1)
    sources = (ModelSource("m", str(folder)), ModelSource("a", str(adapter)))
    options = EngineOptions(sources, device="cpu", slots=8, cache_mb=4)
    found = []
    for seam in (fetch_on, lambda device: Late()):
        monkeypatch.setattr(batching, "fetch_on", seam)
        engine = await open_engine(options, lambda percent: None)

        async def one(i: int, engine: TorchEngine = engine) -> list[int]:
            sampling = replace(MANY[i], max_tokens=20 + 7 * i, ignore_eos=True)
            async with engine.generate(request("Hello", sampling, model="ma"[i % 2])) as answer:
                return [token async for piece in answer for token in piece.token_ids]

        found.append(await asyncio.gather(*(one(i) for i in range(5))))
        if len(found) == 2:
            assert ahead(engine) > 30
        await engine.close()
    assert found[0] == found[1]


async def test_a_device_that_draws_otherwise_launches_nothing_ahead(
    pair: Pair, late: Late, caplog: pytest.LogCaptureFixture
) -> None:
    late.look = lambda numbers: [number ^ 1 for number in numbers]
    plain, engine = await pair()
    assert engine._batcher._ahead is None
    (warned,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "the device picks" in warned
    assert await all_of(engine, [("Hello", GREEDY)]) == await all_of(plain, [("Hello", GREEDY)])
    assert plain._batcher.free_share() == engine._batcher.free_share() == 1


async def test_without_a_gpu_nothing_is_launched_ahead(engine: TorchEngine) -> None:
    assert fetch_on(torch.device("cpu")) is None
    assert engine._batcher._ahead is None
