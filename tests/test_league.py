"""A league that is known beforehand: six models, forty voters with pages of their own, and the order that comes out."""

import asyncio
import math
import time
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from aiohttp.test_utils import TestServer
from yarl import URL

from broker import keys, leaderboard
from broker.connection import Broker
from broker.leaderboard import BoardRequest
from helpers import eventually
from webapp.app import create_app
from webclient import contender

STRENGTHS = {
    "m-gold": 2.5,
    "m-silver": 1.5,
    "m-bronze": 0.5,
    "m-tin": -0.5,
    "m-lead": -1.5,
    "m-clay": -2.5,
}  # natural-log units
VOTERS, ROUNDS = 40, 12


class Taste:
    """What voters think: the better one wins as often as Bradley and Terry say, and one round in eight is a tie."""

    def __init__(self) -> None:
        self._met: Counter[frozenset[str]] = Counter()

    def winner(self, a: str, b: str) -> str:
        pair = frozenset((a, b))
        self._met[pair] += 1
        if self._met[pair] % 8 == 0:
            return ("tie", "bad")[self._met[pair] // 8 % 2]
        first, second = sorted(pair)
        luck = self._met[pair] * (math.sqrt(5) - 1) / 2 % 1  # even over 0..1 for any number of meetings
        won = first if luck < 1 / (1 + math.exp(STRENGTHS[second] - STRENGTHS[first])) else second
        return "a" if won == a else "b"


async def vote(url: URL, broker: Broker, taste: Taste) -> int:
    """One voter's rounds; how many they were."""
    async with contender(url) as one:
        for i in range(ROUNDS):
            battle = await one.round(f"question {i}")
            # The voter sees only texts; that the better one is better, this test knows by looking behind the curtain.
            a, b = (name.decode() for name in await broker.redis.hmget(keys.battle(battle), "a", "b"))
            assert (await one.post(f"{battle}/vote", winner=taste.winner(a, b)))["models"] == [a, b]
    return ROUNDS


@pytest.mark.timeout(150)
async def test_forty_voters_give_back_the_order_of_six_models(broker, config, worker_in):
    site, taste = TestServer(create_app(config), handler_cancellation=True), Taste()
    async with AsyncExitStack() as stack:
        for name in STRENGTHS:
            await stack.enter_async_context(worker_in(model=f"{name}=echo"))
        await stack.enter_async_context(worker_in(role="jobs"))
        await site.start_server(shutdown_timeout=0.5)
        stack.push_async_callback(site.close)
        began = time.monotonic()
        cast = sum(await asyncio.gather(*(vote(site.make_url("/"), broker, taste) for _ in range(VOTERS))))
        took = time.monotonic() - began

        async def whole():
            board = await leaderboard.load(broker, BoardRequest())
            return board if board and board["votes"] == cast else None

        board = await eventually(whole, 10)
    found = {model["name"]: model["score"] for model in board["models"]}
    print(f"{cast} votes of {VOTERS} voters in {took:.1f} s; " + ", ".join(f"{n} {s:.0f}" for n, s in found.items()))
    assert list(found) == list(STRENGTHS)
    points = 400 / math.log(10)
    for better, worse in zip(STRENGTHS, list(STRENGTHS)[1:], strict=False):
        assert (found[better] - found[worse]) / points == pytest.approx(STRENGTHS[better] - STRENGTHS[worse], abs=0.7)
    assert took < 60
