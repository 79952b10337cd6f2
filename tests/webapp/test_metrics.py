"""What Prometheus reads from the web app: the real process, beside a real worker."""

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from broker import chat, embedded, registry
from broker.config import Config
from broker.connection import Broker
from broker.errors import NoSuchModel
from fleet_process import wait_for_port, web, worker
from helpers import eventually, request

Samples = dict[tuple[str, ...], float]


async def scrape(url: str) -> Samples:
    """Our samples, by name and sorted label values; the text has to be in Prometheus' format."""
    async with aiohttp.ClientSession() as client, client.get(url) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    return {
        (s.name.removeprefix("fleetchat:"), *sorted(s.labels.values())): s.value
        for family in parse(text)
        for s in family.samples
        if s.name.startswith("fleetchat:")
    }


@pytest.mark.timeout(60)
async def test_both_tell_the_same_story_after_some_answers(broker, valkey, tmp_path):
    port = embedded.free_port()

    async def ready() -> bool:
        return [m.state for m in await registry.models(broker)] == ["ready"]

    with worker(valkey, tmp_path, slots=2), web(valkey, tmp_path, port):
        await eventually(ready, 20)
        for _ in range(5):
            await chat.answer(broker, request("one two three", model="echo"))
        await asyncio.gather(*(chat.answer(broker, request("/echo 10 5ms", model="echo")) for _ in range(4)))
        with pytest.raises(NoSuchModel):
            await chat.answer(broker, request("hi", model="nope"))
        async with chat.ask(broker, request("/echo 500 20ms", model="echo", keep=False)) as frames:
            await frames.take()
            (state,) = await registry.workers(broker)
            running = await scrape(state.fields["metrics"])
            assert running["num_requests_running", "echo"] == 1
            assert running["num_requests_waiting", "echo"] == 0
            await asyncio.to_thread(wait_for_port, port)
            assert (await scrape(f"http://127.0.0.1:{port}/metrics"))["fleet_requests_running", "echo"] == 1

        async def left() -> bool:
            return (await scrape(state.fields["metrics"])).get(("request_success_total", "abort", "echo")) == 1

        await eventually(left)
        mine = await scrape(state.fields["metrics"])
        fleet = await scrape(f"http://127.0.0.1:{port}/metrics")
    assert mine["request_success_total", "echo", "stop"] == 9
    assert mine["e2e_request_latency_seconds_count", "echo"] == 9
    assert mine["time_to_first_token_seconds_count", "echo"] == 10
    assert mine["request_queue_time_seconds_count", "echo"] == 10
    assert mine["prompt_tokens_total", "echo"] == 5 * 3 + 4 * 3 + 3
    assert mine["generation_tokens_total", "echo"] >= 5 * 3 + 4 * 10 + 1
    assert mine["inter_token_latency_seconds_count", "echo"] == mine["generation_tokens_total", "echo"] - 10
    assert 5 <= mine["pickup_seconds_count", "echo"] <= 8, "two of the four had to wait for a slot"
    assert mine["kv_cache_usage_perc", "echo"] == 0
    assert ("refused_total", "unserved") in fleet
    assert fleet["fleet_accepted_total", "echo"] == 10
    assert fleet["fleet_requests_total", "echo", "stop"] == 9
    assert fleet["fleet_requests_total", "cancelled", "echo"] == 1
    assert fleet["fleet_tokens_total", "echo", "out"] >= 5 * 3 + 4 * 10
    assert (fleet["fleet_requests_waiting", "echo"], fleet["fleet_requests_running", "echo"]) == (0, 0)
    assert fleet["redis_up",] == 1


@pytest.mark.timeout(40)
async def test_while_redis_is_away_it_answers_at_once_and_says_so(tmp_path: Path):
    port, at = embedded.free_port(), embedded.free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with web(f"redis://127.0.0.1:{at}/0", tmp_path, port):
        await asyncio.to_thread(wait_for_port, port)
        with embedded.running(tmp_path, at) as (redis, server):

            async def up() -> bool:
                return (await scrape(url))["redis_up",] == 1

            await eventually(up, 10)
            import signal

            server.send_signal(signal.SIGSTOP)  # the worst: connections stay, and nothing answers
            begun = time.monotonic()
            found = await scrape(url)
            assert time.monotonic() - begun < 1
            assert found["redis_up",] == 0
            server.send_signal(signal.SIGCONT)
            async with Broker.open(Config.from_env({"REDIS_URL": redis})):
                await eventually(up, 10)
        begun = time.monotonic()
        found = await scrape(url)
        assert time.monotonic() - begun < 1
        assert found["redis_up",] == 0
        assert not [key for key in found if key[0].startswith("fleet_")]
