"""Requests that bring down the step, the engine or the process that works on them, and such as nobody can read."""

import asyncio
import contextlib
import logging
import pickle
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fleet_process
from broker import chat, embedded, keys, queues, registry
from broker.messages import Message, Sampling, new_id, pack
from broker.tasks import stop
from faults.harness import Fleet, Heard, Member, counted, counting, listen
from helpers import eventually, request
from tiny_model import build, tokenizer

pytestmark = pytest.mark.timeout(120)

MATES, WORDS = 3, 60
WEEK = 7 * 86_400


@pytest.fixture
async def fleet(tmp_path) -> AsyncIterator[Fleet]:
    """A dead worker is noticed early, so that three of them take little time."""
    async with Fleet.open(tmp_path, lease_seconds=2) as opened:
        yield opened


async def with_mates(fleet: Fleet, poison: str) -> tuple[Heard, list[Heard], float]:
    """A request that is bad beside others that are not; what they heard, and how long it took until the bad one ended."""
    asked = request(poison, model="echo")
    mates = [asyncio.create_task(listen(fleet.broker, counting(WORDS, "20ms"))) for _ in range(MATES)]
    begun = time.monotonic()
    bad = await listen(fleet.broker, asked)
    took = time.monotonic() - begun
    return bad, await asyncio.gather(*mates), took


async def kept(fleet: Fleet, request_id: str) -> dict[bytes, bytes]:
    """What people find under the documented key, which stays a week."""
    name = f"poisoned:{{{request_id}}}"
    assert WEEK - 60 < await fleet.broker.redis.ttl(name) <= WEEK
    return dict(await fleet.broker.redis.hgetall(name))


async def check(fleet: Fleet, bad: Heard, mates: list[Heard], code: str) -> None:
    assert bad.end["reason"] == "error"
    assert bad.end["error"]["code"] == code
    assert bad.text.startswith(counted(5)), "what it said before is not lost"
    found = await kept(fleet, bad.request.request_id)
    assert found[b"crashes"] == b"3"
    assert bad.request.messages[0].content.encode() in found[b"prompt"]
    assert found[b"model"] == b"echo"
    for mate in mates:
        mate.check()
        assert mate.text == counted(WORDS)
        assert mate.epochs > 1, "it was there when it happened"


async def echo_pids(fleet: Fleet) -> set[int]:
    """Of workers of echo that are ready; those that were just killed are said to be so for a while."""
    ready = (w for w in await registry.workers(fleet.broker) if w.fields["state"] == "ready" and "echo" in w.models)
    return {pid for worker in ready if exists(pid := int(worker.fields["pid"]))}


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@asynccontextmanager
async def seen_pids(fleet: Fleet) -> AsyncIterator[set[int]]:
    """The process ids of all workers that were ready at some time while the block ran."""
    pids: set[int] = set()

    async def look() -> None:
        while True:
            pids.update(await echo_pids(fleet))
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    try:
        yield pids
    finally:
        await stop(looking)


async def test_a_request_that_kills_its_worker_is_ended_and_fleetchat_up_starts_the_worker_again(fleet):
    command = [sys.executable, "-c", "from broker.cli import main; main()", "up", "--no-browser", "--model", "echo"]
    command += ["--port", str(embedded.free_port()), "--data", str(fleet.folder / "up")]
    env = fleet_process.environment(fleet.url, lease_seconds=2)
    with fleet_process.process(command, env, fleet.folder / "up.log") as up:
        try:
            await eventually(lambda: echo_pids(fleet), 30)
            async with seen_pids(fleet) as pids:
                bad, mates, took = await with_mates(fleet, "/echo 5 20ms crash")
                await eventually(lambda: echo_pids(fleet), 20)
            print(
                f"ended after {took:.1f} s and {len(pids)} workers; mates' longest pause {max(m.pause for m in mates):.1f} s"
            )
            assert len(pids) >= 3, "each time another process"
            await check(fleet, bad, mates, "worker_lost")
            last = await listen(fleet.broker, counting(3, "1ms"))
            last.check()
            assert "signal SIGKILL" in (fleet.folder / "up.log").read_text()
        finally:
            up.terminate()
            await asyncio.to_thread(up.wait, 15)


async def test_a_request_that_fails_the_engines_step_is_ended_without_its_batch_mates(fleet):
    worker = await fleet.worker()
    bad, mates, took = await with_mates(fleet, "/echo 5 20ms fail")
    print(f"ended after {took:.2f} s; mates' longest pause {max(m.pause for m in mates):.2f} s")
    await check(fleet, bad, mates, "engine_failed")
    assert worker.process.poll() is None
    assert await echo_pids(fleet) == {worker.pid}


async def test_a_prompt_that_the_model_cannot_compute_is_ended_without_its_batch_mates(broker, worker_in, tmp_path):
    """The same with torch: a forward pass over several prompts in which one is more than the device bears."""
    folder = build(tmp_path / "tiny")
    asks = [request(f"Say {i}", model="tiny", sampling=Sampling(0.0, max_tokens=60, ignore_eos=True)) for i in range(4)]
    async with worker_in(model=f"tiny={folder}", device="cpu") as worker:
        undisturbed = [(await chat.answer(broker, asked)).text for asked in asks]
        text = "\u00b5" * 8
        poison = " ".join(map(str, tokenizer().encode(text)[1:-1]))
        failures = []

        def fail(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
            ids = named["input_ids"].flatten().tolist()
            if poison in " ".join(map(str, ids)):
                failures.append(len(ids))
                raise RuntimeError("a prompt that this device cannot bear")

        handle = worker.ctx["engine"]._batcher.model.register_forward_pre_hook(fail, with_kwargs=True)
        again = [replace(asked, request_id=new_id()) for asked in asks]
        bad = replace(asks[0], messages=(Message("user", text),), request_id=new_id())
        *mates, ended = await asyncio.gather(*(listen(broker, asked) for asked in (*again, bad)))
        alone = [await listen(broker, replace(bad, request_id=new_id())) for _ in range(3)]  # as a program that insists
        assert [one.end["error"]["code"] for one in alone] == ["engine_failed"] * 3
        handle.remove()
        assert [mate.text for mate in mates] == undisturbed
        assert ended.end["error"]["code"] == "engine_failed"
        assert len(failures) == 3 * 4, "each tried three times"
        assert max(mate.epochs for mate in mates) > 1, "one of them at least was in the same step"
        assert worker.ctx["engine"].alive


@asynccontextmanager
async def supervised(fleet: Fleet, **settings: object) -> AsyncIterator[list[Member]]:
    """A worker that is started again when it ends, as systemd or Kubernetes would; all that there were."""
    members = [await fleet.worker(**settings)]

    async def restart() -> None:
        while True:
            await asyncio.to_thread(members[-1].process.wait)
            members.append(fleet.start_worker(**settings))

    restarting = asyncio.create_task(restart())
    try:
        yield members
    finally:
        restarting.cancel()
        for member in members:
            member.process.kill()
        with contextlib.suppress(asyncio.CancelledError):
            await restarting


@pytest.mark.timeout(240)
async def test_a_request_that_hangs_the_engine_is_ended_without_its_batch_mates(fleet, long):
    if not long:
        pytest.skip("takes a minute: the long form")
    async with supervised(fleet, stall_seconds=2, lease_seconds=2) as members:
        bad, mates, took = await with_mates(fleet, "/echo 5 20ms hang")
    print(
        f"ended after {took:.1f} s and {len(members)} workers; mates' longest pause {max(m.pause for m in mates):.1f} s"
    )
    assert len(members) > 3
    assert members[0].process.returncode == 1, "the worker says that its engine is broken"
    await check(fleet, bad, mates, "worker_lost")


JOBS = {  # reliability.md 1.3
    "no msgpack": b"\xc1",
    "nothing": b"",
    "a list": pack([1, 2]),
    "no function": pack({"t": 1}),
    "unknown function": pack({"t": None, "f": "nope", "a": (), "k": {}, "et": 1}),
    "a=int": pack({"t": None, "f": "chat", "a": 1, "k": {}, "et": 1}),
    "f=dict": pack({"t": None, "f": {"a": 1}, "a": (), "k": {}, "et": 1}),
    "t=str": pack({"t": "x", "f": "chat", "a": (), "k": {}, "et": 1}),
    "et=str": pack({"t": None, "f": "chat", "a": (), "k": {}, "et": "x"}),
    "et=2^63": pack({"t": None, "f": "chat", "a": (), "k": {}, "et": 2**63}),
    "a pickle": pickle.dumps({"t": None, "f": "chat", "a": (), "k": {}, "et": 1}),
}
PROMPTS = {
    "no msgpack": b"\xc1",
    "a list": pack([1]),
    "no messages": pack({"model": "echo", "sampling": {}}),
    "messages are a number": pack({"model": "echo", "messages": 5, "sampling": {}}),
    "sampling is text": pack({"model": "echo", "messages": [], "sampling": "hot"}),
    "deep": b"\x91" * 5000 + b"\xc0",
}


async def test_what_nobody_can_read_is_ended_and_kept_and_stops_nothing(fleet, caplog):
    worker = await fleet.worker()
    worker.stop()  # so that all of it lies in the queue, between good ones
    bad: dict[str, str] = {}
    good = []
    redis = fleet.broker.redis
    for key, table in ((keys.PATTERNS["job"], JOBS), (keys.PATTERNS["prompt"], PROMPTS)):
        for name, content in table.items():
            asked = request("never", model="echo")
            await queues.enqueue(fleet.broker, asked)
            await redis.set(key.replace("%s", asked.request_id), content)
            bad[asked.request_id] = f"{key} {name}"
            good.append(asyncio.create_task(listen(fleet.broker, counting(20, "5ms"))))
    shape = dict.fromkeys(("owner", "keep", "claim", "worker", "conversation", "parent"), "") | {"model": "echo"}
    numbers = ("created", "wait_until", "run_ms", "score", "epoch", "crashes")
    strange = {
        b"\xff\xfe": None,  # not even text
        b"nobody": None,
        b"half": {"state": "waiting"},
        b"words": {"state": "waiting", **shape, **dict.fromkeys(numbers, "x")},
        b"run": {"state": "running", **shape, **dict.fromkeys(numbers, "1")},  # until when?
    }
    for one, fields in strange.items():
        await redis.zadd(keys.queue("echo"), {one: 0})
        await redis.zadd(keys.running("echo"), {one: 1})
        if fields:
            await redis.hset(keys.request(one.decode()), mapping=fields)
    await redis.set(keys.request("text"), "no hash")
    await redis.zadd(keys.queue("echo"), {"text": 0})
    assert await redis.zcard(keys.queue("echo")) >= len(bad)
    with caplog.at_level(logging.WARNING):
        worker.go_on()
        for heard in await asyncio.gather(*good):
            heard.check()
            assert heard.text == counted(20)
        await eventually(lambda: _nothing_is_left(fleet), 5)
    for request_id, name in bad.items():
        state = await fleet.state(request_id)
        assert (state["state"], state["reason"]) == ("ended", "error"), name
        found = await kept(fleet, request_id)
        assert b"read" in found[b"why"] or b"wrong" in found[b"why"], name
        assert found[b"job"] or found[b"prompt"], name
        assert await redis.llen(keys.frames(request_id)) == 1, name
    assert worker.process.poll() is None
    assert await echo_pids(fleet) == {worker.pid}
    assert "refuses" not in caplog.text
    assert "Redis is away" not in worker.log.read_text()


async def _nothing_is_left(fleet: Fleet) -> bool:
    return not await fleet.broker.redis.exists(keys.queue("echo"), keys.running("echo"))
