"""The token job in a worker: how many at once, beside whom, and what becomes of it when its worker stops or dies."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from broker import chat, keys, queues, registry
from broker.connection import Broker
from broker.errors import FleetError
from broker.messages import ChatRequest, ModelCard, TokenRequest
from fleet_process import worker as worker_process
from helpers import eventually, request, tokens
from tiny_model import build, tokenizer
from workers import fleet_worker

LARGE = 1_000_000  # bytes, which keep a tokenizer busy for a second or so
TEXT = "The quick brown fox jumps over the lazy dog. 你好，世界。"
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def broker(broker: Broker) -> Broker:
    broker.config = replace(broker.config, prompt_bytes=2 * LARGE)
    return broker


def large() -> TokenRequest:
    text = TEXT * (LARGE // len(TEXT.encode()))
    return TokenRequest("count", ChatRequest("tiny", (), prompt=text))


async def ask(broker: Broker, asked: TokenRequest) -> dict[str, object]:
    """What the worker says; raises what it refuses."""
    found: dict[str, object] = {}
    async with chat.ask(broker, asked) as reader:
        async for received in reader:
            frame = received.decode()
            found = frame.data or found
    chat.finished(frame, "")
    return found


async def state(broker: Broker, asked: TokenRequest) -> list[bytes]:
    return await broker.redis.hmget(keys.request(asked.request_id), ["state", "epoch", "crashes"])


async def test_so_many_at_once_and_no_more_whatever_the_slots_do(broker, worker_in, monkeypatch):
    """They are given work that does not end, so that all that the worker takes can be counted."""
    monkeypatch.setattr(fleet_worker, "BESIDE", 3)
    goes_on = asyncio.Event()
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    async with worker_in(slots=2) as worker:
        engine = worker.ctx["engine"]
        told = engine.tokens

        async def slow(asked: TokenRequest) -> dict[str, object]:
            await goes_on.wait()
            return await told(asked)

        engine.tokens = slow
        asking = [asyncio.create_task(ask(broker, tokens("a b", model="echo"))) for _ in range(5)]
        await eventually(lambda: len(worker.claims) == 3)
        answers = [await chat.answer(broker, request("hi", model="echo")) for _ in range(3)]
        assert [a.text for a in answers] == ["hi"] * 3, "neither waits for the other"
        await eventually(lambda: (len(worker.claims), worker.busy) == (3, 0))
        assert await broker.redis.zcard(keys.queue(keys.beside("echo"))) == 2
        (said,) = [w for w in await registry.workers(broker) if w.worker_id != "w"]
        assert said.fields["busy"] == "0"
        goes_on.set()
        assert [found["tokens"] for found in await asyncio.gather(*asking)] == [[0, 1]] * 5
    assert worker.ctx["publisher"].tokens == 3, "only words of answers are tokens a second"


async def test_it_is_picked_up_by_a_wake_also_when_all_slots_are_taken(broker, worker_in, monkeypatch):
    monkeypatch.setattr(fleet_worker, "POLL_SECONDS", 60)
    async with worker_in(slots=1) as worker:
        async with chat.ask(broker, request("/echo 1000 20ms", model="echo", keep=False)) as frames:
            await frames.take()
            assert worker.busy == worker.max_jobs
            assert (await ask(broker, tokens("a b c", model="echo")))["tokens"] == [0, 1, 2]


async def test_what_nobody_waits_for_any_more_is_stopped(broker, worker_in, folder):
    async with worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu") as worker:
        asked = large()
        async with chat.ask(broker, asked):
            await eventually(lambda: worker.claims)
        await eventually(lambda: not worker.claims)
        assert (await state(broker, asked))[0] == b"ended"
        assert await broker.redis.exists(keys.running(keys.beside("tiny")), keys.queue(keys.beside("tiny"))) == 0


async def test_a_stopping_worker_hands_it_over(broker, worker_in, folder):
    asked = large()
    async with worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu", drain_seconds=0.02) as first:
        asking = asyncio.create_task(ask(broker, asked))
        await eventually(lambda: first.claims)
        first.handle_sig(signal.SIGTERM)
        await eventually(lambda: broker.redis.zcard(keys.queue(keys.beside("tiny"))))
    async with worker_in(model=f"tiny={folder}", cache_mb=4, device="cpu"):
        assert (await asking)["count"] == len(tokenizer().encode(asked.of.prompt))
    assert await state(broker, asked) == [b"ended", b"2", b"0"]


@pytest.mark.timeout(120)
async def test_that_of_a_killed_worker_is_done_by_another(broker, valkey, worker_in, folder, tmp_path):
    settings = {"model": f"tiny={folder}", "cache_mb": 4, "device": "cpu", "lease_seconds": 2}
    asked = large()
    with worker_process(valkey, tmp_path, **settings) as first:
        await eventually(lambda: _ready(broker, 1), 60)
        asking = asyncio.create_task(ask(broker, asked))
        await eventually(lambda: broker.redis.zcard(keys.running(keys.beside("tiny"))))
        os.kill(first.pid, signal.SIGKILL)
        assert (await state(broker, asked))[0] == b"running", "it was under way"
        async with worker_in(**settings):
            assert (await asking)["count"] == len(tokenizer().encode(asked.of.prompt))
    assert await state(broker, asked) == [b"ended", b"2", b"1"]


async def _ready(broker: Broker, workers: int) -> bool:
    return [w.fields["state"] for w in await registry.workers(broker)] == ["ready"] * workers


async def test_one_that_cannot_be_read_is_an_error_and_not_the_workers_end(broker, worker_in):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    asked = tokens(model="echo")
    async with chat.ask(broker, asked) as frames:
        await broker.redis.set(keys.prompt(asked.request_id), b"\xc1")
        async with worker_in():
            last = [f async for f in frames][-1].decode()
            assert (await ask(broker, tokens("still here", model="echo")))["tokens"] == [0, 1]
    with pytest.raises(FleetError, match="cannot be read"):
        chat.finished(last, "")
    assert not await queues.cancel(broker, asked.request_id, "")
