"""What `fleetchat status` shows of a fleet, and `fleetchat drain`; the other commands are in test_fleet."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker import chat, registry
from broker.connection import Broker
from broker.messages import ModelCard
from broker.tasks import beside
from fleet_process import environment
from helpers import eventually, request

COMMAND = str(Path(sys.executable).with_name("fleetchat"))


async def test_status_shows_an_adapters_parent_and_the_first_of_a_workers_many_models(broker, valkey):
    cards = [ModelCard("law", state="ready", parent="llama"), *(ModelCard(f"m{i}", state="ready") for i in range(4))]
    await registry.beat(broker, "w", "ready", {"models": "law m0 m1 m2 m3", "slots": 4}, cards)
    done = await asyncio.to_thread(
        subprocess.run,
        [COMMAND, "status"],
        env=environment(valkey) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert re.search(r"^law on llama +ready +1 +0 +4", done.stdout, re.M), done
    assert re.search(r"^w +law m0 m1 \+2 +ready", done.stdout, re.M), done


def run(valkey: str, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    env = environment(valkey, **settings) | {"COLUMNS": "80"}
    return subprocess.run([COMMAND, *arguments], env=env, capture_output=True, text=True)


async def test_status_shows_what_has_happened_since_the_first_start(broker, valkey, worker_in):
    async with worker_in():
        for _ in range(3):
            await chat.answer(broker, request("hello", model="echo"))
        async with chat.ask(broker, request("/echo 500 10ms", model="echo", keep=False)) as frames:
            await frames.take()
        await eventually(lambda: ended(broker), 5)
        done = await asyncio.to_thread(run, valkey, "status")
    heading, row = done.stdout.partition("since the first start")[2].strip().splitlines()
    assert dict(zip(heading.split(), row.split(), strict=True)) == {
        "model": "echo",
        "asked": "4",
        "refused": "0",
        "done": "3",
        "stopped": "1",
        "failed": "0",
        "requeued": "0",
        "crashed": "0",
        "fenced": row.split()[-1],
    }
    assert len(heading) <= 80


async def ended(broker: Broker) -> bool:
    return (await registry.counts(broker))["echo"].get("ended:cancelled") == 1


@pytest.mark.timeout(20)
async def test_drain_ends_one_worker_and_its_answer_goes_on_in_another(broker, valkey, worker_in):
    async with worker_in(drain_seconds=0.6) as first:
        asked = request("/echo 300 10ms", model="echo")  # longer than a command takes to start
        async with chat.ask(broker, asked) as frames:
            await frames.take()
            async with worker_in():
                first_id = first.ctx["worker_id"]
                done = await asyncio.to_thread(run, valkey, "drain", first_id)
                assert (done.returncode, done.stderr) == (0, ""), done
                assert done.stdout == f"{first_id} has drained; it had 1 answers under way.\n"
                assert first_id not in [w.worker_id for w in await registry.workers(broker)]
                last = [received.decode() async for received in frames][-1]
        assert last.end is not None
        assert last.end["usage"]["completion_tokens"] == 300
    assert (await registry.counts(broker))["echo"]["requeued:handed_over"] == 1


async def test_a_worker_that_is_not_one_is_a_sentence_with_those_that_are(broker, valkey):
    for worker in ("left-1", "left-2"):
        await registry.beat(broker, worker, "ready", {"models": "m"}, [ModelCard("m", state="ready")])
    for part, sentence in (("left", "more than one worker: left-1, left-2"), ("right", "no worker of this fleet")):
        done = await asyncio.to_thread(run, valkey, "drain", part)
        assert done.returncode == 2, done
        assert sentence in done.stderr
        assert "left-1" in done.stderr


@pytest.mark.timeout(20)
async def test_a_worker_that_does_not_react_is_a_sentence_and_exit_code_1(broker, valkey):
    async def beat() -> None:
        while True:
            await registry.beat(broker, "deaf", "ready", {"models": "m"}, [ModelCard("m", state="ready")])
            await asyncio.sleep(0.5)

    async with beside(beat()):
        await eventually(lambda: registry.workers(broker))
        done = await asyncio.to_thread(run, valkey, "drain", "deaf", drain_seconds=0)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("deaf was told to drain and is still there after 5 s")
