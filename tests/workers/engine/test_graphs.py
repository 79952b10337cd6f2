"""Steps at fixed shapes give what `generate` gives. There is no GPU here: what would be captured runs anew each time."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer

from broker.messages import Sampling
from broker.sources import ModelSource
from tests.tiny_model import build_adapter
from tests.workers.engine.conftest import Open, request
from tests.workers.engine.families import build
from tests.workers.engine.test_equality import Family, ask, check
from workers.engine import EngineOptions, batching, graphs
from workers.engine.graphs import Work, capture_on
from workers.engine.torch_engine import TorchEngine, open_engine

# Some pass a window, 256 or 512 while they are answered.
LENGTHS = [1, 20, 60, 95, 101, 130, 200, 215, 250, 256, 300, 470]
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.lift_fresh"}


class Few(Family):
    """A family with fewer prompts."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = build(family, folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.prompts = [self._prompt(n, seed) for seed, n in enumerate(LENGTHS)]
        self.expected = self._generate()


class Again:
    """In the place of a GPU: does the work anew for each replay, and keeps count."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.replays = 0

    def __call__(self, work: Work) -> Work:
        self.works.append(work)
        work()

        def replay() -> None:
            self.replays += 1
            work()

        return replay


class Watched(TorchDispatchMode):
    """Notes the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func.overloadpacket))
        return func(*args, **kwargs or {})


@pytest.fixture(scope="module", params=["llama", "gemma2", "mistral"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Few:
    return Few(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Again:
    """Engines that are opened from now on have this capture."""
    capture = Again()
    monkeypatch.setattr(batching, "capture_on", lambda device: capture)
    return capture


def shapes(engine: TorchEngine) -> set[tuple[int, int]]:
    made = engine._batcher._forward.graphs
    assert made is not None
    return set(made._graphs)


async def ids(engine: TorchEngine, text: str, tokens: int = 40, **more: Any) -> list[int]:
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
    async with engine.generate(request(text, sampling, **more)) as answer:
        return [token async for piece in answer for token in piece.token_ids]


async def many(engine: TorchEngine) -> list[list[int]]:
    """Answers of which one after the other ends."""
    return await asyncio.gather(*(ids(engine, f"{n} is a number", 30 + 5 * n) for n in range(8)))


@pytest.mark.timeout(60)
async def test_answers_are_those_of_generate_in_every_shape(
    family: Few, opened: Open, again: Again, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await opened(family.folder, slots=7, cache_mb=64)
    check(await asyncio.gather(*(ask(engine, prompt) for prompt in family.prompts)), family.expected)
    for n in (3, 2, 1):
        check(await asyncio.gather(*(ask(engine, prompt) for prompt in family.prompts[-n:])), family.expected[-n:])
    sizes, keys = (set(some) for some in zip(*shapes(engine), strict=True))
    assert sizes == {1, 2, 4, 7}
    assert keys == ({96} if family.folder.name.startswith("mistral") else {256, 512, 1024})
    assert len(again.works) == len(shapes(engine)) < again.replays / 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_is_captured_reads_nothing_back_and_makes_nothing_on_the_host(
    family: Few, opened: Open, again: Again
) -> None:
    await opened(family.folder, cache_mb=16)  # captures one while it is opened
    with torch.inference_mode(), Watched() as watched:
        again.works[0]()
    assert "aten.index_copy_" in watched.names
    assert not watched.names & WAITING


async def test_a_step_without_room_in_a_graph_gets_one_and_the_oldest_goes(
    opened: Open, again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = await many(await opened(slots=8))
    monkeypatch.setattr(graphs, "KEPT", 2)
    engine = await opened(slots=8)
    for _ in range(2):
        made = len(again.works)
        assert await many(engine) == plain
        assert shapes(engine) == {(1, 256), (2, 256)}
        assert len(again.works) >= made + 3  # 8 and 4 went, and so did 1


@pytest.mark.parametrize(("at", "reason"), [(1, "are off by"), (3, "cannot be captured")])
async def test_a_capture_that_fails_or_is_wrong_is_the_last_and_changes_no_answer(
    at: int, reason: str, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`at` 1 is the one at the start."""
    plain = await many(await opened(slots=8))
    made = []

    def capture(work: Work) -> Work:
        made.append(work)
        work()
        if len(made) < at:
            return work
        if reason == "cannot be captured":
            raise RuntimeError(reason)
        return lambda: None  # as if all of it had been fixed when it was captured

    monkeypatch.setattr(batching, "capture_on", lambda device: capture)
    engine = await opened(slots=8)
    assert await many(engine) == plain
    assert len(made) == at
    assert engine._batcher._forward.graphs is None
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert reason in warned[0]


@pytest.fixture
async def adapted(folder: Path, tmp_path: Path) -> AsyncIterator[TorchEngine]:
    adapter = build_adapter(folder, tmp_path, seed=1)
    sources = (ModelSource("m", str(folder)), ModelSource("a", str(adapter)))
    engine = await open_engine(EngineOptions(sources, device="cpu", slots=8, cache_mb=4), lambda percent: None)
    yield engine
    await engine.close()


async def test_steps_with_an_adapter_do_without(again: Again, adapted: TorchEngine) -> None:
    before = again.replays
    alone = [await ids(adapted, "hello", model="a")]
    assert again.replays == before
    alone.append(await ids(adapted, "hello", model="m"))
    assert again.replays >= before + 35
    assert alone[0] != alone[1]
    both = await asyncio.gather(*(ids(adapted, "hello", model=model) for model in ("a", "m")))
    assert both == alone


async def test_without_a_gpu_there_are_none(engine: TorchEngine) -> None:
    assert capture_on(torch.device("cpu")) is None
    assert engine._batcher._forward.graphs is None
