"""The leaderboard beside the queue, with a real server and a real worker."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from broker import keys, leaderboard, votes
from broker.connection import Broker
from broker.leaderboard import BoardRequest
from broker.messages import ModelCard
from faults.harness import Server
from fleet_process import worker
from helpers import cast, eventually

pytestmark = pytest.mark.timeout(120)

SECONDS = 2.0  # within which a board shows a vote


async def counted(broker: Broker, count: int, request: BoardRequest = BoardRequest()) -> Any:  # noqa: B008
    """The board, if it has so many votes."""
    board = await leaderboard.load(broker, request)
    return board if board is not None and board["votes"] == count else None


async def shown(broker: Broker, count: int, request: BoardRequest = BoardRequest(), seconds: float = SECONDS) -> Any:  # noqa: B008
    """The board, as soon as it has so many votes."""
    return await eventually(lambda: counted(broker, count, request), seconds)


async def test_a_vote_is_on_every_board_within_two_seconds(broker, worker_in):
    async with worker_in(role="jobs"):
        await shown(broker, 0, seconds=5)
        for count in (1, 2, 3):
            await cast(broker, categories=("coding", "en"))
            begun = time.monotonic()
            for category in ("all", "coding", "en"):
                for style in (False, True):
                    for named in (False, True):
                        await shown(broker, count, BoardRequest(category=category, style=style, named=named))
            assert time.monotonic() - begun < SECONDS
        assert set(await leaderboard.fields(broker)) == {
            f"{category}{style}{named}" for category in ("all", "coding", "en") for style in ("", ":style") for named in ("", ":named")
        }  # fmt: skip
        board = await leaderboard.load(broker, BoardRequest())
        assert [row["name"] for row in board["models"]] == ["strong", "weak"]
        assert (await leaderboard.pairs(broker))["names"] == ["strong", "weak"]


async def test_the_version_changes_with_a_board_and_with_nothing_else(broker, worker_in):
    assert await leaderboard.version(broker) == ""
    async with worker_in(role="jobs"):
        await cast(broker)
        for style, named in product((False, True), repeat=2):
            await shown(broker, 1, BoardRequest(style=style, named=named), 5)
        before = await leaderboard.version(broker)
        await asyncio.sleep(1.3)  # nothing can be waited for: it is to be still
        assert await leaderboard.version(broker) == before
        await cast(broker)
        await shown(broker, 2)
        assert await leaderboard.version(broker) != before


async def test_votes_that_came_while_no_worker_ran_are_counted_by_the_next(broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker, 3)
        await shown(broker, 3)
    await cast(broker, 2)
    await broker.redis.hset(keys.BOARDS, "gone:style", b"of a category that has no votes any more")
    assert await counted(broker, 3)
    async with worker_in(role="jobs"):
        await shown(broker, 5, seconds=5)
        await eventually(lambda: _without(broker, "gone:style"))


async def _without(broker: Broker, field: str) -> bool:
    return field not in await leaderboard.fields(broker)


async def test_two_jobs_workers_at_once_do_no_harm(broker, worker_in):
    async with worker_in(role="jobs"), worker_in(role="jobs"):
        for count in range(1, 6):
            await cast(broker, categories=("math",))
            await shown(broker, count)
            await shown(broker, count, BoardRequest(category="math", style=True))
        asked = [leaderboard.load(broker, BoardRequest(since="2026-01-01")) for _ in range(8)]
        assert {board["votes"] for board in await asyncio.gather(*asked)} == {5}
    assert await counted(broker, 5)


async def test_a_vote_that_is_garbage_is_passed_over_and_said_so(broker, worker_in, caplog):
    async with worker_in(role="jobs"):
        await cast(broker)
        await broker.redis.xadd(keys.VOTES, {"battle": "b", "winner": "nobody", "at": b"\xff"})
        await broker.redis.xadd(keys.VOTES, {"x": "y"})
        await cast(broker)
        await shown(broker, 2)
        board = await leaderboard.load(broker, BoardRequest(since="2026-01-01"))
        assert board["votes"] == 2
    assert "no votes and are passed over" in caplog.text


async def test_votes_that_have_gone_from_redis_are_forgotten(broker, worker_in, caplog):
    async with worker_in(role="jobs"):
        await cast(broker, 3, categories=("math",))
        await shown(broker, 3)
        (first, _), *_ = await broker.redis.xrange(keys.VOTES)
        await broker.redis.xdel(keys.VOTES, first)
        await shown(broker, 2, seconds=5)
        await shown(broker, 2, BoardRequest(category="math"), 5)
        await broker.redis.delete(keys.VOTES)
        await shown(broker, 0, seconds=5)
        await eventually(lambda: _without(broker, "math"))
    assert "votes have gone" in caplog.text


async def test_what_a_card_says_comes_to_the_board(broker, worker_in):
    async with worker_in(role="jobs"):
        await cast(broker)
        await shown(broker, 1)
        card = ModelCard("strong", organisation="Somebody", context=512)
        await broker.redis.hset(keys.MODELS, "strong", card.encode())
        await eventually(lambda: _about(broker, "Somebody", 512), 5)


async def _about(broker: Broker, organisation: str, context: int) -> bool:
    board = await leaderboard.load(broker, BoardRequest())
    row = next(row for row in board["models"] if row["name"] == "strong")
    return (row["organisation"], row["context"]) == (organisation, context)


async def test_a_judge_sorts_what_was_said_once_it_is_there(broker, worker_in, tmp_path):
    arena = tmp_path / "arena.toml"
    arena.write_text('[categories]\njudge = "echo"\n')
    await cast(broker, 2, categories=("math", "en"))
    (_, first), (_, second) = await broker.redis.xrange(keys.VOTES)
    said = "coding: yes\nmath: no\nhard: no\ncreative: No.\n- **instruction**: yes"  # an echo says what it is asked
    blob = votes.compress({"turns": [{"text": said, "a": {}, "b": {}}]})
    await broker.redis.hset(keys.VOTED, mapping={first[b"battle"]: blob, second[b"battle"]: b"no text"})
    async with worker_in(role="jobs", arena_file=arena):
        await shown(broker, 2, BoardRequest(category="math"), 5)  # by the written rules, as long as there is no judge
        async with worker_in(model="echo"):
            await shown(broker, 1, BoardRequest(category="coding"), 20)
            await shown(broker, 1, BoardRequest(category="math"), 20)
            await shown(broker, 2, BoardRequest(category="en"))
            assert await broker.redis.hgetall(keys.LABELS) == {first[b"battle"]: b'["coding", "instruction"]'}
    async with worker_in(role="jobs", arena_file=arena):  # which asks nobody again
        await shown(broker, 1, BoardRequest(category="instruction"), 5)


async def test_redis_killed_and_back_loses_no_vote(config, tmp_path):
    server = Server(tmp_path, "--appendfsync", "always")
    try:
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(Broker.open(replace(config, redis_url=server.url)))
            process = stack.enter_context(worker(server.url, tmp_path, role="jobs"))
            await cast(broker, 5)
            await shown(broker, 5, seconds=20)
            await asyncio.to_thread(server.restart, 1.0)
            await cast(broker, 5)
            await shown(broker, 10, seconds=10)
            assert process.poll() is None
            assert (await leaderboard.load(broker, BoardRequest(since="2026-01-01")))["votes"] == 10
    finally:
        server.kill()


async def test_a_worker_killed_while_votes_come_leaves_right_boards_to_the_next(broker, config, tmp_path):
    voting = asyncio.create_task(_vote(broker, 200))
    for _ in range(3):
        with worker(config.redis_url, tmp_path, role="jobs") as process:
            version = await leaderboard.version(broker)
            await eventually(lambda version=version: _another(broker, version), 20)
            process.kill()
    await voting
    with worker(config.redis_url, tmp_path, role="jobs"):
        board = await shown(broker, 200, seconds=20)
        assert [(row["wins"], row["losses"]) for row in board["models"]] == [(200, 0), (0, 200)]
        await shown(broker, 200, BoardRequest(category="en", style=True), 10)


async def _vote(broker: Broker, count: int) -> None:
    for _ in range(count):
        await cast(broker, categories=("en",))
        await asyncio.sleep(0.05)


async def _another(broker: Broker, version: str) -> bool:
    return await leaderboard.version(broker) != version


async def test_many_votes_are_read_and_one_more_is_seen_at_once(broker, worker_in):
    for i in range(10):
        await cast(broker, 2000, a=f"model {i}", b=f"model {(i + 1) % 10}", categories=("en",))
    async with worker_in(role="jobs"):
        await shown(broker, 20_000, seconds=20)
        await shown(broker, 20_000, BoardRequest(category="en", style=True), 10)
        for count in (20_001, 20_002):
            await cast(broker, a="model 1", b="model 7", categories=("en",))
            await shown(broker, count)
            await shown(broker, count, BoardRequest(category="en"), 5)
