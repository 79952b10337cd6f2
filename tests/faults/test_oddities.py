"""Clocks that are wrong, ids that are the same, a full disk, and the windows that arq leaves open.

What else the catalogue names is tested where it belongs: a model that fails to load and a worker started before Redis
in tests/workers/test_lifecycle.py, jobs of a wrong shape in tests/workers/test_fleet_worker.py.
"""

import asyncio
import random
import time
from contextlib import contextmanager

import aiohttp
import pytest
from redis.exceptions import ResponseError

from broker import chat, keys, queues, registry
from broker.errors import StorageFull
from faults.harness import Fleet, counted, counting, listen, load
from helpers import eventually
from webclient import Page

pytestmark = pytest.mark.timeout(120)

# What Python runs at the start of every process that has this folder on its path.
CLOCK = """
import os, sys, time
ahead, real, real_ns = int(os.environ["AHEAD"]), time.time, time.time_ns
time.time, time.time_ns = lambda: real() + ahead, lambda: real_ns() + ahead * 10**9
print("the clock is", ahead, "s ahead", file=sys.stderr)
"""
SAME_ID = """
import os, secrets, socket
socket.gethostname = lambda: "host"
os.getpid = lambda: 1
token_hex = secrets.token_hex
secrets.token_hex = lambda n=None: "same" if n == 2 else token_hex(n)
"""


@pytest.fixture
def twisted(tmp_path, monkeypatch):
    """`with twisted(CODE, AHEAD=3600)`: processes started inside run this first."""

    @contextmanager
    def twist(code: str, **environment: object):
        (tmp_path / "sitecustomize.py").write_text(code)
        with monkeypatch.context() as patch:
            for name, value in {"PYTHONPATH": tmp_path, **environment}.items():
                patch.setenv(name, str(value))
            yield

    return twist


async def test_clocks_an_hour_apart_make_no_difference(fleet, twisted):
    members = {}
    for ahead in (3600, -3600):
        with twisted(CLOCK, AHEAD=ahead):
            members[ahead] = (await fleet.worker(lease_seconds=2), *await fleet.web())
    assert all(f"{ahead} s ahead" in m.log.read_text() for ahead, (w, web, _) in members.items() for m in (w, web))
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        for ahead, (_, _, port) in members.items():
            async with browser.get(f"http://127.0.0.1:{port}/"):
                pass
            async with browser.ws_connect(f"http://127.0.0.1:{port}/ws") as ws:
                page = Page(ws)
                for _ in range(5):
                    await page.send(type="ask", model="echo", text="/echo 20 5ms")
                    accepted = await page.next("accepted")
                    made = int(accepted["request_id"][:12], 16) / 1000 - time.time()
                    assert abs(made - ahead) < 60, "the clock is as it should be"
                    text, end = await page.answer()
                    assert (text, end["reason"]) == (counted(20), "stop")
                    assert 0 <= end["timings"]["waited"] <= end["timings"]["first"] <= end["timings"]["total"] < 2
                async with browser.get(f"http://127.0.0.1:{port}/conversations") as response:
                    count = len((await response.json())["conversations"])
        assert count == 10, "each process takes the other's cookie"
    # and a worker that dies is replaced in the same time
    asked = [counting(100, "20ms") for _ in range(4)]
    tasks = [asyncio.create_task(listen(fleet.broker, r)) for r in asked]
    await eventually(lambda: running(fleet, 4))
    busy = {(await fleet.state(r.request_id))["worker"].split("-")[-2] for r in asked}
    dead = next(w for w, _, _ in members.values() if str(w.pid) in busy)
    dead.kill()
    for heard in await asyncio.gather(*tasks):
        heard.check()
        assert heard.text == counted(100)
        assert heard.pause < 5


async def running(fleet: Fleet, count: int) -> bool:
    return await fleet.broker.redis.zcard(keys.running("echo")) == count


async def test_two_workers_with_one_id_do_no_harm(fleet, twisted):
    """By construction it has host, process id and two random bytes; here all three are the same."""
    with twisted(SAME_ID):
        workers = [fleet.start_worker(slots=4, lease_seconds=2) for _ in range(2)]
    asked = [counting(100 + i, "20ms") for i in range(8)]
    await eventually(lambda: ready(fleet), 20)
    tasks = [asyncio.create_task(listen(fleet.broker, r)) for r in asked]
    await eventually(lambda: running(fleet, 8), 20)
    assert [w.worker_id for w in await registry.workers(fleet.broker)] == ["host-1-same"]
    await queues.cancel(fleet.broker, asked[0].request_id, "")  # the order goes to both
    workers[0].kill()
    cancelled, *heard = await asyncio.gather(*tasks)
    assert cancelled.end["reason"] == "cancelled"
    for one in heard:
        one.check()
        assert one.text == counted(int(one.request.messages[-1].content.split()[1]))
        assert one.pause < 5 + 3, "the other one has four places, which may be taken"
    assert {one.epochs for one in heard} == {1, 2}
    assert await workers[1].terminate(5) == 0


async def ready(fleet: Fleet) -> bool:
    return any(m.state == "ready" for m in await registry.models(fleet.broker))


async def test_a_full_disk_refuses_new_asks_and_heals_by_itself(fleet, long, caplog):
    worker = await fleet.worker()
    web, port = await fleet.web()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as browser:
        async with browser.get("/"), browser.ws_connect("/ws") as ws, browser.ws_connect("/ws") as other:
            page, refused = Page(ws), Page(other)
            await page.send(type="ask", model="echo", text="/echo 300 10ms")
            await page.next("accepted")
            first = await page.next("frame")
            kept = asyncio.create_task(listen(fleet.broker, counting(300, "10ms")))
            await eventually(lambda: running(fleet, 2))
            fleet.server.limit_disk(2000)
            await eventually(lambda: refuses_writes(fleet))
            begun = time.monotonic()
            while time.monotonic() - begun < (20 if long else 5):
                asked = time.monotonic()
                with pytest.raises(StorageFull):
                    await chat.answer(fleet.broker, counting(3, "1ms"))
                await refused.send(type="ask", model="echo", text="one more")
                assert (await refused.next("error"))["code"] == "storage"
                assert time.monotonic() - asked < 1
                for path in ("/", "/conversations", "/models"):
                    async with browser.get(path) as response:
                        assert response.status == 200, path
                await asyncio.sleep(0.5)
            fleet.server.limit_disk(None)
            healed = time.monotonic()
            await eventually(lambda: accepts_writes(fleet))
            assert (await chat.answer(fleet.broker, counting(3, "1ms"))).text == counted(3)
            assert time.monotonic() - healed < 5
            text, end = await page.answer()
            assert (first["text"] + text, end["reason"]) == (counted(300), "stop")
            heard = await kept
            heard.check()
            assert heard.text == counted(300)
            assert heard.pause > 4
    assert [worker.process.poll(), web.process.poll()] == [None, None]
    said = worker.log.read_text() + web.log.read_text() + caplog.text
    assert "Traceback" not in said
    assert "subscription lost" not in said, "a heartbeat that is refused is an answer"


def refuses_writes(fleet: Fleet) -> bool:
    try:
        fleet.server.command("SET", "x", "1")
    except ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


def accepts_writes(fleet: Fleet) -> bool:
    return not refuses_writes(fleet)


async def test_a_request_can_be_cancelled_at_any_moment(fleet, long):
    """arq leaves cancelled jobs in its queue until a slot is free, keeps their ids in one set for all workers, and has a
    window between its claim and the job's start. Here each ends with one last frame, at once, and nothing is left."""
    workers = [await fleet.worker(slots=4) for _ in range(2)]
    dice = random.Random(7)

    async def ask_and_cancel() -> str:
        asked = counting(50, "5ms")
        task = asyncio.create_task(listen(fleet.broker, asked))
        await asyncio.sleep(dice.choice((0.0, 0.002, 0.004, 0.01, 0.1, 0.4)) * dice.random())
        await eventually(lambda: fleet.state(asked.request_id))
        await queues.cancel(fleet.broker, asked.request_id, "")
        cancelled = time.monotonic()
        heard = await task
        assert time.monotonic() - cancelled < 0.5
        assert [frame["seq"] for frame in heard.frames] == list(range(len(heard.frames)))
        assert sum("end" in frame for frame in heard.frames) == 1
        return str(heard.end["reason"])

    reasons: list[str] = []
    for _ in range(100 if long else 10):
        reasons += await asyncio.gather(*(ask_and_cancel() for _ in range(24)))
        assert await fleet.broker.redis.keys("arq:abort*") == await fleet.broker.redis.keys("arq:in-progress*") == []
    assert reasons.count("cancelled") > len(reasons) / 2
    await fleet.idle()
    assert await fleet.broker.redis.keys("arq:*") == []
    async with load(fleet.broker, 8, lambda i: counting(20, "5ms")) as heard:
        await eventually(lambda: running(fleet, 8))  # every slot is there
    for one in heard:
        one.check()
    assert all(member.process.poll() is None and "Traceback" not in member.log.read_text() for member in workers)
