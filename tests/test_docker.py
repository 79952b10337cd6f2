"""The users of docker/users.acl on a real server: what each may do is enough, and no more."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

import battles
from broker import accounts, chat, keys, leaderboard, registry, votelogs, votes
from broker.connection import Broker
from broker.leaderboard import BoardRequest
from broker.messages import new_id
from fleet_process import worker as worker_process
from helpers import cast, eventually, request
from webapp.app import create_app
from webclient import Contender, Page, contender
from workers import labels

DOCKER = Path(__file__).parents[1] / "docker"


@pytest.fixture
async def users(broker: Broker) -> AsyncIterator[dict[str, str]]:
    """The URL of each user; the server's own default user stays, for the other tests."""
    address = broker.config.redis_url.removeprefix("redis://")
    lines = (DOCKER / "users.acl").read_text().splitlines()
    made = {}
    for line in lines:
        _, name, *rules = line.split()
        if name != "default":
            await broker.redis.execute_command(
                "ACL", "SETUSER", name, "reset", *(re.sub(r"\$\{\w+\}", "pw", r) for r in rules)
            )
            made[name] = f"redis://{name}:pw@{address}"
    yield made
    await broker.redis.execute_command("ACL", "DELUSER", *made)


async def test_the_default_user_is_off():
    assert (DOCKER / "users.acl").read_text().splitlines()[0] == "user default off"


@pytest.mark.timeout(30)
async def test_a_worker_and_a_web_app_need_no_more_than_their_users_may(broker, users, config, tmp_path):
    site = TestServer(create_app(replace(config, redis_url=users["web"])))
    await site.start_server()
    import aiohttp

    try:
        with worker_process(users["worker"], tmp_path, run_seconds=1) as process:
            async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
                async with browser.get("/"), browser.ws_connect("/ws") as ws:
                    page = Page(ws)
                    await eventually(lambda: _ready(broker), 20)
                    await page.send(type="ask", model="echo", text="hello")
                    accepted = await page.next()
                    answer = await page.answer()
                    assert answer[0] == "hello", (answer, await broker.redis.execute_command("ACL", "LOG"))
                    await page.send(type="ask", model="echo", text="/echo 100 20ms")
                    stopped = await page.next()
                    await page.send(type="stop", request_id=stopped["request_id"])
                    assert (await page.answer())[1]["reason"] == "cancelled"
                    async with browser.get("/metrics") as response:
                        assert 'fleet_accepted_total{model_name="echo"} 2.0' in await response.text()
                    message = f"/conversations/{accepted['conversation']}/messages/{accepted['request_id']}"
                    async with browser.put(f"{message}/rating", json={"rating": "up"}) as response:
                        assert response.status == 204
                    async with browser.delete(message) as response:
                        assert response.status == 200
                    address = f"/conversations/{accepted['conversation']}"
                    for change in ({"pinned": True}, {"tags": ["t"]}, {"archived": True}, {"archived": False}):
                        async with browser.patch(address, json=change) as response:
                            assert response.status == 204
                    async with browser.post(f"{address}/shares") as response:
                        share = (await response.json())["share_id"]
                    for path in (
                        "/conversations?tag=t",
                        "/conversations/search?q=hello",
                        "/shares",
                        f"/s/{share}",
                        "/export",
                    ):
                        async with browser.get(path) as response:
                            assert response.status == 200
                    async with browser.post(
                        "/import", data=b'{"messages": [{"role": "user", "content": "x"}]}'
                    ) as response:
                        (taken,) = (await response.json())["conversations"]
                    await broker.redis.delete(keys.conversation(taken))
                    async with browser.delete(f"/shares/{share}") as response:
                        assert response.status == 204
                    for call in (browser.delete(address), browser.post(f"{address}/restore"), browser.delete(address)):
                        async with call as response:
                            assert response.status == 204
                    key, _ = await accounts.create(broker, "me", rpm=60, tpm=1000)
                    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
                    async with browser.post("/v1/chat/completions", json=body, headers={"x-api-key": key}) as response:
                        assert response.status == 200
                    asked = {"model": "echo", "prompt": "hello"}
                    async with browser.post("/tokenize", json=asked, headers={"x-api-key": key}) as response:
                        assert response.status == 200
                    async with browser.get("/conversations") as response:
                        assert len((await response.json())["conversations"]) == 1
            process.terminate()
            assert process.wait(5) == 0
    finally:
        await site.close()
    log = await broker.redis.execute_command("ACL", "LOG")
    assert log == [], "somebody was refused something"


@pytest.mark.timeout(40)
async def test_a_moderated_round_needs_no_more_than_the_users_may(broker, users, config, tmp_path):
    rules = tmp_path / "arena.toml"
    (tmp_path / "words.txt").write_text("unspeakable\n")
    rules.write_text('[moderation]\nwords = "words.txt"\n')
    site = TestServer(create_app(replace(config, redis_url=users["web"], arena_file=rules)))
    await site.start_server()
    try:
        with (
            worker_process(users["worker"], tmp_path, "one=echo"),
            worker_process(users["worker"], tmp_path, "two=echo"),
            worker_process(users["jobs"], tmp_path, role="jobs", arena_file=rules),
        ):
            await eventually(lambda: _are_ready(broker, 3), 20)
            async with contender(site.make_url("/")) as anna:
                first = await anna.round("hello")
                assert (await anna.get(first))["vote"]
                assert (await anna.post(f"{first}/vote", winner="a"))["models"]
                assert (await anna.say("unspeakable"))["type"] == "error"
                second = await anna.round("hello")
                await anna.page.send(type="battle-again", ref=new_id(), token=anna.token, battle=second)
                await anna.hear()
                await anna.post(f"{second}/share", status=201)
                await anna.post(f"{second}/reveal")
                await anna.post(f"{second}/vote", winner="tie")
                await eventually(lambda: _has_votes(anna, 1), 10)
    finally:
        await site.close()
    log = await broker.redis.execute_command("ACL", "LOG")
    assert log == [], "somebody was refused something"


async def _are_ready(broker: Broker, count: int) -> bool:
    cards = await broker.redis.hlen(keys.MODELS)
    return cards == count and all(m.state == "ready" for m in await registry.models(broker))


async def _has_votes(anna: Contender, count: int) -> bool:
    async with anna.session.get("/leaderboard.json") as response:
        return response.status == 200 and (await response.json())["votes"] == count


async def _ready(broker: Broker) -> bool:
    return [m.state for m in await registry.models(broker)] == ["ready"]


@pytest.mark.timeout(30)
async def test_a_jobs_worker_needs_no_more_than_its_user_may(broker, users, config, tmp_path, worker_in):
    arena = tmp_path / "arena.toml"
    arena.write_text('[categories]\njudge = "echo"\n')
    await cast(broker, 3)
    judged = "\n".join(f"{name}: yes" for name in labels.CATEGORIES)  # which the judge, an echo, will say
    said = votes.compress({"turns": [{"text": judged, "a": {}, "b": {}}]})
    await broker.redis.hset(keys.VOTED, (await broker.redis.xrange(keys.VOTES, count=1))[0][1][b"battle"], said)
    await broker.redis.execute_command("ACL", "LOG", "RESET")
    async with worker_in(), Broker.open(replace(config, redis_url=users["web"])) as web:
        with worker_process(users["jobs"], tmp_path, role="jobs", arena_file=arena) as process:
            await eventually(lambda: leaderboard.load(web, BoardRequest(style=True)), 20)
            assert (await leaderboard.load(web, BoardRequest(since="2026-01-01")))["votes"] == 3
            await eventually(lambda: broker.redis.hlen(keys.LABELS), 20)
            await broker.redis.delete(keys.VOTES)
            await eventually(lambda: _empty(web), 10)
            process.terminate()
            assert process.wait(5) == 0
    log = await broker.redis.execute_command("ACL", "LOG")
    assert log == [], "somebody was refused something"


async def _empty(broker: Broker) -> bool:
    board = await leaderboard.load(broker, BoardRequest())
    return board is not None and board["votes"] == 0


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("worker", ("GET", keys.SECRET)),
        ("worker", ("HGETALL", keys.ACCOUNTS)),
        ("worker", ("HGETALL", keys.messages("x"))),
        ("worker", ("XADD", "votes", "*", "a", "b")),
        ("worker", ("ZRANGE", keys.conversations("x"), "0", "-1")),
        ("web", ("HSET", "models", "m", "x")),
        ("web", ("HSET", keys.BOARDS, "all", "x")),
        ("worker", ("HGET", keys.BOARDS, "all")),
        ("jobs", ("XADD", keys.VOTES, "*", "a", "b")),
        ("jobs", ("HDEL", keys.VOTED, "b")),
        ("jobs", ("GET", keys.SECRET)),
        ("web", ("HSET", keys.worker("w"), "state", "ready")),
        ("web", ("APPEND", keys.tokens("x"), "1")),
        *((user, command) for user in ("web", "worker", "jobs") for command in (("KEYS", "*"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("EVAL", "return 1", "0"), ("ACL", "LIST"), ("PUBLISH", "elsewhere", "x"), ("GET", "elsewhere"))),
    ],
)  # fmt: skip
async def test_what_a_user_has_no_business_with_is_refused(broker, users, user, command):
    async with Redis.from_url(users[user]) as redis:
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command)
    await broker.redis.execute_command("ACL", "LOG", "RESET")


async def test_a_script_does_not_get_round_the_users_keys(broker, users):
    async with Redis.from_url(users["worker"]) as redis:
        sha = await redis.script_load("return redis.call('GET', 'secret')")
        with pytest.raises(Exception, match=r"ACL|permission"):
            await redis.evalsha(sha, 0)
    await broker.redis.execute_command("ACL", "LOG", "RESET")


async def test_a_command_line_user_can_ask_and_drain(broker, users, worker_in):
    async with worker_in() as worker:
        config = replace(broker.config, redis_url=users["web"])
        async with Broker.open(config) as opened:
            await accounts.create(opened, "me")
            await accounts.revoke(opened, (await accounts.listed(opened))[0].id)
            assert (await chat.answer(opened, request("hello", model="echo", keep=False))).text == "hello"
            assert (await registry.counts(opened))["echo"]["ended:stop"] == 1
            assert await registry.drain(opened, worker.ctx["worker_id"])
            await eventually(lambda: worker.draining)


async def test_the_web_apps_user_may_take_votes_out_of_files_and_move_them_there(broker, users, config, tmp_path):
    log = battles.log(tmp_path / "log", [battles.vote(n) for n in range(10)])
    async with Broker.open(replace(config, redis_url=users["web"])) as web:
        assert (await votelogs.bring(web, log, votelogs.Complaints(log), lambda _: None)).new == 10
        archived = await votelogs.archive(web, tmp_path, 2**42, lambda _: None)
        assert (archived.votes, [part async for part in votelogs.texts(web, "fastchat", votelogs.Exported())]) == (
            10,
            [],
        )
