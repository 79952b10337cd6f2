"""More people than the fleet can serve, one who wants everything, and many who do not stay for the answer."""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgpack
import pytest

from broker import embedded, keys
from broker.errors import QueueFull, ShareUsed
from broker.messages import new_id, pack
from broker.tasks import stop
from faults.harness import Fleet, Heard, counting, listen, load
from helpers import eventually

pytestmark = pytest.mark.timeout(200)

SLOTS = 4  # of each of two workers
WORDS, PACE = 20, 0.02
SECONDS = WORDS * PACE  # of an answer
LIMIT = 40  # that may wait


def short(owner: str = "", *, keep: bool = False):
    return counting(WORDS, f"{PACE * 1000:g}ms", owner=owner, keep=keep)


@pytest.fixture
async def fleet(tmp_path) -> AsyncIterator[Fleet]:
    """Two workers, a short queue."""
    async with Fleet.open(tmp_path, queue_limit=LIMIT) as opened:
        await asyncio.gather(*(opened.worker(slots=SLOTS) for _ in range(2)))
        yield opened


class Arrivals:
    """People who come at a steady rate, whatever becomes of those before them, and ask once each."""

    def __init__(self, fleet: Fleet, rate: float) -> None:
        self.fleet, self.rate = fleet, rate
        self.heard: list[Heard] = []
        self.refused_after: list[float] = []  # seconds until somebody was refused
        self.waits: list[tuple[int, float]] = []  # told to one who was refused, true for one accepted just then

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            source = tasks.create_task(self._come(tasks))
            yield
            await stop(source)

    async def _come(self, tasks: asyncio.TaskGroup) -> None:
        begun = time.monotonic()
        for n in itertools.count():
            await asyncio.sleep(max(0.0, begun + n / self.rate - time.monotonic()))
            tasks.create_task(self._ask())

    async def _ask(self) -> None:
        heard = Heard(short())
        self.heard.append(heard)
        await listen(self.fleet.broker, heard.request, heard)
        if heard.error:
            self.refused_after.append(time.monotonic() - heard.began)

    @property
    def refused(self) -> list[Heard]:
        return [h for h in self.heard if h.error]

    @property
    def admitted(self) -> list[Heard]:
        return [h for h in self.heard if not h.error]


def finished(heard: list[Heard], since: float, until: float) -> int:
    return sum(1 for h in heard if h.end and since <= h.times[-1] < until)


async def test_ten_times_what_it_can_do_is_refused_politely_and_costs_no_goodput(fleet, long):
    seconds = 60.0 if long else 6.0
    async with load(fleet.broker, 2 * SLOTS + 4, lambda _: short()) as usual:
        await asyncio.sleep(1)
        begun = time.monotonic()
        await asyncio.sleep(seconds / 3)
        peak = finished(usual, begun, time.monotonic()) / (seconds / 3)
    assert peak > SLOTS / SECONDS, "both workers work"

    queue: list[int] = []
    arrivals = Arrivals(fleet, 10 * peak)

    async def watch() -> None:
        while True:
            queue.append(await fleet.broker.redis.zcard(keys.queue("echo")))
            await asyncio.sleep(0.02)

    async with arrivals.coming():
        watching = asyncio.create_task(watch())
        await eventually(lambda: arrivals.refused_after, 10)
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        over = time.monotonic()
    goodput = finished(arrivals.heard, begun, over) / (over - begun)
    await stop(watching)

    offered = len([h for h in arrivals.heard if begun <= h.began < over]) / (over - begun)
    assert offered > 9 * peak, "the fault is the load"
    assert LIMIT - 2 <= max(queue) <= LIMIT
    for heard in arrivals.admitted:
        heard.check()
    assert {type(h.error) for h in arrivals.refused} == {QueueFull}
    quick = sorted(arrivals.refused_after)
    p50, p99 = quick[len(quick) // 2], quick[int(0.99 * len(quick))]
    full = [h for h in arrivals.admitted if begun + 2 <= h.began < over]
    real = statistics.median(h.end["timings"]["waited"] for h in full)
    told = statistics.median(h.error.retry_after for h in arrivals.refused if begun + 2 <= h.began < over)
    print(
        f"peak {peak:.1f}/s, offered {offered:.0f}/s, goodput {goodput:.1f}/s; refused {len(quick)}, after p50 {p50 * 1000:.1f} ms, "
        f"p99 {p99 * 1000:.0f} ms; told to wait {told:.0f} s, real wait {real:.2f} s"
    )
    assert goodput > (0.9 if long else 0.85) * peak, "in six seconds the answers that lie across the ends weigh 5 %"
    assert p50 < 0.05
    assert real / 2 <= told <= 2 * real + 1, "whole seconds, rounded up"

    recovered = time.monotonic()
    heard = await listen(fleet.broker, short())
    assert heard.end["timings"]["waited"] < SECONDS, (
        "the rest has been worked off while those admitted heard their ends"
    )
    assert recovered - over < 10
    print(f"worked off {recovered - over:.1f} s after the last one came")


async def test_a_page_that_is_refused_is_told_when_to_come_back(fleet):
    port = embedded.free_port()
    await fleet.web(port=port, queue_limit=2, user_limit=100)
    held = [asyncio.create_task(listen(fleet.broker, counting(200, "20ms"))) for _ in range(2 * SLOTS)]
    await eventually(lambda: _count(fleet, keys.running("echo"), 2 * SLOTS))
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/ws") as ws:
        for _ in range(4):
            await ws.send_bytes(pack({"type": "ask", "ref": new_id(), "model": "echo", "text": "/echo 1"}))
        errors: list[dict] = []
        while len(errors) < 2:
            unpacker = msgpack.Unpacker()
            unpacker.feed((await ws.receive(5)).data)
            errors += [one for one in unpacker if one.get("type") == "error"]
    for error in errors:
        assert (error["code"], error["status"]) == ("queue_full", 429)
        assert 1 <= error["retry_after"] <= 60
        assert "try again" in error["message"]
    await stop(*held)


async def _count(fleet: Fleet, key: str, count: int) -> bool:
    return await fleet.broker.redis.zcard(key) == count


async def test_jobs_whose_client_has_left_are_not_run(fleet):
    """Those who say goodbye leave the queue at once; of those who were killed nothing is run either."""
    held = [asyncio.create_task(listen(fleet.broker, counting(150, "20ms"))) for _ in range(2 * SLOTS)]
    await eventually(lambda: _count(fleet, keys.running("echo"), 2 * SLOTS))
    asker = fleet.program("asker.py", "/echo 5 1ms", 10)
    silent = await eventually(lambda: len(ids := asker.log.read_text().split()) == 10 and ids, 20)
    polite = [asyncio.create_task(listen(fleet.broker, short())) for _ in range(10)]
    await eventually(lambda: _count(fleet, keys.queue("echo"), 20))
    asker.kill()
    await stop(*polite)
    await eventually(lambda: _count(fleet, keys.queue("echo"), 10), 2)
    stays = asyncio.create_task(listen(fleet.broker, short()))
    for heard in await asyncio.gather(*held, stays):
        heard.check()
    for request_id in silent:
        state = await fleet.state(request_id)
        assert "started" not in state
        assert state["epoch"] == "0"


@pytest.mark.parametrize("share", [8, 50])
async def test_one_greedy_user_does_not_make_the_others_wait(tmp_path, share, long):
    """One slot; whoever comes waits for what runs, and for one answer of the greedy one's at most."""
    seconds, visits = 0.2, 30 if long else 3
    async with Fleet.open(tmp_path, user_limit=share) as fleet:
        await fleet.worker(slots=1)
        most: list[int] = []

        async def greedy() -> None:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(50):
                    tasks.create_task(want())

        async def want() -> None:
            while True:
                heard = await listen(fleet.broker, counting(10, "20ms", owner="greedy"))
                if heard.error:
                    assert isinstance(heard.error, ShareUsed)
                    assert heard.error.retry_after
                    refused.append(heard)
                    await asyncio.sleep(0.2)

        async def visit(name: str) -> list[float]:
            waits = []
            for _ in range(visits):
                heard = await listen(fleet.broker, counting(10, "20ms", owner=name))
                heard.check()
                waits.append(heard.end["timings"]["waited"])
                await asyncio.sleep(0.1)
            return waits

        async def watch() -> None:
            while True:
                most.append(await fleet.broker.redis.scard("live:greedy"))
                await asyncio.sleep(0.02)

        refused: list[Heard] = []
        background = [asyncio.create_task(greedy()), asyncio.create_task(watch())]
        await eventually(lambda: most and max(most) >= share)
        waits = await visit("anna")
        both = await asyncio.gather(visit("ben"), visit("cleo"))
        await stop(*background)
        print(
            f"share {share}: one other user waits {max(waits) / seconds:.1f} jobs at most, median "
            f"{statistics.median(waits) / seconds:.1f}; of two others {max(map(max, both)) / seconds:.1f}"
        )
        assert max(most) == share
        assert bool(refused) == (share < 50)
        assert max(waits) < 2 * seconds + 0.15
        assert max(map(max, both)) < 3 * seconds + 0.15, "and for one answer of the other's"
