"""Web processes that are killed, and readers that are slow, stuck or dead."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import aiohttp
import pytest

from broker import connection, conversations, embedded, keys, queues, streams
from broker.messages import pack
from broker.tasks import stop
from faults.harness import Fleet, Heard, Member, accepted, counted, listen, vars_of
from faults.visitor import Visitor, browser, maps
from fleet_process import memory_mb, wait_for_port
from helpers import eventually, request
from webapp import sockets as web_sockets

pytestmark = pytest.mark.timeout(120)

FOLLOWED = 30  # streams of one page: with their frames it is soon more than any buffer takes
LONG_ANSWER = 12_000


async def ended(fleet: Fleet, request_id: str) -> bool:
    return (await fleet.state(request_id))["state"] == "ended"


async def test_pages_of_a_killed_web_process_go_on_elsewhere_or_when_it_is_back(fleet, long):
    killings, words = (8, 900) if long else (2, 200)
    await fleet.worker()
    ports = [embedded.free_port()]
    webs = {ports[0]: (await fleet.web(port=ports[0]))[0]}
    ports.append(embedded.free_port())
    webs[ports[1]] = (await fleet.web(port=ports[1]))[0]
    async with browser(ports[0]) as session, asyncio.TaskGroup() as tasks:
        visitors = [Visitor(session, ports if i % 2 else ports[i % 4 // 2 :][:1]) for i in range(8)]
        for visitor in visitors:
            tasks.create_task(visitor.ask(f"/echo {words} 25ms"))
        for i in range(killings):
            heard = [len(v.frames) for v in visitors]
            await eventually(lambda h=heard: all(len(v.frames) > n + 5 for v, n in zip(visitors, h, strict=True)))
            port = ports[i % 2]
            old = webs[port].pid
            webs[port].kill()
            webs[port] = (await fleet.web(port=port))[0]
            assert webs[port].pid != old
    assert all(v.text == counted(words) for v in visitors)
    assert sum(v.reconnects for v in visitors) >= 4 * killings
    pauses = [v.pause for v in visitors]
    print(f"{killings} killings, 8 pages: pause median {statistics.median(pauses):.2f} s, longest {max(pauses):.2f} s")
    elsewhere = [v.pause for v in visitors[1::2]]
    assert max(elsewhere) < 3, "there was another instance all the time"
    assert max(pauses) < 10, "python -m webapp takes its time to start"


async def test_an_api_stream_of_a_killed_web_process_breaks_off_and_does_not_look_complete(fleet):
    await fleet.worker()
    web, port = await fleet.web()
    body = {"model": "echo", "messages": [{"role": "user", "content": "/echo 1000 20ms"}], "stream": True}
    lines: list[bytes] = []
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200
        while len(lines) < 6:
            lines.append(await response.content.readline())
        web.kill()
        with pytest.raises(aiohttp.ClientError):  # the body has no end
            lines.append(await response.content.read())
    assert not any(b"[DONE]" in line or b'"finish_reason":"' in line for line in lines)


async def test_what_was_kept_is_finished_and_what_was_not_is_ended_when_their_web_process_is_killed(
    tmp_path, monkeypatch, long
):
    grace = connection.ORPHAN_SECONDS if long else 3.0
    monkeypatch.setattr(connection, "ORPHAN_SECONDS", grace)
    monkeypatch.setattr(queues, "ORPHAN_SECONDS", grace)
    changes = [f"broker.connection.ORPHAN_SECONDS={grace}", f"broker.queues.ORPHAN_SECONDS={grace}"]
    async with Fleet.open(tmp_path) as fleet:
        fleet.program("member.py", "worker", *changes, model="echo", slots=3)
        port = embedded.free_port()
        web = fleet.program("member.py", "webapp", *changes, port=port)
        await asyncio.to_thread(wait_for_port, port)
        await eventually(lambda: fleet.broker.redis.exists(keys.serving("echo")), 20)
        asker = fleet.program("asker.py", "/echo 100000 20ms", 3)  # two run, one waits
        unkept = await eventually(lambda: (ids := asker.log.read_text().split()) and len(ids) == 3 and ids, 20)
        await eventually(lambda: _running(fleet, 3), 5)
        async with browser(port) as session:
            visitor = Visitor(session, [port])
            asking = asyncio.create_task(visitor.ask("/echo 60 20ms"))
            await eventually(lambda: visitor.accepted)
            web.kill()
            asker.kill()
            killed = time.monotonic()
            asking.cancel()
        kept = visitor.accepted["request_id"]
        assert not await ended(fleet, kept)
        for request_id in unkept:
            await eventually(lambda r=request_id: ended(fleet, r), grace + 5)
        took = time.monotonic() - killed
        print(f"unkept answers ended {took:.1f} s after the last listener was killed")
        assert grace <= took < grace + 3
        assert {(await fleet.state(r))["reason"] for r in unkept} == {"abandoned"}
        await eventually(lambda: ended(fleet, kept), 10)
        owner = (await fleet.state(kept))["owner"]
        _, messages = await conversations.load(fleet.broker, visitor.accepted["conversation"], owner)
        assert messages[kept].text == counted(60)
        quick = [listen(fleet.broker, request("/echo 5 10ms", model="echo")) for _ in range(3)]
        for heard in await asyncio.gather(*quick):  # all slots are free
            heard.check()
            assert heard.end["timings"]["waited"] < 0.5


async def _running(fleet: Fleet, count: int) -> bool:
    return await fleet.broker.redis.zcard(keys.running("echo")) == count


class Greedy:
    """A page that follows one long answer many times over, and reads nothing."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    @classmethod
    @asynccontextmanager
    async def open(cls, session: aiohttp.ClientSession, port: int, request_id: str) -> AsyncIterator["Greedy"]:
        async with session.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0) as ws:
            for _ in range(FOLLOWED):
                await ws.send_bytes(pack({"type": "resume", "request_id": request_id}))
            yield cls(ws)

    async def chatter(self) -> None:
        """It lives, and says so, or the heartbeat would take it for dead."""
        with suppress(aiohttp.ClientError):
            while True:
                await self.ws.send_bytes(pack({"type": "stop", "request_id": "0" * 26}))
                await asyncio.sleep(0.3)


async def long_answer(fleet: Fleet, port: int, session: aiohttp.ClientSession) -> str:
    """The id of a finished answer of thousands of frames, that belongs to this browser."""
    visitor = Visitor(session, [port])
    await visitor.ask(f"/echo {LONG_ANSWER} 0")
    assert len(visitor.frames) > LONG_ANSWER / 2
    return visitor.accepted["request_id"]


@asynccontextmanager
async def site(fleet: Fleet, **constants: float) -> AsyncIterator[tuple[Member, int, aiohttp.ClientSession, str]]:
    """A web process with shorter times, one browser, and a long answer of its."""
    port = embedded.free_port()
    await fleet.worker(coalesce_ms=0)
    changes = [f"webapp.sockets.{name}={value}" for name, value in constants.items()]
    web = fleet.program("member.py", "webapp", *changes, port=port)
    await asyncio.to_thread(wait_for_port, port)
    async with browser(port) as session:
        request_id = await long_answer(fleet, port, session)
        await eventually(lambda: not accepted(port))
        yield web, port, session, request_id


class Peak:
    """The most memory that a process had while the block ran."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self.most = memory_mb(pid)

    async def watch(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            while True:
                self.most = max(self.most, memory_mb(self._pid))
                await asyncio.sleep(0.05)


async def test_a_reader_that_does_not_read_costs_nobody_anything_and_is_cut_off(fleet, long):
    stuck = web_sockets.STUCK_SECONDS if long else 4.0
    async with site(fleet, STUCK_SECONDS=stuck) as (web, port, session, request_id):
        alone = await gaps_of_others(session, port, 2)
        peak = Peak(web.pid)
        watching = asyncio.create_task(peak.watch())
        async with Greedy.open(session, port, request_id) as greedy:
            chatter = asyncio.create_task(greedy.chatter())
            begun = time.monotonic()
            await eventually(lambda: accepted(port))
            await asyncio.sleep(1.5)  # what it takes to fill all buffers
            beside = await gaps_of_others(session, port, stuck - 2.5)
            answer = await listen(fleet.broker, request("/echo 300 5ms", model="echo"))
            await eventually(lambda: not accepted(port), stuck + 5)
            took = time.monotonic() - begun
            await stop(chatter)
        await stop(watching)
        assert stuck <= took < stuck + 6
        answer.check()
        grown = peak.most - peak.before
        print(
            f"stuck for {took:.1f} s; memory of the web process +{grown:.1f} MB; "
            f"others' gaps alone p99 {alone * 1000:.0f} ms, beside it p99 {beside * 1000:.0f} ms"
        )
        assert grown < 25
        assert beside < alone + 0.05
        async with Greedy.open(session, port, request_id):
            await asyncio.sleep(1)
            begun = time.monotonic()
            assert await web.terminate(10) == 0, "a stuck reader does not keep it from stopping"
            assert time.monotonic() - begun < stuck - 1.2, "and not because it is cut off at last"


async def gaps_of_others(session: aiohttp.ClientSession, port: int, seconds: float) -> float:
    """The 99th percentile of the times between two frames, of four pages."""
    visitors = [Visitor(session, [port]) for _ in range(4)]
    async with asyncio.TaskGroup() as tasks:
        for visitor in visitors:
            tasks.create_task(visitor.ask(f"/echo {int(seconds / 0.02)} 20ms"))
    gaps = sorted(b - a for v in visitors for a, b in pairwise(v.times))
    return gaps[int(0.99 * len(gaps))]


async def test_a_slow_reader_gets_everything_in_fewer_messages(fleet):
    async with site(fleet) as (_, port, session, request_id), Greedy.open(session, port, request_id) as slow:
        await asyncio.sleep(1.5)
        messages = ends = 0
        frames: list[dict] = []
        async with asyncio.timeout(60):
            while ends < FOLLOWED:
                message = await slow.ws.receive()
                assert message.type is aiohttp.WSMsgType.BINARY, message
                batch = [one for one in maps(message.data) if "type" not in one]
                messages += 1
                ends += sum("end" in one for one in batch)
                frames += batch
    numbers = [frame["seq"] for frame in frames]
    length = max(numbers) + 1
    assert sorted(numbers) == sorted([*range(length)] * FOLLOWED), "each stream whole, nothing twice"
    print(f"{len(frames)} frames in {messages} messages")
    assert messages < len(frames) / 50


async def test_peers_that_died_without_a_word_are_cut_off_by_the_heartbeat(fleet, long):
    """Also while something waits to be sent to one: to close politely would wait for that for ever."""
    beat = web_sockets.HEARTBEAT_SECONDS if long else 2.0
    async with site(fleet, HEARTBEAT_SECONDS=beat, STUCK_SECONDS=600) as (_, port, session, request_id):
        dead = [fleet.program("deaf.py", port), fleet.program("deaf.py", port, cookie(session), request_id, FOLLOWED)]
        await eventually(lambda: accepted(port) == 2, 10)
        await eventually(lambda: all("connected" in one.log.read_text() for one in dead))
        for one in dead:
            one.stop()  # its kernel goes on to acknowledge what comes
        begun = time.monotonic()
        await eventually(lambda: not accepted(port), 1.5 * beat + 5)
        took = time.monotonic() - begun
        print(f"cut off after {took:.1f} s")
        assert took > 0.4 * beat
        for one in dead:
            one.go_on()


def cookie(session: aiohttp.ClientSession) -> str:
    (one,) = session.cookie_jar
    return f"{one.key}={one.value}"


# What LibreChat's resumable streams had to mend, one after the other (reliability.md, 2.2)


async def test_readers_that_come_in_the_middle_of_a_burst_miss_nothing_and_get_nothing_twice(fleet, long):
    """#11710 (the subscription came too late for the first chunks) and #14411 (what was replayed came again live)."""
    await fleet.worker(coalesce_ms=0)
    readers, words = (200, 6000) if long else (40, 1500)
    asked = request(f"/echo {words} 1ms", model="echo")
    heard = [Heard(asked) for _ in range(readers)]

    async def come(one: Heard, after: int) -> None:
        await eventually(lambda: _written(fleet, asked.request_id, after), 60)
        async with streams.read(fleet.broker, asked.request_id) as reader:
            async for received in reader:
                one.frames.append(vars_of(received.encoded))

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(listen(fleet.broker, asked))
        await eventually(lambda: fleet.broker.redis.exists(keys.request(asked.request_id)))
        for i, one in enumerate(heard):
            tasks.create_task(come(one, i * words // readers // 2))
    for one in (first.result(), *heard):
        one.check()
        assert one.text == counted(words)


async def _written(fleet: Fleet, request_id: str, frames: int) -> bool:
    return await fleet.broker.redis.llen(keys.frames(request_id)) >= frames


async def test_the_listener_is_there_before_the_list_is_read(fleet):
    """upstash/realtime #23: what came between the replay and the registration of the listener was lost."""
    await fleet.worker(coalesce_ms=0)
    asked = request("/echo 20 50ms", model="echo")
    async with streams.read(fleet.broker, asked.request_id) as early:
        listening = await fleet.broker.redis.pubsub_numsub(keys.stream(asked.request_id))
        assert listening[0][1] == 1, "confirmed, and nothing has been read yet"
        await queues.enqueue(fleet.broker, asked)
        times = []
        async for _ in early:
            times.append(time.monotonic())
    assert max(b - a for a, b in pairwise(times)) < 1, "live, and not by the look at the list after a silence"


async def test_a_number_of_another_answer_is_no_harm(fleet):
    """#13117: a number that was remembered for a conversation hid the beginning of its next answer."""
    await fleet.worker(coalesce_ms=0)
    _, port = await fleet.web()
    async with browser(port) as session:
        first = Visitor(session, [port])
        await first.ask("/echo 50 1ms")
        again = Visitor(session, [port])
        async with session.ws_connect(f"http://127.0.0.1:{port}/ws") as ws:
            ids = {"conversation": first.accepted["conversation"], "message": first.accepted["message"]}
            await ws.send_bytes(pack({"type": "regenerate", "model": "echo", **ids}))
            await again.hear(ws)
        assert again.text == counted(50)
        assert again.accepted["request_id"] != first.accepted["request_id"]
        async with session.ws_connect(f"http://127.0.0.1:{port}/ws") as ws, asyncio.timeout(5):
            resume = {"type": "resume", "request_id": first.accepted["request_id"], "from": 10_000}
            await ws.send_bytes(pack(resume))  # a number that this answer never had: its end, and no silence for ever
            frames: list[dict] = []
            while not frames:
                frames = [one for one in maps((await ws.receive()).data) if "type" not in one]
        assert frames[-1]["end"]["reason"] == "stop"


@pytest.mark.timeout(120)
async def test_an_answer_that_nobody_watches_takes_no_memory_of_the_web_process(fleet, long):
    """#14612: 2 GB of heap, from what was kept of a generation whose page had gone."""
    await fleet.worker(coalesce_ms=0)
    web, port = await fleet.web()
    words = 60_000 if long else 4_000
    async with browser(port) as session:
        await Visitor(session, [port]).ask("/echo 5000 0")  # what a first answer loads is not its cost
        visitor = Visitor(session, [port])
        asking = asyncio.create_task(visitor.ask(f"/echo {words} {0.2 if long else 1}ms"))
        await eventually(lambda: len(visitor.frames) > 10)
        asking.cancel()
        request_id = visitor.accepted["request_id"]
        await eventually(lambda: _unheard(fleet, request_id))
        before = memory_mb(web.pid)
        seen = await fleet.broker.redis.llen(keys.frames(request_id))
        await eventually(lambda: ended(fleet, request_id), 90)
        assert await fleet.broker.redis.llen(keys.frames(request_id)) > seen + words / 3, "it was written unwatched"
        grown = memory_mb(web.pid) - before
        print(f"web process: +{grown:.1f} MB during an answer that nobody watched")
        assert grown < 2


async def _unheard(fleet: Fleet, request_id: str) -> bool:
    return (await fleet.broker.redis.pubsub_numsub(keys.stream(request_id)))[0][1] == 0
