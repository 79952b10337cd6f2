"""The connection of one process to its fleet: Redis, the scripts, the listener, and the sweep that time needs.

`async with Broker.open(config) as broker` is what every process of a fleet begins with. Commands have timeouts and are
sent again after a lost connection (every script may be repeated); the subscription has neither, see `broker.listener`.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError, TimeoutError

from broker.config import Config
from broker.errors import FleetError, RanTooLong, RedisAway, SetupError, StorageFull, WaitedTooLong, WorkerLost
from broker.listener import Listener
from broker.logs import hide
from broker.messages import pack, unpack
from broker.scripts import Scripts
from broker.tasks import beside

logger = logging.getLogger("fleetchat.broker")

T = TypeVar("T")

HEARTBEAT_SECONDS = 1.0
SWEEP_SECONDS = 0.5  # with the lease it makes the pause after a worker's death
ORPHAN_SECONDS = 30.0  # a request that nobody keeps and nobody hears ends after this
CONNECTIONS = 64
FULL_SHARE = 0.9  # of maxmemory


class Broker:
    """What a process has of its fleet. Make it with `Broker.open`."""

    def __init__(self, config: Config, redis: ArqRedis) -> None:
        self.config = config
        self.redis = redis
        self.scripts = Scripts(redis)
        self.listener = Listener(redis)
        self.nearly_full = False  # no new requests then; what runs goes on
        self._background: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[Self]:
        """A broker with its subscription and its sweep running. Redis may still be away: both wait for it."""
        broker = cls(config, connect(config.redis_url))
        try:
            async with broker.listener.running(), beside(broker._sweep()):
                try:
                    yield broker
                finally:
                    await asyncio.gather(*broker._background, return_exceptions=True)
        finally:
            await broker.redis.aclose(close_connection_pool=True)

    def later(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do it even if the caller is cancelled: a cancel, or a vote, after a closed tab. `open` waits for it at the end."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not (isinstance(error, FleetError) and error.status < 500):  # a refusal is its caller's to tell
            logger.error("work in the background failed: %r", error)

    async def _sweep(self) -> None:
        limits = [int(self.heartbeat_expiry * 1000), int(ORPHAN_SECONDS * 1000)]
        errors = [pack(error.to_map()) for error in (WaitedTooLong(), RanTooLong(), WorkerLost())]
        for turn in itertools.count():
            try:
                if turn % 10 == 0:
                    memory = await self.redis.info("memory")
                    self.nearly_full = memory["used_memory"] > FULL_SHARE * memory["maxmemory"] > 0
                pruned, returned, ended = await self.scripts.expire(args=[*limits, *errors])
                if pruned or returned:
                    logger.warning("%d workers went silent, %d requests returned to their queues", pruned, returned)
                if ended:
                    logger.info("%d requests ended by their limits", ended)
            except ResponseError as error:
                logger.log(logging.DEBUG if turn % 10 else logging.WARNING, "Redis refuses the sweep: %s", error)
            except (RedisError, OSError) as error:
                logger.debug("no sweep: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    @property
    def heartbeat_expiry(self) -> float:
        """Seconds of silence after which a worker counts as gone."""
        return self.config.lease_seconds


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """`sentinel://[user:password@]host:port,host:port/NAME`: the sentinels, and the primary that they watch."""

    hosts: list[tuple[str, int]]
    name: str
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError if a port is missing or no number."""
        address = urlsplit(url)
        hosts = [host.rpartition(":") for host in address.netloc.rpartition("@")[2].split(",")]
        return cls(
            [(name, int(port)) for name, _, port in hosts],
            address.path.strip("/") or "mymaster",
            address.username and unquote(address.username),
            address.password and unquote(address.password),
        )


def connect(url: str) -> ArqRedis:
    """A client for `redis://`, `rediss://`, `unix://` or `sentinel://[user:password@]host:port,host:port/NAME`.

    Raises:
        SetupError: the address cannot be read.
    """
    # OSError: a refused connection is outside redis-py's own list of what may be tried again.
    options: dict[str, Any] = {
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "retry": Retry(ExponentialBackoff(cap=1, base=0.02), 8),
        "retry_on_error": [ConnectionError, TimeoutError, OSError],
    }
    try:
        if url.startswith("sentinel://"):
            at = SentinelAddress.parse(url)
            login = {"username": at.username, "password": at.password}
            sentinel = Sentinel(at.hosts, **options, **{k: v for k, v in login.items() if v})
            client: ArqRedis = sentinel.master_for(at.name, redis_class=ArqRedis)
            client.job_serializer, client.job_deserializer = pack, unpack
            return client
        if url.startswith("unix://"):
            del options["socket_keepalive"]
        pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=10, **options)
        return ArqRedis(pool, job_serializer=pack, job_deserializer=unpack)  # arq's own default is pickle
    except ValueError:  # its words may quote a part of the password
        raise SetupError(
            f"REDIS_URL is {hide(url)!r}, which is no address of a Redis server. One is redis://HOST:PORT/0; a password's "
            "special characters have to be percent-encoded."
        ) from None


async def keep_trying(call: Callable[[], Awaitable[T]]) -> T:
    """The call's result, however long Redis is away or full. What Redis refuses for good is raised."""
    pause = 0.05
    while True:
        try:
            return await call()
        except (RedisError, OSError) as error:
            if isinstance(error, ResponseError) and not _passes(error):
                raise
            logger.warning("Redis is away, trying again: %s", error or type(error).__name__)
        await asyncio.sleep(pause)
        pause = min(1.0, 2 * pause)


def _passes(error: ResponseError) -> bool:
    """Whether a refusal is of the moment: full memory or disk, a replica that is being promoted."""
    return isinstance(error, OutOfMemoryError | ReadOnlyError) or str(error).startswith("MISCONF")


@asynccontextmanager
async def redis_errors() -> AsyncIterator[None]:
    """Around what people wait for: Redis' errors become ours, which say what to do."""
    try:
        yield
    except ResponseError as error:
        if _passes(error):
            raise StorageFull from error
        raise
    except (ConnectionError, TimeoutError, OSError) as error:
        raise RedisAway from error
