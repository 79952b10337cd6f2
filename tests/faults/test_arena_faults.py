"""Votes while Redis is killed: what was confirmed is there, once, and what was not can be cast again."""

import asyncio
import random

import aiohttp
import pytest

from broker import keys, votes
from helpers import eventually
from webclient import Contender, contender

pytestmark = pytest.mark.timeout(120)


async def cast(one: Contender, battle: str) -> bool:
    """Vote until the server has said that it counts; False if the round itself has gone."""
    while True:
        try:
            body = {"token": one.token, "winner": random.choice(votes.WINNERS)}
            async with one.session.post(f"/battles/{battle}/vote", json=body) as response:
                found = await response.json()
        except aiohttp.ClientError:
            found = {"error": {"code": "cut off"}}
        if "state" in found:
            return True
        if found["error"]["code"] == "round_over":  # an earlier try had counted, or a side had failed
            return (await one.get(battle))["state"] == "voted"
        if found["error"]["code"] in ("round_under_way", "battle_not_found"):
            return False
        await asyncio.sleep(0.1)


async def vote_on(url: str, counted: list[str], until: asyncio.Event) -> None:
    """Rounds and votes; a connection or a round that a fault has cost is given up for a new one."""
    while not until.is_set():
        async with contender(url) as one:
            while not until.is_set():
                try:
                    bout = await one.say("hello")
                    if bout["type"] != "bout":
                        await asyncio.sleep(0.1)
                        continue
                    _, maps = await one.hear()
                except (TimeoutError, AssertionError):
                    break
                if maps[-1].get("vote") and await cast(one, bout["battle"]):
                    counted.append(bout["battle"])


async def test_no_vote_is_lost_when_redis_is_killed(fleet, long):
    killings = 8 if long else 3
    await fleet.worker("left=echo")
    await fleet.worker("right=echo")
    _, port = await fleet.web()
    counted: list[str] = []
    until = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(vote_on(f"http://127.0.0.1:{port}", counted, until))
        for _ in range(killings):
            before = len(counted)
            await eventually(lambda b=before: len(counted) > b + 5, 30)
            await asyncio.to_thread(fleet.server.restart, 0.3)
        before = len(counted)
        await eventually(lambda: len(counted) > before + 5, 30)
        until.set()
    stored = [vote.battle async for batch in votes.read(fleet.broker) for _, vote in batch]
    print(f"{len(stored)} votes, Redis killed {killings} times")
    assert sorted(stored) == sorted(counted), "each once, and none that nobody cast"
    assert await fleet.broker.redis.hlen(keys.VOTED) == len(counted)
