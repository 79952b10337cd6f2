import asyncio

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families as parse

from broker import metrics, queues, registry, streams
from broker.errors import NoWorker, QueueFull, ShareUsed, StorageFull
from broker.messages import Frame, ModelCard
from broker.streams import FENCED, Written
from helpers import claim, eventually, request

VLLM = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metrics.PREFIX + name, labels) or 0


def test_the_names_that_dashboards_know_are_there_with_their_types():
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in parse(body.decode())}
    for name, kind in VLLM.items():
        assert found[metrics.PREFIX + name].type == kind
    assert "process_resident_memory_bytes" in found
    assert all(family.documentation for family in found.values())


def test_gaps_between_tokens_are_weighted_by_the_tokens():
    decode = metrics.decode("weighted")
    decode.tokens += 12
    decode.gap(10, 0.2)  # ten tokens, 20 ms each
    decode.gap(1, 0.06)
    decode.gap(1, 1000.0)
    name = "inter_token_latency_seconds"
    buckets = {
        bound: value(f"{name}_bucket", model_name="weighted", le=bound)
        for bound in ("0.01", "0.025", "0.05", "0.075", "80.0", "+Inf")
    }
    assert buckets == {"0.01": 0, "0.025": 10, "0.05": 10, "0.075": 11, "80.0": 11, "+Inf": 12}
    assert (
        value(f"{name}_count", model_name="weighted") == value("generation_tokens_total", model_name="weighted") == 12
    )
    assert value(f"{name}_sum", model_name="weighted") == pytest.approx(1000.26)


def test_what_redis_counted_becomes_counters_by_model():
    counts = {"m": {"accepted": 3, "ended:stop": 2, "ended:worker_lost": 1, "tokens:in": 7, "fenced": 4}}
    body, _ = metrics.render([metrics.redis_up(True), *metrics.fleet({"m": 5}, {"m": 1}, counts)])
    samples = {
        (s.name.removeprefix(metrics.PREFIX), tuple(sorted(s.labels.values()))): s.value
        for family in parse(body.decode())
        for s in family.samples
        if s.name.startswith(f"{metrics.PREFIX}fleet_")
    }
    assert samples == {
        ("fleet_requests_waiting", ("m",)): 5,
        ("fleet_requests_running", ("m",)): 1,
        ("fleet_accepted_total", ("m",)): 3,
        ("fleet_requests_total", ("m", "stop")): 2,
        ("fleet_requests_total", ("m", "worker_lost")): 1,
        ("fleet_tokens_total", ("in", "m")): 7,
        ("fleet_fenced_writes_total", ("m",)): 4,
    }


async def test_the_scripts_count_what_they_decide(broker, card):
    for _ in range(3):
        await queues.enqueue(broker, request())
    first, second = await claim(broker, want=2)
    assert await queues.release(broker, second)
    last = Frame(
        first.request_id, 0, 1, "hi", end={"reason": "stop", "usage": {"prompt_tokens": 2, "completion_tokens": 5}}
    )
    written = Written(first.request_id, first.token, 0, last.encode(), last=True)
    assert await streams.append(broker, [Written(second.request_id, second.token, 0, b"late"), written]) == [FENCED, 0]
    assert await queues.cancel(broker, second.request_id, "")
    assert (await registry.counts(broker))["m"] == {
        "accepted": 3,
        "requeued:handed_over": 1,
        "fenced": 1,
        "ended:stop": 1,
        "ended:cancelled": 1,
        "tokens:in": 2,
        "tokens:out": 5,
    }


async def test_a_lease_that_ran_out_and_the_crash_behind_it_are_counted(broker, config, card):
    await queues.enqueue(broker, request())
    await claim(broker, worker="one that never had a heartbeat")

    async def counted() -> bool:
        fields = (await registry.counts(broker))["m"]
        return (fields.get("crashed"), fields.get("requeued:lease")) == (1, 1)

    await eventually(counted, 8)


async def test_refusals_are_counted_by_limit_here_and_in_redis(broker, card):
    before = {limit: value("refused_total", limit=limit) for limit in ("queue", "user", "storage", "unserved")}
    for _ in range(broker.config.user_limit):
        await queues.enqueue(broker, request(owner="o"))
    with pytest.raises(ShareUsed):
        await queues.enqueue(broker, request(owner="o"))
    for _ in range(broker.config.queue_limit - broker.config.user_limit):
        await queues.enqueue(broker, request())
    for _ in range(2):
        with pytest.raises(QueueFull):
            await queues.enqueue(broker, request())
    broker.nearly_full = True
    with pytest.raises(StorageFull):
        await queues.enqueue(broker, request())
    broker.nearly_full = False
    await registry.beat(broker, "w2", "failed", {"models": "bad"}, [ModelCard("bad", state="failed", why="broken")])
    with pytest.raises(NoWorker):
        await queues.enqueue(broker, request(model="bad"))
    now = {limit: value("refused_total", limit=limit) - count for limit, count in before.items()}
    assert now == {"queue": 2, "user": 1, "storage": 1, "unserved": 1}
    counts = (await registry.counts(broker))["m"]
    assert (counts["refused:queue"], counts["refused:user"], counts["accepted"]) == (2, 1, broker.config.queue_limit)


async def test_a_lost_subscription_is_counted_once(broker):
    before = value("redis_reconnects_total")
    async with broker.listener.subscribe("x") as mailbox:
        await eventually(lambda: broker.listener.alive)
        await broker.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await mailbox.take(5) == ([], True)
    assert value("redis_reconnects_total") == before + 1


async def test_a_reader_that_falls_behind_is_counted_and_one_that_wants_the_latest_only_is_not(broker):
    before = value("dropped_readers_total", why="behind")
    async with broker.listener.subscribe("x", limit=3) as slow, broker.listener.subscribe("y", limit=1) as latest:
        for _ in range(20):
            await broker.redis.publish("x", "news")
            await broker.redis.publish("y", "news")
        await eventually(lambda: value("dropped_readers_total", why="behind") > before)
        await broker.redis.publish("end", "")
        await asyncio.sleep(0)
        assert (await slow.take())[1], "it is told of the gap"
        await latest.take()
    assert value("dropped_readers_total", why="behind") == before + 1
