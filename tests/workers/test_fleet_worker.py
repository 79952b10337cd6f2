import asyncio
import os
import pickle
import signal
from dataclasses import replace

import arq.worker
import pytest

from broker import chat, keys, queues, registry
from broker.connection import Broker
from broker.errors import BadRequest, FleetError, PromptTooLong, StorageFull
from broker.messages import ModelCard, Sampling, pack
from fleet_process import worker as worker_process
from helpers import claim, eventually, request
from workers import fleet_worker


async def ended(broker: Broker, request_id: str) -> bool:
    return await broker.redis.hget(keys.request(request_id), "state") == b"ended"


async def test_an_answer_through_the_queue(broker, worker_in):
    async with worker_in():
        answer = await chat.answer(broker, request("one  two\nthree", model="echo", keep=False))
        assert (answer.text, answer.reason) == ("one  two\nthree", "stop")
        assert answer.usage == {"prompt_tokens": 3, "completion_tokens": 3}
        assert 0 <= answer.timings["waited"] <= answer.timings["first"] <= answer.timings["total"] < 5


async def test_many_at_once_keep_their_texts(broker, worker_in):
    async with worker_in(coalesce_ms=0):
        asked = [request(f"/echo {n} 1ms", model="echo") for n in range(20, 60)]
        answers = await asyncio.gather(*(chat.answer(broker, a) for a in asked))
    assert [a.text.split() for a in answers] == [[str(i) for i in range(1, n + 1)] for n in range(20, 60)]


async def test_no_more_than_the_slots_run_at_once(broker, worker_in):
    async with worker_in(slots=2) as worker:
        tasks = [asyncio.create_task(chat.answer(broker, request("/echo 30 5ms", model="echo"))) for _ in range(6)]
        await eventually(lambda: len(worker.claims) == 2)
        assert await broker.redis.zcard(keys.queue("echo")) == 4
        await asyncio.gather(*tasks)


async def test_one_worker_takes_jobs_of_all_its_models_into_one_pool_of_slots(broker, worker_in):
    async with worker_in(model="a=echo,b=echo,c=echo", slots=2) as worker:
        slow = [request("/echo 30 5ms", model=name) for name in "abcabc"]
        tasks = [asyncio.create_task(chat.answer(broker, asked)) for asked in slow]
        await eventually(lambda: len(worker.claims) == 2)
        assert sum([await broker.redis.zcard(keys.queue(name)) for name in "abc"]) == 4
        assert {a.text.split()[-1] for a in await asyncio.gather(*tasks)} == {"30"}


async def test_a_wake_of_each_model_is_heard(broker, worker_in, monkeypatch):
    monkeypatch.setattr(fleet_worker, "POLL_SECONDS", 60)
    async with worker_in(model="a=echo,b=echo"):
        for name in "abab":
            assert (await chat.answer(broker, request("hi", model=name))).text == "hi"


async def test_max_tokens_ends_with_length(broker, worker_in):
    async with worker_in():
        answer = await chat.answer(broker, request("/echo 9", model="echo", sampling=Sampling(max_tokens=4)))
    assert (answer.text, answer.reason) == ("1 2 3 4 ", "length")


async def test_a_prompt_that_is_too_long_is_refused_with_both_counts(broker, worker_in):
    async with worker_in(prompt_bytes=10**7):
        broker.config = replace(broker.config, prompt_bytes=10**7)
        with pytest.raises(PromptTooLong, match=r"140000.*131072"):
            await chat.answer(broker, request("a " * 140_000, model="echo"))


async def test_a_cancelled_answer_frees_its_slot_at_once(broker, worker_in):
    async with worker_in(slots=1) as worker:
        slow, quick = request("/echo 1000 20ms", model="echo"), request("hello", model="echo")
        async with chat.ask(broker, slow) as frames:
            await frames.take()
            await queues.cancel(broker, slow.request_id, "")
            begun = asyncio.get_running_loop().time()
            assert (await chat.answer(broker, quick)).text == "hello"
            assert asyncio.get_running_loop().time() - begun < 0.4
            last = [f async for f in frames][-1].decode()
        assert last.end["reason"] == "cancelled"
        assert 1 <= last.end["usage"]["completion_tokens"] < 100
        await eventually(lambda: not worker.claims)


@pytest.mark.parametrize(
    "job",
    [
        b"\xc1",
        b"",
        pack([1, 2]),
        pack({"t": 1}),
        pack({"t": None, "f": "nope", "a": (), "k": {}, "et": 1}),
        pack({"t": None, "f": {"a": 1}, "a": (), "k": {}, "et": 1}),
        pack({"t": "x", "f": "chat", "a": (), "k": {}, "et": 1}),
        pack({"t": None, "f": "chat", "a": (), "k": {}, "et": "x"}),
        pack({"t": None, "f": "chat", "a": (), "k": {}, "et": 2**63}),
        pack({"t": None, "f": "chat", "a": (), "k": {}, "et": 1}),
        pickle.dumps({"t": None, "f": "chat", "a": (), "k": {}, "et": 1}),
    ],
)
async def test_a_poisoned_job_ends_its_request_and_not_the_worker(broker, worker_in, job):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    asked = request(model="echo")
    await queues.enqueue(broker, asked)
    await broker.redis.set(f"arq:job:{asked.request_id}", job)
    async with worker_in():
        await eventually(lambda: ended(broker, asked.request_id))
        assert await broker.redis.llen(keys.frames(asked.request_id)) == 1
        assert (await chat.answer(broker, request("still here", model="echo"))).text == "still here"
    assert await broker.redis.keys("arq:*") == []


async def test_a_stored_request_of_a_wrong_shape_is_an_error_frame(broker, worker_in):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    async with chat.ask(broker, asked := request(model="echo")) as frames:
        await broker.redis.set(keys.prompt(asked.request_id), pack({"model": 3}))
        async with worker_in():
            last = [f async for f in frames][-1].decode()
    with pytest.raises(BadRequest):
        chat.finished(last, "")


async def test_a_job_that_a_full_server_does_not_let_begin_ends_with_a_sentence(broker, worker_in):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    async with chat.ask(broker, request(model="echo")) as frames:
        await broker.redis.config_set("maxmemory", "1")
        try:
            async with worker_in():
                last = [f async for f in frames][-1].decode()
        finally:
            await broker.redis.config_set("maxmemory", "0")
    with pytest.raises(StorageFull):
        chat.finished(last, "")


async def test_a_missing_job_ends_with_an_error(broker, worker_in):
    await registry.beat(broker, "w", "ready", {"models": "echo"}, [ModelCard("echo", state="ready")])
    async with chat.ask(broker, asked := request(model="echo")) as frames:
        await broker.redis.delete(f"arq:job:{asked.request_id}")
        async with worker_in():
            last = [f async for f in frames][-1].decode()
    with pytest.raises(FleetError):
        chat.finished(last, "")


async def test_a_draining_worker_hands_over_and_another_goes_on(broker, worker_in):
    asked = request("/echo 60 10ms", model="echo")
    async with worker_in(drain_seconds=0.05) as first:
        task = asyncio.create_task(chat.answer(broker, asked))
        await eventually(lambda: first.claims)
        await eventually(lambda: broker.redis.llen(keys.frames(asked.request_id)))
        first.handle_sig(signal.SIGTERM)
        await eventually(lambda: _gone(broker, "echo"))
        await eventually(lambda: not first.claims)
    assert await broker.redis.zcard(keys.queue("echo")) == 1
    async with worker_in():
        answer = await task
    assert answer.text.split() == [str(i) for i in range(1, 61)]
    assert await broker.redis.hmget(keys.request(asked.request_id), ["epoch", "crashes"]) == [b"2", b"0"]


async def _gone(broker: Broker, model: str) -> bool:
    return (await registry.models(broker))[0].state == "gone"


async def test_two_workers_share_one_queue(broker, worker_in):
    async with worker_in(slots=1) as one, worker_in(slots=1) as two:
        tasks = [asyncio.create_task(chat.answer(broker, request("/echo 20 10ms", model="echo"))) for _ in range(2)]
        await eventually(lambda: one.claims and two.claims)
        await asyncio.gather(*tasks)
        assert (await registry.models(broker))[0].to_map()["workers"] == 2


async def test_a_lost_connection_does_not_end_the_worker(broker, worker_in):
    async with worker_in(coalesce_ms=0) as worker:
        task = asyncio.create_task(chat.answer(broker, request("/echo 50 10ms", model="echo")))
        await eventually(lambda: worker.claims)
        for _ in range(3):
            async with broker.redis.client() as other:
                await other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.05)
        assert (await task).text.split() == [str(i) for i in range(1, 51)]


async def test_no_pickle_is_written_or_read(broker, worker_in, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickle")

    for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    async with worker_in():
        async with chat.ask(broker, request("/echo 5 1ms", model="echo")) as frames:
            written = {k: await broker.redis.dump(k) for k in await broker.redis.keys("*")}
            assert [f async for f in frames][-1].last
        written |= {k: await broker.redis.dump(k) for k in await broker.redis.keys("*")}
    assert any(k.startswith(b"arq:job:") for k in written)
    written = {k: v for k, v in written.items() if v is not None}
    assert not [k for k, v in written.items() if b"\x80\x04\x95" in v or b"\x80\x05\x95" in v]


async def test_arqs_command_runs_our_worker_and_exits_0_on_sigterm(broker, valkey, tmp_path):
    with worker_process(valkey, tmp_path) as process:
        await eventually(lambda: _ready(broker, "echo"), 20)
        assert (await chat.answer(broker, request("hello", model="echo"))).text == "hello"
        (worker,) = await registry.workers(broker)
        assert int(worker.fields["pid"]) == process.pid
        process.terminate()
        assert await asyncio.to_thread(process.wait, 5) == 0
    assert await registry.workers(broker) == []


async def _ready(broker: Broker, model: str) -> bool:
    return any(m.card.name == model and m.state == "ready" for m in await registry.models(broker))


@pytest.mark.timeout(30)
async def test_a_killed_workers_answer_goes_on_in_another(broker, valkey, tmp_path):
    asked = request("/echo 100 30ms", model="echo")
    (tmp_path / "other").mkdir()
    with worker_process(valkey, tmp_path) as first:
        await eventually(lambda: _ready(broker, "echo"), 20)
        task = asyncio.create_task(chat.answer(broker, asked))
        await eventually(lambda: broker.redis.llen(keys.frames(asked.request_id)))
        with worker_process(valkey, tmp_path / "other"):
            await eventually(lambda: _count(broker, 2), 20)
            os.kill(first.pid, signal.SIGKILL)
            answer = await task
    assert answer.text.split() == [str(i) for i in range(1, 101)]
    assert await broker.redis.hmget(keys.request(asked.request_id), ["epoch", "crashes"]) == [b"2", b"1"]


async def _count(broker: Broker, workers: int) -> bool:
    return len([w for w in await registry.workers(broker) if w.fields["state"] == "ready"]) == workers


def test_the_worker_that_arqs_command_builds_is_ours(monkeypatch):
    from workers.fleet_worker import FleetWorker
    from workers.settings import STOCK_SIGNATURE, make_settings

    settings = make_settings()
    assert arq.worker.Worker is FleetWorker
    taken = arq.worker.get_kwargs(settings)
    assert set(vars(settings)) - {"__module__", "__dict__", "__weakref__", "__doc__"} == set(taken)
    assert set(taken) < set(STOCK_SIGNATURE.parameters)
    assert taken["job_serializer"] is pack


async def test_claims_are_not_taken_while_full(broker, card):
    await queues.enqueue(broker, request())
    assert await claim(broker, want=0) == []


async def test_an_echo_that_was_not_told_to_does_no_harm(broker, worker_in):
    """Anybody may write to it; tests of faults set FLEETCHAT_ECHO_FAULTS."""
    async with worker_in():
        for deed in ("crash", "fail", "hang"):
            answer = await chat.answer(broker, request(f"/echo 2 1ms {deed}", model="echo"))
            assert (answer.text, answer.reason) == ("1 2 ", "stop")
