"""`fleetchat up`: a whole fleet on one machine, as child processes.

The embedded Valkey (unless REDIS_URL is set), a worker for each group of models, one for the role `jobs`, and the web app,
each in a session of its own with its output in DATA/logs. A child that dies is started again after a growing pause, except a worker that says by
exit code 2 that it never can, or by 0 that it has drained. Stopping is web, workers, Valkey, in that order, within 5 seconds.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from redis.exceptions import RedisError

from broker import embedded, registry
from broker.config import Config
from broker.connection import Broker, connect
from broker.errors import FleetError, SetupError
from broker.logs import hide
from broker.messages import JOBS
from broker.registry import ModelState
from broker.sources import ModelSource
from broker.tasks import stop

PAUSES = (1, 2, 4, 8, 15, 30)  # seconds before the next start of a child that died
STEADY_SECONDS = 60.0  # a child that lived this long starts again with the shortest pause
WEB_SECONDS, WORKER_SECONDS, SERVER_SECONDS = 1.2, 2.8, 0.8  # to stop: 5 s together, with a little left over
DRAIN_SECONDS = 2.0
CANNOT_START = 2
LOG_BYTES = 10_000_000
ARQ = (sys.executable, "-m", "arq", "workers.Settings")

Tell = Callable[[str], None]
Group = Sequence[ModelSource]
"""The models that one worker serves."""


@dataclass
class Child:
    """A process of the fleet, started again when it dies."""

    name: str
    command: Sequence[str]
    env: dict[str, str]
    log: Path
    tell: Tell
    drains: bool = False  # exit code 0 is what it was told to do
    running: asyncio.Event = field(default_factory=asyncio.Event)
    gave_up: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None

    async def keep_running(self) -> None:
        """Until cancelled, or until it has exited with CANNOT_START, or has drained."""
        deaths = 0
        while True:
            began = time.monotonic()
            await self.start()
            assert self.process is not None
            code = await self.process.wait()
            if code == CANNOT_START:
                self.gave_up.set()
                return
            if code == 0 and self.drains:
                self.tell(f"{self.name} has drained, as it was told, and is not started again.")
                self.gave_up.set()
                return
            deaths = 0 if time.monotonic() - began > STEADY_SECONDS else deaths
            pause = PAUSES[min(deaths, len(PAUSES) - 1)]
            deaths += 1
            self.tell(f"{self.name} stopped ({_how(code)}); it starts again in {pause} s. Its log: {self.log}")
            await asyncio.sleep(pause)

    async def start(self) -> None:
        """One start. A log that has grown large is put aside first."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with await asyncio.to_thread(open, self.log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for `up`, which stops its children in order
                preexec_fn=_die_with_parent,
            )
        self.running.set()

    async def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL when the time is up."""
        if self.process is None or self.process.returncode is not None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(sign)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.process.wait()
                return

    def last_words(self) -> str:
        """The last line of its log, as people read it."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        last = lines[-1] if lines else ""
        with contextlib.suppress(ValueError, KeyError):  # it may be half written
            return str(json.loads(last)["message"]) if last.startswith('{"time"') else last  # FLEETCHAT_LOG=json
        return last


@dataclass
class Fleet:
    """A running fleet: where it is, and what its models do."""

    config: Config
    broker: Broker
    groups: Sequence[Group]
    workers: Sequence[Child]  # one for each group
    web: Child
    jobs: Child | None  # None: it cannot run here

    @property
    def models(self) -> list[ModelSource]:
        return _flat(self.groups)

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{self.config.port}"

    async def states(self) -> dict[str, ModelState]:
        """The fleet's models by name; one that nobody has announced yet is missing."""
        return {m.card.name: m for m in await registry.models(self.broker)}

    async def wait_until_ready(self) -> None:
        """Return once the page answers and the first model is ready.

        Raises:
            SetupError: no model can be served, or the web app cannot start; with its sentence.
        """
        names = {m.name for m in self.models}
        while True:
            states = {}
            with contextlib.suppress(FleetError):
                states = await self.states()
            ready = any(s.state == "ready" and s.workers for name, s in states.items() if name in names)
            if ready and await asyncio.to_thread(_answers, self.config.host, self.config.port):
                return
            if self.web.gave_up.is_set():
                raise SetupError(self.web.last_words())
            if all(worker.gave_up.is_set() for worker in self.workers):
                pairs = zip(self.groups, self.workers, strict=True)
                raise SetupError("\n".join(self._why(m, worker, states) for group, worker in pairs for m in group))
            await asyncio.sleep(0.1)

    def _why(self, model: ModelSource, worker: Child, states: dict[str, ModelState]) -> str:
        state = states.get(model.name)
        why = state.card.why if state and state.card.state == "failed" else worker.last_words()
        return f"{model.name} cannot be served: {why}"


@contextlib.asynccontextmanager
async def running(config: Config, groups: Sequence[Group], tell: Tell) -> AsyncIterator[Fleet]:
    """The fleet, started; stopped in order when the block ends.

    Raises:
        SetupError: it cannot start, with one sentence that says why.
    """
    check_models(_flat(groups))
    with lock(config.data):
        check_address(config)
        logs = config.data / "logs"
        logs.mkdir(exist_ok=True)
        server: Child | None = None
        tasks: list[asyncio.Task[None]] = []
        children: list[tuple[Child, float]] = []
        try:
            if "REDIS_URL" in os.environ:
                await _check_redis(config.redis_url)
            else:
                server, config = await _start_server(config, logs, tell)
                tasks.append(asyncio.create_task(server.keep_running()))
                await server_up(server)
            note = config.data / "redis.url"  # for `fleetchat status` on this machine
            note.touch(mode=0o600)  # it may hold a password
            note.write_text(config.redis_url)
            env = os.environ | config.to_env()
            # Torch takes every core for itself; several workers that all do so slow each other down many times.
            computing = sum(group[0].needs_torch for group in groups)
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, computing))))
            web = Child("The web app", [sys.executable, "-m", "webapp"], env, logs / "web.log", tell)
            workers = [_worker(group, config, env, logs, tell) for group in groups]
            jobs = _jobs(config, env, logs, tell)
            children = [(web, WEB_SECONDS), *((worker, WORKER_SECONDS) for worker in (*workers, jobs) if worker)]
            tasks += [asyncio.create_task(child.keep_running()) for child, _ in children]
            async with Broker.open(config) as broker:
                yield Fleet(config, broker, groups, workers, web, jobs)
        finally:
            await stop(*tasks)
            for child, seconds in children[:1]:
                await child.stop(seconds)
            await asyncio.gather(*(child.stop(seconds) for child, seconds in children[1:]))
            if server:
                await server.stop(SERVER_SECONDS)


def check_models(models: Sequence[ModelSource]) -> None:
    """Raises SetupError for a model that cannot run here."""
    needy = [m.name for m in models if m.needs_torch]
    if needy and not all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
        raise SetupError(
            f"{needy[0]} needs torch and transformers, which are not installed: pip install 'fleetchat[worker]'."
        )


def check_address(config: Config) -> None:
    """Raises SetupError if the web app cannot listen where it is told to."""
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise SetupError(
                f"Cannot listen on {config.host}:{config.port} ({error.strerror or error}). Choose another --port or --host."
            ) from None


@contextlib.contextmanager
def lock(data: Path) -> Iterator[None]:
    """Hold the data folder, so that two fleets do not write into one.

    Raises:
        SetupError: another fleet has it, or it cannot be written.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        handle = open(data / "lock", "a")  # noqa: SIM115
    except OSError as error:
        raise SetupError(f"The data folder {data} cannot be used: {error.strerror}.") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SetupError(
                f"A fleet is already running on {data}. Stop it, or choose another folder with --data."
            ) from None
        yield


async def _start_server(config: Config, logs: Path, tell: Tell) -> tuple[Child, Config]:
    folder, remembered = config.data / "valkey", config.data / "valkey.port"
    known = int(remembered.read_text()) if remembered.exists() and remembered.read_text().isdigit() else 0
    port = embedded.free_port(known)  # the same as last time, so that workers elsewhere find it again
    remembered.write_text(str(port))
    command = embedded.command(folder, port)
    config = replace(config, redis_url=f"redis://127.0.0.1:{port}/0")
    return Child("Valkey", command, dict(os.environ), logs / "valkey.log", tell), config


async def server_up(server: Child) -> None:
    """Return once the server answers."""
    port = int(server.command[server.command.index("--port") + 1])
    await server.running.wait()
    assert server.process is not None
    await asyncio.to_thread(embedded.wait_until_up, port, server.process.pid)


async def _check_redis(url: str) -> None:
    redis = connect(url)
    try:
        async with asyncio.timeout(5):
            await redis.ping()
    except (RedisError, OSError, TimeoutError) as error:
        raise SetupError(f"There is no Redis at REDIS_URL={hide(url)}: {error or 'it does not answer'}.") from None
    finally:
        await redis.aclose(close_connection_pool=True)


def _worker(group: Group, config: Config, env: dict[str, str], logs: Path, tell: Tell) -> Child:
    env = env | {"FLEETCHAT_MODEL": ",".join(map(str, group)), "FLEETCHAT_DRAIN_SECONDS": _drain(config)}
    name, more = group[0].name, len(group) - 1
    log = logs / f"worker-{name.replace('/', '_')}{f'+{more}' if more else ''}.log"
    of = f"{name} and {more} more" if more else name
    return Child(f"The worker of {of}", ARQ, env, log, tell, drains=True)


def _jobs(config: Config, env: dict[str, str], logs: Path, tell: Tell) -> Child | None:
    if importlib.util.find_spec("numpy") is None:
        tell("There is no leaderboard, since numpy is not installed: pip install 'fleetchat[jobs]'.")
        return None
    metrics = config.metrics if config.metrics == "off" else f"{config.metrics.rpartition(':')[0]}:0"
    more = {"FLEETCHAT_ROLE": JOBS, "FLEETCHAT_MODEL": "", "FLEETCHAT_METRICS": metrics}
    env = env | more | {"FLEETCHAT_DRAIN_SECONDS": _drain(config)}
    return Child("The jobs worker", ARQ, env, logs / "jobs.log", tell, drains=True)


def _drain(config: Config) -> str:
    return str(min(config.drain_seconds, DRAIN_SECONDS))


def _flat(groups: Sequence[Group]) -> list[ModelSource]:
    return [model for group in groups for model in group]


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host, port), 1):
            return True
    except OSError:
        return False


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _die_with_parent() -> None:
    """On Linux the kernel ends a child whose parent was killed, so that nothing is left behind (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
