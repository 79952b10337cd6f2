"""Does anything grow? Mixed load on real processes for a while, and what they hold before and after it.

    python tests/faults/soak.py MINUTES

Two web processes, a worker that stays and one that is killed or told to go again and again; pages that finish, stop,
break off and come back elsewhere; programs that finish or leave early. After a warm-up everything comes to rest and is
counted; after the load it comes to rest again, and everything has to be within 5 % of that. The lifetime of what
belongs to ended requests is not waited for: the keys are checked to have one, and let go.
"""

import asyncio
import gc
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from aiohttp import ClientSession

from broker import chat, embedded, keys, registry
from broker.connection import CONNECTIONS
from faults.harness import Fleet, Member, counted, counting, listen
from faults.visitor import Visitor, browser
from fleet_process import memory_mb, wait_for_port
from helpers import eventually

PAGES, PROGRAMS = 8, 6
RESTART_SECONDS = 6.0
SHARE = 0.05  # that may be more at the end
LIFETIMES = {  # the longest that each kind of key may have left, seconds
    "request": 842, "frames": 842, "tokens": 842, "prompt": 842, "arq:job": 842, "live": 842,
    "turns": 86_400, "pace": 86_400, "worker": 5, "queue": 6, "conversation": 0,
    "deleted": 60, "messages": 60,  # until then a deletion can be undone
}  # fmt: skip
REST = ("request", "frames")  # what is left of an ended request, for two minutes
UNDO = ("deleted", "messages")  # what is left of a deleted conversation, for one


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that must not grow."""

    name: str
    unit: str
    start: float
    end: float
    slack: float  # in its unit: what comes and goes by itself

    @property
    def ok(self) -> bool:
        return self.end <= self.start * (1 + SHARE) + self.slack

    def __str__(self) -> str:
        change = 100 * (self.end - self.start) / self.start if self.start else 0.0
        start, end = (f"{v:.1f}" if self.unit == "MB" else f"{v:.0f}" for v in (self.start, self.end))
        return f"{self.name:<28} {start:>9} {end:>9} {self.unit:<6} {change:+6.1f} % {'' if self.ok else '  GROWN'}"


@dataclass
class Soak:
    """The fleet under load, and what happened to it."""

    fleet: Fleet
    ports: list[int]
    webs: list[Member]
    steady: Member
    restarted: Member
    happened: Counter[str] = field(default_factory=Counter)
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator["Soak"]:
        """Everything is up."""
        async with Fleet.open(folder) as fleet:
            ports = [embedded.free_port() for _ in range(2)]
            webs = [fleet.program("member.py", "webapp", port=port) for port in ports]
            steady = fleet.program("member.py", "worker", model="echo", drain_seconds=1)
            for port in ports:
                await asyncio.to_thread(wait_for_port, port)
            restarted = await fleet.worker(drain_seconds=1)
            soak = cls(fleet, ports, webs, steady, restarted)
            await eventually(lambda: soak._workers(2), 20)
            yield soak

    async def _workers(self, count: int) -> bool:
        return len([w for w in await registry.workers(self.fleet.broker) if w.fields["state"] == "ready"]) == count

    async def load(self, seconds: float) -> None:
        """Mixed load for so long; those who are in the middle then come to their end."""
        over = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for i in range(PAGES):
                tasks.create_task(self._page(over, i))
            for _ in range(PROGRAMS):
                tasks.create_task(self._program(over))
            tasks.create_task(self._restart(over))

    async def _page(self, over: float, number: int) -> None:
        async with browser(self.ports[0]) as session:
            while time.monotonic() < over:
                ports = self.ports[number % 2 :] + self.ports[: number % 2]
                await self._visit(Visitor(session, ports), session)

    async def _visit(self, visitor: Visitor, session: ClientSession) -> None:
        words, how = self.dice.randrange(20, 120), self.dice.random()
        if how < 0.2:
            visitor.stop_at = 8
        elif how < 0.5:
            visitor.leave_at = self.dice.randrange(3, 12)
        await visitor.ask(f"/echo {words} {self.dice.choice(('2ms', '5ms', '15ms'))}")
        reason = visitor.end["reason"]
        self.happened[f"pages: {reason}"] += 1
        self.happened["pages: reconnects"] += visitor.reconnects
        assert counted(words).startswith(visitor.text)
        assert reason in (("stop", "cancelled") if visitor.stop_at else ("stop",)), visitor.end
        assert reason != "stop" or visitor.text == counted(words)
        url = f"http://127.0.0.1:{self.ports[0]}/conversations/{visitor.accepted['conversation']}"
        async with session.delete(url) as response:
            assert response.status == 204

    async def _program(self, over: float) -> None:
        while time.monotonic() < over:
            asked = counting(self.dice.randrange(10, 80), "5ms", keep=False)
            if self.dice.random() < 0.3:
                async with chat.ask(self.fleet.broker, asked) as frames:
                    await frames.take()
                self.happened["programs: left"] += 1
            else:
                heard = await listen(self.fleet.broker, asked)
                heard.check()
                self.happened["programs: stop"] += 1

    async def _restart(self, over: float) -> None:
        for number in itertools.count():
            await asyncio.sleep(min(RESTART_SECONDS, max(0.0, over - time.monotonic())))
            if time.monotonic() >= over:
                return
            if number % 2:
                self.restarted.kill()
                self.happened["workers: killed"] += 1
            else:
                assert await self.restarted.terminate() == 0
                self.happened["workers: drained"] += 1
            self.restarted = await self.fleet.worker(drain_seconds=1)

    async def rest(self) -> dict[str, tuple[str, float, float]]:
        """What everything holds once nothing is left to do: name -> unit, amount, slack."""
        fleet = self.fleet
        await fleet.idle(20)
        await eventually(lambda: self._workers(2), 10)
        await self._let_go()
        await asyncio.sleep(1.5)  # the last heartbeats, closed sockets
        gc.collect()
        server = fleet.server.process.pid
        memory = await fleet.broker.redis.info("memory")
        members = {"web 1": self.webs[0], "web 2": self.webs[1], "steady worker": self.steady}
        pids = {name: member.pid for name, member in members.items()}
        pids |= {"restarted worker": self.restarted.pid, "Valkey": server, "this process": os.getpid()}
        held = {f"memory of {name}": ("MB", memory_mb(pid), 1.0) for name, pid in pids.items()}
        held["memory of Valkey"] = ("MB", memory_mb(server), 4.0)  # its allocator, by how much was there at once
        held["data in Valkey"] = ("kB", memory["used_memory_dataset"] / 1e3, 20.0)
        held["keys without an end"] = ("keys", await self._keys(), 0.0)
        for name, pid in pids.items():
            files, connections = files_of(pid, fleet.server.port)
            held[f"files of {name}"] = ("files", files, 0.0)
            assert pid == server or connections <= CONNECTIONS + 2, "a pool keeps the most that were needed at once"
        held |= {f"tasks of {name}": ("tasks", await tasks_of(member), 0.0) for name, member in members.items()}
        held["tasks of this process"] = ("tasks", float(len(asyncio.all_tasks())), 0.0)
        return held

    async def _keys(self) -> float:
        """How many keys have no expiry; every other one must have one that its kind allows."""
        endless = 0
        async for key in self.fleet.broker.redis.scan_iter(count=1000):
            left = await self.fleet.broker.redis.ttl(key)
            if left == -1:
                endless += 1
            elif left >= 0:
                kind = "arq:job" if key.startswith(b"arq:job") else key.decode().partition(":")[0]
                assert left <= LIFETIMES[kind], (key, left)
        return float(endless)

    async def _let_go(self) -> None:
        """As if two minutes had passed: what belongs to ended requests and deleted conversations, and nothing else, is forgotten."""
        redis = self.fleet.broker.redis
        async for key in redis.scan_iter(count=1000):
            kind = key.decode().partition(":")[0]
            if kind in UNDO and await redis.ttl(key) >= 0:
                await redis.unlink(key)
            if kind in REST:
                left = await redis.ttl(key)
                if left == -2:
                    continue  # two minutes have really passed
                fields = await redis.hgetall(keys.request(key.decode().partition("{")[2].rstrip("}")))
                assert 0 <= left <= 120, (key, left, fields)
                assert fields.get(b"state", b"ended") == b"ended", (key, fields)
                await redis.unlink(key)
        await redis.execute_command("MEMORY", "PURGE")


def files_of(pid: int, port: int) -> tuple[float, int]:
    """How many files and sockets a process has open, and beside them how many connections of the server at `port`."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if row[3] != "0A" and f":{port:04X}" in (row[1][-5:], row[2][-5:])}
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError, ProcessLookupError):  # of this look itself
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    connections = sum(link in ours for link in links)
    return float(len(links) - connections), connections


async def tasks_of(member: Member) -> float:
    """The number of a process's asyncio tasks, as it tells itself."""
    path = member.log.parent / "tasks"
    path.unlink(missing_ok=True)
    os.kill(member.pid, signal.SIGUSR1)
    await eventually(path.exists)
    return float(path.read_text())


async def soak(folder: Path, minutes: float, tell: Callable[[str], None] = print) -> list[Row]:
    """Warm up, load, and compare; `minutes` is all of it."""
    warm = 150.0 if minutes >= 5 else max(15.0, 12 * minutes)
    async with Soak.open(folder) as fleet:
        await fleet.load(warm)
        start = await fleet.rest()
        fleet.happened.clear()
        await fleet.load(60 * minutes - warm)
        end = await fleet.rest()
        if warm < 120:
            del start["memory of Valkey"]  # it grows until the first ended requests are forgotten; its data are counted
        rows = [Row(name, unit, amount, end[name][1], slack) for name, (unit, amount, slack) in start.items()]
        tell(f"{'':<28} {'start':>9} {'end':>9}")
        for row in rows:
            tell(str(row))
        tell(", ".join(f"{what} {count}" for what, count in sorted(fleet.happened.items())))
        assert {"pages: cancelled", "pages: reconnects", "programs: left", "workers: killed"} <= set(fleet.happened)
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(soak(Path(folder), float(sys.argv[1])))
    sys.exit(0 if all(row.ok for row in rows) else 1)


if __name__ == "__main__":
    main()
