"""A worker's own check and metrics, as other programs see them."""

import asyncio
import socket
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from broker import chat, keys, registry
from fleet_process import environment
from helpers import eventually, request
from workers.engine.echo_engine import EchoEngine
from workers.health import Pulse

COMMAND = [sys.executable, "-m", "arq", "workers.Settings"]


async def livez(broker: Any) -> tuple[int, dict[str, Any]]:
    (state,) = await registry.workers(broker)
    async with aiohttp.ClientSession() as client:
        async with client.get(state.fields["metrics"].replace("/metrics", "/livez")) as response:
            return response.status, await response.json()


async def test_a_worker_that_is_well_says_its_state(broker, worker_in):
    async with worker_in():
        assert await livez(broker) == (200, {"ok": True, "state": "ready", "redis": True})


async def test_a_silent_engine_fails_the_check_and_a_moving_one_passes_again(broker, worker_in, monkeypatch):
    monkeypatch.setattr(EchoEngine, "busy", True)
    async with worker_in(stall_seconds=6) as worker:  # so that 2 s are silence
        health = keys.queue("echo") + ":health-check"
        assert await broker.redis.exists(health)

        async def silent() -> bool:
            return (await livez(broker))[0] == 503

        await eventually(silent)
        await broker.redis.delete(health)
        worker._last_health_check = 0.0
        await worker.record_health()
        assert not await broker.redis.exists(health), "arq --check fails, too"
        _, found = await livez(broker)
        assert (found["ok"], found["state"]) == (False, "ready")
        assert "made no step for 2" in found["trouble"]
        monkeypatch.setattr(EchoEngine, "busy", False)
        assert (await livez(broker))[0] == 200
        worker._last_health_check = 0.0
        await worker.record_health()
        assert await broker.redis.exists(health)


def test_a_dead_engine_is_trouble_at_once():
    engine = EchoEngine(["echo"], 1)
    pulse = Pulse(engine, 30)
    assert pulse.trouble == ""
    engine.alive = False
    assert "has died" in pulse.trouble


async def test_what_cannot_be_an_address_and_what_is_taken_is_one_sentence_and_exit_code_2(valkey):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        for setting, sentence in ((where, f"cannot be served on {where}"), ("9100", "neither HOST:PORT nor off")):
            env = environment(valkey, model="echo", metrics=setting)
            done = await asyncio.to_thread(subprocess.run, COMMAND, env=env, capture_output=True, text=True)
            assert done.returncode == 2, done
            assert sentence in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1


async def test_off_is_no_server(broker, worker_in):
    async with worker_in(metrics="off"):
        (state,) = await registry.workers(broker)
        assert state.fields["metrics"] == ""
        assert (await chat.answer(broker, request("hello", model="echo"))).text == "hello"


@pytest.mark.timeout(20)
async def test_arqs_own_check_passes_while_a_worker_is_well(broker, valkey, worker_in):
    async with worker_in():
        env = environment(valkey, model="echo")
        check = [*COMMAND[:3], "--check", COMMAND[3]]
        done = await asyncio.to_thread(subprocess.run, check, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done
