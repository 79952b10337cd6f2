import asyncio
from dataclasses import replace

import pytest

from broker import keys, queues, registry, streams
from broker.connection import Broker
from broker.errors import FleetError, QueueFull, ShareUsed
from broker.messages import Frame, ModelCard, pack
from broker.streams import Written
from helpers import claim, request, tokens

pytestmark = pytest.mark.usefixtures("card")


async def state(broker: Broker, request_id: str) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (await broker.redis.hgetall(keys.request(request_id))).items()}


async def sweep(broker: Broker) -> list[int]:
    """The sweep of some other process, now."""
    await broker.redis.delete("swept")
    error = pack(FleetError("limit").to_map())
    return await broker.scripts.expire(args=[4000, 30_000, error, error, error])


async def pass_lease(broker: Broker, request_id: str) -> None:
    """As if the worker had been silent for its lease."""
    await broker.redis.zadd(keys.running("m"), {request_id: 1})


async def last_frame(broker: Broker, request_id: str) -> Frame:
    return Frame.decode((await broker.redis.lrange(keys.frames(request_id), -1, -1))[0])


async def test_the_queue_holds_what_waits_and_nothing_else(broker):
    ids = []
    for place in range(3):
        ids.append(request().request_id)
        assert await queues.enqueue(broker, request(request_id=ids[-1])) == place
    claims = await claim(broker, want=2)
    assert [c.request_id for c in claims] == ids[:2]
    assert await broker.redis.zrange(keys.queue("m"), 0, -1) == [ids[2].encode()]
    assert await broker.redis.zcard(keys.running("m")) == 2


async def test_a_first_claim_brings_the_request(broker):
    await queues.enqueue(broker, asked := request())
    (first,) = await claim(broker)
    await queues.release(broker, first)
    (second,) = await claim(broker)
    assert (first.encoded, second.encoded) == (asked.encode(), b"")


async def test_a_repeated_enqueue_changes_nothing(broker):
    asked = request()
    assert await queues.enqueue(broker, asked) == 0
    assert await queues.enqueue(broker, asked) is None
    assert await broker.redis.zcard(keys.queue("m")) == 1


async def test_what_takes_no_slot_has_a_queue_and_a_number_of_its_own(broker):
    asked, others = [request() for _ in range(3)], [tokens() for _ in range(5)]
    for one in (*asked, *others):
        async with streams.read(broker, one.request_id):  # somebody listens
            await queues.enqueue(broker, one)
        await broker.redis.hset(keys.request(one.request_id), "keep", 1)
    assert await broker.redis.zrange("queue:m#tokens", 0, -1) == [one.request_id.encode() for one in others]
    claims = await claim(broker, want=2, beside=4)
    assert [c.request_id for c in claims] == [one.request_id for one in (*asked[:2], *others[:4])]
    assert [c.beside for c in claims] == [False, False, True, True, True, True]
    assert {c.model for c in claims} == {"m"}
    assert len({c.token for c in claims}) == 6
    assert [await broker.redis.zcard(f"{kind}:m{lane}") for kind in ("queue", "running") for lane in ("", "#tokens")] == [1, 1, 2, 4]  # fmt: skip
    held = tuple(c.request_id for c in claims)
    assert [c.beside for c in await claim(broker, want=0, beside=4, mine=held, token="t2")] == [True]
    assert [c.beside for c in await claim(broker, want=4, beside=0, mine=held, token="t3")] == [False]


async def test_a_question_to_a_tokenizer_wakes_a_worker_of_the_model(broker):
    async with broker.listener.subscribe(keys.wake("m")) as wakes:
        await queues.enqueue(broker, asked := tokens())
        assert await wakes.take(2) == ([asked.request_id.encode()], False)


async def test_a_share_of_answers_is_none_of_tokens(broker):
    broker.config = replace(broker.config, user_limit=1, queue_limit=1)
    await queues.enqueue(broker, request(owner="anna"))
    await queues.enqueue(broker, tokens(owner="anna"))
    for more in (request, tokens):
        with pytest.raises((QueueFull, ShareUsed)):
            await queues.enqueue(broker, more(owner="anna"))
    assert await broker.redis.hget(keys.counts("m"), "accepted") == b"1"
    assert set(await registry.counts(broker)) == {"m"}


async def test_time_ends_and_gives_back_what_takes_no_slot(broker):
    """Its lease runs out, it waits too long, it runs too long, nobody listens, and it is cancelled: as with all others."""
    lost, late, long, left, gone = (tokens(owner="anna") for _ in range(5))
    beside = keys.beside("m")
    for one in (lost, long):
        async with streams.read(broker, one.request_id):
            await queues.enqueue(broker, one)
            (held,) = await claim(broker, beside=1, token=one.request_id)
            assert held.request_id == one.request_id
    for one in (late, left, gone):
        await queues.enqueue(broker, one)
    await broker.redis.zadd(keys.running(beside), {lost.request_id: 1})
    await broker.redis.hset(keys.request(late.request_id), "wait_until", 1)
    await broker.redis.hset(keys.request(long.request_id), "run_until", 1)
    await broker.redis.hset(keys.request(left.request_id), "alone_since", 1)
    assert await queues.cancel(broker, gone.request_id, "anna")
    await sweep(broker)
    assert await broker.redis.zrange(keys.queue(beside), 0, -1) == [lost.request_id.encode()]
    assert await broker.redis.zcard(keys.running(beside)) == 0
    assert [(await state(broker, one.request_id))["reason"] for one in (late, long, left, gone)] == [
        "error",
        "error",
        "abandoned",
        "cancelled",
    ]
    assert await broker.redis.smembers("live:anna#tokens") == {lost.request_id.encode()}
    async with streams.read(broker, lost.request_id):
        (again,) = await claim(broker, beside=1, token="again")
    assert (again.request_id, again.epoch) == (lost.request_id, 2)
    assert await queues.renew(broker, [again]) == []
    await broker.redis.zadd(keys.running(beside), {lost.request_id: 1})
    await sweep(broker)
    assert await queues.renew(broker, [again]) == [], "nobody took it, so it is its own again"
    assert await broker.redis.zcard(keys.queue(beside)) == 0
    assert await queues.release(broker, again)
    assert await broker.redis.zcard(keys.queue(beside)) == 1
    assert await broker.redis.hgetall(keys.counts("m")) == {}, "answers are counted there"


async def test_what_crashed_two_workers_runs_alone_whatever_it_is(broker):
    for one in (request(), bad := tokens(), tokens()):
        async with streams.read(broker, one.request_id):
            await queues.enqueue(broker, one)
        await broker.redis.hset(keys.request(one.request_id), "keep", 1)
    await broker.redis.hset(keys.request(bad.request_id), mapping={"crashes": 2, "claimed": 1})
    assert [c.beside for c in await claim(broker, want=4, beside=4)] == [False], (
        "an empty worker is left to the bad one"
    )
    (held,) = await claim(broker, want=4, beside=4, token="t2")
    assert held.request_id == bad.request_id
    assert len(await claim(broker, want=4, beside=4, token="t3", mine=(held.request_id,))) == 1


async def test_a_full_queue_refuses_with_the_time_to_wait(broker):
    broker.config = replace(broker.config, queue_limit=2)
    for _ in range(2):
        await queues.enqueue(broker, request())
    with pytest.raises(QueueFull) as refused:
        await queues.enqueue(broker, request())
    assert 1 <= refused.value.retry_after <= 60
    assert await broker.redis.zcard(keys.queue("m")) == 2


async def test_a_user_has_a_share_of_waiting_and_running(broker):
    broker.config = replace(broker.config, user_limit=2)
    first = request(owner="anna")
    await queues.enqueue(broker, first)
    await queues.enqueue(broker, request(owner="anna"))
    await claim(broker)
    with pytest.raises(ShareUsed):
        await queues.enqueue(broker, request(owner="anna"))
    await queues.enqueue(broker, request(owner="ben"))
    await queues.cancel(broker, first.request_id, "anna")
    await queues.enqueue(broker, request(owner="anna"))


async def test_who_asks_may_have_another_share_or_none(broker):
    broker.config = replace(broker.config, user_limit=1)
    for at_once in (2, 2, 0, 0):
        await queues.enqueue(broker, request(owner="anna"), at_once=at_once)
    for at_once in (4, None):
        with pytest.raises(ShareUsed, match="4 answers"):
            await queues.enqueue(broker, request(owner="anna"), at_once=at_once)


async def test_users_take_turns(broker):
    broker.config = replace(broker.config, user_limit=100)
    for owner in ["anna"] * 5 + ["ben", "cleo"]:
        await queues.enqueue(broker, request(owner=owner))
    order = [(await state(broker, c.request_id))["owner"] for c in await claim(broker, want=10)]
    assert order == ["anna", "ben", "cleo", "anna", "anna", "anna", "anna"]


async def test_low_priority_waits_behind_everybody(broker):
    await queues.enqueue(broker, low := request(), low_priority=True)
    await queues.enqueue(broker, request())
    await claim(broker)
    await queues.enqueue(broker, request())
    assert (await claim(broker, token="t2", want=2))[-1].request_id == low.request_id


async def test_a_claimed_job_is_nobody_elses(broker):
    for _ in range(20):
        await queues.enqueue(broker, request())
    batches = await asyncio.gather(*(claim(broker, worker=f"w{i}", token=f"t{i}", want=5) for i in range(6)))
    ids = [c.request_id for batch in batches for c in batch]
    assert len(ids) == len(set(ids)) == 20


async def test_a_waiting_request_leaves_the_queue_when_cancelled(broker):
    await queues.enqueue(broker, asked := request(owner="anna"))
    assert not await queues.cancel(broker, asked.request_id, "ben")
    assert await queues.cancel(broker, asked.request_id, "anna")
    assert not await queues.cancel(broker, asked.request_id, "anna")
    assert await broker.redis.zcard(keys.queue("m")) == 0
    assert (await last_frame(broker, asked.request_id)).end["reason"] == "cancelled"
    assert await broker.redis.llen(keys.frames(asked.request_id)) == 1


async def test_a_lapsed_lease_of_a_living_worker_is_no_crash_and_can_be_regained(broker):
    """Bug B: a worker that stalled past its lease must not fence with itself."""
    await queues.enqueue(broker, asked := request())
    (held,) = await claim(broker)
    await pass_lease(broker, asked.request_id)
    assert await sweep(broker) == [0, 1, 0]
    assert (await state(broker, asked.request_id))["crashes"] == "0"
    assert await claim(broker, token="t2", mine=(asked.request_id,)) == []  # not a second copy beside the first
    assert await queues.renew(broker, [held]) == []
    now = await state(broker, asked.request_id)
    assert (now["state"], now["epoch"]) == ("running", "1")
    assert await broker.redis.zcard(keys.queue("m")) == 0


async def test_a_stalled_worker_is_fenced_once_another_has_the_request(broker):
    await queues.enqueue(broker, asked := request())
    (old,) = await claim(broker)
    await pass_lease(broker, asked.request_id)
    await sweep(broker)
    (new,) = await claim(broker, worker="w2", token="t2")
    assert new.epoch == 2
    frame = Frame(asked.request_id, 0, 1, "late")
    assert await streams.append(broker, [Written(asked.request_id, old.token, 0, frame.encode())]) == [streams.FENCED]
    assert await queues.renew(broker, [old]) == [asked.request_id]
    assert not await queues.end(broker, old, FleetError())
    assert not await queues.release(broker, old)
    assert await broker.redis.llen(keys.frames(asked.request_id)) == 0


async def test_after_three_crashes_a_request_ends_and_is_kept_for_inspection(broker):
    await queues.enqueue(broker, asked := request("poison"))
    await queues.enqueue(broker, request("harmless"))
    for n in range(3):
        await broker.redis.zadd(keys.WORKERS, {"w": 1})  # its heartbeat is gone
        claims = await claim(broker, token=f"t{n}", want=2)
        if n == 2:
            assert len(claims) == 1, "a request that brought down two workers gets one to itself"
        assert claims[0].crashes == n
        await pass_lease(broker, asked.request_id)
        for other in claims[1:]:
            await queues.release(broker, other)
        await sweep(broker)
    assert (await last_frame(broker, asked.request_id)).end["reason"] == "error"
    kept = await broker.redis.hgetall(f"poisoned:{{{asked.request_id}}}")
    assert b"poison" in kept[b"prompt"]
    assert kept[b"crashes"] == b"3"


async def test_a_hand_over_keeps_the_place_and_is_no_crash(broker):
    await queues.enqueue(broker, first := request())
    (held,) = await claim(broker)
    await queues.enqueue(broker, request())
    assert await queues.release(broker, held)
    (again,) = await claim(broker, worker="w2", token="t2")
    assert (again.request_id, again.crashes, again.epoch) == (first.request_id, 0, 2)


async def test_what_waits_too_long_ends_with_a_sentence(broker):
    await queues.enqueue(broker, asked := request())
    await broker.redis.hset(keys.request(asked.request_id), "wait_until", 1)
    assert await sweep(broker) == [0, 0, 1]
    assert (await last_frame(broker, asked.request_id)).end["error"]["message"] == "limit"


async def test_what_runs_too_long_ends_and_its_worker_is_told(broker):
    await queues.enqueue(broker, asked := request())
    await claim(broker)
    async with broker.listener.subscribe(keys.control("w")) as orders:
        await broker.redis.hset(keys.request(asked.request_id), "run_until", 1)
        await sweep(broker)
        (order,), _ = await orders.take(2)
    assert asked.request_id.encode() in order
    assert (await last_frame(broker, asked.request_id)).end["reason"] == "error"


async def test_what_nobody_keeps_and_nobody_hears_ends_after_the_grace(broker):
    await queues.enqueue(broker, kept := request(keep=True))
    await queues.enqueue(broker, asked := request(keep=False))
    assert [c.request_id for c in await claim(broker, want=2)] == [kept.request_id]
    since = int((await state(broker, asked.request_id))["alone_since"])
    assert await sweep(broker) == [0, 0, 0]
    await broker.redis.hset(keys.request(asked.request_id), "alone_since", since - 30_000)
    assert await sweep(broker) == [0, 0, 1]
    assert (await last_frame(broker, asked.request_id)).end["reason"] == "abandoned"


async def test_a_listener_that_came_back_stops_the_clock(broker):
    await queues.enqueue(broker, asked := request(keep=False))
    await claim(broker)
    async with streams.read(broker, asked.request_id):
        await sweep(broker)
        assert "alone_since" not in await state(broker, asked.request_id)
        assert len(await claim(broker, token="t2")) == 1


async def test_nothing_is_left_of_an_ended_request_but_what_expires(broker):
    await queues.enqueue(broker, asked := request(owner="anna"))
    (held,) = await claim(broker)
    await broker.redis.incr(f"arq:retry:{asked.request_id}")
    await queues.end(broker, held, FleetError("broke"))
    left = [k.decode() for k in await broker.redis.keys(f"*{asked.request_id}*")]
    assert sorted(left) == [f"frames:{{{asked.request_id}}}", f"request:{{{asked.request_id}}}"]
    assert all([0 < await broker.redis.ttl(k) <= 120 for k in left])
    assert await broker.redis.exists("live:anna", keys.running("m"), keys.queue("m")) == 0
    assert not await queues.end(broker, held, FleetError("twice"))
    assert await broker.redis.llen(keys.frames(asked.request_id)) == 1


async def test_a_pause_of_redis_is_nobodys_crash(broker):
    """All leases and heartbeats are old when it comes back, and nobody could renew them."""
    await queues.enqueue(broker, asked := request())
    await claim(broker)
    now = int(await broker.redis.get("swept") or 0)
    await broker.redis.zadd(keys.WORKERS, {"w": 1})
    await pass_lease(broker, asked.request_id)
    await broker.redis.set("swept", now - 6000)
    error = pack(FleetError().to_map())
    assert await broker.scripts.expire(args=[4000, 30_000, error, error, error]) == [0, 0, 0]
    assert (await state(broker, asked.request_id))["state"] == "running"
    assert await broker.redis.zscore(keys.running("m"), asked.request_id) > now
    assert [w.decode() for w in await broker.redis.zrange(keys.WORKERS, 0, -1)] == ["w"]


async def test_a_short_lease_runs_out_all_the_same(broker):
    """Sweeps are a second apart, which must not pass for a pause of Redis."""
    await queues.enqueue(broker, asked := request())
    await claim(broker)
    await pass_lease(broker, asked.request_id)
    seconds, micros = await broker.redis.time()
    await broker.redis.set("swept", seconds * 1000 + micros // 1000 - 1100)
    error = pack(FleetError().to_map())
    assert (await broker.scripts.expire(args=[2000, 30_000, error, error, error]))[1] == 1


async def test_what_cannot_be_claimed_now_does_not_hide_what_stands_behind_it(broker):
    for _ in range(120):
        await queues.enqueue(broker, request(keep=False))  # nobody listens to these at the moment
    await queues.enqueue(broker, kept := request())
    assert [c.request_id for c in await claim(broker)] == [kept.request_id]


async def test_a_request_that_crashed_two_workers_gets_an_empty_one_in_the_end(broker):
    await queues.enqueue(broker, asked := request())
    await broker.redis.hset(keys.request(asked.request_id), mapping={"crashes": 2, "claimed": 1})
    await queues.enqueue(broker, request())
    assert await claim(broker, want=4, mine=("other",)) == [], "so that this worker becomes empty"
    (held,) = await claim(broker, want=4)
    assert held.request_id == asked.request_id


async def test_a_full_server_lets_what_runs_go_on_and_end(broker):
    await queues.enqueue(broker, asked := request())
    await queues.enqueue(broker, waiting := request())
    (held,) = await claim(broker)
    await broker.redis.config_set("maxmemory", "1")
    try:
        frame = Frame(asked.request_id, 0, 1, "text")
        assert await streams.append(broker, [Written(asked.request_id, held.token, 0, frame.encode())]) == [0]
        assert await queues.renew(broker, [held]) == []
        assert await queues.cancel(broker, waiting.request_id, "")
        assert await queues.end(broker, held, FleetError())
        assert await sweep(broker) == [0, 0, 0]
    finally:
        await broker.redis.config_set("maxmemory", "0")


async def test_two_ready_workers_that_differ_do_not_write_over_each_other(broker):
    await registry.beat(broker, "w", "ready", {"models": "m"}, [ModelCard("m", state="ready", context=100)])
    async with broker.listener.subscribe(keys.EVENTS) as events:
        await registry.beat(broker, "v", "ready", {"models": "m"}, [ModelCard("m", state="ready", context=90)])
        await events.take(1)
        for worker, context in (("w", 100), ("v", 90)):
            await registry.beat(
                broker, worker, "ready", {"models": "m"}, [ModelCard("m", state="ready", context=context)]
            )
        assert await events.take(0.2) == ([], False)


async def test_a_silent_worker_leaves_the_registry(broker):
    assert (await registry.models(broker))[0].state == "ready"
    await broker.redis.zadd(keys.WORKERS, {"w": 1})
    await broker.redis.zadd(keys.serving("m"), {"w": 1})
    await broker.redis.delete(keys.worker("w"))
    async with broker.listener.subscribe(keys.EVENTS) as events:
        await sweep(broker)
        assert (await events.take(2))[0]
    assert (await registry.models(broker))[0].state == "gone"


async def test_a_place_is_what_stands_before(broker):
    asked = [request() for _ in range(3)]
    for one in asked:
        await queues.enqueue(broker, one)
    await claim(broker)
    assert await queues.places(broker, [("m", a.request_id) for a in asked]) == [None, 0, 1]
