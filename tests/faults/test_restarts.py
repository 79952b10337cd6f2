"""Workers and web processes that are told to go while people ask: nobody's request fails."""

import asyncio
import itertools
import statistics
import time
from contextlib import suppress

import aiohttp
import msgpack
import pytest

from broker import keys
from broker.embedded import free_port
from broker.messages import new_id, pack
from faults.harness import Fleet, Member, counted, counting, listen
from helpers import eventually

pytestmark = pytest.mark.timeout(300)

GRACE = 1.0  # seconds that a worker has for finishing, in these tests


class Person:
    """Somebody with a page: asks one thing after another over a websocket, goes to the next web process when it is told
    to come back, resumes there, and looks into the conversations when it cannot know whether an ask was taken."""

    def __init__(self, name: str, ports: list[int]) -> None:
        self.name = name
        self.answers: list[tuple[int, str, dict]] = []  # words asked for, text, end
        self.epochs: list[int] = []
        self.pauses: list[float] = []
        self.went_away: list[int | None] = []  # codes with which sockets were closed
        self.asked_again = 0
        self._ports = itertools.cycle(ports)

    async def live(self, over: asyncio.Event, words: int, pace: str) -> None:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as self._browser:
            await self._connect()
            for number in itertools.count():
                if over.is_set():
                    break
                await self._ask(words + number % 5, f"/echo {words + number % 5} {pace} {self.name} {number}")
            await self._ws.close()

    async def _connect(self) -> None:
        """Where the next instance is that takes it; one of two is always there."""
        for _ in range(20):
            self._site = f"http://127.0.0.1:{next(self._ports)}"
            try:
                async with self._browser.get(f"{self._site}/") as response:
                    assert response.status == 200
                self._ws = await self._browser.ws_connect(f"{self._site}/ws")
                return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
        raise AssertionError("no web process was there")

    async def _ask(self, words: int, text: str) -> None:
        frames: list[dict] = []
        request_id, last = "", time.monotonic()
        pause = 0.0
        ref = new_id()
        await self._send(type="ask", model="echo", text=text, ref=ref)
        while not (frames and "end" in frames[-1]):
            received = await self._ws.receive(30)
            if received.type is not aiohttp.WSMsgType.BINARY:
                self.went_away.append(self._ws.close_code)
                await self._connect()
                if request_id:
                    await self._send(type="resume", request_id=request_id, **{"from": len(frames)})
                else:
                    self.asked_again += 1
                    await self._send(type="ask", model="echo", text=text, ref=ref)  # the same request if it was taken
                continue
            unpacker = msgpack.Unpacker()
            unpacker.feed(received.data)
            for one in unpacker:
                assert one.get("type") != "error", one
                if one.get("type") == "accepted":
                    request_id = one["request_id"]
                elif "type" not in one and one["request_id"] == request_id:
                    assert one["seq"] == len(frames), "a frame is missing or came twice"
                    frames.append(one)
                    pause = max(pause, time.monotonic() - last)
                    last = time.monotonic()
        self.answers.append((words, "".join(frame["text"] for frame in frames), frames[-1]["end"]))
        self.epochs.append(frames[-1]["epoch"])
        self.pauses.append(pause)

    async def _send(self, **message: object) -> None:
        with suppress(ConnectionError):  # the next receive finds it closed
            await self._ws.send_bytes(pack(message))


async def restart_worker(fleet: Fleet, old: Member, **settings: object) -> Member:
    """SIGTERM, exit code 0 within the grace and a little, a new one; and the old one took nothing after it."""
    told = int((await fleet.broker.redis.time())[0]) * 1000 + int((await fleet.broker.redis.time())[1]) // 1000
    assert await old.terminate(GRACE + 2) == 0
    async for key in fleet.broker.redis.scan_iter(match=keys.request("*"), count=1000):
        state = await fleet.broker.redis.hmget(key, ["worker", "claimed"])
        if state[0] and int(state[0].decode().split("-")[-2]) == old.pid:
            assert int(state[1]) < told + 100, "it took something after it was told to go"
    return await fleet.worker(**settings)


async def test_a_rolling_restart_of_everything_twice_fails_nobody(fleet, long):
    settings = {"drain_seconds": GRACE}
    workers = [await fleet.worker(**settings) for _ in range(2)]
    ports = [free_port() for _ in range(2)]
    webs = [(await fleet.web(port=port))[0] for port in ports]
    persons = [Person(f"p{i}", ports[i % 2 :] + ports[: i % 2]) for i in range(12 if long else 6)]
    over, begun, seconds = asyncio.Event(), time.monotonic(), 60 if long else 8
    async with asyncio.TaskGroup() as tasks:
        for i, person in enumerate(persons):
            tasks.create_task(person.live(over, 300 if i % 3 == 0 else 40, "20ms"))
        for i in (0, 1, 0, 1):
            await asyncio.sleep(seconds / 16)
            workers[i] = await restart_worker(fleet, workers[i], **settings)
            await asyncio.sleep(seconds / 16)
            old = webs[i]
            assert await old.terminate(5) == 0
            webs[i] = (await fleet.web(port=ports[i]))[0]
            assert webs[i].pid != old.pid
        await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
        over.set()
    answers = [answer for person in persons for answer in person.answers]
    for words, text, end in answers:
        assert (text, end["reason"]) == (counted(words), "stop")
    gone = [code for person in persons for code in person.went_away]
    assert len(gone) >= 2 * len(persons), "every page lost its process more than once"
    assert set(gone) == {1001}
    epochs = [epoch for person in persons for epoch in person.epochs]
    assert sum(epoch > 1 for epoch in epochs) >= 2, "long answers were handed over"
    pauses = sorted(pause for person in persons for pause in person.pauses)
    assert pauses[-1] < 2
    print(
        f"\n{len(answers)} answers in {time.monotonic() - begun:.0f} s, none failed; {len(gone)} sockets closed, "
        f"{sum(p.asked_again for p in persons)} asks sent again, {sum(e > 1 for e in epochs)} answers handed over; "
        f"pause median {statistics.median(pauses):.2f} s, largest {pauses[-1]:.2f} s"
    )
    await fleet.idle()
    assert await fleet.broker.redis.keys("arq:*") == []


async def test_sigterm_finishes_what_is_short_and_hands_over_what_is_long(fleet):
    old = await fleet.worker(drain_seconds=GRACE)
    short, long_ = counting(30, "20ms"), counting(120, "20ms")
    answers = [asyncio.create_task(listen(fleet.broker, asked)) for asked in (short, long_)]
    await eventually(lambda: writing(fleet, [short.request_id, long_.request_id]))
    new = await fleet.worker()
    told = time.monotonic()
    assert await old.terminate(GRACE + 2) == 0
    assert GRACE <= time.monotonic() - told < GRACE + 1
    heard = await asyncio.gather(*answers)
    for one, words in zip(heard, (30, 120), strict=True):
        one.check()
        assert one.text == counted(words)
    assert [one.epochs for one in heard] == [1, 2]
    assert [(await fleet.state(r.request_id))["crashes"] for r in (short, long_)] == ["0", "0"]
    assert heard[1].pause < 0.5
    assert new.process.poll() is None


async def test_a_second_sigterm_hands_over_at_once(fleet):
    old = await fleet.worker(drain_seconds=25)
    answer = asyncio.create_task(listen(fleet.broker, asked := counting(100, "20ms")))
    await eventually(lambda: writing(fleet, [asked.request_id]))
    await fleet.worker()
    old.process.terminate()
    await eventually(lambda: "draining" in old.log.read_text())
    assert await old.terminate(2) == 0
    heard = await answer
    heard.check()
    assert (heard.text, heard.epochs) == (counted(100), 2)
    assert heard.pause < 0.5


async def writing(fleet: Fleet, request_ids: list[str]) -> bool:
    return all([await fleet.broker.redis.llen(keys.frames(r)) > 2 for r in request_ids])
