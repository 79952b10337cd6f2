"""Redis killed, stopped, cut off, and back with less than it had, while answers are written and read."""

import asyncio
import statistics
import time

import aiohttp
import pytest
from redis import Redis

from broker import chat, conversations, keys
from broker.connection import Broker
from broker.errors import RedisAway, WorkerLost
from broker.messages import ChatRequest, new_id
from broker.queues import Turn
from faults.harness import Fleet, Heard, Member, Server, counted, counting, listen, load, vars_of
from helpers import eventually

pytestmark = pytest.mark.timeout(1200)

BACK = 5.0  # seconds within which every process is there again


def words(request: ChatRequest) -> int:
    return int(request.messages[-1].content.split()[1])


def asking(i: int) -> ChatRequest:
    return counting(40 + i % 30, "20ms", owner=f"owner{i}")


async def converse(broker: Broker, request: ChatRequest, heard: Heard) -> None:
    """`listen`, in a conversation of its own that has the request's id."""
    turn = Turn(request.request_id, new_id(), "title", conversations.user_message("question", "", 1))
    try:
        async with chat.ask(broker, request, turn) as reader:
            async for received in reader:
                heard.times.append(time.monotonic())
                heard.frames.append(vars_of(received.encoded))
    except (RedisAway, WorkerLost) as error:
        heard.error = error


async def stored(broker: Broker, request: ChatRequest) -> str:
    """The answer as its conversation has it."""
    _, messages = await conversations.load(broker, request.request_id, request.owner)
    return "".join(part["text"] for part in messages[request.request_id].parts)


class Members:
    """Two workers and a web app, none of which may end."""

    def __init__(self, fleet: Fleet, workers: list[Member], web: Member, port: int) -> None:
        self.fleet, self.workers, self.web, self.port = fleet, workers, web, port

    @classmethod
    async def start(cls, fleet: Fleet) -> "Members":
        workers = [await fleet.worker() for _ in range(2)]
        return cls(fleet, workers, *await fleet.web())

    async def back(self) -> None:
        """Returns once each of them has done its work again."""
        now = int((await self.fleet.broker.redis.time())[0]) * 1000
        pids = {w.pid for w in self.workers}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as browser:

            async def working() -> bool:
                async with browser.get("/readyz") as response:
                    ready = response.status == 200
                for request_id in await self.fleet.broker.redis.zrange(keys.running("echo"), 0, -1):
                    state = await self.fleet.state(request_id.decode())
                    if int(state.get("claimed", 0)) >= now:
                        pids.discard(int(state["worker"].split("-")[-2]))
                return ready and not pids

            await eventually(working, BACK)

    def check(self) -> None:
        assert [m.process.poll() for m in (*self.workers, self.web)] == [None] * 3
        for member in (*self.workers, self.web):
            assert "Traceback" not in member.log.read_text()


async def check(fleet: Fleet, members: Members, all_heard: list[Heard], name: str, longest: float) -> None:
    members.check()
    heard = [h for h in all_heard if h.error is None]
    assert all(not h.frames and isinstance(h.error, RedisAway) for h in all_heard if h.error)
    for h in heard:
        h.check()
        assert h.text == counted(words(h.request)) == await stored(fleet.broker, h.request)
    pauses = [h.pause for h in heard]
    print(
        f"\n{name}: {len(heard)} answers, {len(all_heard) - len(heard)} refused while it was away; "
        f"pause median {statistics.median(pauses):.2f} s, largest {max(pauses):.2f} s"
    )
    assert max(pauses) < longest
    await fleet.idle()
    assert await fleet.broker.redis.keys("arq:*") == []


async def test_redis_killed_and_restarted(fleet, long):
    members = await Members.start(fleet)
    waiting = await left_waiting(fleet)
    async with load(fleet.broker, 8, asking, hear=converse) as heard:
        for i in range(20 if long else 2):
            await asyncio.sleep(1)
            assert [h for h in heard if h.frames and not h.end], "nobody is in the middle of an answer"
            down = (0.0, 1.0, 3.0)[i % 3]
            await asyncio.to_thread(fleet.server.restart, down)
            assert await fleet.broker.redis.zrange(keys.queue("quiet"), 0, -1) == [w.encode() for w in waiting]
            await members.back()
    await fleet.worker("quiet=echo")
    await eventually(lambda: answered(fleet, waiting))
    await check(fleet, members, heard, "killed and restarted", 3 + BACK)
    assert max(h.pause for h in heard) >= 1, "it was not away"


async def left_waiting(fleet: Fleet) -> list[str]:
    """Requests in the queue of a model whose worker has just gone."""
    gone = await fleet.worker("quiet=echo")
    gone.kill()
    asked = [counting(3, "1ms", model="quiet") for _ in range(5)]
    for request in asked:
        async with chat.ask(fleet.broker, request):
            pass  # kept, so it stays
    return [request.request_id for request in asked]


async def answered(fleet: Fleet, request_ids: list[str]) -> bool:
    return all(
        [(await fleet.state(r))["reason"] == "stop" for r in request_ids if (await fleet.state(r)).get("reason")]
    )


async def test_redis_goes_between_a_claim_and_its_job(fleet):
    """It is away for longer than a command is tried again, and the jobs that had not begun are begun later."""
    worker = await fleet.worker()
    worker.stop()
    asked = [counting(5, "1ms") for _ in range(32)]
    tasks = [asyncio.create_task(listen(fleet.broker, request)) for request in asked]
    await eventually(lambda: waits(fleet, len(asked)))

    def kill_at_the_first_claim() -> None:
        with Redis(port=fleet.server.port) as redis:
            redis.set("written", 1)
            assert redis.execute_command("WAITAOF", 1, 0, 5000)[0] == 1  # on a busy disk the log is two seconds behind
            worker.go_on()
            while not redis.zcard(keys.running("echo")):
                pass
            redis.ping()  # what was answered in the same moment has left by then, the claim too
            fleet.server.kill()

    await asyncio.to_thread(kill_at_the_first_claim)
    await asyncio.sleep(6)
    await asyncio.to_thread(fleet.server.start)
    for heard in await asyncio.gather(*tasks):
        heard.check()
        assert heard.text == counted(5)
    assert worker.process.poll() is None
    assert "which is handed back" in worker.log.read_text()


async def waits(fleet: Fleet, count: int) -> bool:
    return await fleet.broker.redis.zcard(keys.queue("echo")) == count


async def test_redis_stopped_for_five_seconds(fleet, long):
    members = await Members.start(fleet)
    async with load(fleet.broker, 8, asking, hear=converse) as heard:
        for _ in range(5 if long else 1):
            await asyncio.sleep(1)
            fleet.server.stop()
            await asyncio.sleep(5)
            fleet.server.go_on()
            await members.back()
    await check(fleet, members, heard, "stopped for 5 s", 5 + BACK)
    assert max(h.pause for h in heard) >= 5
    assert max(h.epochs for h in heard) <= 2


async def test_connections_cut(fleet, long):
    members = await Members.start(fleet)
    async with load(fleet.broker, 8, asking, hear=converse) as heard:
        for i in range(40 if long else 4):
            await asyncio.sleep(0.4)
            if i % 2:
                assert fleet.server.cut_connections() > 6
            else:
                assert fleet.server.command("CLIENT", "KILL", "TYPE", "pubsub") == 4
            await members.back()
    await check(fleet, members, heard, "connections cut", 2)
    assert {h.epochs for h in heard} == {1}


def cut(server: Server, size: int) -> bytes:
    """What is behind `size` bytes of the append-only file, and no longer in it; the server is dead."""
    content = server.written.read_bytes()
    server.written.write_bytes(content[:size])
    return content[size:]


async def test_redis_comes_back_shorter(fleet, long):
    """Bug C: what it acknowledged last is gone. Answers go on, or end with a sentence that says so; none hangs."""
    members = await Members.start(fleet)
    lost = refused = 0
    async with load(fleet.broker, 8, asking, hear=converse) as heard:
        for _ in range(20 if long else 3):
            await asyncio.sleep(0.7)
            fleet.server.kill()
            size = fleet.server.written.stat().st_size
            tail = cut(fleet.server, size - min(size // 2, 4_000 + 3_000 * lost % 23_000))
            lost += tail.count(b"frames:{")
            await asyncio.to_thread(fleet.server.start)
            await members.back()
    members.check()
    assert lost > 20, "the fault did not bite"
    for h in heard:
        if isinstance(h.error, WorkerLost | RedisAway):
            refused += 1
            continue
        h.check(replaced=True)
        assert h.text == counted(words(h.request))
    print(f"\nshorter: {lost} frames lost, {len(heard)} answers, {refused} ended with a sentence")
    assert refused < len(heard) / 2
    await fleet.idle()


async def test_redis_forgets_that_a_request_was_taken(fleet):
    """Bug C at its worst: the claim is gone, and with it what the reader has heard since. Another worker begins anew, with
    frames of another length, which the reader must not take for those that it has."""
    first = await fleet.worker(coalesce_ms=100)
    first.stop()
    heard = Heard(asked := counting(200, "10ms"))
    answer = asyncio.create_task(listen(fleet.broker, asked, heard))
    await eventually(lambda: fleet.broker.redis.zcard(keys.queue("echo")))
    await asyncio.sleep(0.5)  # what is acknowledged is in the file
    size = fleet.server.written.stat().st_size
    first.go_on()
    await eventually(lambda: len(heard.frames) > 5)
    first.stop()
    fleet.server.kill()
    assert cut(fleet.server, size).count(b"frames:{") >= len(heard.frames)
    await asyncio.to_thread(fleet.server.start)
    await fleet.worker(coalesce_ms=0)
    await eventually(lambda: fleet.broker.redis.llen(keys.frames(asked.request_id)))
    first.go_on()
    heard = await answer
    heard.check(replaced=True)
    assert heard.text == counted(200)
    assert first.process.poll() is None
