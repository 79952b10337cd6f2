"""Workers that are killed or stopped while they write, with people who listen."""

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import aiohttp
import pytest

from broker import chat, keys, registry, streams
from broker.connection import Broker
from broker.errors import FleetError
from broker.messages import ChatRequest, Message, Sampling
from faults.harness import Fleet, Heard, Member, counted, counting, listen, load, vars_of
from helpers import eventually
from tiny_model import build
from webclient import Page

pytestmark = pytest.mark.timeout(150)

QUICK = {"lease_seconds": 2}
TAKEN_OVER = 5.0  # seconds within which somebody else goes on
# Greedy answers of this one hold more than a hundred different tokens, many of them halves of characters.
VARIED = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 2048,
}


async def come_and_go(broker: Broker, heard: Heard) -> None:
    """A second reader: comes late, leaves in the middle, comes back and goes on from the next number."""
    dice = random.Random(heard.request.request_id)
    while not heard.end:
        await asyncio.sleep(dice.uniform(0, 0.3))
        most = dice.randrange(1, 30)
        async with streams.read(broker, heard.request.request_id, len(heard.frames)) as reader:
            async for received in first_of(reader, most):
                heard.frames.append(vars_of(received.encoded))


async def first_of(reader: streams.Reader, most: int):
    """The first frames of a reader, at most so many."""
    async for received in reader:
        yield received
        most -= 1
        if most == 0:
            return


class Pair:
    """Hears every answer twice: by who asked for it, and over a broker of its own by somebody who comes and goes."""

    def __init__(self, other: Broker) -> None:
        self.other = other
        self.second: list[Heard] = []
        self.taken: list[float] = []  # seconds from the last word of a dead worker to the claim of another

    async def __call__(self, broker: Broker, request: ChatRequest, heard: Heard) -> None:
        second = Heard(request)
        try:
            async with chat.ask(broker, request) as reader:
                self.second.append(second)
                follower = asyncio.create_task(come_and_go(self.other, second))
                async for received in reader:
                    heard.times.append(time.monotonic())
                    heard.frames.append(vars_of(received.encoded))
            await follower
            if heard.epochs > 1:
                claimed = await broker.redis.hget(keys.request(request.request_id), "claimed")
                dead = sum(frame["epoch"] < heard.epochs for frame in heard.frames)
                silent = [heard.began, *heard.times][dead]
                self.taken.append(int(claimed) / 1000 - time.time() + time.monotonic() - silent)
        except FleetError as error:
            heard.error = error


async def holds(fleet: Fleet, model: str) -> dict[int, list[dict[str, str]]]:
    """What runs, by the process id of its worker."""
    found: dict[int, list[dict[str, str]]] = {}
    for request_id in await fleet.broker.redis.zrange(keys.running(model), 0, -1):
        state = await fleet.state(request_id.decode())
        if state.get("state") == "running":
            found.setdefault(int(state["worker"].split("-")[-2]), []).append(state)
    return found


async def killings(fleet: Fleet, workers: list[Member], model: str, times: int, **settings: object) -> None:
    """kill -9, again and again, a worker that writes something. The promise is for one fault at a time, so nothing that
    it writes has lost a worker before."""
    name = model.partition("=")[0]
    for left in reversed(range(times)):

        async def victim() -> Member | None:
            held = await holds(fleet, name)
            whole = [w for w in workers if held.get(w.pid) and all(s["epoch"] == "1" for s in held[w.pid])]
            return random.choice(whole) if whole else None

        dead = await eventually(victim, 40)
        dead.kill()
        workers.remove(dead)
        if left:
            workers.append(await fleet.worker(model, **settings))


def report(name: str, heard: list[Heard], pair: Pair, killed: int) -> None:
    pauses = sorted(h.pause for h in heard if h.epochs > 1)
    print(
        f"\n{name}: {killed} killings, {len(heard)} answers, {sum(len(h.frames) for h in heard)} frames, "
        f"{len(pauses)} taken over after {statistics.median(pair.taken):.2f} s, at most {max(pair.taken):.2f} s; pause median {statistics.median(pauses):.2f} s, largest {pauses[-1]:.2f} s"
    )


async def check_after_killings(
    fleet: Fleet, heard: list[Heard], pair: Pair, expected: Callable, killed: int, reading: float = 0.0
) -> None:
    """`reading`: seconds that a busy machine needs for what has been said so far, before it can go on."""
    assert len(pair.second) == len(heard)
    for h in [*heard, *pair.second]:
        h.check()
        assert h.text == expected(h.request)
    assert sum(h.epochs > 1 for h in heard) >= killed
    assert max(pair.taken) < TAKEN_OVER
    assert max(h.pause for h in heard) < TAKEN_OVER + reading
    await fleet.idle()
    redis = fleet.broker.redis
    assert await redis.keys("arq:*") == [], "arq's own marks of a job that was killed would hold it back or leak"
    assert await redis.keys("tokens:*") == await redis.keys("prompt:*") == await redis.keys("live:*") == []


@pytest.fixture
async def quick(tmp_path):
    """A fleet with the shortest leases, where what follows a death is looked at and not how long it takes."""
    async with Fleet.open(tmp_path, **QUICK) as opened:
        yield opened


@pytest.fixture
async def second(fleet: Fleet):
    """A broker of its own, as another web process has."""
    async with Broker.open(fleet.broker.config) as opened:
        yield opened


@pytest.mark.timeout(2400)
async def test_killed_workers_answers_go_on_elsewhere(fleet, second, long):
    times = 150 if long else 2
    pair = Pair(second)
    workers = [await fleet.worker() for _ in range(2)]
    async with load(fleet.broker, 8, lambda i: counting(60 + i % 7, "20ms", owner=f"u{i % 9}"), hear=pair) as heard:
        await killings(fleet, workers, "echo", times)
    report("echo", heard, pair, times)
    await check_after_killings(fleet, heard, pair, lambda r: counted(int(r.messages[-1].content.split()[1])), times)


def saying(i: int) -> ChatRequest:
    """Twelve requests over and over: every other one greedy, the others sampled with a seed of their own."""
    i %= 12
    sampling = Sampling(float(i % 2), max_tokens=400, ignore_eos=True, seed=i)
    return ChatRequest("varied", (Message("user", f"{i} tell me about the quick fox"),), sampling, keep=True)


@pytest.mark.timeout(2400)
async def test_killed_workers_models_texts_are_those_of_undisturbed_ones(fleet, second, tmp_path, long):
    model = f"varied={build(tmp_path / 'varied', **VARIED)}"
    settings = {"dtype": "float32", "device": "cpu", "cache_mb": 64}
    workers = await asyncio.gather(*(fleet.worker(model, **settings) for _ in range(2)))
    undisturbed = await asyncio.gather(*(listen(fleet.broker, with_ids(saying(i))) for i in range(12)))
    for h in undisturbed:
        h.check()
        ids = {bytes(one["token"]) for frame in h.frames for one in frame.get("logprobs") or ()}
        assert len(ids) > 100, "a text of few different tokens would prove nothing"
    texts = {h.request.messages: h.text for h in undisturbed}
    assert len(set(texts.values())) == 12
    times = 50 if long else 1
    pair = Pair(second)
    async with load(fleet.broker, 6, saying, hear=pair) as heard:
        await killings(fleet, workers, model, times, **settings)
    report("varied", heard, pair, times)
    await check_after_killings(fleet, heard, pair, lambda r: texts[r.messages], times, reading=5)


def with_ids(request: ChatRequest) -> ChatRequest:
    return replace(request, sampling=replace(request.sampling, logprobs=0))


async def test_a_worker_killed_between_its_claim_and_the_first_word(quick):
    fleet = quick
    workers = [await fleet.worker(**QUICK) for _ in range(2)]
    asked = counting(3, "700ms")
    answer = asyncio.create_task(listen(fleet.broker, asked))
    held = await eventually(lambda: holds(fleet, "echo"))
    (dead,) = [w for w in workers if w.pid in held]
    assert await fleet.broker.redis.exists(keys.frames(asked.request_id)) == 0
    dead.kill()
    heard = await answer
    heard.check()
    assert (heard.text, heard.epochs) == (counted(3), 2)
    assert heard.pause < TAKEN_OVER


async def test_without_another_worker_it_waits_and_says_so_and_goes_on_when_one_starts(quick):
    fleet = quick
    lone = await fleet.worker(**QUICK)
    _, port = await fleet.web(**QUICK)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as browser:
        async with browser.get("/"), browser.ws_connect("/ws") as ws:
            page = Page(ws)
            await page.send(type="ask", model="echo", text="/echo 100 20ms")
            await page.next("accepted")
            heard = [await page.next("frame") for _ in range(5)]
            lone.kill()
            begun, told = time.monotonic(), []
            while not {"waits", "gone"} <= set(told):
                one = await page.next_of("frame", "place", "models")
                match one.get("type"):
                    case "place":
                        told.append("waits")
                        assert one["place"] == 0
                    case "models":
                        told.append(one["models"][0]["state"])
                    case _:
                        heard.append(one)
            assert time.monotonic() - begun < TAKEN_OVER + 1
            fleet.start_worker(**QUICK)
            while (one := await page.next_of("frame", "state")).get("state") != "running":
                heard.append(one)
            while "end" not in heard[-1]:
                heard.append(await page.next("frame"))
    assert "".join(frame["text"] for frame in heard) == counted(100)
    assert [frame["seq"] for frame in heard] == list(range(len(heard)))


async def test_without_any_worker_it_ends_at_the_time_limit_with_a_clear_error(tmp_path):
    async with Fleet.open(tmp_path, run_seconds=5, wait_seconds=2, **QUICK) as fleet:
        lone = await fleet.worker(**QUICK)
        answer = asyncio.create_task(listen(fleet.broker, asked := counting(200, "100ms")))
        await eventually(lambda: written(fleet, [asked]))
        lone.kill()
        late, begun = await asyncio.gather(listen(fleet.broker, counting(1)), answer)
    assert len(begun.frames) > 1
    for heard, seconds in ((late, 2), (begun, 5)):
        assert heard.end["error"]["code"] == "waited_too_long"
        assert seconds <= heard.times[-1] - heard.began < seconds + 1


@pytest.mark.parametrize("others", [1, 0])
async def test_a_stopped_worker_writes_nothing_more_when_it_wakes_and_takes_new_work(quick, long, others):
    """SIGSTOP. With another worker its requests go there; alone (bug B) it has them back and fences nobody out."""
    fleet = quick
    seconds = 20.0 if long else fleet.broker.config.lease_seconds + 2
    lengths = [50, 150, 200, 220]
    sleeper = await fleet.worker(**QUICK)
    asked = [counting(n, "20ms") for n in lengths]
    tasks = [asyncio.create_task(listen(fleet.broker, request)) for request in asked]
    await eventually(lambda: written(fleet, asked))
    for _ in range(others):
        await fleet.worker(**QUICK)
    sleeper.stop()
    await asyncio.sleep(seconds)
    states = [await fleet.state(request.request_id) for request in asked]
    assert all((s["epoch"] == "2") == bool(others) for s in states)
    if not others:
        assert {s["state"] for s in states} == {"waiting"}, "the lease ran out under it"
    ended = [request for request, s in zip(asked, states, strict=True) if s["state"] == "ended"]
    before = [await fleet.broker.redis.lrange(keys.frames(r.request_id), 0, -1) for r in ended]
    sleeper.go_on()
    for heard, words in zip(await asyncio.gather(*tasks), lengths, strict=True):
        heard.check()
        assert heard.text == counted(words)
        assert heard.epochs == 1 + others
        assert heard.pause < (TAKEN_OVER if others else seconds + 1)
    assert [await fleet.broker.redis.lrange(keys.frames(r.request_id), 0, -1) for r in ended] == before
    await eventually(lambda: back(fleet, sleeper))
    for _ in range(2):  # somebody holds this place until the sleeper has the next one
        async with load(fleet.broker, 8, lambda i: counting(50, "20ms")) as more:
            await eventually(lambda: holding(fleet, sleeper))
        for heard in more:
            heard.check()
    assert sleeper.process.poll() is None


async def written(fleet: Fleet, asked: list[ChatRequest]) -> bool:
    return all([await fleet.broker.redis.llen(keys.frames(r.request_id)) > 2 for r in asked])


async def back(fleet: Fleet, member: Member) -> bool:
    found = await registry.workers(fleet.broker)
    return any(w.fields["pid"] == str(member.pid) and w.fields["state"] == "ready" for w in found)


async def holding(fleet: Fleet, member: Member) -> bool:
    return member.pid in await holds(fleet, "echo")
