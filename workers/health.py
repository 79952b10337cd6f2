"""What other programs ask a worker: does its engine move, and what has it done. A small server beside the worker.

`/livez` is 200 with the worker's state, or 503 with one sentence when the engine is dead or silent. That Redis is away is
no fault of the worker's, which waits for it: the state says so. `/metrics` is for Prometheus.
"""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from redis.exceptions import RedisError

from broker import keys, metrics
from broker.errors import SetupError
from workers.engine import Engine

if TYPE_CHECKING:
    from workers.lifecycle import Presence

CHECK_SECONDS = (
    5.0  # many steps of the slowest model; a third of the stall time if that is less, to be seen before the end
)
REDIS_SECONDS = 0.5  # a scrape does not wait for a Redis that is away


class Pulse:
    """Whether an engine moves. Somebody has to `look` about once a second."""

    def __init__(self, engine: Engine, stall_seconds: float) -> None:
        self._engine = engine
        self._stall = stall_seconds
        self._steps = engine.steps
        self._moved = time.monotonic()

    def look(self) -> float:
        """Seconds without a step though there is work."""
        now = time.monotonic()
        if self._engine.steps != self._steps or not self._engine.busy:
            self._steps, self._moved = self._engine.steps, now
        return now - self._moved

    @property
    def trouble(self) -> str:
        """One sentence when the engine is dead or silent, else nothing."""
        if not self._engine.alive:
            return "The engine's thread has died; this worker ends."
        if (silent := self.look()) > min(CHECK_SECONDS, self._stall / 3):
            return (
                f"The engine has work and has made no step for {silent:.1f} s; at {self._stall:g} s this worker ends."
            )
        return ""


@asynccontextmanager
async def serving(where: str, presence: "Presence") -> AsyncIterator[str]:
    """The server while the block runs; gives the address of its metrics, nothing if it is off.

    Raises:
        SetupError: the address is none, or is taken.
    """
    if where == "off":
        yield ""
        return
    host, _, port = where.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65_536):
        raise SetupError(f"FLEETCHAT_METRICS is {where!r}, which is neither HOST:PORT nor off.")
    app = web.Application()
    app[PRESENCE] = presence
    app.add_routes([web.get("/livez", livez), web.get("/metrics", show_metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            raise SetupError(
                f"The metrics cannot be served on {where} ({error.strerror or error}). "
                f"Choose another FLEETCHAT_METRICS; {host}:0 takes any free port."
            ) from None
        name = socket.gethostname() if host in ("0.0.0.0", "[::]") else host  # where others find it
        yield f"http://{name}:{runner.addresses[0][1]}/metrics"
    finally:
        await runner.cleanup()


async def livez(request: web.Request) -> web.Response:
    """200, or 503 when the engine is dead or silent."""
    presence = request.app[PRESENCE]
    trouble = presence.pulse.trouble if presence.pulse else ""
    found = {"ok": not trouble, "state": presence.state, "redis": presence.broker.listener.alive}
    return web.json_response(found | ({"trouble": trouble} if trouble else {}), status=503 if trouble else 200)


async def show_metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    presence = request.app[PRESENCE]
    running = Counter(claim.model for claim in presence.worker.claims.values() if not claim.beside)
    for name in presence.names:
        metrics.RUNNING.labels(name).set(running[name])
        metrics.CACHE_USE.labels(name).set(presence.engine.cache_use if presence.engine else 0.0)
    await _look_at_queues(presence)
    body, content_type = metrics.render()
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _look_at_queues(presence: "Presence") -> None:
    metrics.WAITING.clear()  # what cannot be known now is not there
    if not presence.broker.listener.alive:
        return
    try:
        async with asyncio.timeout(REDIS_SECONDS), presence.broker.redis.pipeline(transaction=False) as pipe:
            for name in presence.names:
                pipe.zcard(keys.queue(name))
            for name, waiting in zip(presence.names, await pipe.execute(), strict=True):
                metrics.WAITING.labels(name).set(waiting)
    except (RedisError, OSError):
        return  # TimeoutError is one of them


PRESENCE: web.AppKey["Presence"] = web.AppKey("presence")
