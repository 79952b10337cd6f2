"""Workers that are killed, stopped or told to go, under load."""

import asyncio

import pytest

from faults.harness import counted, counting, load

pytestmark = pytest.mark.timeout(120)


async def test_killed_workers_answers_go_on_elsewhere(fleet, long):
    workers = [await fleet.worker() for _ in range(2)]
    killings = 4 if not long else 100
    async with load(fleet.broker, 8, lambda i: counting(100 + i % 7, "20ms")) as heard:
        for i in range(killings):
            await asyncio.sleep(1.0)
            workers[i % 2].kill()
            workers[i % 2] = await fleet.worker()
    for h in heard:
        h.check()
        words = int(h.request.messages[-1].content.split()[1])
        assert h.text == counted(words)
        assert h.pause < 5
    assert sum(h.epochs > 1 for h in heard) >= killings
