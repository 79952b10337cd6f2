"""Real processes that are really hurt: a fleet of its own for each test, people who ask, and what each of them heard.

A fault counts only if it took effect. So the server's process id is asserted before and after, what is stopped or killed
is looked at, and a test compares epochs, counters or pauses with what the fault must leave behind.
"""

import asyncio
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

import fleet_process
from broker import chat, embedded, registry
from broker.config import Config
from broker.connection import Broker
from broker.errors import FleetError
from broker.messages import ChatRequest, Message, Sampling
from helpers import eventually


class Server:
    """A Valkey with an append-only file, on a port that stays the same when it is killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.port = folder, embedded.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.start()

    def start(self) -> None:
        with open(self.folder / "valkey.log", "ab") as log:
            command = [*embedded.command(self.folder, self.port), *self._options]
            # Python ignores SIGXFSZ, and so does the server then: a file that may not grow is a full disk to it.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, restore_signals=False)
        embedded.wait_until_up(self.port, self.process.pid)  # asserts the process id too

    def kill(self) -> None:
        """kill -9, and gone."""
        self.process.kill()
        self.process.wait(10)

    def restart(self, down: float = 0.0) -> None:
        """kill -9, `down` seconds of nothing, and a new process on the same file."""
        old = self.process.pid
        self.kill()
        time.sleep(down)
        self.start()
        assert self.process.pid != old

    def stop(self) -> None:
        """SIGSTOP, and seen to have stopped."""
        freeze(self.process.pid)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    @property
    def written(self) -> Path:
        """The append-only file."""
        (path,) = Path(self.folder, "appendonlydir").glob("*.incr.aof")
        return path

    def limit_disk(self, more: int | None) -> None:
        """As if the disk had room for so many bytes more; None: for all."""
        size = resource.RLIM_INFINITY if more is None else self.written.stat().st_size + more
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def command(self, *words: str) -> Any:
        """One command over a connection of its own."""
        with Redis(port=self.port, socket_timeout=5) as redis:
            return redis.execute_command(*words)

    def cut_connections(self) -> int:
        """CLIENT KILL of all, the subscriptions too; how many there were."""
        return sum(self.command("CLIENT", "KILL", "TYPE", kind) for kind in ("normal", "pubsub"))


class Member:
    """A worker or a web app of the fleet."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and gone."""
        assert self.process.poll() is None, "it had ended before it was killed"
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """SIGSTOP, and seen to have stopped."""
        freeze(self.pid)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def terminate(self, seconds: float = 30) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, seconds)


def accepted(port: int) -> int:
    """How many connections the process that listens on a loopback port holds open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].partition(":")[2], 16) == port and row[3] != "0A" and row[9] != "0" for row in rows)


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.001)


@dataclass(eq=False)
class Heard:
    """What one reader heard of one answer."""

    request: ChatRequest
    began: float = field(default_factory=time.monotonic)
    frames: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: FleetError | None = None  # refused on entering, or raised while reading

    @property
    def end(self) -> dict[str, Any]:
        """The last frame's; empty while there is none."""
        return self.frames[-1].get("end", {}) if self.frames else {}

    @property
    def text(self) -> str:
        kept: list[str] = []
        for frame in self.frames:
            del kept[frame["seq"] :]
            kept.append(frame["text"])
        return "".join(kept)

    @property
    def epochs(self) -> int:
        return max((frame["epoch"] for frame in self.frames), default=0)

    @property
    def pause(self) -> float:
        """The longest time between two frames, seconds; the time before the first one counts."""
        return max((b - a for a, b in itertools.pairwise([self.began, *self.times])), default=0.0)

    def check(self, *, replaced: bool = False) -> None:
        """Every number once, in order, one last frame, no error. `replaced`: Redis may have lost its last second, so a
        later epoch may write numbers again."""
        assert self.error is None, self.error
        assert self.end, "no last frame"
        assert [i for i, frame in enumerate(self.frames) if "end" in frame] == [len(self.frames) - 1]
        epochs = [frame["epoch"] for frame in self.frames]
        assert epochs == sorted(epochs)
        numbers = [frame["seq"] for frame in self.frames]
        if replaced:
            for (a, epoch), (b, later) in itertools.pairwise(zip(numbers, epochs, strict=True)):
                assert b == a + 1 or (b <= a and later > epoch), numbers
            assert numbers[0] == 0
        else:
            assert numbers == list(range(len(numbers)))
        assert self.end["reason"] in ("stop", "length"), self.end


async def listen(broker: Broker, request: ChatRequest, heard: Heard | None = None) -> Heard:
    """Ask, and write down everything."""
    heard = heard or Heard(request)
    try:
        async with chat.ask(broker, request) as reader:
            async for received in reader:
                heard.times.append(time.monotonic())
                heard.frames.append(vars_of(received.encoded))
    except FleetError as error:
        heard.error = error
    return heard


def vars_of(encoded: bytes) -> dict[str, Any]:
    from broker.messages import unpack

    return dict(unpack(encoded))


def counting(words: int, pace: str = "10ms", *, owner: str = "", keep: bool = True, model: str = "echo") -> ChatRequest:
    """A request that the echo answers with the words 1 to `words`."""
    return ChatRequest(
        model, (Message("user", f"/echo {words} {pace}"),), Sampling(temperature=0), owner=owner, keep=keep
    )


def counted(words: int) -> str:
    """What the echo says to `counting`."""
    return "".join(f"{i} " for i in range(1, words + 1))


class Fleet:
    """A server, and what the test starts beside it; everything is killed at the end."""

    def __init__(self, folder: Path, server: Server, stack: AsyncExitStack) -> None:
        self.folder, self.server = folder, server
        self.url = server.url
        self.broker: Broker
        self._stack = stack
        self._numbers = itertools.count()

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, *server_options: str, **settings: object) -> AsyncIterator["Fleet"]:
        """`settings` are FLEETCHAT_ settings of the broker in this process, which asks as a web app does."""
        server = Server(folder, *server_options)
        try:
            async with AsyncExitStack() as stack:
                fleet = cls(folder, server, stack)
                stack.callback(server.go_on)  # closing needs it
                config = Config.from_env(fleet_process.environment(fleet.url, data=folder, **settings))
                fleet.broker = await stack.enter_async_context(Broker.open(config))
                yield fleet
        finally:
            server.kill()

    def start_worker(self, model: str = "echo", **settings: object) -> Member:
        """`arq workers.Settings`, which may still be starting."""
        return self._start(fleet_process.worker, model, **settings)

    async def worker(self, model: str = "echo", **settings: object) -> Member:
        """A worker that the registry knows as ready."""
        member = self.start_worker(model, **settings)

        async def ready() -> bool:
            assert member.process.poll() is None, member.log.read_text()
            workers = await registry.workers(self.broker)
            return any(w.fields["pid"] == str(member.pid) and w.fields["state"] == "ready" for w in workers)

        await eventually(ready, 40)
        return member

    async def web(self, **settings: object) -> tuple[Member, int]:
        """A web app that listens, and its port."""
        port = int(str(settings.pop("port", 0))) or embedded.free_port()
        member = self._start(fleet_process.web, port, **settings)
        await asyncio.to_thread(fleet_process.wait_for_port, port)
        return member, port

    def program(self, name: str, *words: object, **settings: object) -> Member:
        """One of the scripts beside this file, in a process of its own; what it prints is in its log."""
        folder = self.folder / f"member{next(self._numbers)}"
        folder.mkdir()
        command = [sys.executable, str(Path(__file__).parent / name), *map(str, words)]
        env = fleet_process.environment(self.url, **settings) | {"MEMBER_TASKS": str(folder / "tasks")}
        log = folder / "program.log"
        return Member(self._stack.enter_context(fleet_process.process(command, env, log)), log)

    def _start(self, how: Callable[..., Any], *args: object, **settings: object) -> Member:
        folder = self.folder / f"member{next(self._numbers)}"
        folder.mkdir()
        process = self._stack.enter_context(how(self.url, folder, *args, **settings))
        return Member(process, folder / ("worker.log" if how is fleet_process.worker else "web.log"))

    async def state(self, request_id: str) -> dict[str, str]:
        """The fields of request:{R}."""
        from broker import keys

        fields = await self.broker.redis.hgetall(keys.request(request_id))
        return {k.decode(): v.decode() for k, v in fields.items()}

    async def idle(self, seconds: float = 10) -> None:
        """Until nothing waits and nothing runs."""

        async def nothing() -> bool:
            states = await registry.models(self.broker)
            return not any(s.waiting or s.running for s in states)

        await eventually(nothing, seconds)


@asynccontextmanager
async def load(
    broker: Broker,
    users: int,
    make: Callable[[int], ChatRequest],
    pause: float = 0.0,
    hear: Callable[[Broker, ChatRequest, Heard], Awaitable[object]] = listen,
) -> AsyncIterator[list[Heard]]:
    """People who ask again and again while the block runs; after it, those who are in the middle hear their answer to
    its end. Gives the list of what was heard, which grows."""
    all_heard: list[Heard] = []
    numbers = itertools.count()
    over = asyncio.Event()

    async def user() -> None:
        while not over.is_set():
            heard = Heard(make(next(numbers)))
            all_heard.append(heard)
            await hear(broker, heard.request, heard)
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(users):
            tasks.create_task(user())
        try:
            yield all_heard
        finally:
            over.set()
